r"""Secants step by step: those of sums, products and compositions follow from those of their steps.

With `du = u(x) - u(r)` and means over both ends, exactly,

    d(u + v) = du + dv        d(u v) = u_mid dv + v_mid du        d(u / v) = (du - (u / v)_mid dv) / v_mid

and a function of one value has an addition theorem or an identity (secants.py). So the cotangent goes back through the
steps of a function as it does through a program, with secants in the place of derivatives. No two values that are
nearly the same are subtracted and then divided by their distance, so there is no noise to be told from a slope, and no
derivative is evaluated.

That is for ends that are near. Of ends that are far apart the means mix what `u` is at one with what `v` is at the
other, which may be large where both products are small, as in `x sigmoid(x)` far to either side; there the quotient of
the differences has all digits. What a step itself rounds is not explained, so this is for numbers of many digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import pi, sqrt
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.differences import is_finite, where
from jaxlift._core.versions import JaxprEqn
from jaxlift._pointwise.secants import THEOREMS, Ends, Factor, Identity, Sample, fraction_by_theorem, identity_of, mean

T = TypeVar("T")


class Side(NamedTuple):
    """The operands of a step, and its result, at one end. An operand that doesn't vary is the same object on both.

    Attributes:
        made: what was made of these alone, for other secants that end here.
    """

    operands: Sequence[Any]
    result: Array
    made: dict[Any, Any]

    def of_end(self, make: Callable[[Array], T]) -> T:
        """What is made of the first operand, once for all secants that end here."""
        if make not in self.made:
            self.made[make] = make(self.operands[0])
        return self.made[make]


class Ratio(NamedTuple):
    """A cotangent as a fraction, whose divisor is None if it is 1.

    It is divided once, at the end: XLA keeps what a division gives where it is used twice. (GELU of 8 examples and 20
    references moves 1.7 times the bytes on CPUs, and takes 1.9 times the memory, if each step divides.) So no divisor
    may be so small, or so large, that the product of two is no number.
    """

    above: Any
    below: Any = None

    def plus(self, other: Ratio) -> Ratio:
        if self.below is other.below:
            return Ratio(self.above + other.above, self.below)
        return Ratio(_times(self.above, other.below) + _times(other.above, self.below), _times(self.below, other.below))


def _times(a: Any, b: Any) -> Any:
    """A product, where None is 1."""
    return a if b is None else b if a is None else a * b


Pulled = tuple[Any, Sequence[Callable[[], Any]]]
"""The divisor of the operands' cotangents, and for each of them what computes what stands above it."""
Pull = Callable[[Side, Side, Any], Pulled]
"""Takes both sides of a step and the cotangent of its result."""


def _times_mid(ct: Any, i: int, x: Side, r: Side) -> Any:
    """A cotangent times the mean of an operand over both ends. (Where their sum overflows, the quotient is taken.)"""
    value, reference = x.operands[i], r.operands[i]
    return ct * value if value is reference else ct / 2 * (value + reference)


def _linear(*signs: int) -> Pull:
    return lambda x, r, ct: (None, [(lambda: ct) if sign > 0 else (lambda: -ct) for sign in signs])


def _product(x: Side, r: Side, ct: Any) -> Pulled:
    return None, [lambda: _times_mid(ct, 1, x, r), lambda: _times_mid(ct, 0, x, r)]


def _quotient(x: Side, r: Side, ct: Any) -> Pulled:
    return _times_mid(1, 1, x, r), [lambda: ct, lambda: -ct / 2 * (x.result + r.result)]


def _maximum(x: Side, r: Side, ct: Any, sign: int = 1, tie: float = 0.5) -> Pulled:
    """The part `t` of the way from `r` to `x` on which the first operand is the larger: where one wins at `x` and the
    other at `r`, the lines between their ends cross in proportion to the leads `l`, and

        d max(u, v) = t du + (1 - t) dv        t = ([l(x)]+ + [l(r)]+) / (|l(x)| + |l(r)|)
    """
    lead, lead_ref = (sign * (side.operands[0] - side.operands[1]) for side in (x, r))
    size = jnp.abs(lead) + jnp.abs(lead_ref)
    won = jnp.maximum(lead, 0) + jnp.maximum(lead_ref, 0)
    part = where(size == 0, tie, won / where(size == 0, 1, size))
    return None, [lambda: ct * part, lambda: ct * (1 - part)]


def _modulus(x: Side, r: Side, ct: Any) -> Pulled:
    r"""`|u| - |u_ref| = (u^2 - u_ref^2) / (|u| + |u_ref|)`; of 0, JAX's derivative."""
    size = x.result + r.result
    slope = where(size == 0, 1, x.operands[0] + r.operands[0]) / where(size == 0, 1, size)
    return None, [lambda: ct * slope]


def _clamp(x: Side, r: Side, ct: Any) -> Pulled:
    """The minimum of a maximum; of equal ends at a bound JAX's derivative, which is 0."""
    (at_x, of_x), (at_r, of_r) = (
        (
            Side(side.operands[:2], raised := jnp.maximum(*side.operands[:2]), {}),
            Side([raised, side.operands[2]], side.result, {}),
        )
        for side in (x, r)
    )
    _, (of_raised, of_high) = _maximum(of_x, of_r, ct, sign=-1, tie=0.0)
    _, (of_low, of_u) = _maximum(at_x, at_r, of_raised(), tie=1.0)
    return None, [of_low, of_u, of_high]


def _erf(x: Side, r: Side, ct: Any, sign: int = 1) -> Pulled:
    """The quotient, or where the ends are near the mean of the polynomial that has the derivative and its first two
    derivatives at both ends,

        (f'(x) + f'(r)) / 2 - (f''(x) - f''(r)) (x - r) / 10 + (f'''(x) + f'''(r)) (x - r)^2 / 120 + O((x - r)^6 / 700)

    In the tail of erfc, where the digits of small values are there, and the logarithm falls by `2 x` for each unit, the
    quotient is better from a shorter distance on.
    """

    [u], [u_ref] = x.operands, r.operands
    (e, ue, uue), (e_ref, ue_ref, uue_ref) = x.of_end(_moments_of_bell), r.of_end(_moments_of_bell)
    run = u - u_ref
    reach = jnp.abs(run) if sign > 0 else jnp.abs(run) * (1 + jnp.maximum(jnp.minimum(u, u_ref), 0))
    far = reach >= (100 * float(jnp.finfo(run.dtype).eps)) ** (1 / 6)
    c, both = sign * 2 / sqrt(pi), e + e_ref
    bend = c / 30 * (uue + uue_ref) - c / 60 * both
    near = c / 2 * both + run * (c / 5 * (ue - ue_ref) + run * bend)
    return where(far, run, 1), [lambda: ct * where(far, x.result - r.result, near)]


def _moments_of_bell(u: Array) -> tuple[Array, Array, Array]:
    """`e`, `u e` and `u^2 e`, where `e = exp(-u^2)`: `f' = c e`, `f'' = -2 c u e` and `f''' = c (4 u^2 - 2) e`."""
    e = jnp.exp(-(u * u))
    return e, u * e, u * (u * e)


def _function(identity: Identity, x: Side, r: Side, ct: Any) -> Pulled:
    above, below = identity.fraction(*(Sample(side.operands[0], side.result) for side in (x, r)))
    return below, [lambda: above * ct]


def _of_relu(x: Side, r: Side, ct: Any) -> Pulled:
    at_x, at_r = (Side([*side.operands, 0], side.result, {}) for side in (x, r))
    below, [of_u, _] = _maximum(at_x, at_r, ct, tie=0.0)
    return below, [of_u]


def _of_relu6(x: Side, r: Side, ct: Any) -> Pulled:
    at_x, at_r = (Side([0, *side.operands, 6], side.result, {}) for side in (x, r))
    below, [_, of_u, _] = _clamp(at_x, at_r, ct)
    return below, [of_u]


PULLS: dict[str, Pull] = {
    "add": _linear(1, 1),
    "sub": _linear(1, -1),
    "neg": _linear(-1),
    "copy": _linear(1),
    "mul": _product,
    "div": _quotient,
    "max": _maximum,
    "min": partial(_maximum, sign=-1),
    "abs": _modulus,
    "clamp": _clamp,
    "erf": _erf,
    "erfc": partial(_erf, sign=-1),
}

# Of functions of JAX's that come with their derivative, by their names.
PULLS_OF_JAX: dict[str, Pull] = {
    versions.name_of_function(jax.nn.relu): _of_relu,
    versions.name_of_function(jax.nn.relu6): _of_relu6,
}


def pull_of(eqn: JaxprEqn) -> Pull | None:
    """The secants of a primitive, if they are known."""
    if versions.has_derivative_of_jax(eqn):
        return PULLS_OF_JAX.get(versions.name_of_traced(versions.inner_jaxpr(eqn)[0]))
    name = eqn.primitive.name
    theorem, identity = THEOREMS.get(name), identity_of(name, eqn.params)
    if theorem is not None:
        identity = Identity(lambda x, r: fraction_by_theorem(theorem, [(x, r)]))
    return PULLS.get(name) if identity is None else partial(_function, identity)


def by_steps(steps: Sequence[tuple[JaxprEqn, Sequence[int]]], ends: Ends, times: Factor) -> Any:
    """The mean of secants over equal differences, of samples with all registers: the argument, what doesn't vary, and
    the steps' results.
    """
    run = mean(x.at - r.at for x, r in ends)
    is_long = jnp.abs(run) >= 1  # the scale of activations
    run = where(run == 0, 1, run)

    def secant(x: Sample, r: Sample) -> Array:
        above, below = _secant(steps, x, r, times)
        far = is_long
        for part in (above, below):
            far |= False if part is None else ~is_finite(part)  # and where steps overflow
        rise = (x.value - r.value) * times
        return where(far, rise, above) / where(far, run, 1 if below is None else below)

    # Two secants have different divisors. To bring them to one takes more operations than to divide by each.
    return mean(secant(x, r) for x, r in ends)


def _secant(steps: Sequence[tuple[JaxprEqn, Sequence[int]]], x: Sample, r: Sample, times: Factor) -> Ratio:
    """A secant times a factor, by one pass back through the steps."""
    first = len(x.registers) - len(steps)
    varying = {0}
    for i, (_, operands) in enumerate(steps, first):
        if not varying.isdisjoint(operands):
            varying.add(i)
    cotangents = {len(x.registers) - 1: Ratio(times)}
    for i, (eqn, operands) in reversed(list(enumerate(steps, first))):
        pull, ct = pull_of(eqn), cotangents.pop(i, None)
        if ct is None:
            continue
        assert pull is not None
        at_x, at_r = (
            Side([end.registers[k] for k in operands], end.registers[i], end.made.setdefault(i, {})) for end in (x, r)
        )
        below, aboves = pull(at_x, at_r, ct.above)
        below = _times(ct.below, below)
        for k, above in zip(operands, aboves, strict=True):
            if k in varying:
                of_operand = Ratio(above(), below)
                cotangents[k] = cotangents[k].plus(of_operand) if k in cotangents else of_operand
    return cotangents[0]
