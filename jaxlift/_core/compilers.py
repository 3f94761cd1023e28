"""What is written for one compiler's sake."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core.differences import where


def after(cotangent: Array, x: Array) -> Array:
    """`x`, to be worked out once, and not before the cotangent is there, for what barriers don't hold up.

    XLA has no barriers left where it puts a CPU's work in order, and does what it can for all layers at once: with
    RevealCancel's points, N * R of each.
    """
    return x / _one(cotangent).astype(x.dtype)


@jax.custom_jvp
def once(x: Array) -> Array:
    """`x`, to be worked out once. XLA works cheap things out again wherever they are used on a CPU, and a division is
    not cheap.
    """
    return x / _one(x)


once.defjvp(lambda primals, tangents: (once(*primals), *tangents))


def _one(x: Array) -> Array:
    """1, of which XLA doesn't know that it is, unless a number is none."""
    return where(jnp.isnan(x), lax.stop_gradient(x), 1)
