"""The one place where a derivative is replaced by a multiplier, and differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

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
    keep: Callable[[Any], Arrays] = lambda value: (),
) -> Callable[[Arrays, Arrays], Any]:
    """A function of `(explained, held)` that has multipliers for its derivative.

    Args:
        forward: computes the value, an array or a tuple of arrays, from `explained`, a tuple of the arrays to which
            multipliers lead, and `held`, a tuple of pytrees to which they don't: references, midpoints, parameters.
        pull: called with a cotangent, `explained` and `held`; returns the cotangents of `explained`.
        keep: what of the value is kept for `pull`, as the last of `held`, because it costs much to compute again.

    Derivatives of the cotangents themselves are plain in everything, so scores can be differentiated.

    What is saved for the backward pass is these and nothing else: N + R examples of them where multipliers are wanted
    for N * R pairs. The barrier makes the multipliers wait for the cotangent; without it XLA computes those of
    all layers as soon as it can and keeps them, N * R of each.
    """

    @jax.custom_vjp
    def apply(explained: Arrays, held: Arrays) -> Any:
        return forward(explained, held)

    def save(explained: Arrays, held: Arrays) -> tuple[Any, tuple[Arrays, Arrays]]:
        explained, held = custom_vjp_primal_tree_values((explained, held))
        value = forward(explained, held)
        return value, (explained, (*held, *keep(value)))

    def restore(saved: tuple[Arrays, Arrays], cotangent: Any) -> tuple[Arrays, None]:
        if all(map(_is_zero, jax.tree.leaves(cotangent))):  # as of what others hold, and nothing else uses
            return jax.tree.map(lambda _: None, saved[0]), None
        cotangent = jax.tree.map(_as_array, cotangent)
        cotangent, (explained, held) = lax.optimization_barrier((cotangent, saved))
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


def where(condition: Any, x: Any, y: Any) -> Array:
    """`jnp.where` as one operation. JAX's is a call, and calls are taken through each `jax.vmap` one by one."""
    if condition is True:
        return x
    shape, dtype = jnp.broadcast_shapes(*map(jnp.shape, (condition, x, y))), jnp.result_type(x, y)
    arrays = condition, jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    return lax.select(*(each if each.shape == shape else jnp.broadcast_to(each, shape) for each in arrays))


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
