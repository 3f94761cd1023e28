"""Primitives that are defined by others: joint evaluation evaluates the definition, whose steps have rules.

The definitions are chosen so that each step is exact and sees all that takes part in it; what is static is worked out
when the program is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._registry import PrimitiveRule, family, family_by_name
from jaxlift._values import Value
from jaxlift.primitives.linear import both_sides

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter


def defined_as(definition: Callable[..., Any]) -> PrimitiveRule:
    """The rule of a primitive that equals a function of its operands, given its parameters by name."""

    def rule(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        return evaluated(interpreter, eqn, partial(definition, **eqn.params), operands)

    return rule


def expanded(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of a primitive that brings its definition with it."""
    return evaluated(interpreter, eqn, _compat.expansion(eqn), operands)


def evaluated(
    interpreter: Interpreter, eqn: JaxprEqn, fun: Callable[..., Any], operands: Sequence[Value]
) -> list[Value]:
    """The outputs of a function on values of the program."""
    settled = [interpreter.settle(operand) for operand in operands]
    sides = [jnp.asarray(value) for value in both_sides(settled)[0]]
    try:
        closed = jax.make_jaxpr(fun)(*(jax.ShapeDtypeStruct(side.shape, side.dtype) for side in sides))
    except NotImplementedError as error:
        raise interpreter.missing_rule(eqn, f"has no rule: {error}") from None
    return interpreter.inside(eqn).evaluate(closed.jaxpr, closed.consts, settled)


def product(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    """A product over axes, as a balanced tree of products of two: each shares its change among its two factors."""
    x = lax.collapse(jnp.moveaxis(x, axes, range(len(axes))), 0, len(axes))
    while len(x) > 1:
        odd = x[len(x) // 2 * 2 :]
        x = jnp.concatenate([x[0 : len(x) - len(odd) : 2] * x[1 : len(x) : 2], odd])
    return x[0] if len(x) else jnp.ones(x.shape[1:], x.dtype)


def cumulative(combine: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    """A running combination, by the associative scan that combines two at a time."""

    def definition(x: Array, *, axis: int, reverse: bool, **_: Any) -> Array:
        return lax.associative_scan(combine, x, reverse=reverse, axis=axis)

    return definition


def add_exponentials(x: Array, z: Array) -> Array:
    """`log(exp(x) + exp(z))`, as the logarithm of a sum over an axis, which has a rule of its own."""
    both = jnp.stack([x, z])
    largest = both.max(0)
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.log(jnp.exp(both - shift).sum(0)) + shift


def ranks(keys: Sequence[Array], precedes: Callable[[Array, Array], Array]) -> Array:
    """The place of each element of the last axis in the order of its keys, the first key first, and ties as they stand.

    An element's rank is the number of those that stand before it. Each comparison is a step in the difference of two
    elements, and so the rank changes by what those differences did.
    """
    n = keys[0].shape[-1]
    before = jnp.arange(n)[:, None] > jnp.arange(n)  # those that stand before, among equals
    for key in reversed(keys):
        mine, other = key[..., :, None], key[..., None, :]
        before = precedes(other, mine) | ((other == mine) & before)
    return before.sum(-1)


def arranged(values: Array, rank: Array, count: int) -> Array:
    """The elements of the last axis in the order of their ranks, the first so many of them."""
    chosen = rank[..., None, :] == jnp.arange(count)[:, None]
    return jnp.where(chosen, values[..., None, :], 0).sum(-1).astype(values.dtype)


def sorting(*operands: Array, dimension: int, num_keys: int, **_: Any) -> list[Array]:
    """Keys and what goes with them, in the order of the keys."""
    operands = tuple(jnp.moveaxis(operand, dimension, -1) for operand in operands)
    rank = ranks(operands[:num_keys], jnp.less)
    return [jnp.moveaxis(arranged(operand, rank, operand.shape[-1]), -1, dimension) for operand in operands]


def largest(x: Array, *, k: int, axis: int = -1, **_: Any) -> list[Array]:
    """The largest elements of an axis, and where they are."""
    x = jnp.moveaxis(x, axis, -1)
    rank = ranks([x], jnp.greater)
    places = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
    return [jnp.moveaxis(arranged(values, rank, k), -1, axis) for values in (x, places)]


def any_of(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    return _counted(x).max(axes) > 0


def all_of(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    return _counted(x).min(axes) > 0


def _counted(x: Array) -> Array:
    if x.dtype != jnp.bool_:
        raise NotImplementedError("the bits of integers have no differences")
    return x.astype(jnp.int32)


def product_at_places(x: Array, places: Array, updates: Array, *, dimension_numbers: Any, mode: Any, **_: Any) -> Array:
    """`x` times the updates at their places, one place after another: some may be the same."""
    windows = dimension_numbers.update_window_dims
    if dimension_numbers.operand_batching_dims:
        raise NotImplementedError("its places come in batches")
    rows = [axis for axis in range(updates.ndim) if axis not in windows]
    updates = jnp.transpose(updates, (*rows, *windows)).reshape(-1, *(updates.shape[axis] for axis in windows))
    own = lax.ScatterDimensionNumbers(
        tuple(range(len(windows))),
        dimension_numbers.inserted_window_dims,
        dimension_numbers.scatter_dims_to_operand_dims,
    )

    def step(y: Array, row: Any) -> tuple[Array, None]:
        place, update = row
        return y * lax.scatter(jnp.ones_like(y), place, update, own, mode=mode), None

    return lax.scan(step, x, (places.reshape(-1, places.shape[-1]), updates))[0]


def odd_number(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    """Whether an odd number of truth values hold."""
    return _counted(x).sum(axes) % 2 == 1


def elimination(a: Array, **_: Any) -> list[Array]:
    """The LU factors of `a`, its pivots, and the permutation of its rows: Gaussian elimination, step by step."""
    rows = jnp.arange(a.shape[-2], dtype=jnp.int32)
    order, pivots = jnp.broadcast_to(rows, a.shape[:-1]), []
    for k in range(min(a.shape[-2:])):
        pivot = (k + jnp.abs(a[..., k:, k]).argmax(-1, keepdims=True)).astype(jnp.int32)
        swap = jnp.where(rows == k, pivot, jnp.where(rows == pivot, k, rows))
        a, order = jnp.take_along_axis(a, swap[..., None], -2), jnp.take_along_axis(order, swap, -1)
        head = a[..., k, k][..., None]
        below = a[..., k + 1 :, k] / jnp.where(head == 0, 1, head)
        rest = a[..., k + 1 :, k + 1 :] - below[..., None] * a[..., k, k + 1 :][..., None, :]
        changed = jnp.concatenate([below[..., None], rest], -1)
        a = jnp.concatenate([a[..., : k + 1, :], jnp.concatenate([a[..., k + 1 :, :k], changed], -1)], -2)
        pivots.append(pivot)
    return [a, jnp.concatenate(pivots, -1), order]


family(defined_as(product), primitives("reduce_prod"))
family(defined_as(cumulative(jnp.multiply)), primitives("cumprod"))
family(defined_as(cumulative(jnp.maximum)), primitives("cummax"))
family(defined_as(cumulative(jnp.minimum)), primitives("cummin"))
family(defined_as(cumulative(add_exponentials)), primitives("cumlogsumexp"))
family(defined_as(sorting), primitives("sort"))
family(defined_as(largest), primitives("top_k"))
family(defined_as(any_of), primitives("reduce_or"))
family(defined_as(all_of), primitives("reduce_and"))
family_by_name(expanded, "call_hi_primitive")
family(defined_as(odd_number), primitives("reduce_xor"))
family(defined_as(product_at_places), primitives("scatter_mul"))
family(defined_as(elimination), primitives("lu"))
