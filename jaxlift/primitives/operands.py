"""Elementwise functions of several values that vary each for itself: a rule gives every operand a multiplier
(`Rule.elementwise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation
from jaxlift._core.values import Value, Varying, carrier_dtype, feeds, with_carrier
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.bilinear import product_of
from jaxlift.primitives.linear import carrying
from jaxlift.primitives.normalisation import statistic_among
from jaxlift.rules.families import Elementwise, Place


def several(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of an elementwise primitive of several settled operands that vary each for itself."""
    if not interpreter.is_joint and interpreter.rule.families.isdisjoint(("elementwise", "bilinear", "normalisation")):
        return interpreter.differentiated(eqn, operands)
    return EVALUATIONS.get(eqn.primitive, operandwise)(interpreter, eqn, operands)


def operandwise(interpreter: Interpreter, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """The evaluation that gives each operand a multiplier. The variation weighs with their sizes: `a_y = sum |m_i|
    a_i`.
    """
    operands = [interpreter.settle(value) for value in values]
    which = tuple(i for i, operand in enumerate(operands) if isinstance(operand, Varying))
    varying = [operand for operand in operands if isinstance(operand, Varying)]
    constants = tuple(operand for operand in operands if not isinstance(operand, Varying))
    rule = interpreter.rule.at(Place("elementwise", feeds(varying), interpreter.scope_of(eqn)))
    if not interpreter.is_joint and "elementwise" not in rule.families:
        return interpreter.differentiated(eqn, operands)
    g = Elementwise(eqn.primitive.name, eqn, which)

    def filled(varied: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
        constant, replaced = iter(constants), dict(zip(which, varied, strict=True))
        return [replaced[i] if i in replaced else next(constant) for i in range(len(operands))]

    def each(held: Any) -> list[Array]:
        values, references, constants = held
        return rule.elementwise(g, filled(values, constants), filled(references, constants))

    def forward(explained: Any, held: Any) -> Array:
        del explained
        values, _, constants = held
        out = versions.bind(eqn, filled(values, constants))[0]
        return out.astype(carrier_dtype(out))

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        return tuple(m * cotangent for m in each(held))

    def weigh(parts: Any, held: Any) -> Array:
        return sum((jnp.abs(m) * a for m, a in zip(each(held), parts, strict=True)), start=jnp.zeros(()))

    def pull_parts(cotangent: Array, parts: Any, held: Any) -> tuple[Array, ...]:
        del parts
        return tuple(jnp.abs(m) * cotangent for m in each(held))

    held = (tuple(o.value for o in varying), tuple(o.reference for o in varying), constants)
    reference = versions.bind(eqn, filled(held[1], constants))[0]

    def variation() -> Array:
        weighed = with_multipliers(weigh, pull_parts, tuple(o.variation for o in varying), held)
        return weighed.astype(reference.dtype)

    def carrier() -> Array:
        return with_multipliers(forward, pull, tuple(o.carrier for o in varying), held)

    def value() -> Array:
        return versions.bind(eqn, filled(held[0], constants))[0]

    is_real = not jnp.iscomplexobj(reference)
    return [with_carrier(value, reference, carrier, feeds(varying), variation if is_real else None)]


def multiplication(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`x z - r s = z_mid (x - r) + x_mid (z - s)`; an entry's parts are taken along, weighed by the midpoints."""
    left, right = (operand for operand in operands if isinstance(operand, Varying))
    if left.is_discrete:
        return operandwise(interpreter, eqn, operands)
    statistic = _statistic(interpreter, eqn, left, right)
    return [product_of(interpreter, eqn, left, right, lambda o: o.variation, feeds(operands), statistic=statistic)]


def division(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`x / z`: a normalisation if `z` is a statistic of `x`, and if the rule has an answer of its own for these."""
    left, right = (operand for operand in operands if isinstance(operand, Varying))
    if left.is_discrete or _statistic(interpreter, eqn, left, right) != 1:
        return operandwise(interpreter, eqn, operands)
    return [product_of(interpreter, eqn, left, right, lambda o: o.variation, feeds(operands), statistic=1)]


def _statistic(interpreter: Interpreter, eqn: JaxprEqn, left: Varying, right: Varying) -> int | None:
    """Which of two values is a statistic of the other, 0 or 1, if the rule that holds here asks."""
    if "normalisation" not in interpreter.rule.families:
        return None
    rule = interpreter.rule.at(Place("normalisation", feeds([left, right]), interpreter.scope_of(eqn)))
    return statistic_among(left, right) if "normalisation" in rule.families else None


def choosing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`select_n`: linear in the cases, where what is chosen is the same on both sides."""
    if isinstance(operands[0], Varying):
        return operandwise(interpreter, eqn, operands)
    return carrying(linear_in=lambda position: position > 0)(interpreter, eqn, operands)


EVALUATIONS: dict[Any, Evaluation] = dict.fromkeys(primitives("add"), carrying())
EVALUATIONS |= dict.fromkeys(primitives("sub"), carrying(negated=1))
EVALUATIONS |= dict.fromkeys(primitives("select_n"), choosing)
EVALUATIONS |= dict.fromkeys(primitives("mul"), multiplication)
EVALUATIONS |= dict.fromkeys(primitives("div"), division)
