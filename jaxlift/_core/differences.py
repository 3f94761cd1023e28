"""Differences from the reference, and the multipliers that are quotients of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core.custom_derivatives import operation


def where(condition: Any, x: Any, y: Any) -> Array:
    """`jnp.where` as one operation. JAX's is a call, and calls are taken through each `jax.vmap` one by one."""
    if condition is True:
        return x
    dtype = jnp.result_type(x, y)
    return lax.select(*jnp.broadcast_arrays(condition, jnp.asarray(x, dtype), jnp.asarray(y, dtype)))


def is_finite(x: Array) -> Array:
    """`jnp.isfinite` as a comparison, the same to all compilers but XLA's for GPUs.

    The kernels in which that one fuses sums with what is computed of them can't hold `is_finite`: each layer norm took
    seven kernels more. (tests/test_compilers.py; tests/test_traffic.py, which counts them.)
    """
    return jnp.isfinite(x) if jnp.iscomplexobj(x) else jnp.abs(x) < jnp.inf


def large(dtype: Any) -> float:
    """The number that stands for infinity where the data masks: its exponential is infinite, and that of its negative
    is 0; beside it no logit counts, but the inverse of its square is a number, too. It is 2^48, in float16 2^10.
    """
    return 2.0 ** min(48, 5 * jnp.finfo(dtype).maxexp // 8)


def difference(x: Array, r: Array) -> Array:
    """`x - r`, where equal infinities (the masked logits of attention) differ by 0."""
    return where(x == r, 0, x - r)


def magnitude(x: Array, r: Array) -> Array:
    """`|x - r|`, the variation of a value that is no sum of others.

    Its derivative at 0 is 0, not JAX's 1: a term `w D` with `D = 0` is neither positive nor negative, and its
    multiplier is the mean of both parts'. Only `x` and `r` are saved for the backward pass, which are N and R, not N *
    R.
    """

    return _magnitude((x,), (r,))


def _forward_magnitude(explained: tuple[Array], held: tuple[Array]) -> Array:
    return jnp.abs(difference(*explained, *held))


def _pull_magnitude(cotangent: Array, explained: tuple[Array], held: tuple[Array]) -> tuple[Array]:
    return (cotangent * jnp.sign(difference(*explained, *held)),)


_magnitude = jax.jit(operation(_forward_magnitude, _pull_magnitude))


def slope_between(y: Array, y_ref: Array, x: Array, r: Array, dtype: Any) -> Array:
    """The multiplier `(y - y_ref) / (x - r)` of a step: of integers and truth values, 0 where they don't differ.

    Of complex numbers it is one, `m`, with `y - y_ref = Re(m (x - r))`, as JAX's derivatives are.
    """
    dtype = jnp.promote_types(dtype, x.dtype) if jnp.iscomplexobj(x) else dtype
    d = difference(x.astype(dtype), r.astype(dtype))
    return where(d == 0, 0, difference(y.astype(dtype), y_ref.astype(dtype)) / where(d == 0, 1, d))


def winners_share(rise: Array, d: Array) -> Array:
    """The multiplier of the winner of a maximum that rises, where its own difference is `d`.

    Who wins on both sides takes all, differences of 0 and of infinity included.
    """
    return where(d == rise, 1, rise / where(d == 0, 1, d))


def midpoint(x: Array, r: Array) -> Array:
    """`(x + r) / 2`, which is finite where both are. Halves are of each side, and one operation is of pairs."""
    return x / 2 + r / 2


def summed_to(shape: Sequence[int], cotangent: Array) -> Array:
    """The cotangent of what was repeated along axes, from a shape with axes of length 1 there."""
    axes = tuple(axis for axis, n in enumerate(shape) if n != cotangent.shape[axis])
    return cotangent.sum(axes, keepdims=True) if axes else cotangent
