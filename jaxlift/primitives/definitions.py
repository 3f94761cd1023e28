"""Primitives that are defined by others: joint evaluation evaluates the definition, whose steps have rules.

The definitions are chosen so that each step is exact and sees all that takes part in it; what is static is worked out
when the program is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family, implemented_by
from jaxlift._core.values import Settled, Value, Varying, both_sides, with_carrier
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.own_derivatives import by_steps_or_own_derivative


def defined_as(definition: Callable[..., Any]) -> Evaluation:
    """The evaluation of a primitive that equals a function of its operands, given its parameters by name."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        return evaluated(interpreter, eqn, partial(definition, **eqn.params), operands)

    return evaluate


def expanded(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of a primitive that brings its definition with it."""
    return evaluated(interpreter, eqn, versions.expansion(eqn), operands)


def implemented(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of another library's primitive, such as Equinox's: what it does, if JAX can trace that."""
    fun = versions.implementation(eqn)
    assert fun is not None
    try:
        return evaluated(interpreter, eqn, fun, operands)
    except (TypeError, ValueError) as error:  # as of NumPy, which takes no tracers
        reason = f"has no rule, and its implementation can't be traced ({type(error).__name__})"
        raise interpreter.missing_rule(eqn, reason) from error


def evaluated(
    interpreter: Interpreter, eqn: JaxprEqn, fun: Callable[..., Any], operands: Sequence[Value]
) -> list[Value]:
    """The outputs of a function on values of the program."""
    settled = [interpreter.settle(operand) for operand in operands]
    sides = [jnp.asarray(value) for value in both_sides(settled)[0]]
    try:
        closed = jax.make_jaxpr(fun)(*sides)
    except NotImplementedError as error:
        raise interpreter.missing_rule(eqn, f"has no rule: {error}") from None
    return interpreter.inside(eqn).evaluate(closed.jaxpr, closed.consts, settled)


def folded(xs: Sequence[Array], axes: Sequence[int], combine: Callable[..., Sequence[Array]]) -> list[Array]:
    """Reductions over axes of one element or more, as a balanced tree: each step shares its change among its two."""
    xs = [lax.collapse(jnp.moveaxis(x, axes, range(len(axes))), 0, len(axes)) for x in xs]
    while (n := len(xs[0])) > 1:
        combined = combine(*(x[0 : n - 1 : 2] for x in xs), *(x[1:n:2] for x in xs))
        xs = [jnp.concatenate([pairs, x[n - n % 2 :]]) for pairs, x in zip(combined, xs, strict=True)]
    return [x[0] for x in xs]


def fold(combine: Callable[[Array, Array], Array], start: Any) -> Callable[..., Array]:
    """A reduction of one array, whose value over no element is given."""

    def definition(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
        if x.size == 0:
            return jnp.full([n for axis, n in enumerate(x.shape) if axis not in axes], start).astype(x.dtype)
        return folded([x], axes, lambda *pair: [combine(*pair)])[0]

    return definition


def reduction(*operands: Array, jaxpr: Any, dimensions: Sequence[int], **_: Any) -> list[Array]:
    """A reduction by any function that doesn't mind the order, which XLA chooses."""
    combine = elementwise(jaxpr)
    xs, start = operands[: len(operands) // 2], operands[len(operands) // 2 :]
    rest = [n for axis, n in enumerate(xs[0].shape) if axis not in dimensions]
    start = [jnp.broadcast_to(value, rest) for value in start]
    return start if xs[0].size == 0 else list(combine(*start, *folded(xs, dimensions, combine)))


def elementwise(jaxpr: Any, consts: Sequence[Any] = ()) -> Callable[..., Sequence[Array]]:
    """A jaxpr of scalars as a function of arrays of one shape."""
    jaxpr, own = versions.opened(jaxpr)

    def combine(*operands: Array) -> Sequence[Array]:
        if operands[0].ndim == 0:
            return jax.core.eval_jaxpr(jaxpr, own or consts, *operands)
        return jax.vmap(combine)(*operands)

    return combine


def cumulative(combine: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    """A running combination, by the associative scan that combines two at a time."""

    def definition(x: Array, *, axis: int, reverse: bool, **_: Any) -> Array:
        return lax.associative_scan(combine, x, reverse=reverse, axis=axis)

    return definition


def over_devices(reduce: Callable[[Array, int], Array]) -> Callable[..., Array]:
    """A reduction over the devices of a mesh's axes, of values that are gathered first: each device puts its own in the
    place that it has among them, and they are added. (Of a sum it is known that it is the same on all devices.)
    """

    def definition(x: Array, *, axes: Any, axis_index_groups: Any, **_: Any) -> Array:
        if axis_index_groups is not None:
            raise NotImplementedError("it reduces over groups of devices")
        is_own = lax.broadcasted_iota(jnp.int32, (lax.axis_size(axes), *x.shape), 0) == lax.axis_index(axes)
        return reduce(lax.psum(jnp.where(is_own, jnp.expand_dims(x, 0), jnp.zeros_like(x)[None]), axes), 0)

    return definition


def add_exponentials(x: Array, z: Array) -> Array:
    """`log(exp(x) + exp(z))`, as the logarithm of a sum over an axis, which has a rule of its own."""
    both = jnp.stack([x, z])
    largest = both.max(0)
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.log(jnp.exp(both - shift[None]).sum(0)) + shift


def over_last_axes(x: Array, ndim: int) -> Array:
    """An array with leading axes of size 1, up to so many: user code may forbid that ranks are promoted implicitly."""
    return jnp.expand_dims(x, range(ndim - x.ndim))


def ranks(keys: Sequence[Array], precedes: Callable[[Array, Array], Array]) -> Array:
    """The place of each element of the last axis in the order of its keys, the first key first, and ties as they stand.

    An element's rank is the number of those that stand before it. Each comparison is a step in the difference of two
    elements, and so the rank changes by what those differences did.
    """
    n = keys[0].shape[-1]
    before = over_last_axes(jnp.tri(n, k=-1, dtype=bool), keys[0].ndim + 1)  # those that stand before, among equals
    for key in reversed(keys):
        mine, other = key[..., :, None], key[..., None, :]
        before = precedes(other, mine) | ((other == mine) & before)
    return before.sum(-1)


def arranged(values: Array, rank: Array, count: int) -> Array:
    """The elements of the last axis in the order of their ranks, the first so many of them."""
    chosen = rank[..., None, :] == over_last_axes(jnp.arange(count)[:, None], rank.ndim + 1)
    return jnp.where(chosen, values[..., None, :], 0).sum(-1).astype(values.dtype)


def sorting(*operands: Array, dimension: int, num_keys: int, **_: Any) -> list[Array]:
    """Keys and what goes with them, in the order of the keys."""
    operands = tuple(jnp.moveaxis(operand, dimension, -1) for operand in operands)
    rank = ranks(operands[:num_keys], jnp.less)
    return [jnp.moveaxis(arranged(operand, rank, operand.shape[-1]), -1, dimension) for operand in operands]


def sort(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `sort`. What goes with keys tells equal ones apart by place; a sort of numbers doesn't."""
    if len(operands) == 1:
        operands = [with_equals_sharing(interpreter.settle(operands[0]), eqn.params["dimension"])]
    return evaluated(interpreter, eqn, partial(sorting, **eqn.params), operands)


def top_k(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `top_k`: the largest elements of an axis, which equal ones share, and where they are."""
    k, axis = eqn.params["k"], eqn.params.get("axis", -1) % len(operands[0].shape)

    def largest(x: Array, taken: Callable[[Array], Array]) -> Array:
        x = jnp.moveaxis(x, axis, -1)
        return jnp.moveaxis(arranged(taken(x), ranks([x], jnp.greater), k), -1, axis)

    def values(x: Array) -> list[Array]:
        return [largest(x, lambda x: x)]

    def places(x: Array) -> list[Array]:
        return [largest(x, lambda x: lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1))]

    operand = interpreter.settle(operands[0])
    return [
        *evaluated(interpreter, eqn, values, [with_equals_sharing(operand, axis)]),
        *evaluated(interpreter, eqn, places, [operand]),
    ]


def with_equals_sharing(operand: Settled, axis: int) -> Settled:
    """The same value, for a function that doesn't tell elements of an axis apart: those that are equal, at the input
    and at the reference, get equal parts of what the function credits to them, by their places or otherwise.
    """
    if not isinstance(operand, Varying):
        return operand

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        sides = [jnp.moveaxis(side, axis, -1) for side in held]
        x_equal, r_equal = (side[..., :, None] == side[..., None, :] for side in sides)
        itself = over_last_axes(jnp.eye(sides[0].shape[-1], dtype=bool), x_equal.ndim)
        equal = (x_equal & r_equal) | itself  # NaN doesn't equal itself
        credit = jnp.moveaxis(cotangent, axis, -1)[..., None, :]
        shared = jnp.where(equal, credit, 0).sum(-1) / equal.sum(-1).astype(cotangent.dtype)
        return (jnp.moveaxis(shared, -1, axis),)

    def carrier() -> Array:
        held = (operand.value, operand.reference)
        return with_multipliers(lambda explained, held: explained[0], pull, (operand.carrier,), held)

    return with_carrier(lambda: operand.value, operand.reference, carrier, operand.fed_by, lambda: operand.variation)


def any_of(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    """Whether some truth value holds; of integers, the bits that some have."""
    return x.astype(jnp.int32).max(axes) > 0 if x.dtype == jnp.bool_ else fold(jnp.bitwise_or, 0)(x, axes=axes)


def all_of(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    return x.astype(jnp.int32).min(axes) > 0 if x.dtype == jnp.bool_ else fold(jnp.bitwise_and, -1)(x, axes=axes)


def at_places(combine: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """A scatter that combines what stands at a place with the update, one place after another: some may be the same."""

    def definition(x: Array, places: Array, updates: Array, *, dimension_numbers: Any, mode: Any, **_: Any) -> Array:
        windows, numbers = dimension_numbers.update_window_dims, dimension_numbers
        rows = [axis for axis in range(updates.ndim) if axis not in windows]
        if numbers.operand_batching_dims:
            outer = numbers.operand_batching_dims[0], numbers.scatter_indices_batching_dims[0]
            axes = (*outer, rows[outer[1]])
            inner = partial(definition, dimension_numbers=_within_batch(numbers, *axes), mode=mode)
            return jax.vmap(inner, axes, outer[0])(x, places, updates)
        updates = jnp.transpose(updates, (*rows, *windows)).reshape(-1, *(updates.shape[axis] for axis in windows))
        within = tuple(range(len(windows)))
        put = lax.ScatterDimensionNumbers(within, numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims)
        take = lax.GatherDimensionNumbers(
            within, tuple(put.inserted_window_dims), tuple(put.scatter_dims_to_operand_dims)
        )
        sizes = iter(updates.shape[1:])
        slices = [1 if axis in put.inserted_window_dims else next(sizes) for axis in range(x.ndim)]

        def step(y: Array, row: Any) -> tuple[Array, None]:
            place, update = row
            there = lax.gather(y, place, take, slices, mode="clip")  # the scatter drops what isn't there
            return lax.scatter(y, place, combine(there, update), put, mode=mode), None

        return lax.scan(step, x, (places.reshape(-1, places.shape[-1]), updates))[0]

    return definition


def _within_batch(numbers: Any, operand: int, places: int, updates: int) -> lax.ScatterDimensionNumbers:
    """The dimensions of a scatter without those of its first batch."""

    def without(axis: int, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(a - (a > axis) for a in axes if a != axis)

    return lax.ScatterDimensionNumbers(
        without(updates, numbers.update_window_dims),
        without(operand, numbers.inserted_window_dims),
        without(operand, numbers.scatter_dims_to_operand_dims),
        without(operand, numbers.operand_batching_dims),
        without(places, numbers.scatter_indices_batching_dims),
    )


def odd_number(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    """Whether an odd number of truth values hold."""
    return x.astype(jnp.int32).sum(axes) % 2 == 1 if x.dtype == jnp.bool_ else fold(jnp.bitwise_xor, 0)(x, axes=axes)


def elimination(a: Array, **_: Any) -> list[Array]:
    """The LU factors of `a`, its pivots, and the permutation of its rows: Gaussian elimination, step by step."""
    rows = jnp.broadcast_to(jnp.arange(a.shape[-2], dtype=jnp.int32), a.shape[:-1])
    order, pivots = rows, []
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


family(defined_as(fold(jnp.multiply, 1)), primitives("reduce_prod"))
family(defined_as(reduction), primitives("reduce"))
family(defined_as(cumulative(jnp.multiply)), primitives("cumprod"))
family(defined_as(cumulative(add_exponentials)), primitives("cumlogsumexp"))
family(defined_as(over_devices(jnp.max)), primitives("pmax"))
family(defined_as(over_devices(jnp.min)), primitives("pmin"))
family(sort, primitives("sort"))
family(top_k, primitives("top_k"))
family(defined_as(any_of), primitives("reduce_or"))
family(defined_as(all_of), primitives("reduce_and"))
family(by_steps_or_own_derivative(expanded), ["call_hi_primitive"])
family(defined_as(odd_number), primitives("reduce_xor"))
family(defined_as(at_places(jnp.multiply)), primitives("scatter_mul"))
family(defined_as(elimination), primitives("lu"))
implemented_by(by_steps_or_own_derivative(implemented))
