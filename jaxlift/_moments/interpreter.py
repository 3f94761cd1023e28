"""The evaluation of a jaxpr on values that carry moments. It knows no primitive: the table of families does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import table, versions
from jaxlift._core.interpreter import MissingRule, Numbers, constants, needed
from jaxlift._core.precision import Precision, at_least
from jaxlift._core.values import is_hashable, key_of
from jaxlift._core.versions import Jaxpr, JaxprEqn, Primitive
from jaxlift._moments.values import Function, Moments, Owned, Players, Value, is_varying, spread_over

# Called with the interpreter, an equation and its operands, at least one of which varies.
Formula = Callable[["Interpreter", JaxprEqn, Sequence[Value]], Sequence[Value]]

_formulas: dict[Primitive | str, Formula] = {}
_owned: list[Callable[[JaxprEqn, Sequence[Value]], list[Owned] | None]] = []
_other: list[Formula] = []
_settle: list[Callable[[Interpreter, Function], Moments]] = []


def family(formula: Formula, members: Iterable[Primitive | str]) -> None:
    """Give all members of a family of primitives one formula."""
    _formulas.update(dict.fromkeys(members, formula))


def formula_of(primitive: Primitive) -> Formula | None:
    return _formulas.get(primitive) or _formulas.get(primitive.name)


def others_by(formula: Formula) -> None:
    """Say what evaluates primitives that are in no family."""
    _other[:] = [formula]


def owned_by(evaluate: Callable[[JaxprEqn, Sequence[Value]], list[Owned] | None]) -> None:
    """Say what evaluates equations whose outputs depend on one player each; of others it gives None."""
    _owned[:] = [evaluate]


def settled_by(settle: Callable[[Interpreter, Function], Moments]) -> None:
    """Say what gives a pointwise function's moments."""
    _settle[:] = [settle]


@dataclass(frozen=True)
class Interpreter:
    """Evaluates jaxprs on moments.

    Attributes:
        players: their probabilities and signs.
        missing: what happens where a primitive has no formula: ``"derivative"`` linearises it at the mean.
        precision: what products have at least.
        within: the equations that hold the jaxpr, outermost first.
        linearised: what was linearised, and where.
        known: the outputs of equations that were evaluated before.
        numbers: the literals that arrays were before they varied over devices.
    """

    players: Players
    missing: MissingRule = "derivative"
    precision: Precision | None = None
    within: tuple[JaxprEqn, ...] = ()
    linearised: dict[str, None] = field(default_factory=dict)
    known: dict[Any, tuple[Any, Sequence[Value]]] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=dict)

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr. What doesn't vary is computed as it stands."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {var: jnp.asarray(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> Value:
            if isinstance(atom, versions.Literal):
                return np.asarray(atom.val, versions.dtype(atom))
            return values[atom]

        for eqn in needed(jaxpr, jaxpr.outvars):
            eqn, inputs = at_least(eqn, self.precision), [read(atom) for atom in eqn.invars]
            key = (eqn.primitive, tuple(eqn.params.items()), tuple(map(key_of, inputs)))
            key = key if is_hashable(key) else object()
            if key not in self.known:
                self.known[key] = inputs, self.outputs(eqn, inputs)
            values.update(zip(eqn.outvars, self.known[key][1], strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """The outputs of one equation."""
        if not any(map(is_varying, inputs)):
            return constants(eqn, inputs, self.numbers)
        if all(isinstance(value, Owned) for value in inputs if is_varying(value)):
            owned = _owned[0](eqn, inputs)
            if owned is not None:
                return owned
        return (formula_of(eqn.primitive) or _other[0])(self, eqn, inputs)

    def moments(self, value: Value) -> Any:
        """A varying value's moments; plain arrays as they are."""
        if isinstance(value, Function):
            if value.settled is None:
                value.settled = _settle[0](self, value)
            return value.settled
        if isinstance(value, Owned):
            if value.moments is None:
                value.moments = spread_over(self.players, value)
            return value.moments
        return value

    def inside(self, eqn: JaxprEqn) -> Interpreter:
        """The interpreter for a jaxpr that an equation holds."""
        return replace(self, within=(*self.within, eqn))

    def afresh(self) -> Interpreter:
        """The same for a jaxpr that is traced by itself."""
        return replace(self, known={}, numbers={})

    def evaluated(self, eqn: JaxprEqn, fun: Callable[..., Any], operands: Sequence[Value]) -> list[Any]:
        """The outputs of a function on values of the program: integers and truth values enter as numbers."""
        settled = [self.moments(value) for value in operands]
        settled = [as_number(value) if isinstance(value, Moments) else jnp.asarray(value) for value in settled]
        like = [versions.type_of(v.mean if isinstance(v, Moments) else v) for v in settled]
        closed = jax.make_jaxpr(fun)(*like)
        inside = self.inside(eqn)
        found = [inside.moments(value) for value in inside.evaluate(closed.jaxpr, closed.consts, settled)]
        for value, out in zip(found, eqn.outvars, strict=True):
            if isinstance(value, Moments):
                value.dtype = versions.dtype(out)
        return found

    def refusal(self, eqn: JaxprEqn, reason: str) -> table.MissingRuleError:
        """The error for what can't be evaluated."""
        return table.MissingRuleError(
            f"the primitive `{eqn.primitive.name}` {reason}, so the moments of what it makes are not known. It was "
            f"called from {self.place(eqn)}. Write that line with other operations, explain what comes after it, or "
            "use jaxlift.shapley with samples=, which calls the model as it is."
        )

    def place(self, eqn: JaxprEqn) -> str:
        return versions.location(eqn, self.within) or "an unknown line"

    def note(self, eqn: JaxprEqn, how: str = "linearised at the mean") -> None:
        """Record that an equation has no formula; raise the error where that is asked for."""
        if self.missing == "raise":
            raise self.refusal(eqn, "has no formula")
        self.linearised[f"`{eqn.primitive.name}` ({how}, {self.place(eqn)})"] = None


def as_number(value: Any) -> Any:
    """Integers and truth values as numbers, which carry moments."""
    if isinstance(value, Moments):
        if value.dtype == value.mean.dtype:
            return value
        return Moments(value.mean, value.variance, value.probes, value.rest, None, value.low)
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.result_type(float))


def plain(value: Any) -> Array:
    """A value at its mean, in the program's dtype."""
    if not isinstance(value, Moments):
        return jnp.asarray(value)
    mean = value.mean
    if value.dtype == mean.dtype:
        return mean
    if value.dtype == jnp.bool_:
        return jax.lax.stop_gradient(mean) > 0.5
    return jnp.round(jax.lax.stop_gradient(mean)).astype(value.dtype)
