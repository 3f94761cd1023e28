"""Models that the tests of scoring name on the command line, and run in processes of their own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jaxlift

ROOT = Path(__file__).parent.parent
LENGTH = 40
_RNG = np.random.default_rng(5)
_KERNEL = jnp.asarray(_RNG.normal(size=(5, 4, 8)), jnp.float32)
WEIGHTS = jnp.asarray(_RNG.normal(size=(8, 3)), jnp.float32)


def sequences(count, seed=0):
    """One-hot sequences."""
    return np.eye(4, dtype=np.float32)[np.random.default_rng(seed).integers(0, 4, (count, LENGTH))]


def model(x):
    """`(N, LENGTH, 4) -> (N, 3)`."""
    h = jax.lax.conv_general_dilated(x, _KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.tanh(jax.nn.relu(h).mean(1)) @ WEIGHTS


def letters_first(x):
    """`(N, 4, LENGTH) -> (N, 3)`."""
    return model(x.transpose(0, 2, 1))


def named(x):
    """`(N, 4) -> (N, 3)`, with names in it."""
    with jax.named_scope("first"):
        h = checkpoint_name(jnp.tanh(x @ _KERNEL[0]), "hidden")
    with jax.named_scope("second"):
        return jax.nn.relu(h @ WEIGHTS) ** 2


def other(x):
    """Another of the same shapes."""
    return jnp.tanh(model(x) * WEIGHTS[:1]) + model(x) ** 2


def heads(x):
    """Outputs by name."""
    return {"main": model(x), "counts": model(x)[:, :1] ** 2}


def factory():
    return model


def explained():
    return jax.jit(jaxlift.attribute(model, target=1, rule="gradient"))


explained_already = jaxlift.attribute(model, target=1, rule="revealcancel")


def mean_output(y):
    return y.mean(-1)


def reverse_complement(x):
    return x[::-1, ::-1]


def raises(x):
    raise RuntimeError("the model is broken")


def total(x):
    return jnp.tanh(x).reshape(len(x), -1).sum(1)


def no_factory():
    return np.zeros(3)
