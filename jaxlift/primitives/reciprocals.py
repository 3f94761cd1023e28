"""Reciprocals, recognised so that a product with one has the multipliers of the quotient that it is.

`v * rsqrt(u)` is `v / S` with `S = sqrt(u)`; so are products with `s ** -0.5`, with `1 / sqrt(s)`, and with these in
another dtype, arrangement or size, or times constants `c`, such as the learned scale of a normalisation. `S` is an
elementwise function of what the reciprocal is one of, with multipliers of its own, which are computed in the place of
the reciprocal's: those explode where `S` is small. (The rule for quotients is in `jaxlift.rules.rule`.)
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import versions
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.values import Fraction, Node, Pending, Varying, number_of
from jaxlift._core.versions import primitives
from jaxlift._pointwise.function import CONVERSIONS, PointwiseFunction

[DIV], [MUL], [MIN], [MAX], [SQRT] = (primitives(name) for name in ("div", "mul", "min", "max", "sqrt"))
SCALING = frozenset(primitives("mul", "div", "neg"))
ALIKE = CONVERSIONS | frozenset(primitives("copy"))


def moved(
    value: Varying, of_divisor: Callable[[Varying], Any], of_scale: Callable[[Any], Array]
) -> Callable[[], Fraction | None] | None:
    """The fraction of a value whose entries were moved or repeated, given how that is done to a value and to an
    array.
    """
    if value.make_fraction is None:
        return None

    def make() -> Fraction | None:
        if (of := value.fraction) is None:
            return None
        return Fraction(None if of.scale is None else of_scale(of.scale), of_divisor(of.divisor))

    return make


def fraction_of(interpreter: Interpreter, pending: Pending) -> Fraction | None:
    """A pointwise function as `c / S`, if its last steps are a reciprocal and what leaves it one."""
    steps: list[Node] = []
    node: Node | None = pending.node
    while node is not None and (inner := _operand_of_outer_step(node)):
        steps.append(node)
        [node] = inner
    found = pending.of.fraction if node is None else _inverse(node, pending.of)
    if found is None:
        return None
    scale, divisor = found
    for step in reversed(steps):
        eqn = step.eqn
        constant: Any = next((operand for operand in step.operands if not _varies(operand)), None)
        if eqn.primitive is MIN:
            if scale is not None:
                return None
            bound = np.reciprocal(constant, out=np.empty_like(constant))  # a literal still
            divisor = _then(divisor, Node(eqn.replace(primitive=MAX), (None, bound), step.scope))
        elif eqn.primitive in ALIKE:
            divisor = _then(divisor, Node(eqn, (None,), step.scope))
            scale = None if scale is None else versions.bind(eqn, [scale])[0]
        elif eqn.primitive is MUL and scale is None:
            scale = constant
        else:
            of = jnp.ones_like(pending.of.reference, versions.dtype(eqn.outvars[0])) if scale is None else scale
            [scale] = versions.bind(eqn, [of if _varies(operand) else operand for operand in step.operands])
    scale = None if scale is None else versions.broadcast_to(scale, pending.node.eqn.outvars[0])
    return Fraction(scale, interpreter.settle(divisor))


def _varies(operand: Any) -> TypeGuard[Node | None]:
    return operand is None or isinstance(operand, Node)


def _operand_of_outer_step(node: Node) -> tuple[Node | None, ...]:
    """What a step takes a multiple of, or rounds, or bounds by a positive number (`keras.ops.normalize` does this to an
    inverse root), in a tuple; of other steps an empty one.
    """
    primitive = node.eqn.primitive
    varying = tuple(operand for operand in node.operands if _varies(operand))
    if len(varying) != 1 or (primitive is DIV and not _varies(node.operands[0])):
        return ()
    if primitive is MIN:
        [bound] = [number_of(operand) for operand in node.operands if not _varies(operand)]
        return varying if bound is not None and bound > 0 else ()
    return varying if primitive in SCALING | ALIKE else ()


def _inverse(node: Node, of: Varying) -> tuple[Any, Pending | Varying] | None:
    """`c` and `S`, if a function's last step makes `c / S`.

    Where `S` grows exponentially, as in a logistic function that is written out, the reciprocal is a gate, or an
    exponential: a product, as with these. It is finite where `S` itself overflows.
    """
    eqn, (inner, *rest) = node.eqn, node.operands
    scale: Any = None
    exponent: Any
    match eqn.primitive.name, rest:
        case "rsqrt", []:
            last = Node(eqn.replace(primitive=SQRT), (inner,), node.scope)
        case "integer_pow", [] if eqn.params["y"] < 0:
            y = -eqn.params["y"]
            last = inner if y == 1 else Node(eqn.replace(params=eqn.params | {"y": y}), (inner,), node.scope)
        case "pow", [exponent] if _varies(inner) and (number_of(exponent) or 0) < 0:
            last = Node(eqn, (inner, np.negative(exponent, out=np.empty_like(exponent))), node.scope)
        case "div", [last] if _varies(last) and not _varies(inner):
            scale = None if number_of(inner) == 1 else inner
        case _:
            return None
    if not isinstance(last, Node):
        return scale, of
    growth = PointwiseFunction.of(last).facts.growth or ()
    return None if any(0 < each.rate < inf for each in growth) else (scale, Pending(last, of))


def _then(value: Pending | Varying, step: Node) -> Pending:
    """A further elementwise step, whose operand None is the value."""
    of, last = (value.of, value.node) if isinstance(value, Pending) else (value, None)
    operands = tuple(last if operand is None else operand for operand in step.operands)
    return Pending(Node(step.eqn, operands, step.scope), of)
