r"""Masks of -inf that depend on the explained input: `jnp.where(a > 0, a, -jnp.inf)` before a softmax.

Where an entry is masked on one side, its difference is infinite. Its effect isn't: a softmax takes it from 0 to `p_i`.
As the number in the place of -inf grows, the multiplier of the softmax tends to 0, that of the selection to infinity,
and their product to what is wanted, the contribution of the choice.

So a selection of an infinite number is evaluated a second time, with a large number. What is linear, and maxima, are
evaluated of both. A function that saturates is the same of both, and explained of the second one. Anywhere else
multipliers are NaN where a difference is infinite, for a slope of 0 there would lose a part of the sum without a sign.
Values are those of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import table
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import large, where
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.values import Masked, Pending, Value, Varying, is_inexact, is_varying, number_of
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.function import CUSTOM

SELECTION = frozenset(primitives("select_n"))
# Where these are finite they are the same of large numbers as of infinite ones; where they aren't, as large. Choices
# between several values that vary would visit points in between that are as large though neither end is.
CHOOSING = SELECTION | frozenset(primitives("max", "min"))
# fmt: off
CARRYING = CHOOSING | frozenset(primitives(
    "add", "sub", "mul", "div", "neg", "convert_element_type", "copy", "stop_gradient", "optimization_barrier",
    "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "broadcast_in_dim",
    "reshape", "squeeze", "transpose", "rev", "slice", "concatenate", "split", "pad", "gather", "dynamic_slice",
))
# fmt: on
SATURATING = frozenset(primitives("exp", "exp2", "expm1", "logistic", "tanh", "erf", "erfc"))
CALLS = CUSTOM | frozenset(primitives("jit", "closed_call", "call", "remat"))


def masked_outputs(interpreter: Interpreter, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """The outputs of an equation that masks a value, or has a masked one for an operand; None of others."""
    primitive = eqn.primitive
    masks = primitive in SELECTION and is_varying(inputs[0]) and any(map(_is_infinite, inputs))
    if not masks and not any(isinstance(value, Masked) for value in inputs):
        return None
    if primitive in CALLS:
        return interpreter.outputs_unmasked(eqn, inputs)  # the equations that it holds come here
    if primitive in CARRYING and (masks or primitive not in CHOOSING or _chooses_alone(eqn, inputs)):
        finite = interpreter.outputs_unmasked(eqn, [_bounded(v) if masks else _finite(v) for v in inputs])
        infinite = interpreter.outputs_unmasked(eqn, [_infinite(value) for value in inputs])
        outputs = zip(eqn.outvars, finite, infinite, strict=True)
        return [_masked(interpreter, *both) if is_inexact(var) else both[1] for var, *both in outputs]
    if primitive in SATURATING:
        inputs = [_saturated(interpreter, value) for value in inputs]
    return interpreter.outputs_unmasked(eqn, [_infinite(value) for value in inputs])


def _chooses_alone(eqn: JaxprEqn, inputs: Sequence[Value]) -> bool:
    """Whether a choice depends on no value but one that is masked."""
    if eqn.primitive in SELECTION:
        return not is_varying(inputs[0])
    return sum(map(is_varying, inputs)) == 1


def _finite(value: Value) -> Value:
    return value.finite if isinstance(value, Masked) else value


def _infinite(value: Value) -> Value:
    return value.infinite if isinstance(value, Masked) else value


def _is_infinite(value: Any) -> bool:
    """Whether a value is a literal that is an infinite number."""
    number = number_of(value)
    return isinstance(number, float) and math.isinf(number)


def _bounded(value: Any) -> Any:
    """A case of a selection with a large number for an infinite one."""
    if not _is_infinite(value):
        return _finite(value)
    bound = np.asarray(math.copysign(large(value.dtype), number_of(value)), value.dtype)
    return np.broadcast_to(bound, value.shape)  # a literal still


def _masked(interpreter: Interpreter, finite: Value, infinite: Value) -> Value:
    """The value of both. A pointwise function waits as it is: as a whole it may be finite."""
    if finite is infinite:
        return infinite
    assert isinstance(finite, Varying | Pending)
    assert isinstance(infinite, Varying | Pending)
    if isinstance(infinite, Pending):
        return Masked(finite, infinite)
    finite = interpreter.settle(finite)
    return Masked(finite, _explained_by(finite, infinite, lambda of, value: jnp.isfinite(value)))


def _saturated(interpreter: Interpreter, value: Value) -> Value:
    """A value for a function that is the same of large numbers as of infinite ones."""

    def is_alike(of: Array, value: Array) -> Array:
        # It was scaled perhaps, by a temperature. An exponential has to be 0, or infinite, of either.
        enough = jnp.finfo(value.dtype).nmant - jnp.finfo(value.dtype).minexp + 1
        return jnp.isfinite(value) | (jnp.isinf(value) & jnp.isfinite(of) & (of * jnp.sign(value) >= enough))

    if not isinstance(value, Masked):
        return value
    explained = _explained_by(interpreter.settle(value.finite), interpreter.settle(value.infinite), is_alike)
    return replace(explained, is_masked=True)


def _explained_by(of: Varying, infinite: Varying, is_alike: Callable[[Array, Array], Array]) -> Varying:
    """A value, explained by the one with large numbers where that is alike on both sides: it stands there in its place.

    Elsewhere multipliers are NaN, but for what is the same on both sides.
    """

    def forward(explained: tuple[Array], held: Any) -> Array:
        return where(is_alike(explained[0], held[0]), explained[0], held[0])

    def pull(cotangent: Array, explained: tuple[Array], held: Any) -> tuple[Array]:
        value, of_reference, reference = held
        alike = is_alike(explained[0], value) & is_alike(of_reference, reference)
        return (where(alike | (value == reference), cotangent, jnp.nan),)

    return replace(
        of,
        value=with_multipliers(forward, pull, (of.value,), (infinite.value, of.reference, infinite.reference)),
        reference=where(is_alike(of.reference, infinite.reference), of.reference, infinite.reference),
        make_variation=lambda: of.variation,
        make_fraction=None,
    )


def settle(interpreter: Interpreter, masked: Masked) -> Varying:
    """The value of the program, whose multipliers are NaN where its difference is infinite."""
    return interpreter.settle(masked.infinite)


table.masked_by(masked_outputs)
table.settled_by(settle, Masked)
