"""Trained networks in files, so that a picture can be drawn again."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def write(file: Path, model: nnx.Module) -> None:
    """The network's parameters, in their order."""
    np.savez(file, *jax.tree.leaves(nnx.state(model, nnx.Param)))


def read(file: Path, model: nnx.Module) -> None:
    """Give a network the parameters in a file."""
    structure = jax.tree.structure(nnx.state(model, nnx.Param))
    with np.load(file) as saved:
        nnx.update(model, jax.tree.unflatten(structure, map(jnp.asarray, saved.values())))
