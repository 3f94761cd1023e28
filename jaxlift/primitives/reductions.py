"""Reductions that choose: the maximum over axes and over windows, and where it is.

What a change of a maximum does is said by the rule in force (`Rule.maximum`). A minimum is the maximum of the negated
candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.compilers import once
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import slope_between, where
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import family
from jaxlift._core.values import Value, Varying, as_number, carrier_dtype, on_each_side, with_carrier
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.definitions import defined_as, elementwise, folded
from jaxlift.rules.families import Maximum, Place


def extremum(
    interpreter: Interpreter,
    eqn: JaxprEqn,
    operands: Sequence[Value],
    candidates: Callable[[Array], Array],
    axes: tuple[int, ...],
    sign: int,
) -> list[Value]:
    """The evaluation of a maximum (`sign` 1) or minimum (-1) over `axes` of `candidates(operand)`, which a linear
    map arranges.
    """
    operand = interpreter.settle(operands[0])
    assert isinstance(operand, Varying)
    [(value, reference)] = on_each_side(eqn, [operand])
    operand = as_number(operand)
    rule, of = interpreter.rule.at(Place("maximum", operand.fed_by, interpreter.scope_of(eqn))), Maximum(axes)
    in_parts = interpreter.rule.needs_variation  # then an activation's two multipliers both read the cotangent

    def forward(explained: tuple[Array], _: Any) -> Array:
        return versions.bind(eqn, explained)[0]

    def pull(cotangent: Array, explained: tuple[Array], held: tuple[Array]) -> tuple[Array]:
        arranged, undo = jax.vjp(candidates, *explained)
        x, r = sign * arranged, sign * candidates(*held)
        of_candidates = rule.maximum(of, x, r, jnp.expand_dims(cotangent, axes))
        return undo(once(of_candidates) if in_parts else of_candidates)

    def carrier() -> Array:
        return with_multipliers(forward, pull, (operand.value,), (operand.reference,))

    return [with_carrier(lambda: value, reference, carrier, operand.fed_by)]


def reduce_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The evaluation of `reduce_max` and `reduce_min`."""
    return extremum(interpreter, eqn, operands, lambda x: x, eqn.params["axes"], sign)


@dataclass(frozen=True)
class Windows:
    """How a reduction over windows arranges the elements of an array, and of what lies beyond its ends.

    Attributes:
        sizes, strides, holes, padding, spread: of the windows in each axis, and of the array's own elements.
        outputs: how many windows there are in each axis.
    """

    sizes: Sequence[int]
    strides: Sequence[int]
    holes: Sequence[int]
    padding: Sequence[tuple[int, int]]
    spread: Sequence[int]
    outputs: Sequence[int]

    @classmethod
    def of(cls, params: Mapping[str, Any], shape: Sequence[int]) -> Windows:
        """The windows of an equation with these parameters, over an array of this shape."""
        names = ("window_dimensions", "window_strides", "window_dilation", "padding", "base_dilation")
        sizes, strides, holes, padding, spread = (params[name] for name in names)
        lengths = [sum(ends) + (n - 1) * gap + 1 for n, ends, gap in zip(shape, padding, spread, strict=True)]
        outputs = [
            (length - (size - 1) * hole - 1) // stride + 1
            for length, size, hole, stride in zip(lengths, sizes, holes, strides, strict=True)
        ]
        return cls(sizes, strides, holes, padding, spread, outputs)

    @property
    def pooled(self) -> list[int]:
        return [axis for axis, size in enumerate(self.sizes) if size > 1]

    @property
    def are_apart(self) -> bool:
        """Whether they share no element and leave none out."""
        return all(
            stride == size and (hole == 1 or size == 1)
            for size, stride, hole in zip(self.sizes, self.strides, self.holes, strict=True)
        )

    def padded(self, x: Array, filling: Any) -> Array:
        """As many elements as the windows reach."""
        reach = [
            (n - 1) * stride + (size - 1) * hole + 1
            for n, stride, size, hole in zip(self.outputs, self.strides, self.sizes, self.holes, strict=True)
        ]
        amounts = [
            (low, length - low - (n - 1) * dilation - 1, dilation - 1)
            for n, (low, _), dilation, length in zip(x.shape, self.padding, self.spread, reach, strict=True)
        ]
        return lax.pad(x, jnp.asarray(filling, x.dtype), amounts)

    @property
    def inner(self) -> tuple[int, ...]:
        """The axes of `apart` along which the elements of a window lie."""
        if self.are_apart:
            return tuple(axis + 1 + i for i, axis in enumerate(self.pooled))
        return (max(self.pooled, default=0) + 1,)

    def apart(self, x: Array, filling: Any) -> Array:
        """Windows side by side: every pooled axis becomes two, windows and the elements in them.

        Elements of windows that share some are gathered on one axis, after all that are pooled. Channels that come last
        stay so: XLA's CPU compiler takes 0.8 of the time for RevealCancel then, whose cotangents it reads twice.
        """
        x = self.padded(x, filling)
        if self.are_apart:
            pairs = zip(self.outputs, self.sizes, strict=True)
            return x.reshape([k for n, size in pairs for k in ((n, size) if size > 1 else (n,))])
        starts = product(*(range(0, size * hole, hole) for size, hole in zip(self.sizes, self.holes, strict=True)))
        spans = [(n - 1) * stride + 1 for n, stride in zip(self.outputs, self.strides, strict=True)]
        slices = [
            lax.slice(x, start, [i + n for i, n in zip(start, spans, strict=True)], self.strides) for start in starts
        ]
        [axis] = self.inner
        return jnp.stack(slices, axis)


def window_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The evaluation of max-pooling: a maximum over the elements of each window; those beyond the operand never win."""
    windows = Windows.of(eqn.params, versions.shape(eqn.invars[0]))
    never = -sign * jnp.inf
    return extremum(interpreter, eqn, operands, lambda x: windows.apart(x, never), windows.inner, sign)


def window_reduction(*operands: Array, jaxpr: Any, consts: Any, **params: Any) -> list[Array]:
    """A reduction over windows by any function that doesn't mind the order."""
    xs, start = operands[: len(operands) // 2], operands[len(operands) // 2 :]
    windows = Windows.of(params, xs[0].shape)
    gathered = [windows.apart(x, value) for x, value in zip(xs, start, strict=True)]
    return folded(gathered, windows.inner, elementwise(jaxpr, consts))


def cumulative_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The evaluation of `cummax` and `cummin`: at each place a maximum over the elements up to there."""
    shape, axis = versions.shape(eqn.invars[0]), eqn.params["axis"]
    end, element = (lax.broadcasted_iota(jnp.int32, (shape[axis],) * 2, i) for i in (0, 1))
    seen = (element >= end) if eqn.params["reverse"] else (element <= end)
    seen = seen.reshape(*seen.shape, *[1] * (len(shape) - axis - 1))

    def candidates(x: Array) -> Array:
        return where(seen, jnp.expand_dims(x, axis), -sign * jnp.inf)

    return extremum(interpreter, eqn, operands, candidates, (axis + 1,), sign)


def place_of_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> list[Value]:
    """The evaluation of `argmax` (`sign` 1) and `argmin` (-1): the place changes because elements overtook others.

    With `y`, `y_ref` the maxima, and means over the elements that attain each, by how much they overtook is

        mean_y(x - r) - mean_y_ref(x - r) = [y - mean_y_ref(x)] + [y_ref - mean_y(r)]

    Neither bracket is negative, and both are 0 only where the same elements attain both maxima, whose first is at one
    place. So where the place changes the sum isn't 0, and the change of place is its effect.
    """
    operand = interpreter.settle(operands[0])
    assert isinstance(operand, Varying)
    operand = as_number(operand)
    [(value, reference)] = on_each_side(eqn, [operand])
    [axis] = eqn.params["axes"]
    of = Maximum((axis,))

    def pull(cotangent: Array, explained: tuple[Array], held: tuple[Array, ...]) -> tuple[Array]:
        (x,), (r, value, reference) = explained, held
        overtaking = of.shares(sign * x) - of.shares(sign * r)
        margin = where(overtaking == 0, 0, overtaking * (x - r)).sum(axis)
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


family(defined_as(window_reduction), primitives("reduce_window"))
family(partial(place_of_extremum, sign=1), primitives("argmax"))
family(partial(place_of_extremum, sign=-1), primitives("argmin"))
family(partial(cumulative_extremum, sign=1), primitives("cummax"), ["maximum"])
family(partial(cumulative_extremum, sign=-1), primitives("cummin"), ["maximum"])
family(partial(reduce_extremum, sign=1), primitives("reduce_max"), ["maximum"])
family(partial(reduce_extremum, sign=-1), primitives("reduce_min"), ["maximum"])
family(partial(window_extremum, sign=1), primitives("reduce_window_max"), ["maximum"])
family(partial(window_extremum, sign=-1), primitives("reduce_window_min"), ["maximum"])
