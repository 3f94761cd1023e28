"""Secants `(f(x) - f(r)) / (x - r)`, to rounding wherever `x` and `r` are: by what is known of `f`.

All take the mean of secants over equal differences, the pairs of which RevealCancel is made, times a factor. The factor
comes before the division, so that a multiplier is not computed before its cotangent is there; and little comes after
the division, because XLA keeps the result of one where it is used twice, and works out all else twice.

Where `x` and `r` are near, their difference is noise, and XLA, which works out cheap things wherever they are used, may
have two results for it in one program. So no small difference stands above another, and no choice between formulas that
depends on noise is made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core.compilers import once
from jaxlift._core.differences import difference, is_finite, where


class Sample(NamedTuple):
    """What a secant may need to know about `f` at one end: `x`, `f(x)`, `f'(x)`, `f''(x)`, and the rounding error of
    `f(x)`, unless the other end's will do; or what each step of `f` has read and made, and by the step what secants
    have made of that.
    """

    at: Array
    value: Array
    slope: Any = None
    curvature: Any = None
    rounding: Any = None
    registers: Any = None
    made: Any = None

    def if_(self, condition: Array | bool, other: Sample) -> Sample:
        """This where the condition holds, and elsewhere the other, as much of it as there is of this."""
        if condition is True:
            return self  # registers and all; functions that have them are defined everywhere
        both = zip(self, other, strict=True)
        return Sample._make(None if mine is None else where(condition, mine, its) for mine, its in both)


Ends = Sequence[tuple[Sample, Sample]]
"""At the input and at the reference, or at what stands for them."""
Factor = Array | float


class Theorem(NamedTuple):
    """An addition theorem, `f(x) - f(r) = tanh(c (x - r)) / c * weight(f(x), f(r))`."""

    c: float
    weight: Callable[[Array, Array], Array]


THEOREMS = {
    "tanh": Theorem(1.0, lambda y, y_ref: 1 - y * y_ref),
    "logistic": Theorem(0.5, lambda y, y_ref: (y * (1 - y_ref) + y_ref * (1 - y)) / 2),
}


def by_theorem(theorem: Theorem, ends: Ends, times: Factor) -> Array:
    """Secants that an addition theorem gives."""
    above, below = fraction_by_theorem(theorem, ends)
    return above * times / below


def fraction_by_theorem(theorem: Theorem, ends: Ends) -> tuple[Array, Array]:
    """Secants as a fraction, of functions with an addition theorem: arithmetic, and nothing of `f` is evaluated for
    pairs.

    Where the ends are near, no values are subtracted. With `d = c (x - r)` the secant is `weight * tanh(d) / d`, and by
    Lambert's continued fraction, with `z = d^2`,

        tanh(d) / d = 1 / (1 + z / (3 + z / (5 + z / (7 + ...)))) = (105 + 10 z) / (105 + 45 z + z^2) + O(1e-5 z^4)

    Where that is more than the last bit, the ends are far enough apart for the quotient. So their difference is not
    noise where the choice is made, and it may stand twice. (A choice between two quotients costs 16% of the LSTM's time
    on CPUs.) By how little the pairs' differences differ is of no matter here: the first stands for all. Equal
    infinities, whose difference is not a number, are not far apart: `z` is 0 there, and so is the weight.
    """
    x, r = ends[0]
    run = x.at - r.at
    square = (theorem.c * run) ** 2
    bound = (5e4 * float(jnp.finfo(run.dtype).eps)) ** (1 / 4)
    far, z = square >= bound, where(square < bound, square, 0)
    weight, rise = mean(theorem.weight(x.value, r.value) for x, r in ends), mean(x.value - r.value for x, r in ends)
    return where(far, rise, weight * (10 * z + 105)), where(far, run, (z + 45) * z + 105)


# Up to which power a secant is written out as a sum, of so many terms.
LARGEST_POWER = 8


def _of_power(n: int, x: Array, r: Array) -> Array:
    """`(x^n - r^n) / (x - r) = x^(n - 1) + x^(n - 2) r + ... + r^(n - 1)`."""
    total, power = jnp.ones_like(x), r
    for k in range(1, n):
        total, power = total * x + power, (power * r if k < n - 1 else power)
    return total


class Identity(NamedTuple):
    """A secant as a fraction, in which no values are subtracted.

    Attributes:
        fraction: its numerator and its divisor, which is None if it is 1.
        of_values: whether these are made of values of `f`.
    """

    fraction: Callable[[Sample, Sample], tuple[Any, Any]]
    of_values: bool = True


IDENTITIES = {
    "sqrt": Identity(lambda x, r: (1, x.value + r.value)),
    "rsqrt": Identity(lambda x, r: (-((x.value * r.value) ** 2), x.value + r.value)),
    "cbrt": Identity(lambda x, r: (1, (x.value + r.value) * x.value + r.value**2)),
    "square": Identity(lambda x, r: (x.at + r.at, None), of_values=False),
}


def identity_of(name: str, params: Mapping[str, Any]) -> Identity | None:
    """The identity of a primitive, if it has one.

    Roots have `x - r = y^2 - y_ref^2 = (y - y_ref) (y + y_ref)`, inverse powers `y - y_ref = -(1/y - 1/y_ref) y y_ref`.
    """
    n = params["y"] if name == "integer_pow" else 0
    if 1 < n <= LARGEST_POWER:
        return Identity(lambda x, r: (_of_power(n, x.at, r.at), None), of_values=False)
    if -LARGEST_POWER <= n < 0:
        return Identity(lambda x, r: (-_of_power(-n, x.at, r.at) * x.value * r.value, None))
    return IDENTITIES.get(name)


def by_identity(identity: Identity, ends: Ends, times: Factor) -> Array:
    """Secants that an identity gives. Where ends are equal and it is not finite, as of inverse powers at 0, it counts
    as 0.

    That is asked only where it can be. Secants that aren't made of values are polynomials, finite wherever their ends
    are; and those of roots have the number 1 above a divisor that isn't 0. Each operation less of these shortens the
    time that XLA's GPU compiler takes for a layer norm, since it tries how to tile all that is fused with its sums.
    """

    def secant(x: Sample, r: Sample) -> Array:
        above, below = identity.fraction(x, r)
        if not identity.of_values:
            return above * times
        found = above * times if below is None else above * times / where(below == 0, jnp.inf, below)
        return found if isinstance(above, int) else where(is_finite(found) | (x.at != r.at), found, 0)

    return mean(secant(x, r) for x, r in ends)


def of_two_rays(ends: Ends, times: Factor) -> Array:
    """Secants of functions with one slope for positive numbers and another for negative ones, such as ReLUs.

    Ends of one sign lie on one line, and the secant is its slope. Those of two signs are `|x| + |r|` apart, and `f` is
    0 between them,

        (f(x) - f(r)) / (x - r) = (sign(x) f(x) + sign(r) f(r)) / (|x| + |r|)
    """
    signs = [(jnp.sign(x.at), jnp.sign(r.at)) for x, r in ends]
    same = [sign == sign_ref for sign, sign_ref in signs]
    rises = [sign * x.value + sign_ref * r.value for (sign, sign_ref), (x, r) in zip(signs, ends, strict=True)]
    return _of_lines(ends, same, [0.0] * len(ends), rises, times)


def of_ramp(kinks: Sequence[float], ends: Ends, times: Factor) -> Array:
    """Secants of a number held between two bounds, or above or below one: lines that meet at kinks, in rising order.

    Ends on one line have its slope, which is that of `f` at both. Others lie on two sides of a kink `k`, or one in it,
    and `f` never falls,

        (f(x) - f(r)) / (x - r) = (|f(x) - k| + |f(r) - k|) / (|x - k| + |r - k|)
    """
    sides = [tuple(reduce(jnp.add, [jnp.sign(end.at - k) for k in kinks]) for end in pair) for pair in ends]
    same = [side == side_ref for side, side_ref in sides]
    at_first = 1 - len(kinks)  # the sum of signs at the first kink; below it the sum is less
    between = [where(jnp.minimum(*pair) <= at_first, kinks[0], kinks[-1]) for pair in sides]
    rises = [jnp.abs(x.value - k) + jnp.abs(r.value - k) for k, (x, r) in zip(between, ends, strict=True)]
    return _of_lines(ends, same, between, rises, times)


def _of_lines(
    ends: Ends, same: Sequence[Array], kinks: Sequence[Array | float], rises: Sequence[Array], times: Factor
) -> Array:
    """Secants where both ends lie on the same line, and of others by the rise and the run through a kink between."""
    runs = [where(s, 0, jnp.abs(x.at - k) + jnp.abs(r.at - k)) for s, k, (x, r) in zip(same, kinks, ends, strict=True)]
    run = reduce(jnp.maximum, runs)  # the same, where it isn't 0
    run = where(run == 0, 1, run)
    rises = [where(s, x.slope * run, rise) for s, rise, (x, _) in zip(same, rises, ends, strict=True)]
    return mean(rises) * times / run


def of_parabola(ends: Ends, times: Factor) -> Array:
    """Secants of squares and the like: the derivative at the midpoint, which is the mean of those at the ends."""
    return mean((x.slope + r.slope) / 2 for x, r in ends) * times


# A rise of so many times its rounding error has a quotient of four digits.
FAR_ABOVE = 2.0**14


def by_quotient_or_derivatives(ends: Ends, times: Factor) -> Array:
    """Secants of functions that nothing is known of.

    A secant is the mean of `f'` between `r` and `x`. Where the two are near, `f(x) - f(r)` is rounding noise, and the
    mean is that of the cubic through both ends of `f'` with their slopes instead,

        (f'(x) + f'(r)) / 2 - (f''(x) - f''(r)) (x - r) / 12 + O((x - r)^4)

    unless the two disagree by more than the noise: then there is a kink or a step between the ends, or they are far
    apart, and the quotient is right. (The mean of `f'` alone is not enough: in the tails of tanh it is off by 0.6% in
    float32, where noise still hides it.) Where the ends are near, so are their rounding errors: one stands for both.

    The two may agree by chance, across a kink for example, and then their derivatives differ. So the quotient is taken,
    too, where `f'(x) - f'(r)` isn't `(f''(x) + f''(r)) (x - r) / 2` to one part in thirty, as it is for near ends of a
    smooth function, unless the rise is so small that the quotient would have few digits.

    The quotient of two pairs, mean rise by mean run, supposes that their runs are equal. Where they are as small as the
    rounding of their ends they are not, and may even cancel: the mean of derivatives holds there, too. It is off by the
    size of a slope, and makes the contribution off by the rounding of the ends times that.
    """

    def slope(x: Sample, r: Sample) -> Array:
        return (x.slope + r.slope) / 2 - (x.curvature - r.curvature) * difference(x.at, r.at) / 12

    def noise(x: Sample, r: Sample) -> Array:
        known = [side.rounding for side in (x, r) if side.rounding is not None]
        return known[0] + known[-1]

    def is_regular(x: Sample, r: Sample) -> Array:
        change, run = x.slope - r.slope, x.at - r.at
        at_x, at_r = x.curvature * run, r.curvature * run
        return 30 * jnp.abs(change - (at_x + at_r) / 2) <= jnp.abs(change) + jnp.abs(at_x) + jnp.abs(at_r)

    runs = [difference(x.at, r.at) for x, r in ends]
    run, mean_rise = mean(runs), mean(difference(x.value, r.value) for x, r in ends)
    mean_slope, mean_noise = (mean(of(x, r) for x, r in ends) for of in (slope, noise))
    smooth = mean_noise >= jnp.abs(mean_rise - mean_slope * run)
    regular = [is_regular(x, r) for x, r in ends]
    smooth &= reduce(jnp.logical_and, regular) | (jnp.abs(mean_rise) <= FAR_ABOVE * mean_noise)
    if len(runs) > 1:
        smooth |= jnp.abs(runs[0] - runs[1]) > jnp.abs(run)
    return _either(smooth, mean_slope, mean_rise, where(run == 0, 1, run), times)


@jax.custom_jvp
def _either(smooth: Array, slope: Array, rise: Array, run: Array, times: Factor) -> Array:
    """The slope or the quotient, times a factor.

    Chosen of whole results: for polynomials the two formulas differ by the last bits, and XLA, which works out the
    condition wherever it stands, could choose one formula's numerator and the other's denominator. In a backward pass
    through this, cotangents of `rise` and of `run` are computed apart, so the choice itself is computed once there.
    """
    return where(smooth, slope * times, rise * times / run)


def _derivative_of_either(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    smooth, slope, rise, run, times = primals
    _, of_slope, of_rise, of_run, of_times = tangents
    kept = once(smooth.astype(run.dtype)) > 0
    secant = where(kept, slope, rise / run)
    change = where(kept, of_slope, of_rise / run) - where(kept, 0, secant / run) * of_run
    return _either(*primals), change * times + secant * of_times


_either.defjvp(_derivative_of_either)


def mean(each: Iterable[Any]) -> Any:
    """The mean of some arrays."""
    terms = list(each)
    return reduce(jnp.add, terms) / len(terms) if len(terms) > 1 else terms[0]
