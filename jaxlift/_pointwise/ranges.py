"""What a step of a pointwise function does to the range of its values: whether the function is finite wherever its
argument is, as ELU is, and softplus, whose exponentials never see a large number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlift._core import versions
from jaxlift._core.values import number_of
from jaxlift._core.versions import Jaxpr, JaxprEqn

inf = math.inf


@dataclass(frozen=True, eq=False)
class Range:
    """Where the values of one register lie, for all finite arguments.

    Attributes:
        low, high: the bounds. Infinite ones are none: products may be as large as they like.
        test: of truth values, the comparison of another register with a number that they come from.
    """

    low: float = -inf
    high: float = inf
    test: tuple[str, Range, float] | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is one number, and not 0."""
        return self.low == self.high != 0

    @property
    def is_finite(self) -> bool:
        """Whether it is neither infinity nor no number at all."""
        return self.low < inf and self.high > -inf

    def times(self, factor: float) -> Range:
        low, high = sorted((self.low * factor, self.high * factor))
        return Range(low, high)


# Finite, with their derivatives, wherever their operands are. (Overflow of sums and products is nobody's business.)
FINITE = frozenset((
    *("max", "min", "abs", "sign", "select_n", "clamp", "floor", "ceil", "round", "tanh", "logistic", "erf", "erfc"),
    *("atan", "sin", "cos", "bessel_i0e", "bessel_i1e", "add", "sub", "mul", "neg", "square", "copy", "is_finite"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "convert_element_type", "reduce_precision"),
    "broadcast_in_dim",
))  # fmt: skip
TINY, HUGE = 1e-3, 1e4  # in every dtype
GROWING: dict[str, tuple[Callable[[float], float], float, float]] = {
    # Functions, and the range of operands in which they are finite with their derivatives.
    "exp": (math.exp, -inf, math.log(HUGE)),
    "exp2": (lambda x: 2.0**x, -inf, math.log2(HUGE)),
    "expm1": (math.expm1, -inf, math.log(HUGE)),
    "log": (math.log, TINY, inf),  # of infinity, all three are infinite
    "log1p": (math.log1p, TINY - 1, inf),
    "sqrt": (math.sqrt, TINY, inf),
}


def range_of(eqn: JaxprEqn, operands: Sequence[Range]) -> Range | None:
    """That of a step's result, from those of its operands. None where it, or its derivative, may not be finite."""
    if not all(of.is_finite for of in operands):
        return None
    match eqn.primitive.name, operands:
        case name, [of] if name in GROWING:
            function, low, high = GROWING[name]
            return Range(function(of.low), function(of.high)) if low <= of.low and of.high <= high else None
        case "neg", [of]:
            return Range(-of.high, -of.low)
        case "abs", [of]:
            return Range(max(of.low, -of.high, 0.0), max(-of.low, of.high))
        case (("square" | "mul"), _) if all(of is operands[0] for of in operands):
            return Range(0.0)
        case "add", [of, by]:
            return Range(of.low + by.low, of.high + by.high)
        case "max", [of, by]:
            return Range(max(of.low, by.low), max(of.high, by.high))
        case "min", [of, by]:
            return Range(min(of.low, by.low), min(of.high, by.high))
        case "mul", [of, by] if by.is_number:
            return of.times(by.low)
        case "mul", [by, of] if by.is_number:
            return of.times(by.low)
        case "div", [of, by] if by.is_number:
            return of.times(1 / by.low)
        case "div", [_, by] if by.low > TINY:
            return Range()
        case ("gt" | "ge" | "lt" | "le") as name, [of, by] if by.low == by.high:
            return Range(0.0, 1.0, (name, of, by.low))
        case "select_n", [Range(test=(name, of, by)), *cases]:
            chosen = [_where(name, yes, case, of, by) for yes, case in zip((False, True), cases, strict=True)]
            return _either(chosen)
        case "select_n", [_, *cases]:
            return _either(cases)
        case "integer_pow", _ if eqn.params["y"] > 0:
            return Range() if eqn.params["y"] % 2 else Range(0.0)
        case "jit" | "custom_jvp_call" | "custom_vjp_call", _ if len(eqn.outvars) == 1:
            return _range_of(versions.inner_jaxpr(eqn)[0], operands)
        case name, _ if name in FINITE:
            return Range()
    return None


def _either(cases: Sequence[Range]) -> Range:
    return Range(min(case.low for case in cases), max(case.high for case in cases))


def _where(name: str, holds: bool, case: Range, of: Range, by: float) -> Range:
    """The range of what is chosen where a comparison holds, or where it doesn't: less, if it is what was compared."""
    if case is not of:
        return case
    if name.startswith("g") == holds:
        return Range(max(case.low, by), case.high)
    return Range(case.low, min(case.high, by))


def _range_of(jaxpr: Jaxpr, operands: Sequence[Range]) -> Range | None:
    """That of a function of one result."""
    known: dict[Any, Range] = dict(zip(jaxpr.invars, operands, strict=True)) | {var: Range() for var in jaxpr.constvars}

    def read(atom: Any) -> Range:
        return range_of_literal(np.asarray(atom.val)) if isinstance(atom, versions.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        found = range_of(eqn, list(map(read, eqn.invars)))
        if found is None:
            return None
        known |= dict.fromkeys(eqn.outvars, found)
    return read(jaxpr.outvars[0])


def range_of_literal(value: Any) -> Range:
    """That of a number that stands in the program."""
    number = number_of(value)
    return Range(float(number), float(number)) if isinstance(number, int | float) else Range()
