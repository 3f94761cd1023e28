"""Linear maps: differences pass as derivatives do, so the primitive itself is applied to values and to references.

What a map does to the variation `a = D+ - D-` depends on its kind. Maps that move, copy, add or average entries take
the positive and negative parts along: the same map is applied to `a`. Maps that weigh and mix (matrix products,
convolutions) rebuild the parts from the signs of their terms `w D`, which is the paper's Linear rule (section 3.5.1):
`a_y = |L| |D|`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._multipliers import magnitude, slope_between, with_multipliers
from jaxlift._registry import PrimitiveRule, family, family_by_name
from jaxlift._values import Settled, Value, Varying, is_varying

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter


def both_sides(operands: Sequence[Value]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Settled operands at the input, and at the reference."""
    return (
        tuple(o.value if isinstance(o, Varying) else o for o in operands),
        tuple(o.reference if isinstance(o, Varying) else o for o in operands),
    )


def on_each_side(eqn: JaxprEqn, operands: Sequence[Value]) -> list[tuple[Array, Array]]:
    """The outputs of an equation on the values and on the references of its operands."""
    return list(zip(*(_compat.bind(eqn, side) for side in both_sides(operands)), strict=True))


def is_inexact(value: Any) -> bool:
    """Whether a value, variable or literal is made of numbers that can carry multipliers."""
    return jnp.issubdtype(_dtype(value), jnp.inexact)


def carrier_dtype(value: Any = None) -> Any:
    """The dtype of what carries a value's multipliers: its own, or for integers and truth values the default one."""
    return _dtype(value) if value is not None and is_inexact(value) else jnp.result_type(float)


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else _compat.dtype(value)


def with_carrier(
    value: Callable[[], Array],
    reference: Array,
    carrier: Callable[[], Array],
    fed_by: frozenset[str],
    variation: Callable[[], Array] | None = None,
) -> Varying:
    """A value whose multipliers the carrier has. Numbers are their own carrier; integers have theirs beside them."""
    if is_inexact(reference):
        return Varying(carrier(), reference, variation, fed_by)
    return Varying(value(), reference, None, fed_by, carrier)


def as_number(operand: Varying, dtype: Any = None) -> Varying:
    """Integers or truth values as the numbers that carry their multipliers, of this dtype."""
    if not operand.is_discrete:
        return operand
    carrier = operand.carrier.astype(dtype or operand.carrier.dtype)
    return Varying(carrier, operand.reference.astype(carrier.dtype), None, operand.fed_by)


def broadcast(operand: Varying, shape: tuple[int, ...]) -> Varying:
    """An operand at the shape of an elementwise primitive's output; primitives take scalars and axes of size 1 as they
    are.
    """

    def at_shape(array: Array) -> Array:
        return jnp.broadcast_to(array, shape)

    return Varying(
        at_shape(operand.value),
        at_shape(operand.reference),
        lambda: at_shape(operand.variation),
        operand.fed_by,
        (lambda: at_shape(operand.carrier)) if operand.is_discrete else None,
    )


def feeds(operands: Sequence[Value]) -> frozenset[str]:
    """The linear maps that feed any of the operands."""
    return frozenset().union(*(o.fed_by for o in operands if isinstance(o, Varying)))


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


def extended_to_integers(rule: PrimitiveRule, linear_in: Callable[[int], bool] = everywhere) -> PrimitiveRule:
    """The rule of a map of numbers, for integers and truth values too.

    They are mapped as numbers. What they themselves come to is a step in that: integers wrap around, and a sum of truth
    values is one.
    """

    def extended(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        if not any(isinstance(o, Varying) and o.is_discrete for o in settled):
            return rule(interpreter, eqn, settled)

        number = carrier_dtype(eqn.outvars[0])

        def as_numbers(operand: Settled) -> Settled:
            if not isinstance(operand, Varying):
                return operand if is_inexact(operand) else jnp.asarray(operand, number)
            return as_number(operand, number)

        @cache
        def mapped() -> Sequence[Any]:
            numbers = [as_numbers(o) if linear_in(i) else o for i, o in enumerate(settled)]
            return rule(interpreter, eqn if is_inexact(eqn.outvars[0]) else _compat.for_numbers(eqn, number), numbers)

        def carrier(output: int, value: Array, reference: Array) -> Array:
            return step(value, reference, mapped()[output]).carrier

        if all(is_inexact(output) for output in eqn.outvars):
            return mapped()
        return [
            mapped()[k] if is_inexact(y) else Varying(y, y_ref, None, feeds(settled), partial(carrier, k, y, y_ref))
            for k, (y, y_ref) in enumerate(on_each_side(eqn, settled))
        ]

    return extended


def carrying(linear_in: Callable[[int], bool] = everywhere, negated: int | None = None) -> PrimitiveRule:
    """The rule of a linear map that takes the parts of differences along.

    Args:
        linear_in: in which positions the operands enter linearly. Others, such as indices, must not vary.
        negated: the position of the operand that is subtracted, if one is: its parts change places.
    """

    def rule(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        if any(is_varying(o) and not linear_in(i) for i, o in enumerate(settled)):
            raise interpreter.missing_rule(eqn, "has indices that depend on the explained input")
        is_real = not any(jnp.iscomplexobj(o.value) for o in settled if isinstance(o, Varying))

        def part(position: int, operand: Settled) -> Array:
            if isinstance(operand, Varying):
                return -operand.variation if position == negated else operand.variation
            return jnp.zeros_like(operand) if linear_in(position) else operand

        @cache
        def variations() -> Sequence[Array]:
            return _compat.bind(eqn, [part(i, operand) for i, operand in enumerate(settled)])

        def variation(output: int) -> Array:
            return variations()[output]

        return [
            Varying(value, reference, partial(variation, output) if is_real else None, feeds(settled))
            for output, (value, reference) in enumerate(on_each_side(eqn, settled))
        ]

    return extended_to_integers(rule, linear_in)


def mixing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], kind: str) -> list[Value]:
    """The rule of a linear map with weights, all but one of whose operands are constant: `a_y = |L| |D|`."""
    settled = [interpreter.settle(operand) for operand in operands]

    def variation() -> Array:
        return _compat.bind(
            eqn, [magnitude(o.value, o.reference) if isinstance(o, Varying) else jnp.abs(o) for o in settled]
        )[0]

    [(value, reference)] = on_each_side(eqn, settled)
    return [Varying(value, reference, None if jnp.iscomplexobj(value) else variation, frozenset({kind}))]


def identity(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The rule of primitives that hand on what they are given.

    `stop_gradient` is one: it says how to train, not what the function is, and DeepLIFT explains the function.
    """
    del interpreter, eqn
    return operands


family(identity, primitives("stop_gradient", "optimization_barrier"))

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
family_by_name(carrying(), "psum_invariant", "all_gather_invariant", "reduce_scatter", "pvary", "pcast")
