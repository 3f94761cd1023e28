"""A model's outputs after one position of its input changed, from what it computed before: only what can differ is
computed again.

A changed position reaches a window of positions of each layer of convolutions. These windows are known when the program
is traced, but for where they begin; so the program is evaluated on windows, filled up at their ends with values of the
unchanged input, up to the first operation that mixes all positions. Sums over the positions are updated by what the
window changed, maxima by the largest values before and after it. From the first operation on that
isn't known here the whole array is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.inlining import evaluate_inlined
from jaxlift._core.table import evaluation_or_none
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.calls import checkpoint, custom_derivative, inlined
from jaxlift.primitives.pointwise import ELEMENTWISE


def changed_outputs(fun: Callable[[Array], Array], x: Array, axis: int) -> Callable[[Array, Any], Array]:
    """Make the function that gives a function's output after one position of its input is replaced.

    Args:
        fun: a function of one array.
        x: that array, of which only the shape and the dtype matter.
        axis: the axis of the positions in it.

    Returns:
        `changed(x, (at, values))`: `fun` of `x` with `values`, of length 1 along the axis, at position `at`. It has the
        values of that to rounding, and computes intermediate values for `x` itself that depend on nothing else.
    """
    closed = jax.make_jaxpr(fun)(x)
    flat = jax.make_jaxpr(lambda x: evaluate_inlined(closed.jaxpr, closed.consts, [x], _is_call))(x)
    length = x.shape[axis]

    def changed(x: Array, change: tuple[Array, Array]) -> Array:
        at, values = change
        start = Window(x, values, axis) if length > 1 else Whole(values)
        return _Evaluation(at, length).outputs(flat.jaxpr, flat.consts, [start])[0]

    return changed


def _is_call(eqn: JaxprEqn) -> bool:
    return evaluation_or_none(eqn.primitive) in (inlined, checkpoint, custom_derivative)


@dataclass(frozen=True)
class Window:
    """A value that differs from what it was in a window of one axis.

    With `at` the changed position of the input, counted from its end if mirrored, the window begins at `at // stride +
    first`. It may reach beyond the array; what it has there means nothing.

    Attributes:
        reference: the whole array as it was.
        values: the window: an array like that, but shorter along the axis.
    """

    reference: Array
    values: Array
    axis: int
    first: int = 0
    stride: int = 1
    mirrored: bool = False

    @property
    def size(self) -> int:
        return self.values.shape[self.axis]

    @property
    def length(self) -> int:
        return self.reference.shape[self.axis]

    @property
    def grid(self) -> tuple[Any, ...]:
        """What two windows have in common whose distance is known."""
        return self.axis, self.length, self.stride, self.mirrored


@dataclass(frozen=True)
class Whole:
    """A value that may differ everywhere."""

    value: Array


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates a jaxpr, in which position `at` of an input of some length changed."""

    at: Array
    length: int

    def outputs(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Array]:
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val, versions.dtype(atom)) if isinstance(atom, versions.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self.evaluated(eqn, [read(atom) for atom in eqn.invars]), strict=True))
        return [self.whole(read(atom)) for atom in jaxpr.outvars]

    def evaluated(self, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        """The outputs of one equation."""
        if not any(isinstance(operand, Window | Whole) for operand in operands):
            return versions.bind(eqn, operands)
        rule, outputs = _RULES.get(eqn.primitive), None
        if rule and not any(isinstance(operand, Whole) for operand in operands):
            outputs = rule(self, eqn, operands)
        if outputs is None:
            outputs = map(Whole, versions.bind(eqn, [self.whole(operand) for operand in operands]))
        return list(outputs)

    def begin(self, window: Window) -> Array:
        """The position that a window's `first` is counted from."""
        return (self.length - 1 - self.at if window.mirrored else self.at) // window.stride

    def whole(self, value: Any) -> Any:
        """A value with the window put into what the array was."""
        if isinstance(value, Whole):
            return value.value
        if not isinstance(value, Window):
            return value
        place = jnp.clip(self.begin(value) + value.first, -value.size, value.length)  # else it is beside the array
        wide = [(value.size, value.size, 0) if axis == value.axis else (0, 0, 0) for axis in range(value.values.ndim)]
        array = lax.pad(value.reference, jnp.zeros((), value.reference.dtype), wide)
        array = lax.dynamic_update_slice_in_dim(array, value.values, place + value.size, value.axis)
        return lax.slice_in_dim(array, value.size, value.size + value.length, axis=value.axis)

    def held(self, array: Array, like: Window, first: int, size: int, fill: Any = 0, step: int = 1) -> Array:
        """A part of an unchanged array, of as many positions as a window's, beyond whose ends stands `fill`.

        Args:
            first, step: with the beginning rounded down to a multiple of `step`, the part begins there + `first`.
        """
        last = (self.length - 1) // like.stride // step * step + first + size
        wide = [(0, 0, 0)] * array.ndim
        wide[like.axis] = (max(0, -first), max(0, last - like.length), 0)
        array = lax.pad(array, jnp.asarray(fill, array.dtype), wide)
        begin = self.begin(like) // step * step + first + max(0, -first)
        return lax.dynamic_slice_in_dim(array, begin, size, like.axis)

    def masked(self, window: Window, values: Array, fill: Any = 0) -> Array:
        """A window's values within the array, and `fill` beyond its ends."""
        positions = self.begin(window) + window.first + lax.broadcasted_iota(jnp.int32, values.shape, window.axis)
        within = (positions >= 0) & (positions < window.length)
        return jnp.where(within, values, jnp.asarray(fill, values.dtype))

    def part(self, window: Window, first: int, size: int, fill: Any = 0, step: int = 1) -> Array:
        """The same part of the changed array."""
        shift = window.first - first  # the window's place in the part, where `step` divides the beginning
        before, after = max(0, -shift), max(0, shift + step - 1 + window.size - size)
        held = self.held(window.reference, window, first - before, before + size + after, fill, step)
        values, place = self.masked(window, window.values, fill), shift + before
        if step == 1:
            ends = jnp.split(held, [place, place + window.size], window.axis)
            put = lax.concatenate([ends[0], values, ends[2]], window.axis)
        else:
            put = lax.dynamic_update_slice_in_dim(held, values, self.begin(window) % step + place, window.axis)
        return lax.slice_in_dim(put, before, before + size, axis=window.axis)

    def difference(self, window: Window) -> Array:
        """What a window changed."""
        held = self.held(window.reference, window, window.first, window.size)
        return self.masked(window, window.values - held)


def _with(eqn: JaxprEqn, operands: Sequence[Any], **params: Any) -> list[Array]:
    """The outputs of an equation for other operands and with other parameters."""
    return versions.bind(eqn.replace(params=eqn.params | params), operands)


def _unchanged(operands: Sequence[Any]) -> list[Any]:
    return [operand.reference if isinstance(operand, Window) else operand for operand in operands]


def _windows(eqn: JaxprEqn, operands: Sequence[Any], values: Sequence[Array], like: Window) -> list[Window]:
    """The outputs of an equation, at the place of a window."""
    references = versions.bind(eqn, _unchanged(operands))
    return [replace(like, reference=r, values=v) for r, v in zip(references, values, strict=True)]


def _replaced(items: Sequence[Any], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _elementwise(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    """Operations that leave each element in its place; windows are widened to the union of all."""
    windows = [operand for operand in operands if isinstance(operand, Window)]
    like = windows[0]
    if any(window.grid != like.grid for window in windows):
        return None
    first = min(window.first for window in windows)
    size = max(window.first + window.size for window in windows) - first
    if size >= like.length:
        return None

    def part(operand: Any) -> Any:
        if isinstance(operand, Window):
            return operand.values if operand.size == size else of.part(operand, first, size)
        is_spread = np.ndim(operand) == 0 or operand.shape[like.axis] == 1
        return operand if is_spread else of.held(jnp.asarray(operand), like, first, size)

    return _windows(eqn, operands, versions.bind(eqn, list(map(part, operands))), replace(like, first=first))


def _concatenated(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    windows = [operand for operand in operands if isinstance(operand, Window)]
    return None if eqn.params["dimension"] == windows[0].axis else _elementwise(of, eqn, operands)


def _slid(
    of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any], axis: int, extent: int, step: int, before: int, **how: Any
) -> list[Window] | None:
    """An operation each of whose outputs is made of `extent` neighbours along the positions.

    Args:
        axis: that of the positions in the output.
        step, before: output `i` begins at position `i * step - before`.
        how: `fill`, what stands beyond the ends; and as `params`, the parameters that the equation has for an operand
            that begins where its first output does, given its length.
    """
    window = operands[0]
    first = (window.first + before - extent + step) // step
    size = (window.first + window.size + before + step - 2) // step - first + 1
    if size >= versions.shape(eqn.outvars[0])[axis]:
        return None
    length = (size - 1) * step + extent
    part = of.part(window, first * step - before, length, how["fill"], step)
    values = _with(eqn, [part, *operands[1:]], **how["params"](length))
    return _windows(eqn, operands, values, replace(window, axis=axis, first=first, stride=window.stride * step))


def _convolved(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    window, kernel = operands
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if not isinstance(window, Window) or isinstance(kernel, Window) or window.axis not in numbers.lhs_spec[2:]:
        return None
    i = numbers.lhs_spec[2:].index(window.axis)
    if params["lhs_dilation"][i] != 1 or params["batch_group_count"] != 1:
        return None
    extent = (kernel.shape[numbers.rhs_spec[2 + i]] - 1) * params["rhs_dilation"][i] + 1
    padding, step, axis = params["padding"], params["window_strides"][i], numbers.out_spec[2 + i]
    valid = {"padding": _replaced(padding, i, (0, 0))}
    return _slid(of, eqn, operands, axis, extent, step, padding[i][0], fill=0, params=lambda _: valid)


def _pooled(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    params, axis, dtype = eqn.params, operands[0].axis, versions.dtype(eqn.outvars[0])
    if params["base_dilation"][axis] != 1:
        return None
    extent = (params["window_dimensions"][axis] - 1) * params["window_dilation"][axis] + 1
    padding, step = params["padding"], params["window_strides"][axis]
    fill = 0 if eqn.primitive in _POOLED_SUMS else _lowest(dtype)
    valid = {"padding": _replaced(padding, axis, (0, 0))}
    return _slid(of, eqn, operands, axis, extent, step, padding[axis][0], fill=fill, params=lambda _: valid)


def _lowest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min


def _sliced(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    params, axis = eqn.params, operands[0].axis
    starts, limits, steps = params["start_indices"], params["limit_indices"], params["strides"]

    def within(length: int) -> dict[str, Any]:
        return {"start_indices": _replaced(starts, axis, 0), "limit_indices": _replaced(limits, axis, length)}

    step = 1 if steps is None else steps[axis]
    return _slid(of, eqn, operands, axis, 1, step, -starts[axis], fill=0, params=within)


def _padded(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    window, fill = operands
    config = eqn.params["padding_config"]
    if not isinstance(window, Window) or isinstance(fill, Window) or config[window.axis][2] != 0:
        return None
    none = {"padding_config": _replaced(config, window.axis, (0, 0, 0))}
    return _slid(of, eqn, operands, window.axis, 1, 1, config[window.axis][0], fill=fill, params=lambda _: none)


def _mirrored(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    [window] = operands
    values = versions.bind(eqn, [window.values])
    if window.axis not in eqn.params["dimensions"]:
        return _windows(eqn, operands, values, window)
    if window.stride != 1:  # the beginning of a mirrored window is not a multiple's, then
        return None
    first = window.length - of.length - window.first - window.size + 1
    return _windows(eqn, operands, values, replace(window, first=first, mirrored=not window.mirrored))


def _transposed(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window]:
    [window] = operands
    axis = eqn.params["permutation"].index(window.axis)
    return _windows(eqn, operands, versions.bind(eqn, [window.values]), replace(window, axis=axis))


def _squeezed(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window]:
    [window] = operands
    axis = window.axis - sum(dimension < window.axis for dimension in eqn.params["dimensions"])
    return _windows(eqn, operands, versions.bind(eqn, [window.values]), replace(window, axis=axis))


def _broadcast(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window]:
    window = operands[0]
    axis = eqn.params["broadcast_dimensions"][window.axis]
    values = _with(eqn, [window.values], shape=_replaced(eqn.params["shape"], axis, window.size))
    return _windows(eqn, operands, values, replace(window, axis=axis))


def _reshaped(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    [window], shape = operands, eqn.params["new_sizes"]
    if eqn.params["dimensions"] is not None:
        return None
    old = window.reference.shape
    before = math.prod(old[: window.axis])
    for axis, size in enumerate(shape):
        if size == window.length and math.prod(shape[:axis]) == before:
            values = _with(eqn, [window.values], new_sizes=_replaced(shape, axis, window.size))
            return _windows(eqn, operands, values, replace(window, axis=axis))
    return None


def _reduced(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any] | None:
    [window], axes = operands, eqn.params["axes"]
    if window.axis not in axes:
        axis = window.axis - sum(other < window.axis for other in axes)
        return _windows(eqn, operands, versions.bind(eqn, [window.values]), replace(window, axis=axis))
    if eqn.primitive in _SUMS and jnp.issubdtype(window.values.dtype, jnp.floating):
        [total], [change] = versions.bind(eqn, [window.reference]), versions.bind(eqn, [of.difference(window)])
        return [Whole(total + change)]
    if eqn.primitive in _MAXIMA:
        fill, axis = _lowest(window.values.dtype), window.axis
        end = jnp.full_like(lax.slice_in_dim(window.reference, 0, 1, axis=axis), fill)
        up_to = lax.concatenate([end, lax.cummax(window.reference, axis)], axis)
        down_to = lax.concatenate([lax.cummax(window.reference, axis, reverse=True), end], axis)
        begin = of.begin(window) + window.first
        around = [
            lax.dynamic_slice_in_dim(array, jnp.clip(place, 0, window.length), 1, axis)
            for array, place in ((up_to, begin), (down_to, begin + window.size))
        ]
        values = of.masked(window, window.values, fill)
        return [Whole(out) for out in versions.bind(eqn, [lax.concatenate([*around, values], axis)])]
    return None


def _multiplied(of: _Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Window] | None:
    """Matrix products at each position. (In one over the positions, a part of the matrix for each window would take
    longer to read than the whole product takes.)
    """
    if all(isinstance(operand, Window) for operand in operands):
        return None
    i = 0 if isinstance(operands[0], Window) else 1
    window, other = operands[i], operands[1 - i]
    contracted, batch = eqn.params["dimension_numbers"]
    if window.axis in (*contracted[i], *batch[i]):
        return None
    free = [axis for axis in range(window.values.ndim) if axis not in (*contracted[i], *batch[i])]
    before = len(batch[0]) + (i and np.ndim(other) - len(contracted[0]) - len(batch[0]))  # the axes that come first
    values = versions.bind(eqn, _replaced(operands, i, window.values))
    return _windows(eqn, operands, values, replace(window, axis=before + free.index(window.axis)))


# What is done with the equations of a primitive that has windows among its operands; it gives None where it must be
# given the whole arrays.
_SUMS, _MAXIMA = frozenset(primitives("reduce_sum")), frozenset(primitives("reduce_max"))
_POOLED_SUMS = frozenset(primitives("reduce_window_sum"))
_RULES: dict[Any, Callable[..., list[Any] | None]] = {}
for _rule, _members in {
    _elementwise: ELEMENTWISE,
    _concatenated: primitives("concatenate"),
    _convolved: primitives("conv_general_dilated"),
    _pooled: primitives("reduce_window_sum", "reduce_window_max"),
    _sliced: primitives("slice"),
    _padded: primitives("pad"),
    _mirrored: primitives("rev"),
    _transposed: primitives("transpose"),
    _squeezed: primitives("squeeze"),
    _broadcast: primitives("broadcast_in_dim"),
    _reshaped: primitives("reshape"),
    _reduced: primitives("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    _multiplied: primitives("dot_general"),
}.items():
    _RULES.update(dict.fromkeys(_members, _rule))
