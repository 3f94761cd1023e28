"""The one place where a derivative is replaced by a multiplier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

Arrays = tuple[Any, ...]


def with_multipliers(
    forward: Callable[[Arrays, Arrays], Array],
    pull: Callable[[Array, Arrays, Arrays], Arrays],
    explained: Arrays,
    held: Arrays,
) -> Array:
    """`forward(explained, held)`, with multipliers for its derivative.

    Args:
        forward: computes the value, an array.
        pull: called with a cotangent, `explained` and `held`; returns the cotangents of `explained`.
        explained: tuple of the arrays to which multipliers lead.
        held: tuple of pytrees to which they don't: references, midpoints, parameters.

    Derivatives of the cotangents themselves are plain in everything, so scores can be differentiated.

    What is saved for the backward pass is the arguments and nothing else: N + R examples of them where multipliers are
    wanted for N * R pairs. The barrier makes the multipliers wait for the cotangent; without it XLA computes those of
    all layers as soon as it can and keeps them, N * R of each.
    """

    @jax.custom_vjp
    def apply(explained: Arrays, held: Arrays) -> Array:
        return forward(explained, held)

    def save(explained: Arrays, held: Arrays) -> tuple[Array, tuple[Arrays, Arrays]]:
        return forward(explained, held), (explained, held)

    def restore(saved: tuple[Arrays, Arrays], cotangent: Array) -> tuple[Arrays, None]:
        cotangent, (explained, held) = lax.optimization_barrier((cotangent, saved))
        cotangents = pull(cotangent, explained, held)
        return jax.tree.map(lambda ct, x: ct.astype(x.dtype), cotangents, explained), None

    apply.defvjp(save, restore)
    return apply(explained, held)
