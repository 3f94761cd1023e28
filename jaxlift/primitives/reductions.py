"""Reductions that choose: the maximum over axes and over windows, and where it is.

A maximum changes because one element did. Let `c = max(y, y_ref)`. The element that is the maximum of the input brings
`c - y_ref`: as far as it lifts the maximum over the reference's. The element that is the maximum of the reference takes
`y - c`: what it cost to lower it. One of the two is 0, so the difference goes to one winner, the input's where `y >=
y_ref`, the reference's elsewhere; the winner's own difference is at least as large, so the multiplier is between 0 and
1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._multipliers import difference, slope_between, winners_share, with_multipliers
from jaxlift._registry import family
from jaxlift._values import Value, Varying
from jaxlift.primitives.linear import as_number, carrier_dtype, on_each_side, with_carrier

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter


def extremum(
    interpreter: Interpreter,
    eqn: JaxprEqn,
    operands: Sequence[Value],
    candidates: Callable[[Array], Array],
    axes: tuple[int, ...],
    sign: int,
) -> list[Value]:
    """The rule of a maximum (`sign` 1) or minimum (-1) over `axes` of `candidates(operand)`, a linear arrangement.

    Which element wins is found on each side, for N inputs and R references; what is left for the pairs is elementwise.
    """
    operand = interpreter.settle(operands[0])
    assert isinstance(operand, Varying)
    [(value, reference)] = on_each_side(eqn, [operand])
    operand = as_number(operand)
    of_input = interpreter.max_pooling == "original"

    def forward(explained: tuple[Array], _: Any) -> Array:
        return _compat.bind(eqn, explained)[0]

    def pull(cotangent: Array, explained: tuple[Array], held: tuple[Array]) -> tuple[Array]:
        arranged, undo = jax.vjp(candidates, *explained)
        x, r = sign * arranged, sign * candidates(*held)
        place = _places(x.shape, axes)
        ends = (_winner(x, place, axes), _winner(r, place, axes))
        (y, input_wins), (y_ref, reference_wins) = lax.optimization_barrier(ends)
        if of_input:
            won, share = place == input_wins, 1
        else:
            won = place == jnp.where(y >= y_ref, input_wins, reference_wins)
            share = jnp.where(input_wins == reference_wins, 1, winners_share(y - y_ref, difference(x, r)))
        return undo(jnp.where(won, jnp.expand_dims(cotangent, axes) * share, 0))

    def carrier() -> Array:
        return with_multipliers(forward, pull, (operand.value,), (operand.reference,))

    return [with_carrier(lambda: value, reference, carrier, operand.fed_by)]


def _places(shape: Sequence[int], axes: Sequence[int]) -> Array:
    """The row-major place of each element among those over `axes`, broadcastable to `shape`."""
    place = jnp.zeros((1,) * len(shape), jnp.int32)
    for axis in axes:
        along = lax.broadcasted_iota(jnp.int32, [n if i == axis else 1 for i, n in enumerate(shape)], axis)
        place = place * shape[axis] + along
    return place


def _winner(x: Array, place: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    """The maximum over `axes`, and the place of the first element that attains it.

    The places are compared along with the elements: XLA may compute `x` twice with different last bits, and then no
    element would equal a maximum that was found apart.
    """

    def first(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, i), (b, j) = one, other
        other_is = (b > a) | ((b == a) & (j < i))
        return jnp.where(other_is, b, a), jnp.where(other_is, j, i)

    nowhere = jnp.iinfo(place.dtype).max
    # NaN wins nothing. Places that depend on `x` are sharded as it is; XLA would gather what it finds among constants.
    operands = lax.stop_gradient(x), jnp.where(jnp.isnan(x), nowhere, place)
    start = jnp.asarray(-jnp.inf, x.dtype), jnp.asarray(nowhere, place.dtype)
    _, where = lax.reduce(operands, start, first, axes)
    return x.max(axes, keepdims=True), jnp.expand_dims(where, axes)


def reduce_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The rule of `reduce_max` and `reduce_min`."""
    return extremum(interpreter, eqn, operands, lambda x: x, eqn.params["axes"], sign)


def window_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The rule of max-pooling: a maximum over the elements of each window."""
    sizes, strides, holes = (eqn.params[f"window_{name}"] for name in ("dimensions", "strides", "dilation"))
    outputs = _compat.shape(eqn.outvars[0])
    pooled = [axis for axis, size in enumerate(sizes) if size > 1]
    # As many elements as the windows reach; beyond the operand are those that never win.
    reach = [
        (n - 1) * stride + (size - 1) * hole + 1
        for n, stride, size, hole in zip(outputs, strides, sizes, holes, strict=True)
    ]

    def padded(x: Array) -> Array:
        amounts = [
            (low, length - low - (n - 1) * dilation - 1, dilation - 1)
            for n, (low, _), dilation, length in zip(
                x.shape, eqn.params["padding"], eqn.params["base_dilation"], reach, strict=True
            )
        ]
        return lax.pad(x, jnp.asarray(-sign * jnp.inf, x.dtype), amounts)

    def apart(x: Array) -> Array:
        """Windows side by side: every pooled axis becomes two, windows and the elements in them."""
        shape = [
            n for axis, size in enumerate(sizes) for n in ((outputs[axis], size) if size > 1 else (outputs[axis],))
        ]
        return padded(x).reshape(shape)

    def overlapping(x: Array) -> Array:
        """Windows that share elements: the pooled axes are gathered into windows, with their elements on a new last
        axis.
        """
        x = padded(x)
        starts = product(*(range(0, size * hole, hole) for size, hole in zip(sizes, holes, strict=True)))
        spans = [(n - 1) * stride + 1 for n, stride in zip(outputs, strides, strict=True)]
        return jnp.stack(
            [lax.slice(x, start, [i + n for i, n in zip(start, spans, strict=True)], strides) for start in starts], -1
        )

    if all(strides[axis] == sizes[axis] and holes[axis] == 1 for axis in pooled) and all(
        strides[axis] == 1 for axis in range(len(sizes)) if axis not in pooled
    ):
        inner = tuple(axis + 1 + i for i, axis in enumerate(pooled))
        return extremum(interpreter, eqn, operands, apart, inner, sign)
    return extremum(interpreter, eqn, operands, overlapping, (len(sizes),), sign)


def winner(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of `argmax` and `argmin`: the place changes because one element overtook another.

    Where input and reference have different winners `i` and `j`, `x_i - x_j` and `r_j - r_i` are both of one sign, and
    one of them isn't 0. So neither is their sum `(x_i - r_i) - (x_j - r_j)`, and the change of place is its effect.
    """
    operand = interpreter.settle(operands[0])
    assert isinstance(operand, Varying)
    operand = as_number(operand)
    [(value, reference)] = on_each_side(eqn, [operand])
    [axis] = eqn.params["axes"]

    def pull(cotangent: Array, explained: tuple[Array], held: tuple[Array, ...]) -> tuple[Array]:
        (x,), (r, value, reference) = explained, held
        along = lax.broadcasted_iota(value.dtype, x.shape, axis)
        i, j = (along == jnp.expand_dims(place, axis) for place in (value, reference))
        overtaking = i.astype(x.dtype) - j.astype(x.dtype)
        margin = jnp.where(i ^ j, overtaking * (x - r), 0).sum(axis)
        m = slope_between(value, reference, margin, jnp.zeros_like(margin), cotangent.dtype)
        return (jnp.expand_dims(cotangent * m, axis) * overtaking,)

    def carrier() -> Array:
        return with_multipliers(
            lambda explained, held: held[1].astype(carrier_dtype()),
            pull,
            (operand.value,),
            (operand.reference, value, reference),
        )

    return [with_carrier(lambda: value, reference, carrier, operand.fed_by)]


family(winner, primitives("argmax", "argmin"))
family(partial(reduce_extremum, sign=1), primitives("reduce_max"))
family(partial(reduce_extremum, sign=-1), primitives("reduce_min"))
family(partial(window_extremum, sign=1), primitives("reduce_window_max"))
family(partial(window_extremum, sign=-1), primitives("reduce_window_min"))
