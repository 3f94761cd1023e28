"""Elementwise functions of several values that vary each for itself: every operand gets its Shapley value.

An operand's Shapley value is the mean of what its change does, over the states of the others; divided by its own
difference it is a multiplier. One operand alone is Rescale. The sum over the operands is the difference, by
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import comb
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._function import PointwiseFunction
from jaxlift._multipliers import with_multipliers
from jaxlift._registry import PrimitiveRule
from jaxlift._values import Node, Value, Varying
from jaxlift.primitives.bilinear import midpoint, product_of
from jaxlift.primitives.linear import carrying, discrete, feeds, on_each_side

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter

# Called with an equation, its operands at the input, its operands at the reference, and which of them vary.
Multipliers = Callable[[JaxprEqn, Sequence[Any], Sequence[Any], Sequence[int]], list[Array]]


def several(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The rule of an elementwise primitive of several settled operands that vary each for itself."""
    if not jnp.issubdtype(_compat.dtype(eqn.outvars[0]), jnp.inexact):
        return [discrete(*sides) for sides in on_each_side(eqn, operands)]
    if any(isinstance(o, Varying) and o.is_discrete for o in operands):
        raise interpreter.missing_rule(eqn, "is steered by conditions or integers that depend on the explained input")
    return RULES.get(eqn.primitive, operandwise(shapley))(interpreter, eqn, operands)


def operandwise(multipliers: Multipliers) -> PrimitiveRule:
    """The rule that gives each operand a multiplier. The variation weighs with their sizes: `a_y = sum |m_i| a_i`."""

    def rule(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        del interpreter
        which = [i for i, operand in enumerate(operands) if isinstance(operand, Varying)]
        varying = [operand for operand in operands if isinstance(operand, Varying)]
        constants = tuple(operand for operand in operands if not isinstance(operand, Varying))
        positions = range(len(operands))

        def filled(varied: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
            constant, replaced = iter(constants), dict(zip(which, varied, strict=True))
            return [replaced[i] if i in replaced else next(constant) for i in positions]

        def forward(values: Sequence[Array], held: Any) -> Array:
            return _compat.bind(eqn, filled(values, held[-1]))[0]

        def each(values: Sequence[Array], references: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
            return multipliers(eqn, filled(values, constants), filled(references, constants), which)

        def pull(cotangent: Array, values: Any, held: Any) -> tuple[Array, ...]:
            return tuple(m * cotangent for m in each(values, *held))

        def weigh(parts: Any, held: Any) -> Array:
            return sum((jnp.abs(m) * a for m, a in zip(each(*held), parts, strict=True)), start=jnp.zeros(()))

        def pull_parts(cotangent: Array, parts: Any, held: Any) -> tuple[Array, ...]:
            return tuple(jnp.abs(m) * cotangent for m in each(*held))

        values, references = tuple(o.value for o in varying), tuple(o.reference for o in varying)

        def variation() -> Array:
            return with_multipliers(
                weigh, pull_parts, tuple(o.variation for o in varying), (values, references, constants)
            )

        value = with_multipliers(forward, pull, values, (references, constants))
        return [Varying(value, forward(references, (constants,)), variation, feeds(varying))]

    return rule


def shapley(eqn: JaxprEqn, values: Sequence[Any], references: Sequence[Any], which: Sequence[int]) -> list[Array]:
    """The Shapley value of each operand, over its difference.

    For operand `i` of `n`, each set `S` of the others that have already changed weighs `1 / (n C(n - 1, |S|))`.
    """

    def multiplier(i: int) -> Array:
        others = [k for k in which if k != i]
        total = jnp.zeros_like(values[i])
        for changed in product((False, True), repeat=len(others)):
            operands = dict(enumerate(values)) | {
                k: references[k] for k, c in zip(others, changed, strict=True) if not c
            }
            f = PointwiseFunction.of(Node(eqn, tuple({**operands, i: None}.values()), ""))
            weight = 1 / (len(which) * comb(len(others), sum(changed)))
            total += weight * f.secant_between(f.sample(values[i]), f.sample(references[i]))
        return total

    return [multiplier(i) for i in which]


def quotient(eqn: JaxprEqn, values: Sequence[Any], references: Sequence[Any], which: Sequence[int]) -> list[Array]:
    """The Shapley values of `x / z`: with `1/z - 1/s = -(z - s) / (z s)`, and no difference in need of care,

    x / z - r / s = (1/z + 1/s) / 2 (x - r) - (x + r) / (2 z s) (z - s)
    """
    del eqn, which
    (x, z), (r, s) = values, references
    return [(1 / z + 1 / s) / 2, -midpoint(x, r) / z / s]


def multiplication(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """`x z - r s = z_mid (x - r) + x_mid (z - s)`; an entry's parts are taken along, weighed by the midpoints."""
    del interpreter
    left, right = (operand for operand in operands if isinstance(operand, Varying))
    return [product_of(eqn, left, right, lambda o: o.variation, feeds(operands))]


RULES: dict[Any, PrimitiveRule] = dict.fromkeys(primitives("add"), carrying())
RULES |= dict.fromkeys(primitives("sub"), carrying(negated=1))
RULES |= dict.fromkeys(primitives("select_n"), carrying(linear_in=lambda position: position > 0))
RULES |= dict.fromkeys(primitives("mul"), multiplication)
RULES |= dict.fromkeys(primitives("div"), operandwise(quotient))
