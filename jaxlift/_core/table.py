"""The table of primitives: for each, what the evaluation does with an equation of it, and for which families of maps.

An evaluation takes the interpreter, the equation, and its operands, each an array or a `Varying` value (or a `Pending`
one, which `interpreter.settle` turns into a `Varying`), at least one of them varying; it returns the outputs likewise.
Where the rule in force has a say, it asks `interpreter.rule.at` for the rule that holds, and that by the family's
method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from jaxlift._core import versions
from jaxlift._core.values import Value
from jaxlift._core.versions import JaxprEqn, Primitive

# Called with the interpreter, an equation and its operands.
Evaluation = Callable[[Any, JaxprEqn, Sequence[Value]], Sequence[Value]]


@dataclass(frozen=True)
class Entry:
    """What is done with the equations of a primitive.

    Attributes:
        evaluate: the joint evaluation of one.
        families: the families of maps that it may be, or be part of. A rule without a reference leaves to JAX what is
            of none of the families that it answers.
        opens: whether it evaluates the jaxprs that the equation holds.
        is_registered: whether it is a user's, which may be of any family.
    """

    evaluate: Evaluation
    families: frozenset[str] = frozenset()
    opens: bool = False
    is_registered: bool = False

    def may_be(self, families: Set[str]) -> bool:
        """Whether a rule that answers these families, some at least, has a say in it."""
        return bool(families) and (self.is_registered or not self.families.isdisjoint(families))


_table: dict[Primitive | str, Entry] = {}
_functions: dict[str, Entry] = {}
_of_numbers: set[Primitive | str] = set()
_settlers: dict[type, Callable[[Any, Any], Any]] = {}
_of_masks: list[Callable[[Any, JaxprEqn, Sequence[Value]], Sequence[Value] | None]] = []
_of_implementations: list[Evaluation] = []


class MissingRuleError(NotImplementedError):
    """A primitive has no rule that would keep summation-to-delta, in the place where the program uses it.

    Attributes:
        has_derivative: whether ``missing_rule="derivative"`` would help.
    """

    has_derivative: bool = True


def family(
    evaluate: Evaluation, members: Iterable[Primitive | str], families: Iterable[str] = (), *, opens: bool = False
) -> None:
    """Give all members of a family of primitives one evaluation; those that JAX has no public name for, by name."""
    _table.update(dict.fromkeys(members, Entry(evaluate, frozenset(families), opens)))


def of_numbers(members: Iterable[Primitive | str]) -> None:
    """Say which primitives only convert or broadcast a number, so that what they make of a literal is one still."""
    _of_numbers.update(members)


def keeps_numbers(primitive: Primitive) -> bool:
    """Whether a primitive only converts or broadcasts a number."""
    return primitive in _of_numbers or primitive.name in _of_numbers


def settled_by(settle: Callable[[Any, Any], Any], kind: type) -> None:
    """Say what applies the rule in force to values of a kind that waits for it."""
    _settlers[kind] = settle


def settler(kind: type) -> Callable[[Any, Any], Any]:
    """What applies the rule in force to values of a kind that waits for it."""
    return _settlers[kind]


def masked_by(evaluate: Callable[[Any, JaxprEqn, Sequence[Value]], Sequence[Value] | None]) -> None:
    """Say what evaluates equations that mask a value, or have a masked one for an operand; of others it gives None."""
    _of_masks[:] = [evaluate]


def masked_outputs(interpreter: Any, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """The outputs of an equation that masks a value, or has a masked one for an operand; None of others."""
    return _of_masks[0](interpreter, eqn, inputs)


def implemented_by(evaluate: Evaluation) -> None:
    """Say what evaluates primitives of other libraries that bring an implementation."""
    _of_implementations[:] = [evaluate]


def register(key: Primitive | str, evaluate: Evaluation, *, is_function: bool = False) -> Entry | None:
    """Put an evaluation of a user's in the place of what is there, and say what that was.

    Args:
        key: a primitive, its name, or the name of a function with a derivative of its own.
    """
    entries: dict[Any, Entry] = _functions if is_function else _table
    before = entries.get(key)
    entries[key] = Entry(evaluate, is_registered=True)
    return before


def restore(key: Primitive | str, entry: Entry | None, *, is_function: bool = False) -> None:
    """Put back what was there before."""
    entries: dict[Any, Entry] = _functions if is_function else _table
    entries.pop(key)
    if entry is not None:
        entries[key] = entry


def known_names() -> list[str]:
    """The names of all primitives that are in the table."""
    return [key if isinstance(key, str) else key.name for key in _table]


def function_entry(name: str) -> Entry | None:
    """The entry of a function with a custom derivative, by what `versions.name_of_function` calls it, if it has one."""
    return _functions.get(name)


def entry_or_none(primitive: Primitive) -> Entry | None:
    """The entry of a primitive, if it has one."""
    return _table.get(primitive) or _table.get(primitive.name)


def evaluation_or_none(primitive: Primitive) -> Evaluation | None:
    """What is done with a primitive's equations, if anything is."""
    entry = entry_or_none(primitive)
    return entry and entry.evaluate


def evaluation_of(eqn: JaxprEqn, within: Sequence[JaxprEqn]) -> Evaluation:
    """What is done with an equation.

    Raises:
        MissingRuleError: if its primitive has none.
    """
    evaluate = evaluation_or_none(eqn.primitive)
    if evaluate is None and versions.implementation(eqn):
        return _of_implementations[0]
    if evaluate is None:
        raise missing_rule(eqn, within, "has no rule")
    return evaluate


def missing_rule(
    eqn: JaxprEqn, within: Sequence[JaxprEqn], reason: str, *, has_derivative: bool = True
) -> MissingRuleError:
    """The error that tells the user which operation can't be explained, where it is, and what to do."""
    place = versions.location(eqn, within) or "an unknown line"
    error = MissingRuleError(
        f"the primitive `{eqn.primitive.name}` {reason}, so contributions would not sum to the difference of the "
        f"outputs. It was called from {place}. Write that line with other operations; or explain what comes after it, "
        "as embeddings in place of token ids; or give the primitive a rule with jaxlift.register"
        + ("; or take its plain derivative, and an incomplete sum, with missing_rule='derivative'." * has_derivative)
        + "." * (not has_derivative)
    )
    error.has_derivative = has_derivative
    return error
