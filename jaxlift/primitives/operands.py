"""Elementwise functions of several values that vary each for itself: a rule gives every operand a multiplier
(`Rule.elementwise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.compilers import once, stream
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import summed_to
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation
from jaxlift._core.values import (
    Fraction,
    Node,
    Pending,
    Value,
    Varying,
    carrier_dtype,
    feeds,
    on_each_side,
    with_carrier,
)
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.bilinear import product_of
from jaxlift.primitives.linear import carrying
from jaxlift.primitives.normalisation import Repeated, statistic_among
from jaxlift.rules.families import Elementwise, Place


def several(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of an elementwise primitive of several settled operands that vary each for itself."""
    if not interpreter.is_joint and interpreter.rule.families.isdisjoint(("elementwise", "bilinear", "normalisation")):
        return interpreter.differentiated(eqn, operands)
    return EVALUATIONS.get(eqn.primitive, operandwise)(interpreter, eqn, operands)


def operandwise(
    interpreter: Interpreter, eqn: JaxprEqn, values: Sequence[Value], known: tuple[Any, Array] | None = None
) -> list[Value]:
    """The evaluation that gives each operand a multiplier. The variation weighs with their sizes: `a_y = sum |m_i|
    a_i`.

    That of a quotient starts anew, as after softmax. In a normalised value the parts of the divisor, and of the mean
    that is taken off, are those of all entries together: positive and negative ones many times larger than their sum.
    RevealCancel in a function that saturates, given such parts, shares its change among the terms of the sum by their
    sizes, whatever their signs.

    Args:
        known: the output at the input and at the reference, where the program computes it in another way.
    """
    operands = [interpreter.settle(value) for value in values]
    rule = interpreter.rule.at(Place("elementwise", feeds(operands), interpreter.scope_of(eqn)))
    if not interpreter.is_joint and "elementwise" not in rule.families:
        return interpreter.differentiated(eqn, operands)
    is_quotient = eqn.primitive is DIVISION
    if is_quotient:
        operands[1] = _before_repeated(operands[1])
    which = tuple(i for i, operand in enumerate(operands) if isinstance(operand, Varying))
    varying = [operand for operand in operands if isinstance(operand, Varying)]
    constants = tuple(operand for operand in operands if not isinstance(operand, Varying))
    g = Elementwise(eqn.primitive.name, eqn, which, tuple(operand.low for operand in varying))

    def filled(varied: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
        constant = iter(constants)
        replaced = {i: _at_shape_of(eqn, each) for i, each in zip(which, varied, strict=True)}
        return [replaced[i] if i in replaced else next(constant) for i in range(len(operands))]

    def asked(held: Any) -> tuple[Elementwise, list[Array], list[Array]]:
        values, references, constants, outputs = held
        here = replace(g, outputs=outputs, divisors=(values[1], references[1])) if is_quotient else g
        return here, filled(values, constants), filled(references, constants)

    def each(held: Any) -> list[Array]:
        return rule.elementwise(*asked(held))

    def forward(explained: Any, held: Any) -> Array:
        del explained
        values, _, constants, (out, _) = held
        out = output(values, constants) if out is None else out
        return out.astype(carrier_dtype(out))

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        cotangents = rule.pull_elementwise(*asked(held), cotangent)
        return tuple(summed_to(x.shape, ct) for ct, x in zip(cotangents, held[0], strict=True))

    def weigh(parts: Any, held: Any) -> Array:
        return sum((jnp.abs(m) * a for m, a in zip(each(held), parts, strict=True)), start=jnp.zeros(()))

    def pull_parts(cotangent: Array, parts: Any, held: Any) -> tuple[Array, ...]:
        del parts
        return tuple(jnp.abs(m) * cotangent for m in each(held))

    def output(values: Sequence[Array], constants: Sequence[Array]) -> Array:
        return versions.bind(eqn, filled(values, constants))[0]

    values, references = tuple(o.value for o in varying), tuple(o.reference for o in varying)
    if known is None:
        # Of others than quotients nothing is made of values, and some have no derivatives that scores might ask for.
        known = (output(values, constants) if is_quotient else None), output(references, constants)
    held = (values, references, constants, known)

    def variation() -> Array:
        return with_multipliers(weigh, pull_parts, tuple(o.variation for o in varying), held)

    def carrier() -> Array:
        return with_multipliers(forward, pull, tuple(o.carrier for o in varying), held)

    value, reference = known
    return [
        with_carrier(
            lambda: output(values, constants) if value is None else value,
            reference,
            carrier,
            feeds(varying),
            None if is_quotient else variation,
        )
    ]


def _before_repeated(divisor: Any) -> Any:
    """A divisor as it was before it was repeated along axes, as a norm's is. What belongs to it alone is computed for
    no more elements than there are.
    """
    while isinstance(divisor, Varying) and isinstance(divisor.origin, Repeated):
        before = divisor.origin.of
        if len(before.shape) != len(divisor.shape):
            break
        divisor = before
    return divisor


def _at_shape_of(eqn: JaxprEqn, operand: Array) -> Array:
    """An operand at the shape of an elementwise equation's output."""
    [out] = eqn.outvars
    return operand if operand.shape == versions.shape(out) else versions.broadcast_to(operand, out)


carried = carrying()


def addition(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`x + z`, both of which vary, as the stream of a network with residuals and what a block adds to it.

    Between convolutions alone XLA computes the stream's cotangents once by itself, and to say so would be one array
    more. (The stream of a vision transformer begins with one.)
    """
    [out] = carried(interpreter, eqn, operands)
    if isinstance(out, Varying) and "dense" in out.fed_by and not (out.is_alone or out.is_discrete):
        out = replace(out, value=stream(out.value), reference=once(out.reference))
    return [out]


def multiplication(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`x z - r s = z_mid (x - r) + x_mid (z - s)`; an entry's parts are taken along, weighed by the midpoints.

    A product with a reciprocal is the quotient that it stands for, unless the rule has an answer of its own for
    products.
    """
    left, right = (operand for operand in operands if isinstance(operand, Varying))
    if left.is_discrete:
        return operandwise(interpreter, eqn, operands)
    statistic = _statistic(interpreter, eqn, left, right)
    may_divide = statistic is None and _takes_quotients(interpreter, eqn, left, right)
    fractions = (left.fraction, right.fraction) if may_divide else (None, None)
    match fractions:
        case (None, Fraction() as by):
            return _quotient(interpreter, eqn, operands, left, by)
        case (Fraction() as by, None):
            return _quotient(interpreter, eqn, operands, right, by)
    out = product_of(interpreter, eqn, left, right, lambda o: o.variation, feeds(operands), statistic=statistic)
    match fractions:
        case (Fraction() as one, Fraction() as other):
            out.make_fraction = partial(_product_of_fractions, interpreter, eqn, one, other)
    return [out]


def _takes_quotients(interpreter: Interpreter, eqn: JaxprEqn, left: Varying, right: Varying) -> bool:
    """Whether the rule that holds for a product leaves it to DeepLIFT, which compares with a reference."""
    place = Place("bilinear", feeds([left, right]), interpreter.scope_of(eqn))
    return interpreter.is_joint and "bilinear" not in interpreter.rule.at(place).families


def _quotient(
    interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], of: Varying, by: Fraction
) -> Sequence[Value]:
    """A product of a value and of `c / S`, as the quotient of `c` times the value, and of `S`."""
    [(value, reference)] = on_each_side(eqn, operands)
    if by.scale is not None:
        of = interpreter.settle(Pending(Node(eqn, (None, by.scale), interpreter.scope_of(eqn)), of))
    return operandwise(interpreter, eqn.replace(primitive=DIVISION), [of, by.divisor], (once(value), once(reference)))


def _product_of_fractions(interpreter: Interpreter, eqn: JaxprEqn, one: Fraction, other: Fraction) -> Fraction:
    """`(c / S) (d / T) = c d / (S T)`, as of two norms by which a cosine divides."""
    scales = [scale for scale in (one.scale, other.scale) if scale is not None]
    scale = versions.bind(eqn, scales)[0] if len(scales) == 2 else next(iter(scales), None)
    divisors = one.divisor, other.divisor
    return Fraction(
        scale, product_of(interpreter, eqn, *divisors, lambda o: o.variation, feeds(divisors), statistic=None)
    )


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


[DIVISION] = primitives("div")
EVALUATIONS: dict[Any, Evaluation] = dict.fromkeys(primitives("add"), addition)
EVALUATIONS |= dict.fromkeys(primitives("sub"), carrying(negated=1))
EVALUATIONS |= dict.fromkeys(primitives("select_n"), choosing)
EVALUATIONS |= dict.fromkeys(primitives("mul"), multiplication)
EVALUATIONS |= dict.fromkeys(primitives("div"), division)
