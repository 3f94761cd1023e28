"""The one place where a derivative is replaced by a multiplier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from jaxlift._core.compilers import waiting_for

Arrays = tuple[Any, ...]


def with_multipliers(
    forward: Callable[[Arrays, Arrays], Any],
    pull: Callable[[Any, Arrays, Arrays], Arrays],
    explained: Arrays,
    held: Arrays,
) -> Any:
    """`forward(explained, held)`, with multipliers for its derivative: `operation`, applied."""
    return operation(forward, pull)(explained, held)


def operation(
    forward: Callable[[Arrays, Arrays], Any],
    pull: Callable[[Any, Arrays, Arrays], Arrays],
    keeping: Callable[[Arrays, Arrays], tuple[Any, Arrays]] | None = None,
) -> Callable[[Arrays, Arrays], Any]:
    """A function of `(explained, held)` that has multipliers for its derivative.

    Args:
        forward: computes the value, an array or a tuple of arrays, from `explained`, a tuple of the arrays to which
            multipliers lead, and `held`, a tuple of pytrees to which they don't: references, midpoints, parameters.
        pull: called with a cotangent, `explained` and `held`; returns the cotangents of `explained`.
        keeping: computes the value as `forward` does, and with it a tuple of what is kept for `pull`, as the last of
            `held`, because it costs much to compute again.

    Derivatives of the cotangents themselves are plain in everything, so scores can be differentiated.

    What is saved for the backward pass is these and nothing else: N + R examples of them where multipliers are wanted
    for N * R pairs. Multipliers are computed when their cotangent is there.
    """

    @jax.custom_vjp
    def apply(explained: Arrays, held: Arrays) -> Any:
        return forward(explained, held)

    def save(explained: Arrays, held: Arrays) -> tuple[Any, tuple[Arrays, Arrays]]:
        explained, held = custom_vjp_primal_tree_values((explained, held))
        value, kept = keeping(explained, held) if keeping else (forward(explained, held), ())
        return value, (explained, (*held, *kept))

    def restore(saved: tuple[Arrays, Arrays], cotangent: Any) -> tuple[Arrays, None]:
        if all(map(_is_zero, jax.tree.leaves(cotangent))):  # only used as another operation's residual
            return jax.tree.map(lambda _: None, saved[0]), None
        cotangent = jax.tree.map(_as_array, cotangent)
        cotangent, (explained, held) = waiting_for(cotangent, saved)
        cotangents = pull(cotangent, explained, held)
        return jax.tree.map(_as_cotangent_of, explained, cotangents), None

    apply.defvjp(save, restore, symbolic_zeros=True)
    return apply


def _is_zero(cotangent: Any) -> bool:
    """Whether a cotangent is known to be 0."""
    return isinstance(cotangent, SymbolicZero)


def _as_array(cotangent: Any) -> Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_zero(cotangent) else cotangent


def _as_cotangent_of(x: Array, cotangent: Array) -> Array:
    """In the dtype of `x`. To a real number the imaginary part of a cotangent is nothing."""
    return (cotangent if jnp.iscomplexobj(x) else jnp.real(cotangent)).astype(x.dtype)
