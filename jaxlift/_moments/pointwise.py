"""Elementwise primitives: functions of one value as wholes, and of several by what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import versions
from jaxlift._core.interpreter import literal_behind
from jaxlift._core.values import Node, is_complex, is_inexact
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Interpreter, as_number, family, plain, settled_by
from jaxlift._moments.linear import mapped, product
from jaxlift._moments.linearised import is_differentiable, linearised
from jaxlift._moments.values import Function, Moments, Owned, Value, correlation, is_varying
from jaxlift._pointwise.function import PointwiseFunction, affine_ends
from jaxlift._pointwise.normal import Expected, of_a_step, of_any, of_maximum, of_two, of_two_rays
from jaxlift.primitives.pointwise import ELEMENTWISE


def elementwise(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The formula of elementwise primitives: wait, and make a larger function of it, while it is one of one value."""
    [out] = eqn.outvars
    if any(map(is_complex, (*eqn.invars, out))):
        return linearised(interpreter, eqn, operands)
    shape = versions.shape(out)
    operands = [interpreter.moments(value) if isinstance(value, Owned) else value for value in operands]
    operands = [
        broadcast(interpreter.moments(value), out) if is_varying(value) and value.shape != shape else value
        for value in operands
    ]
    bases = {id(base): base for value in operands if (base := _base(value)) is not None}
    if len(bases) > 1:
        settled = [interpreter.moments(value) for value in operands]
        return SEVERAL.get(eqn.primitive.name, of_several)(interpreter, eqn, settled)
    [base] = bases.values()
    return [Function(Node(eqn, tuple(_node(value, interpreter) for value in operands), ""), base)]


def _base(value: Value) -> Moments | None:
    return value.of if isinstance(value, Function) else value if isinstance(value, Moments) else None


def _node(value: Value, interpreter: Interpreter) -> Any:
    if isinstance(value, Function):
        return value.node
    return None if isinstance(value, Moments) else literal_behind(value, interpreter.numbers)


def broadcast(value: Moments, out: versions.Var) -> Moments:
    """A value at the shape of an elementwise primitive's output."""
    found = value.mapped(lambda x: jnp.broadcast_to(x, versions.shape(out)))
    found.dtype, found.low = value.dtype, value.low
    return found


def settle(interpreter: Interpreter, function: Function) -> Any:
    """The moments of a pointwise function: lines as linear maps, the nonlinear core by its expectations."""
    node, of = function.node, function.of
    dtype = versions.dtype(node.eqn.outvars[0])
    whole = PointwiseFunction.of(node)
    if of.dtype != of.mean.dtype:
        out = _of_integers(whole, of)
    else:
        first, core = affine_ends(node)
        if core is not None and not is_inexact(core.eqn.outvars[0]):
            core = node  # what lines make of truth values and integers is no line of numbers
        out = of if first is None else _affine(PointwiseFunction.of(first), of)
        if core is not None and core is not first:
            out = _expected(PointwiseFunction.of(core, first), out)
        last = first if core is None else core
        if node is not last:
            out = _affine(PointwiseFunction.of(node, last), out)
    if isinstance(out, Moments):
        out.dtype = dtype
        out.low = whole.low(of.low)
    return out


def _affine(f: PointwiseFunction, of: Moments) -> Moments:
    slope = jax.lax.stop_gradient(f.derivative(of.mean)).astype(of.mean.dtype)
    mean = f(of.mean)
    out = of.mapped(lambda x: slope * x, lambda v: slope**2 * v)
    variance, probes, rest = (each.astype(mean.dtype) for each in (out.variance, out.probes, out.rest))
    return Moments(mean, variance, probes, rest)


def _of_integers(f: PointwiseFunction, of: Moments) -> Moments:
    """A function of integers or truth values, which are carried as numbers: a line where it is one, as any function of
    two values is.
    """

    def number(y: Array) -> Array:
        return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(of.mean.dtype)

    zero, one = (number(f(jnp.full(of.shape, k, of.dtype))) for k in (0, 1))
    if of.dtype == jnp.bool_ or f.is_affine:
        slope = (one - zero).astype(of.mean.dtype)
        out = of.mapped(lambda x: slope * x, lambda v: slope**2 * v)
        return Moments(out.mean + zero, out.variance, out.probes, out.rest)

    def rounded(x: Array) -> Array:
        return number(f(jnp.round(x).astype(of.dtype)))

    expected = of_any(rounded, of.mean, of.variance, is_positive=False, is_total=f.is_total, is_continuous=False)
    return _passed(expected, of)


def _expected(f: PointwiseFunction, of: Moments) -> Moments:
    """A nonlinear function of a normal value."""
    homogeneity = f.facts.homogeneity if f.is_real else None

    def number(x: Array) -> Array:
        y = f(x)
        return y if _carries(y.dtype) else y.astype(x.dtype)

    if homogeneity in (0, 1):
        up, down = (number(jnp.full_like(of.mean, side)) for side in (1, -1))
        return _passed((of_two_rays if homogeneity else of_a_step)(up, down, of.mean, of.variance), of)
    return _passed(
        of_any(
            number,
            of.mean,
            of.variance,
            is_positive=of.low >= 0,
            is_total=f.is_total,
            is_continuous=f.is_continuous and is_differentiable(number, of.mean),
        ),
        of,
    )


def _carries(dtype: Any) -> bool:
    """Whether numbers of a kind have the digits that moments need."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 16


def _passed(expected: Expected, of: Moments) -> Moments:
    """A value whose deviation is that of its argument times the mean slope, and what is left of its variance."""
    slope = jax.lax.stop_gradient(expected.slope)
    rest = slope**2 * of.rest + jnp.maximum(expected.variance - slope**2 * of.variance, 0)
    return Moments(expected.mean, expected.variance, slope[None] * of.probes, rest)


# Of several values.


def summed(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Moments]:
    """Sums and differences of two."""
    sign = -1 if eqn.primitive.name == "sub" else 1
    a, b = operands
    out = Moments(
        a.mean + sign * b.mean, a.variance + b.variance, a.probes + sign * b.probes, a.rest + b.rest
    ).calibrated()
    out.dtype = versions.dtype(eqn.outvars[0])
    out.low = a.low + b.low if sign > 0 else out.low
    return [out]


def multiplied(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Moments]:
    out = product(jnp.multiply, *operands)
    out.dtype = versions.dtype(eqn.outvars[0])
    return [out]


def maximum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Moments]:
    """The larger of two: the difference's probability to be positive is each one's share."""
    a, b = operands
    mean, variance, p = of_maximum((a.mean, b.mean), (a.variance, b.variance), correlation(a, b))
    p = jax.lax.stop_gradient(p)
    probes = p[None] * a.probes + (1 - p)[None] * b.probes
    passed = p**2 * a.variance + (1 - p) ** 2 * b.variance
    rest = p**2 * a.rest + (1 - p) ** 2 * b.rest + jnp.maximum(variance - passed, 0)
    out = Moments(mean, variance, probes, rest, versions.dtype(eqn.outvars[0]))
    out.low = max(a.low, b.low)
    return [out]


def as_defined(definition: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The formula of a primitive that equals a function of its operands."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Any]:
        return interpreter.evaluated(eqn, definition, operands)

    return evaluate


def of_several(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Value]:
    """Any function of two, by quadrature; of more, and of integers, linearised."""
    varying = [i for i, value in enumerate(operands) if isinstance(value, Moments)]
    are_numbers = all(value.dtype == value.mean.dtype for value in operands if isinstance(value, Moments))
    if len(varying) != 2 or not are_numbers or not is_inexact(eqn.outvars[0]):
        return linearised(interpreter, eqn, operands)
    a, b = (operands[i] for i in varying)

    def f(x: Array, z: Array) -> Array:
        own = dict(zip(varying, (x, z), strict=True))
        return versions.bind(eqn, [own.get(i, value) for i, value in enumerate(operands)])[0]

    has = is_differentiable(f, a.mean, b.mean)
    mean, variance, slopes = of_two(f, (a.mean, b.mean), (a.variance, b.variance), correlation(a, b), has)
    g, h = jax.lax.stop_gradient(slopes)
    passed = g**2 * a.variance + h**2 * b.variance
    rest = g**2 * a.rest + h**2 * b.rest + jnp.maximum(variance - passed, 0)
    return [Moments(mean, variance, g[None] * a.probes + h[None] * b.probes, rest, versions.dtype(eqn.outvars[0]))]


def choosing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Value]:
    """`select_n`: cases by the probabilities that they are chosen."""
    which, *cases = operands
    if isinstance(which, Moments) and any(map(_is_no_number, cases)):  # whose mean with a number is none
        interpreter.note(eqn, "choice held as it is at the mean")
        which = plain(which)
        if not any(isinstance(case, Moments) for case in cases):
            return versions.bind(eqn, [which, *cases])
    if not isinstance(which, Moments):
        cases = [as_number(case) for case in cases]
        [out] = mapped(eqn, [which, *cases], [False] + [True] * len(cases))
        return [replace(out, dtype=versions.dtype(eqn.outvars[0]))]

    def mixed(which: Array, *cases: Array) -> Array:
        if len(cases) == 2:
            return cases[0] + which.astype(cases[0].dtype) * (cases[1] - cases[0])
        return reduce(jnp.add, ((jnp.abs(which - k) < 0.5).astype(case.dtype) * case for k, case in enumerate(cases)))

    return interpreter.evaluated(eqn, mixed, operands)


def _is_no_number(case: Any) -> bool:
    return isinstance(case, np.ndarray) and not np.isfinite(case).all()


def comparing(of_difference: Callable[[Array], Array]) -> Callable[..., list[Any]]:
    """A comparison of two values: a step in their difference."""
    return as_defined(lambda a, b: of_difference(a - b))


SEVERAL: dict[str, Any] = {
    **dict.fromkeys(("add", "add_any", "sub"), summed),
    "mul": multiplied,
    "div": as_defined(lambda a, b: a * (1 / b)),
    "max": maximum,
    "min": as_defined(lambda a, b: -jnp.maximum(-a, -b)),
    "clamp": as_defined(lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high)),
    "select_n": choosing,
    **dict.fromkeys(("gt",), comparing(lambda d: d > 0)),
    **dict.fromkeys(("lt", "lt_to"), comparing(lambda d: -d > 0)),
    **dict.fromkeys(("ge",), comparing(lambda d: ~(-d > 0))),
    **dict.fromkeys(("le", "le_to"), comparing(lambda d: ~(d > 0))),
    **dict.fromkeys(("eq", "eq_to"), comparing(lambda d: jnp.abs(d) < 0.5)),
    "ne": comparing(lambda d: ~(jnp.abs(d) < 0.5)),
}


def logical(definition: Callable[[Array, Array], Array]) -> Callable[..., Sequence[Any]]:
    """Truth values, as numbers 0 and 1; of integers, bits are held."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        if versions.dtype(eqn.outvars[0]) != jnp.bool_:
            return linearised(interpreter, eqn, operands)
        return interpreter.evaluated(eqn, definition, operands)

    return evaluate


SEVERAL |= {
    "and": logical(lambda a, b: a * b),
    "or": logical(lambda a, b: a + b - a * b),
    "xor": logical(lambda a, b: a + b - 2 * a * b),
}

family(elementwise, ELEMENTWISE)
family(elementwise, ["add_any", *primitives("add_jaxvals")])
settled_by(settle)
