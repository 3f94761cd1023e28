"""Trained Keras models from packages, on JAX, as functions of arrays."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax
import jax.numpy as jnp
import keras
from packages import wheel


def log_probabilities_of(package: str, version: str, file: str) -> Callable[[jax.Array], jax.Array]:
    """The logarithms of what a model in a package puts out, as it is used when it no longer learns."""
    with tempfile.NamedTemporaryFile(suffix=Path(file).suffix) as copy:
        copy.write(wheel(package, version).read(file))
        copy.flush()
        model = keras.models.load_model(copy.name, compile=False)
    assert isinstance(model, keras.Model)
    variables = model.trainable_variables, model.non_trainable_variables
    trained, others = (tuple(variable.value for variable in own) for own in variables)

    def log_probabilities(inputs: jax.Array) -> jax.Array:
        return jnp.log(model.stateless_call(trained, others, inputs, training=False)[0])

    return log_probabilities
