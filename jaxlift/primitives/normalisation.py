"""Normalisations, recognised wherever a value is multiplied with, or divided by, a statistic of itself.

A statistic is any function of a sum of squares: the variance, the mean square, and the inverse root of either. Values
remember what they are an affine function or an arrangement of, so that `x - mean(x)` and the squares of `x` are known
to come from the same value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxlift._core.values import Node, Pending, Value, Varying
from jaxlift._pointwise.function import PointwiseFunction, affine_ends
from jaxlift.primitives.linear import Weighted


@dataclass(frozen=True, eq=False)
class Moved:
    """An affine function of another value, or an arrangement of its entries."""

    of: Varying


@dataclass(frozen=True, eq=False)
class Repeated(Moved):
    """Another value, repeated along axes."""


@dataclass(frozen=True, eq=False)
class Shifted(Moved):
    """A value less another that is the same along some axes, as its maximum over them is."""

    along: frozenset[int]


@dataclass(frozen=True, eq=False)
class Made:
    """The result of a nonlinear step of the program."""

    by: Node


Root = Varying | Node


@dataclass(frozen=True, eq=False)
class Statistic:
    """A function of a sum of squares of an affine function of a value."""

    of: Root


def root(value: Varying) -> Root:
    """What a value is an affine function or an arrangement of, as far back as it goes: a value, or the step that made
    it.
    """
    while True:
        match value.origin:
            case Moved(of=of) | Weighted(arranges=Varying() as of):
                value = of
            case Made(by=node):
                return node
            case _:
                return value


def _root_of_function(node: Node | None, of: Varying) -> Root:
    """The same for a pointwise function that wasn't settled: its last nonlinear step, if it has one."""
    core = None if node is None else affine_ends(node)[1]
    return root(of) if core is None else core


def statistic(value: Value) -> Statistic | None:
    """How a value is a statistic, if it is one: functions and arrangements of a statistic are statistics."""
    if isinstance(value, Pending):
        value = value.of
    match root(value) if isinstance(value, Varying) else None:
        case Varying(origin=Statistic() as found):
            return found
    return None


def statistic_of_sum(value: Value) -> Statistic | None:
    """What statistic the sum of a value over some axes is, if it is one."""
    if isinstance(value, Pending) and not value.of.is_discrete and (core := affine_ends(value.node)[1]) is not None:
        squared = {id(o): o for o in core.operands if o is None or isinstance(o, Node)}
        if len(squared) == 1:
            [inner] = squared.values()
            if PointwiseFunction.of(core, inner).is_parabola:
                return Statistic(_root_of_function(inner, value.of))
    return statistic(value)


def inherited(pending: Pending) -> Any:
    """What the value of a pointwise function is remembered to be."""
    if (found := statistic(pending)) is not None:
        return found
    core = affine_ends(pending.node)[1]
    return Moved(pending.of) if core is None else Made(core)


def statistic_among(left: Varying, right: Varying) -> int | None:
    """Which of two values is a statistic of the other, 0 or 1."""
    for position, (value, other) in enumerate([(left, right), (right, left)]):
        if (found := statistic(value)) is not None and root(other) is found.of:
            return position
    return None
