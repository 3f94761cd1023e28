"""What users pass, checked: options, inputs and references."""

from __future__ import annotations

from functools import reduce
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import Array


def summed(tree: Any) -> Array:
    """The sum over all arrays of a pytree."""
    return reduce(jnp.add, (jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))


def check_option(name: str, value: Any, options: Any, *more: Any) -> None:
    """Raise the error that says which values an option may have."""
    allowed = (*get_args(options), *more)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.")


def checked_pair(x: Any, reference: Any) -> tuple[Any, Any]:
    """The input and its reference as arrays of equal shapes and dtypes, or the error that says how they don't fit."""
    x = checked_input(x)
    check_structure(x, reference)
    reference = jax.tree.map(lambda value, ref: jnp.asarray(ref, value.dtype), x, reference)
    for (path, value), ref in zip(jax.tree.leaves_with_path(x), jax.tree.leaves(reference), strict=True):
        if value.shape != ref.shape:
            raise ValueError(
                f"the reference{jax.tree_util.keystr(path)} must have the shape of the input: expected {value.shape}, "
                f"got {ref.shape}. Broadcast it, as in jnp.broadcast_to(reference, x.shape)."
            )
    return x, reference


def check_structure(x: Any, reference: Any) -> None:
    """Raise the error for a reference that isn't a pytree as the input is."""
    structure, other = jax.tree.structure(x), jax.tree.structure(reference)
    if structure != other:
        raise ValueError(f"the reference must have the structure of the input: expected {structure}, got {other}.")


def checked_input(x: Any) -> Any:
    """The explained input as arrays, or the error that says which leaf can't be explained."""
    x = jax.tree.map(jnp.asarray, x)
    for path, leaf in jax.tree.leaves_with_path(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"the input{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, but only real floating-point numbers "
                "have differences to explain. Cast numbers with x.astype(jnp.float32). For token ids, explain the "
                "embeddings: make them first, and pass the function that goes on from there."
            )
    return x
