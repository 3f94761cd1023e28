"""The joint evaluation of a jaxpr: what its equations do to values that may vary between input and reference.

It knows no primitive and no rule: the table says what to do with each equation.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, Literal, NoReturn, overload

import jax.numpy as jnp
import numpy as np

from jaxlift._core import table, versions
from jaxlift._core.precision import Precision, at_least
from jaxlift._core.repeats import with_calls
from jaxlift._core.values import (
    OF_NUMBERS,
    Masked,
    Pending,
    Settled,
    Value,
    Varying,
    both_sides,
    carrier_dtype,
    count_readers,
    feeds,
    is_hashable,
    is_inexact,
    is_pending_step,
    is_varying,
    key_of,
    number_of,
    on_each_side,
)
from jaxlift._core.versions import JIT, Jaxpr, JaxprEqn

MissingRule = Literal["raise", "derivative"]
Numbers = dict[int, tuple[Any, np.ndarray]]  # by the id of an array: that array, which so stays alive, and the literal


@dataclass(frozen=True)
class Interpreter:
    """Evaluates jaxprs on values that may vary between input and reference.

    Under a rule without a reference it evaluates them on the input alone, and leaves to JAX what the rule has no answer
    of its own for.

    Attributes:
        rule: how a change passes each family of maps: a `jaxlift.Rule`.
        missing: what happens where a primitive has no rule.
        scope: the name scopes around the jaxpr, joined by ``/``.
        within: the equations that hold the jaxpr, outermost first: an error may have to name the line of one of these.
        with_effects: whether equations that only have effects, such as printing, are evaluated.
        precision: what products have at least.
        known: the outputs of equations that were evaluated before, for common-subexpression elimination: `exp(x) /
            exp(x).sum()` is a softmax, and `where(x @ w > 0, (x @ w) ** 2, 0)` a function of one value.
        calls: how often each jaxpr is called, as far as has been seen.
        lifted: those that were lifted for all of their calls.
        scopes: those that rules have been asked for.
        numbers: the literals that arrays were before `jax.shard_map` had them vary over devices, by the arrays' ids.
    """

    rule: Any
    missing: MissingRule = "raise"
    scope: str = ""
    within: tuple[JaxprEqn, ...] = field(default=(), compare=False, repr=False)
    with_effects: bool = True
    precision: Precision | None = None
    known: dict[Any, tuple[Any, Sequence[Value]]] = field(default_factory=dict, compare=False, repr=False)
    calls: Counter[Any] = field(default_factory=Counter, compare=False, repr=False)
    lifted: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    numbers: Numbers = field(default_factory=dict, compare=False, repr=False)
    scopes: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def is_joint(self) -> bool:
        """Whether values are compared with a reference."""
        return self.rule.needs_reference

    @property
    def leaves_all_to_jax(self) -> bool:
        """Whether the rule has no answer of its own for anything."""
        return not self.is_joint and not self.rule.families

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr. What doesn't vary is computed once, as it stands."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {var: jnp.asarray(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> Any:
            if isinstance(atom, versions.Literal):
                return np.asarray(atom.val, versions.dtype(atom))  # a bare number's dtype would follow x64 mode
            return values[atom]

        eqns = needed(jaxpr, jaxpr.outvars, effects=self.with_effects)
        if self.is_joint:
            varying = [var for var, operand in zip(jaxpr.invars, operands, strict=True) if is_varying(operand)]
            eqns = with_calls(jaxpr, eqns, varying, by_scope=self.rule.reads_scopes)
        self.calls.update(eqn.params["jaxpr"] for eqn in eqns if eqn.primitive in JIT)
        readers = Counter(var for eqn in eqns for var in set(versions.variables(eqn.invars)))
        for eqn in (at_least(eqn, self.precision) for eqn in eqns):
            inputs = [read(atom) for atom in eqn.invars]
            key = self._key(eqn, inputs)
            if key in self.known:  # by an equation that was counted already
                count_readers({id(value): value for value in inputs}.values(), repeat(-1))
            else:
                self.known[key] = inputs, self.outputs(eqn, inputs)  # the inputs stay alive, and so do their ids
            outputs = self.known[key][1]
            values.update(zip(eqn.outvars, outputs, strict=True))
            count_readers(outputs, (readers[var] for var in eqn.outvars))
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """The outputs of one equation."""
        masked = table.masked_outputs(self, eqn, inputs) if self.is_joint else None
        return self.outputs_unmasked(eqn, inputs) if masked is None else masked

    def outputs_unmasked(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """The outputs of an equation as the table says, which knows of no masked values."""
        if not any(map(is_varying, inputs)):
            return constants(eqn, inputs, self.numbers)
        if not self.is_joint:
            return self._outputs_alone(eqn, inputs)
        try:
            return table.evaluation_of(eqn, self.within)(self, eqn, inputs)
        except table.MissingRuleError as error:
            if self.missing == "raise" or not error.has_derivative:
                raise
            warnings.warn(f"{error} Its plain derivative is used.", stacklevel=2)
            return by_derivative(eqn, [self.settle(value) for value in inputs])

    def _outputs_alone(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """The same without a reference. Integers and truth values have no derivative: they count as constants."""
        if not self.intercepts(eqn):
            return self.differentiated(eqn, inputs)
        entry = table.entry_or_none(eqn.primitive)
        assert entry is not None
        if not (entry.may_be({"pointwise"}) or entry.opens):
            inputs = [self.settle(value) if is_pending_step(value) else value for value in inputs]
            if not any(map(is_varying, inputs)):
                return versions.bind(eqn, inputs)
        try:
            outputs = entry.evaluate(self, eqn, inputs)
        except table.MissingRuleError:
            return self.differentiated(eqn, inputs)
        return [
            Varying.alone(out.value, out.fed_by, out.origin) if isinstance(out, Varying) and not out.is_alone else out
            for out in outputs
        ]

    def intercepts(self, eqn: JaxprEqn) -> bool:
        """Whether the rule has an answer of its own for an equation, or for one in the jaxprs that it holds."""
        entry = table.entry_or_none(eqn.primitive)
        if self.is_joint or entry is None:
            return self.is_joint
        if entry.may_be(self.rule.families):
            return True
        return entry.opens and any(
            any(map(self.intercepts, versions.opened(jaxpr)[0].eqns)) for jaxpr in versions.jaxprs_of(eqn)
        )

    def differentiated(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of an equation as it stands, with JAX's own derivative."""
        settled = [self.settle(value) for value in inputs]
        fed_by = feeds(settled)
        return [
            Varying.alone(out, fed_by) if is_inexact(out) else out for out in versions.bind(eqn, both_sides(settled)[0])
        ]

    def _key(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Any:
        """What two equations have in common that have the same outputs."""
        if eqn.effects:
            return object()
        key = (eqn.primitive, tuple(eqn.params.items()), self.scope_of(eqn), tuple(map(key_of, inputs)))
        return key if is_hashable(key) else object()

    def is_repeated(self, eqn: JaxprEqn) -> bool:
        """Whether what an equation calls is called elsewhere too."""
        return eqn.primitive in JIT and self.calls[eqn.params["jaxpr"]] > 1

    def inside(self, eqn: JaxprEqn) -> Interpreter:
        """The interpreter for the jaxpr that an equation holds."""
        return replace(self, scope=self.scope_of(eqn), within=(*self.within, eqn))

    def afresh(self) -> Interpreter:
        """The same, for a jaxpr that is traced by itself, as the bodies of loops are."""
        return replace(self, known={}, numbers={})

    def scope_of(self, eqn: JaxprEqn) -> str:
        scope = "/".join(filter(None, (self.scope, str(eqn.source_info.name_stack))))
        self.scopes.add(scope)
        return scope

    @overload
    def settle(self, value: Varying | Pending | Masked) -> Varying: ...
    @overload
    def settle(self, value: Value) -> Settled: ...
    def settle(self, value: Value) -> Settled:
        """Apply the rule to a value that waits for it; others are returned as they are."""
        return table.settler(type(value))(self, value) if isinstance(value, Pending | Masked) else value

    def missing_rule(self, eqn: JaxprEqn, reason: str, *, has_derivative: bool = True) -> table.MissingRuleError:
        return table.missing_rule(eqn, self.within, reason, has_derivative=has_derivative)

    def refusal(self, eqn: JaxprEqn, reason: str) -> Callable[[], NoReturn]:
        """For what is refused only if something asks for it."""

        def refuse() -> NoReturn:
            raise self.missing_rule(eqn, reason)

        return refuse


def needed(
    jaxpr: Jaxpr, outputs: Sequence[Any], given: Sequence[versions.Var] = (), *, effects: bool = False
) -> list[JaxprEqn]:
    """The equations of a jaxpr that some of its values need, beyond those that are given; and those with effects."""
    held = set(given)
    wanted = set(versions.variables(outputs)) - held
    found: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars) or (effects and eqn.effects):
            found.append(eqn)
            wanted.update(var for var in versions.variables(eqn.invars) if var not in held)
    return found[::-1]


def constants(eqn: JaxprEqn, inputs: Sequence[Any], numbers: Numbers) -> Sequence[Any]:
    """The outputs of an equation of whose operands none varies between input and reference.

    A literal that only varies over devices, as JAX has the 0 of a ReLU do inside of `jax.shard_map`, must be an array
    for what comes next. What literal it was is noted in `numbers`.
    """
    literal = literal_of(eqn, [literal_behind(value, numbers) for value in inputs])
    if literal is not None and not versions.varies_over_devices(eqn.outvars[0]):
        return [literal]
    outputs = versions.bind(eqn, inputs)
    if literal is not None:
        numbers[id(outputs[0])] = outputs[0], literal
    return outputs


def literal_behind(value: Any, numbers: Numbers) -> Any:
    """The literal that an array was before it varied over devices; other values as they are."""
    return numbers[id(value)][1] if id(value) in numbers else value


def literal_of(eqn: JaxprEqn, inputs: Sequence[Any]) -> Any:
    """What an equation converts or broadcasts of a number, or works out of numbers: a literal still, of which it is
    known what number it is. None of other equations.
    """
    if (function := OF_NUMBERS.get(eqn.primitive.name)) and versions.shape(eqn.outvars[0]) == ():
        numbers = [value for value in inputs if isinstance(number_of(value), float)]
        with np.errstate(all="ignore"):
            return np.asarray(function(*numbers)) if len(numbers) == len(inputs) else None
    [out] = eqn.outvars if table.keeps_numbers(eqn.primitive) else [None]
    # JAX 0.12 converts the 0 of a ReLU after it varies over devices: till then it is an integer.
    if out is None or not (is_inexact(out) or versions.varies_over_devices(out)):
        return None
    number = number_of(inputs[0])
    if number is None:
        return None
    with np.errstate(over="ignore"):
        return np.broadcast_to(np.asarray(number, versions.dtype(out)), versions.shape(out))


def by_derivative(eqn: JaxprEqn, operands: Sequence[Settled]) -> list[Value]:
    """The outputs of an equation without a rule, with derivatives for multipliers; integers have none."""
    sides = on_each_side(eqn, operands)
    return [
        Varying(value, reference)
        if is_inexact(value)
        else Varying(value, reference, make_carrier=partial(jnp.zeros, value.shape, carrier_dtype()))
        for value, reference in sides
    ]
