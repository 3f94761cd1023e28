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
from math import pi, sqrt
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import midpoint, where
from jaxlift._core.versions import JaxprEqn
from jaxlift._pointwise.secants import THEOREMS, Ends, Factor, Sample, by_identity, by_theorem, identity_of, mean


class Side(NamedTuple):
    """The operands of a step, and its result, at one end. An operand that doesn't vary is the same object on both."""

    operands: Sequence[Any]
    result: Array


# The cotangent of an operand, by position, for that of the result.
Pull = Callable[[int, Side, Side, Any], Any]


def _mid(i: int, x: Side, r: Side) -> Any:
    """The mean of an operand over both ends."""
    value, reference = x.operands[i], r.operands[i]
    return value if value is reference else midpoint(value, reference)


def _of_quotient(i: int, x: Side, r: Side, ct: Any) -> Any:
    of_numerator = ct / _mid(1, x, r)
    return of_numerator if i == 0 else -of_numerator * midpoint(x.result, r.result)


def _of_maximum(i: int, x: Side, r: Side, ct: Any) -> Any:
    """The part of the way from `r` to `x` on which this operand is the larger: where one wins at `x` and the other at
    `r`, the lines between their ends cross in proportion to the leads `l`, and

        d max(u, v) = t du + (1 - t) dv        t = ([l(x)]+ + [l(r)]+) / (|l(x)| + |l(r)|)
    """
    lead, lead_ref = (side.operands[i] - side.operands[1 - i] for side in (x, r))
    size = jnp.abs(lead) + jnp.abs(lead_ref)
    won = jnp.maximum(lead, 0) + jnp.maximum(lead_ref, 0)
    return ct * where(size == 0, 0.5, won / where(size == 0, 1, size))


def _of_minimum(i: int, x: Side, r: Side, ct: Any) -> Any:
    """As of the negated maximum of negated operands: who is the larger there is the smaller here."""
    return _of_maximum(1 - i, x, r, ct)


def _of_modulus(i: int, x: Side, r: Side, ct: Any) -> Any:
    r"""`|u| - |u_ref| = (u^2 - u_ref^2) / (|u| + |u_ref|)`; of 0, JAX's derivative."""
    size = x.result + r.result
    return ct * where(size == 0, 1, x.operands[i] + r.operands[i]) / where(size == 0, 1, size)


def _of_erf(i: int, x: Side, r: Side, ct: Any, has_tail: bool = False) -> Any:
    """The quotient, or where the ends are near the mean of the polynomial that has the derivative and its first two
    derivatives at both ends,

        (f'(x) + f'(r)) / 2 - (f''(x) - f''(r)) (x - r) / 10 + (f'''(x) + f'''(r)) (x - r)^2 / 120 + O((x - r)^6 / 700)

    In the tail of erfc, where the digits of small values are there, and the logarithm falls by `2 x` for each unit, the
    quotient is better from a shorter distance on.
    """

    def derivatives(u: Array) -> tuple[Array, Array, Array]:
        slope = 2 / sqrt(pi) * jnp.exp(-(u * u))
        return slope, -2 * u * slope, (4 * u * u - 2) * slope

    u, u_ref = x.operands[i], r.operands[i]
    run = u - u_ref
    reach = jnp.abs(run) * (1 + jnp.maximum(jnp.minimum(u, u_ref), 0)) if has_tail else jnp.abs(run)
    far = reach >= (100 * float(jnp.finfo(run.dtype).eps)) ** (1 / 6)
    (f1, f2, f3), (f1_ref, f2_ref, f3_ref) = derivatives(u), derivatives(u_ref)
    near = (f1 + f1_ref) / 2 - (f2 - f2_ref) * run / 10 + (f3 + f3_ref) * run * run / 120
    return ct * where(far, (x.result - r.result) / where(far, run, 1), near)


def _of_erfc(i: int, x: Side, r: Side, ct: Any) -> Any:
    """`erfc = 1 - erf`."""
    return -_of_erf(i, x._replace(result=-x.result), r._replace(result=-r.result), ct, has_tail=True)


PULLS: dict[str, Pull] = {
    "add": lambda i, x, r, ct: ct,
    "sub": lambda i, x, r, ct: -ct if i else ct,
    "neg": lambda i, x, r, ct: -ct,
    "copy": lambda i, x, r, ct: ct,
    "mul": lambda i, x, r, ct: ct * _mid(1 - i, x, r),
    "div": _of_quotient,
    "max": _of_maximum,
    "min": _of_minimum,
    "abs": _of_modulus,
    "erf": _of_erf,
    "erfc": _of_erfc,
}


def pull_of(eqn: JaxprEqn) -> Pull | None:
    """The secants of a primitive, if they are known."""
    name = eqn.primitive.name
    theorem, identity = THEOREMS.get(name), identity_of(name, eqn.params)

    def samples(i: int, x: Side, r: Side) -> Ends:
        return [(Sample(x.operands[i], x.result), Sample(r.operands[i], r.result))]

    if theorem is not None:
        return lambda i, x, r, ct: by_theorem(theorem, samples(i, x, r), ct)
    if identity is not None:
        return lambda i, x, r, ct: by_identity(identity, samples(i, x, r), ct)
    return PULLS.get(name)


def by_steps(steps: Sequence[tuple[JaxprEqn, Sequence[int]]], ends: Ends, times: Factor) -> Any:
    """The mean of secants over equal differences, of samples with all registers: the argument, what doesn't vary, and
    the steps' results.
    """

    def secant(x: Sample, r: Sample) -> Any:
        first = len(x.registers) - len(steps)
        varying = {0}
        for i, (_, operands) in enumerate(steps, first):
            if not varying.isdisjoint(operands):
                varying.add(i)
        cotangents: dict[int, Any] = {len(x.registers) - 1: times}
        for i, (eqn, operands) in reversed(list(enumerate(steps, first))):
            pull, ct = pull_of(eqn), cotangents.pop(i, None)
            assert pull is not None
            at_x, at_r = (Side([side.registers[k] for k in operands], side.registers[i]) for side in (x, r))
            for position, k in enumerate(operands):
                if ct is not None and k in varying:
                    of_operand = pull(position, at_x, at_r, ct)
                    cotangents[k] = cotangents[k] + of_operand if k in cotangents else of_operand
        return cotangents[0]

    near = mean(secant(x, r) for x, r in ends)
    run = mean(x.at - r.at for x, r in ends)
    far = (jnp.abs(run) >= 1) | ~jnp.isfinite(near)  # the scale of activations; and where steps overflow
    rise = mean(x.value - r.value for x, r in ends) * times
    return where(far, rise / where(run == 0, 1, run), near)
