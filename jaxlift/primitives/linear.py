"""Linear maps: differences pass as derivatives do, so the primitive itself is applied to values and to references.

What a map does to the variation `a = D+ - D-` depends on its kind. Maps that move, copy, add or average entries take
the positive and negative parts along: the same map is applied to `a`. Maps that weigh and mix (matrix products,
convolutions) rebuild the parts from the signs of their terms `w D`, which is the paper's Linear rule (section 3.5.1):
`a_y = |L| |D|`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._function import difference
from jaxlift._multipliers import with_multipliers
from jaxlift._registry import PrimitiveRule, family
from jaxlift._values import Settled, Value, Varying, is_varying

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter


def magnitude(x: Array, r: Array) -> Array:
    """`|x - r|`, the variation of a value that is no sum of others.

    Its derivative at 0 is 0, not JAX's 1: a term `w D` with `D = 0` is neither positive nor negative, and its
    multiplier is the mean of both parts'. Only `x` and `r` are saved for the backward pass, which are N and R, not N *
    R.
    """

    def forward(explained: tuple[Array], held: tuple[Array]) -> Array:
        return jnp.abs(difference(*explained, *held))

    def pull(cotangent: Array, explained: tuple[Array], held: tuple[Array]) -> tuple[Array]:
        return (cotangent * jnp.sign(difference(*explained, *held)),)

    return with_multipliers(forward, pull, (x,), (r,))


def on_each_side(eqn: JaxprEqn, operands: Sequence[Value]) -> list[tuple[Array, Array]]:
    """The outputs of an equation on the values and on the references of its operands."""
    values = _compat.bind(eqn, [o.value if isinstance(o, Varying) else o for o in operands])
    references = _compat.bind(eqn, [o.reference if isinstance(o, Varying) else o for o in operands])
    return list(zip(values, references, strict=True))


def discrete(value: Array, reference: Array) -> Varying:
    """A value of integers, truth values or keys: it may differ from its reference, but has no multipliers."""

    def variation() -> Array:
        raise AssertionError("integers have no variation")

    return Varying(value, reference, variation)


def broadcast(operand: Varying, shape: tuple[int, ...]) -> Varying:
    """An operand at the shape of an elementwise primitive's output; primitives take scalars and axes of size 1 as they
    are.
    """
    value, reference = (jnp.broadcast_to(side, shape) for side in (operand.value, operand.reference))
    return Varying(value, reference, lambda: jnp.broadcast_to(operand.variation, shape), operand.fed_by)


def feeds(operands: Sequence[Value]) -> frozenset[str]:
    """The linear maps that feed any of the operands."""
    return frozenset().union(*(o.fed_by for o in operands if isinstance(o, Varying)))


def carrying(linear_in: Callable[[int], bool] = lambda position: True, negated: int | None = None) -> PrimitiveRule:
    """The rule of a linear map that takes the parts of differences along.

    Args:
        linear_in: in which positions the operands enter linearly. Others, such as indices, must not vary.
        negated: the position of the operand that is subtracted, if one is: its parts change places.
    """

    def rule(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        if any(is_varying(o) and not linear_in(i) for i, o in enumerate(settled)):
            raise interpreter.missing_rule(eqn, "has indices that depend on the explained input")

        def part(position: int, operand: Settled) -> Array:
            if isinstance(operand, Varying):
                return -operand.variation if position == negated else operand.variation
            return jnp.zeros_like(operand) if linear_in(position) else operand

        def variation(output: int) -> Array:
            return _compat.bind(eqn, [part(i, operand) for i, operand in enumerate(settled)])[output]

        return [
            Varying(value, reference, partial(variation, output), feeds(settled))
            for output, (value, reference) in enumerate(on_each_side(eqn, settled))
        ]

    return rule


def mixing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], kind: str) -> list[Value]:
    """The rule of a linear map with weights, all but one of whose operands are constant: `a_y = |L| |D|`."""
    settled = [interpreter.settle(operand) for operand in operands]

    def variation() -> Array:
        return _compat.bind(
            eqn, [magnitude(o.value, o.reference) if isinstance(o, Varying) else jnp.abs(o) for o in settled]
        )[0]

    [(value, reference)] = on_each_side(eqn, settled)
    return [Varying(value, reference, variation, frozenset({kind}))]


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
        *("reshape", "squeeze", "transpose", "rev", "broadcast_in_dim", "slice", "split", "concatenate", "pad"),
        *("stack", "unstack", "tile", "stage", "name", "sharding_constraint", "device_put"),
        *("reduce_sum", "cumsum", "reduce_window_sum", "add_jaxvals"),
    ),
)
family(carrying(linear_in=lambda position: position == 0), primitives("dynamic_slice", "gather"))
family(carrying(linear_in=lambda position: position in (0, 1)), primitives("dynamic_update_slice"))
family(carrying(linear_in=lambda position: position in (0, 2)), primitives("scatter", "scatter_add"))
family(carrying(linear_in=lambda position: position in (0, 2), negated=2), primitives("scatter_sub"))
