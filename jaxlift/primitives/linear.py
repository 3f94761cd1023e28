"""Linear maps: differences pass as derivatives do, so the primitive itself is applied to values and to references.

What a map does to the variation `a = D+ - D-` depends on its kind. Maps that move, copy, add or average entries take
the positive and negative parts along: the same map is applied to `a`. Maps that weigh and mix (matrix products,
convolutions) rebuild the parts from the signs of their terms `w D`, which is the paper's Linear rule (section 3.5.1):
`a_y = |L| |D|`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.compilers import AFTER, ONCE, WAITING
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import magnitude, slope_between
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family, of_numbers
from jaxlift._core.values import (
    Settled,
    Value,
    Varying,
    as_number,
    carrier_dtype,
    feeds,
    is_inexact,
    is_varying,
    on_each_side,
    with_carrier,
)
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.normal import root
from jaxlift.rules.families import LinearMap, Place
from jaxlift.rules.rule import Rule


def step(value: Array, reference: Array, of: Varying) -> Varying:
    """A function from or to integers and truth values. Its multiplier is `(y - y_ref) / (x - r)`, as under Rescale, and
    0 where nothing differs.
    """

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        y, y_ref, x, r = held
        return (cotangent * slope_between(y, y_ref, x, r, cotangent.dtype),)

    def carrier() -> Array:
        held = (value, reference, of.value, of.reference)
        return with_multipliers(lambda explained, held: held[0].astype(carrier_dtype(value)), pull, (of.carrier,), held)

    return with_carrier(lambda: value, reference, carrier, of.fed_by)


def everywhere(position: int) -> bool:
    """Whether operands enter linearly in this position, for maps that are linear in all."""
    del position
    return True


def extended_to_integers(evaluate: Evaluation, linear_in: Callable[[int], bool] = everywhere) -> Evaluation:
    """The evaluation of a map of numbers, for integers and truth values too.

    They are mapped as numbers. What they themselves come to is a step in that: integers wrap around, and a sum of truth
    values is one.
    """

    def extended(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        if not any(isinstance(o, Varying) and o.is_discrete for o in settled):
            return evaluate(interpreter, eqn, settled)

        number = carrier_dtype(eqn.outvars[0])

        def as_numbers(operand: Settled) -> Settled:
            if not isinstance(operand, Varying):
                return operand if is_inexact(operand) else jnp.asarray(operand, number)
            return as_number(operand, number)

        @cache
        def mapped() -> Sequence[Any]:
            numbers = [as_numbers(o) if linear_in(i) else o for i, o in enumerate(settled)]
            of_numbers = eqn if is_inexact(eqn.outvars[0]) else versions.for_numbers(eqn, number)
            return evaluate(interpreter, of_numbers, numbers)

        def carrier(output: int, value: Array, reference: Array) -> Array:
            return step(value, reference, mapped()[output]).carrier

        if all(is_inexact(output) for output in eqn.outvars):
            return mapped()
        return [
            mapped()[k] if is_inexact(y) else Varying(y, y_ref, None, feeds(settled), partial(carrier, k, y, y_ref))
            for k, (y, y_ref) in enumerate(on_each_side(eqn, settled))
        ]

    return extended


def joined(rule: Rule, add: Callable[[Any, Any], Sequence[Array]]) -> Sequence[Array]:
    """The variations of sums, of those of their terms: `add` is given what to take of each term and each weight."""
    if rule.adds_squares:
        return [root(a) for a in add(jnp.square, jnp.square)]
    return add(lambda a: a, jnp.abs)


def carrying(linear_in: Callable[[int], bool] = everywhere, negated: int | None = None) -> Evaluation:
    """The evaluation of a linear map that takes the parts of differences along.

    Args:
        linear_in: in which positions the operands enter linearly. Others, such as indices, must not vary.
        negated: the position of the operand that is subtracted, if one is: its parts change places.
    """

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        if any(is_varying(o) and not linear_in(i) for i, o in enumerate(settled)):
            raise interpreter.missing_rule(eqn, "has indices that depend on the explained input")
        is_real = not any(jnp.iscomplexobj(o.value) for o in settled if isinstance(o, Varying))

        def part(position: int, operand: Settled, of: Callable[[Array], Array]) -> Array:
            if isinstance(operand, Varying):
                return -of(operand.variation) if position == negated else of(operand.variation)
            return jnp.zeros_like(operand) if linear_in(position) else operand

        @cache
        def variations() -> Sequence[Array]:
            rule = interpreter.rule.at(Place("linear", feeds(settled), interpreter.scope_of(eqn)))
            return joined(rule, lambda of, _: versions.bind(eqn, [part(i, o, of) for i, o in enumerate(settled)]))

        def variation(output: int) -> Array:
            return variations()[output]

        return [
            Varying(value, reference, partial(variation, output) if is_real else None, feeds(settled))
            for output, (value, reference) in enumerate(on_each_side(eqn, settled))
        ]

    return extended_to_integers(evaluate, linear_in)


@dataclass(frozen=True, eq=False)
class Weighted:
    """What a value remembers of the linear map that made it: a bias that is added to it belongs to the map.

    Attributes:
        of: what the map was applied to.
        rule: the rule that holds for the map.
        arranges: the value that this one is an arrangement of, if it isn't what the map itself gave.
    """

    linear: LinearMap
    of: Varying
    rule: Rule
    arranges: Varying | None = None

    def with_bias(self, bias: Array, value: Varying) -> Varying:
        """The map's value with a bias added, given what that is on both sides."""
        return weighted(replace(self.linear, bias=bias), self.of, self.rule, value)

    def moved(self, output: Varying, move: Callable[[Array], Array]) -> Weighted:
        """The same for the map's output arranged in another way, as `jax.vmap` of `w @ x + b` has it."""

        def apply(x: Array, weights: Array) -> Array:
            return move(self.linear.apply(x, weights))

        return replace(self, linear=replace(self.linear, apply=apply), arranges=output)


def weighted(linear: LinearMap, of: Varying, rule: Rule, value: Varying) -> Varying:
    """The value of a linear map whose cotangents a rule says."""

    def forward(explained: Any, held: Any) -> Array:
        (x,), (_, weights, bias) = explained, held
        return linear.with_weights(weights)(x) + bias

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        (x,), (r, weights, bias) = explained, held
        return (rule.linear(replace(linear, weights=weights, bias=bias), x, r, cotangent),)

    held = (of.reference, linear.weights, jnp.asarray(linear.bias, value.reference.dtype))
    return replace(value, value=with_multipliers(forward, pull, (of.value,), held))


def mixing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], kind: str) -> list[Value]:
    """The evaluation of a linear map with weights, all but one of whose operands are constant: `a_y = |L| |D|`."""
    settled = [interpreter.settle(operand) for operand in operands]

    fed_by = frozenset({kind})
    rule = interpreter.rule.at(Place("linear", fed_by, interpreter.scope_of(eqn)))

    def variation() -> Array:
        def add(of_term: Any, of_weight: Any) -> Sequence[Array]:
            sizes = [
                of_term(magnitude(o.value, o.reference)) if isinstance(o, Varying) else of_weight(o) for o in settled
            ]
            return versions.bind(eqn, sizes)

        return joined(rule, add)[0]

    [(value, reference)] = on_each_side(eqn, settled)
    out = Varying(value, reference, variation, fed_by)
    if "linear" in rule.families:
        [(position, of)] = [(i, o) for i, o in enumerate(settled) if isinstance(o, Varying)]

        def apply(x: Array, weights: Array) -> Array:
            return versions.bind(eqn, [*((x, weights) if position == 0 else (weights, x)), *settled[2:]])[0]

        linear = LinearMap(kind, apply, jnp.asarray(settled[1 - position]))
        out = weighted(linear, of, rule, out)
        out.origin = Weighted(linear, of, rule)
    return [out]


def identity(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of primitives that hand on what they are given.

    `stop_gradient` is one: it says how to train, not what the function is, and DeepLIFT explains the function.
    """
    del interpreter, eqn
    return operands


of_numbers([*primitives("broadcast_in_dim", "convert_element_type"), "pvary", "pcast"])
family(identity, [*primitives("stop_gradient", "optimization_barrier"), WAITING, AFTER])

family(carrying(), [ONCE])  # of the input and of the reference, each computed once
family(
    carrying(),
    primitives(
        # Those that softmax is recognised through are in softmax.py: reduce_sum, broadcast_in_dim, reshape and such.
        *("rev", "slice", "split", "concatenate", "pad", "stack", "unstack", "tile", "stage", "name"),
        *("sharding_constraint", "device_put", "dce_sink", "cumsum", "reduce_window_sum", "add_jaxvals"),
        *("real", "imag", "conj", "complex", "fft", "psum", "ppermute", "all_gather", "all_to_all"),
    ),
)
family(carrying(linear_in=lambda position: position == 3), primitives("tridiagonal_solve"))
family(carrying(), ["reshard", "mesh_cast"])
family(carrying(), ["psum_invariant", "all_gather_invariant", "reduce_scatter", "pvary", "pcast"])
