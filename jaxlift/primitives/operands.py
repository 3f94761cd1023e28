"""Elementwise functions of several values that vary each for itself: every operand gets its Shapley value.

An operand's Shapley value is the mean of what its change does, over the states of the others; divided by its own
difference it is a multiplier. One operand alone is Rescale. The sum over the operands is the difference, by
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import comb
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import slope_between
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import PrimitiveRule
from jaxlift._core.values import Node, Value, Varying, carrier_dtype, feeds, is_inexact, with_carrier
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.primitives.bilinear import midpoint, product_of
from jaxlift.primitives.linear import carrying

# Called with an equation, its operands at the input, its operands at the reference, and which of them vary.
Multipliers = Callable[[JaxprEqn, Sequence[Any], Sequence[Any], Sequence[int]], list[Array]]


def several(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The rule of an elementwise primitive of several settled operands that vary each for itself."""
    return RULES.get(eqn.primitive, operandwise(shapley))(interpreter, eqn, operands)


def operandwise(multipliers: Multipliers) -> PrimitiveRule:
    """The rule that gives each operand a multiplier. The variation weighs with their sizes: `a_y = sum |m_i| a_i`."""

    def rule(interpreter: Interpreter, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        operands = [interpreter.settle(value) for value in values]
        which = [i for i, operand in enumerate(operands) if isinstance(operand, Varying)]
        varying = [operand for operand in operands if isinstance(operand, Varying)]
        constants = tuple(operand for operand in operands if not isinstance(operand, Varying))
        positions = range(len(operands))

        def filled(varied: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
            constant, replaced = iter(constants), dict(zip(which, varied, strict=True))
            return [replaced[i] if i in replaced else next(constant) for i in positions]

        def each(held: Any) -> list[Array]:
            values, references, constants = held
            return multipliers(eqn, filled(values, constants), filled(references, constants), which)

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

    return rule


def shapley(eqn: JaxprEqn, values: Sequence[Any], references: Sequence[Any], which: Sequence[int]) -> list[Array]:
    """The Shapley value of each operand, over its difference.

    For operand `i` of `n`, each set `S` of the others that have already changed weighs `1 / (n C(n - 1, |S|))`.
    """

    def multiplier(i: int) -> Array:
        others = [k for k in which if k != i]
        total = jnp.zeros(())
        for changed in product((False, True), repeat=len(others)):
            operands = dict(enumerate(values)) | {
                k: references[k] for k, c in zip(others, changed, strict=True) if not c
            }
            f = PointwiseFunction.of(Node(eqn, tuple({**operands, i: None}.values()), ""))
            x, r = values[i], references[i]
            weight = 1 / (len(which) * comb(len(others), sum(changed)))
            if is_inexact(x) and is_inexact(eqn.outvars[0]):
                total += weight * f.mean_secant([(f.sample(x), f.sample(r))])
            else:
                total += weight * slope_between(f(x), f(r), x, r, carrier_dtype())
        return total

    return [multiplier(i) for i in which]


def choice(eqn: JaxprEqn, values: Sequence[Any], references: Sequence[Any], which: Sequence[int]) -> list[Array]:
    """The Shapley values of `select_n`: of which case is chosen, and of the cases together, whose share is linear.

    With `p` and `q` the choices at input and reference, the choice changes `y` by `[(x_p - x_q) + (r_p - r_q)] / 2`,
    and case `c` by `[1{p = c} + 1{q = c}] / 2` of its own difference.
    """
    (p, *x), (q, *r) = values, references

    def multiplier(position: int) -> Array:
        if position > 0:
            chosen = [(side == position - 1).astype(x[0].dtype) for side in (p, q)]
            return (chosen[0] + chosen[1]) / 2
        (x_p, r_p), (x_q, r_q) = ([versions.bind(eqn, [side, *cases])[0] for cases in (x, r)] for side in (p, q))
        dtype = jnp.result_type(x_p.dtype, carrier_dtype())
        return (slope_between(x_p, x_q, p, q, dtype) + slope_between(r_p, r_q, p, q, dtype)) / 2

    return [multiplier(position) for position in which]


def quotient(eqn: JaxprEqn, values: Sequence[Any], references: Sequence[Any], which: Sequence[int]) -> list[Array]:
    """The Shapley values of `x / z`: with `1/z - 1/s = -(z - s) / (z s)`, and no difference in need of care,

    x / z - r / s = (1/z + 1/s) / 2 (x - r) - (x + r) / (2 z s) (z - s)
    """
    del eqn, which
    (x, z), (r, s) = values, references
    return [(1 / z + 1 / s) / 2, -midpoint(x, r) / z / s]


def multiplication(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`x z - r s = z_mid (x - r) + x_mid (z - s)`; an entry's parts are taken along, weighed by the midpoints."""
    left, right = (operand for operand in operands if isinstance(operand, Varying))
    if left.is_discrete:
        return operandwise(shapley)(interpreter, eqn, operands)
    return [product_of(eqn, left, right, lambda o: o.variation, feeds(operands))]


def choosing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`select_n`: linear in the cases, where what is chosen is the same on both sides."""
    if isinstance(operands[0], Varying):
        return operandwise(choice)(interpreter, eqn, operands)
    return carrying(linear_in=lambda position: position > 0)(interpreter, eqn, operands)


def division(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """Quotients of numbers; those of integers are cut off."""
    return operandwise(quotient if is_inexact(eqn.outvars[0]) else shapley)(interpreter, eqn, operands)


RULES: dict[Any, PrimitiveRule] = dict.fromkeys(primitives("add"), carrying())
RULES |= dict.fromkeys(primitives("sub"), carrying(negated=1))
RULES |= dict.fromkeys(primitives("select_n"), choosing)
RULES |= dict.fromkeys(primitives("mul"), multiplication)
RULES |= dict.fromkeys(primitives("div"), division)
