"""Bilinear maps: linear in each operand while the other is held.

With one operand constant they are linear. With both varying a rule says how the change is shared (`Rule.bilinear`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import magnitude, midpoint
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family
from jaxlift._core.values import Value, Varying, is_varying
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.linear import extended_to_integers, joined, mixing
from jaxlift.primitives.normalisation import Statistic, root
from jaxlift.rules.families import BilinearMap, Place


def product_of(
    interpreter: Interpreter,
    eqn: JaxprEqn,
    left: Varying,
    right: Varying,
    sizes: Callable[[Varying], Array],
    fed_by: frozenset[str],
    rest: Sequence[Any] = (),
    statistic: int | None = None,
) -> Varying:
    """A bilinear map of two varying values; or a normalisation, and then which of them is the statistic.

    Its variation is the Linear rule's, with the midpoints for weights: `|B|(sizes of left, |z_mid|) + |B|(|x_mid|,
    sizes of right)`. The midpoints only weigh there. What the sizes owe to them is no contribution, so multipliers
    don't lead to them.
    """
    values, references = (left.value, right.value), (left.reference, right.reference)
    rule = interpreter.rule.at(
        Place("bilinear" if statistic is None else "normalisation", fed_by, interpreter.scope_of(eqn))
    )
    bilinear = BilinearMap(eqn.primitive.name, lambda x, z: versions.bind(eqn, [x, z, *rest])[0], statistic)
    answer = rule.bilinear if statistic is None else rule.normalisation

    def product(operands: tuple[Array, Array], _: Any = ()) -> Array:
        return bilinear(*operands)

    def pull(cotangent: Array, values: Any, references: Any) -> tuple[Array, Array]:
        return answer(bilinear, values, references, cotangent)

    def weigh(sizes: tuple[Array, Array], ends: Any) -> Array:
        x, z = (midpoint(*pair) for pair in zip(*ends, strict=True))

        def add(of_term: Any, of_weight: Any) -> Sequence[Array]:
            return [product((of_term(sizes[0]), of_weight(z))) + product((of_weight(x), of_term(sizes[1])))]

        return joined(rule, add)[0]

    def pull_sizes(cotangent: Array, sizes: tuple[Array, Array], ends: Any) -> tuple[Array, Array]:
        return jax.vjp(lambda sizes: weigh(sizes, ends), sizes)[1](cotangent)[0]

    def variation() -> Array:
        return with_multipliers(weigh, pull_sizes, (sizes(left), sizes(right)), (values, references))

    return Varying(with_multipliers(product, pull, values, references), product(references), variation, fed_by)


def bilinear(kind: str) -> Evaluation:
    """The evaluation of a bilinear map that mixes entries, as matrix products do. Further operands, such as the
    sizes of groups, must not vary.
    """

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        rest = operands[2:]
        if any(map(is_varying, rest)):
            raise interpreter.missing_rule(eqn, "has sizes of groups that depend on the explained input")
        varying = [interpreter.settle(operand) for operand in operands if is_varying(operand)]
        if len(varying) == 1:
            return mixing(interpreter, eqn, operands, kind)
        if not interpreter.is_joint and "bilinear" not in interpreter.rule.families:
            return interpreter.differentiated(eqn, operands)
        left, right = varying
        out = product_of(
            interpreter, eqn, left, right, lambda o: magnitude(o.value, o.reference), frozenset({kind}), rest
        )
        if _sums_squares(eqn, left, right):
            out.origin = Statistic(root(left))
        return [out]

    return extended_to_integers(evaluate, lambda position: position < 2)


def _sums_squares(eqn: JaxprEqn, left: Varying, right: Varying) -> bool:
    """Whether a product is the sum of a value's squares over some axes."""
    if eqn.primitive not in DOT_GENERAL:
        return False
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    return root(left) is root(right) and len(contracted) + len(batch) == len(left.shape) == len(right.shape)


DOT_GENERAL = primitives("dot_general")
FAMILIES = ("linear", "bilinear")
family(bilinear("dense"), DOT_GENERAL, FAMILIES)
family(bilinear("conv"), primitives("conv_general_dilated"), FAMILIES)
family(bilinear("dense"), ["ragged_dot_general"], FAMILIES)
