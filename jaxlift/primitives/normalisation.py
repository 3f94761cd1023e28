"""Normalisations, recognised wherever a value is multiplied with, or divided by, a statistic of itself.

A statistic is any function of a sum of squares: the variance, the mean square, and the inverse root of either. Values
remember what they are an affine function or an arrangement of, so that `x - mean(x)` and the squares of `x` are known
to come from the same value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxlift._core.values import Pending, Value, Varying
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.primitives.linear import Weighted


@dataclass(frozen=True, eq=False)
class Moved:
    """An affine function of another value, or an arrangement of its entries."""

    of: Varying


@dataclass(frozen=True, eq=False)
class Shifted(Moved):
    """A value less another that is the same along some axes, as its maximum over them is."""

    along: frozenset[int]


@dataclass(frozen=True, eq=False)
class Statistic:
    """A function of a sum of squares of an affine function of a value."""

    of: Varying


def root(value: Varying) -> Varying:
    """What a value is an affine function or an arrangement of, as far back as it goes."""
    while True:
        match value.origin:
            case Moved(of=of) | Weighted(arranges=Varying() as of):
                value = of
            case _:
                return value


def statistic(value: Value) -> Statistic | None:
    """How a value is a statistic, if it is one: functions and arrangements of a statistic are statistics."""
    if isinstance(value, Pending):
        value = value.of
    found = root(value).origin if isinstance(value, Varying) else None
    return found if isinstance(found, Statistic) else None


def statistic_of_sum(value: Value) -> Statistic | None:
    """What statistic the sum of a value over some axes is, if it is one."""
    if isinstance(value, Pending) and not value.of.is_discrete and PointwiseFunction.of(value.node).is_parabola:
        return Statistic(root(value.of))
    return statistic(value)


def inherited(pending: Pending) -> Any:
    """What the value of a pointwise function is remembered to be."""
    if (found := statistic(pending)) is not None:
        return found
    return Moved(pending.of) if PointwiseFunction.of(pending.node).is_affine else None


def statistic_among(left: Varying, right: Varying) -> int | None:
    """Which of two values is a statistic of the other, 0 or 1."""
    for position, (value, other) in enumerate([(left, right), (right, left)]):
        if (found := statistic(value)) is not None and root(other) is found.of:
            return position
    return None
