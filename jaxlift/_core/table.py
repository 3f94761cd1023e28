"""The table of primitives: for each, the rule of joint evaluation.

A rule takes the interpreter, the equation, and the equation's operands, each an array or a `Varying` value (or a
`Pending` one, which `interpreter.settle` turns into a `Varying`), at least one of them varying; it returns the outputs
likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxlift._core import versions
from jaxlift._core.values import Value
from jaxlift._core.versions import JaxprEqn, Primitive

# Called with the interpreter, an equation and its operands.
PrimitiveRule = Callable[[Any, JaxprEqn, Sequence[Value]], Sequence[Value]]

_table: dict[Primitive, PrimitiveRule] = {}
_names: dict[str, PrimitiveRule] = {}
_functions: dict[str, PrimitiveRule] = {}
_settler: list[Callable[[Any, Any], Any]] = []


class MissingRuleError(NotImplementedError):
    """A primitive has no rule that would keep summation-to-delta, in the place where the program uses it."""


def family(rule: PrimitiveRule, members: Iterable[Primitive]) -> None:
    """Give all members of a family of primitives one rule."""
    for primitive in members:
        _table[primitive] = rule


def family_by_name(rule: PrimitiveRule, *names: str) -> None:
    """The same for primitives that JAX has no public name for."""
    for name in names:
        _names[name] = rule


def family_of_functions(rule: PrimitiveRule, *names: str) -> None:
    """The same for functions with a custom derivative, by what `versions.name_of_function` calls them."""
    for name in names:
        _functions[name] = rule


def settled_by(settle: Callable[[Any, Any], Any]) -> None:
    """Say what applies the rule in force to a pending pointwise function."""
    _settler[:] = [settle]


def settler() -> Callable[[Any, Any], Any]:
    """What applies the rule in force to a pending pointwise function."""
    return _settler[0]


def rule_of_function(name: str) -> PrimitiveRule | None:
    """The rule of a function with a custom derivative, if it has one of its own."""
    return _functions.get(name)


def rule_or_none(primitive: Primitive) -> PrimitiveRule | None:
    """The rule of a primitive, if it has one."""
    return _table.get(primitive) or _names.get(primitive.name)


def rule_of(eqn: JaxprEqn, where: str) -> PrimitiveRule:
    """The rule of an equation's primitive.

    Raises:
        MissingRuleError: if there is none.
    """
    rule = rule_or_none(eqn.primitive)
    if rule is None:
        raise missing_rule(eqn, where, "has no rule")
    return rule


def missing_rule(eqn: JaxprEqn, where: str, reason: str) -> MissingRuleError:
    """The error that tells the user which operation can't be explained, where it is, and what to do."""
    place = versions.location(eqn) or where or "an unknown line"
    return MissingRuleError(
        f"the primitive `{eqn.primitive.name}` {reason}, so contributions would not sum to the difference of the "
        f"outputs. It was called from {place}. Write that line with other operations; or explain what comes after it, "
        "as embeddings in place of token ids; or give the primitive a rule with jaxlift.register; or take its plain "
        "derivative, and an incomplete sum, with missing_rule='derivative'."
    )
