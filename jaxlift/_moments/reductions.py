"""Maxima, products and other reductions, by what they do to two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Formula, Interpreter, as_number, family, plain
from jaxlift._moments.linearised import linearised
from jaxlift._moments.values import Value, is_varying
from jaxlift.primitives.definitions import at_places, cumulative, fold, over_devices, reduction
from jaxlift.primitives.reductions import Windows, window_reduction


def defined_as(definition: Callable[..., Any]) -> Formula:
    """The formula of a primitive that equals a function of its operands, given its parameters by name."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        return interpreter.evaluated(eqn, partial(definition, **eqn.params), operands)

    return evaluate


def window_maximum(x: Array, **params: Any) -> Array:
    """The maximum over the elements of each window, pair by pair."""
    windows = Windows.of(params, x.shape)
    return fold(jnp.maximum, -jnp.inf)(windows.apart(x, -jnp.inf), axes=windows.inner)


def negated(definition: Callable[..., Array]) -> Callable[..., Array]:
    """The same of minima."""
    return lambda x, **params: -definition(-x, **params)


def probability_of_all(x: Array, *, axes: Sequence[int], **_: Any) -> Array:
    return fold(jnp.multiply, 1)(x, axes=axes)


def of_truth_values(definition: Callable[..., Any]) -> Formula:
    by_definition = defined_as(definition)

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        is_bool = versions.dtype(eqn.outvars[0]) == jnp.bool_
        return (by_definition if is_bool else linearised)(interpreter, eqn, operands)

    return evaluate


def with_places_held(formula: Formula) -> Formula:
    """The formula of scatters, whose places are what they are at the mean."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        x, places, updates = operands
        if is_varying(places):
            interpreter.note(eqn, "places held as they are at the mean")
            places = plain(interpreter.moments(places))
            if not (is_varying(x) or is_varying(updates)):
                return versions.bind(eqn, [x, places, updates])
        x, updates = (as_number(interpreter.moments(value)) for value in (x, updates))
        return formula(interpreter, eqn, [x, places, updates])

    return evaluate


largest = fold(jnp.maximum, -jnp.inf)
family(defined_as(largest), primitives("reduce_max"))
family(defined_as(negated(largest)), primitives("reduce_min"))
family(defined_as(window_maximum), primitives("reduce_window_max"))
family(defined_as(negated(window_maximum)), primitives("reduce_window_min"))
family(defined_as(cumulative(jnp.maximum)), primitives("cummax"))
family(defined_as(negated(cumulative(jnp.maximum))), primitives("cummin"))
family(defined_as(cumulative(jnp.multiply)), primitives("cumprod"))
family(defined_as(fold(jnp.multiply, 1)), primitives("reduce_prod"))
family(defined_as(reduction), primitives("reduce"))
family(defined_as(window_reduction), primitives("reduce_window"))
family(defined_as(over_devices(jnp.max)), primitives("pmax"))
family(defined_as(over_devices(jnp.min)), primitives("pmin"))
family(with_places_held(defined_as(at_places(jnp.multiply))), primitives("scatter_mul"))
family(with_places_held(defined_as(at_places(jnp.maximum))), primitives("scatter_max"))
family(with_places_held(defined_as(at_places(jnp.minimum))), primitives("scatter_min"))
family(of_truth_values(probability_of_all), primitives("reduce_and"))
family(of_truth_values(lambda x, **params: 1 - probability_of_all(1 - x, **params)), primitives("reduce_or"))
