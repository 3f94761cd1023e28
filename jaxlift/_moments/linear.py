"""Linear maps: the mean and the probes pass as they are, variances by the squares of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import versions
from jaxlift._core.compilers import summed_first
from jaxlift._core.differences import where
from jaxlift._core.values import is_inexact
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Interpreter, as_number, family, plain
from jaxlift._moments.values import Moments, Owned, Value, is_varying

# How many draws of two values it takes to know their correlation, where these are of the size of 1/3. On gated networks
# the distance to Shapley values was .077 without covariances, and .127 with those of one draw.
DRAWS = 8
MOST_SHIFTS = 16  # how many terms of a player's own are paired


def numbers(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> tuple[JaxprEqn, list[Any]]:
    """An equation and its operands, for numbers: integers and truth values are mapped as such."""
    settled = [interpreter.moments(value) for value in operands]
    if all(not isinstance(value, Moments) or value.dtype == value.mean.dtype for value in settled):
        return eqn, settled
    kind = next(value.mean.dtype for value in settled if isinstance(value, Moments))
    return (eqn if is_inexact(eqn.outvars[0]) else versions.for_numbers(eqn, kind)), settled


def mapped(
    eqn: JaxprEqn, operands: Sequence[Any], is_linear: Sequence[bool], negated: int | None = None
) -> list[Moments]:
    """A map without weights, linear in some operands: of the others, which say where things go, nothing varies."""

    def bound(select: Any, of_constant: Any, *, are_squares: bool = False) -> list[Array]:
        own = []
        for i, (value, linear) in enumerate(zip(operands, is_linear, strict=True)):
            if isinstance(value, Moments):
                own.append(-select(value) if are_squares and i == negated else select(value))
            else:
                own.append(of_constant(value) if linear else value)
        return versions.bind(eqn, own)

    def zeros(value: Any) -> Array:
        return as_number(jnp.zeros_like(value))

    means = bound(lambda m: m.mean, as_number)
    variances = bound(lambda m: m.variance, zeros, are_squares=True)
    rests = bound(lambda m: m.rest, zeros, are_squares=True)
    count = next(len(value.probes) for value in operands if isinstance(value, Moments))
    probes = jax.vmap(lambda k: bound(lambda m: m.probes[k], zeros))(jnp.arange(count))
    return [Moments(*each) for each in zip(means, variances, probes, rests, strict=True)]


def with_places_held(
    interpreter: Interpreter, eqn: JaxprEqn, settled: Sequence[Any]
) -> tuple[list[Any], list[bool], bool]:
    """Operands whose places, if they vary, are what they are at the mean; which of them enter linearly; and whether any
    of these varies.
    """
    linear_in = PLACES.get(eqn.primitive, everywhere)
    is_linear = [linear_in(i) for i in range(len(settled))]
    varies = [isinstance(value, Moments) for value in settled]
    if any(own and not linear for own, linear in zip(varies, is_linear, strict=True)):
        interpreter.note(eqn, "places held as they are at the mean")
    held = [value if linear else plain(value) for value, linear in zip(settled, is_linear, strict=True)]
    return held, is_linear, any(own and linear for own, linear in zip(varies, is_linear, strict=True))


def moving(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The formula of what moves or copies elements."""
    of_numbers, settled = numbers(interpreter, eqn, operands)
    held, is_linear, varies = with_places_held(interpreter, eqn, settled)
    if not varies:
        return versions.bind(eqn, held)
    outputs = mapped(of_numbers, held, is_linear)
    low = _low_of(held, is_linear)
    return [replace(out, dtype=versions.dtype(var), low=low) for out, var in zip(outputs, eqn.outvars, strict=True)]


def adding(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The formula of sums."""
    of_numbers, settled = numbers(interpreter, eqn, operands)
    held, is_linear, varies = with_places_held(interpreter, eqn, settled)
    if not varies:
        return versions.bind(eqn, held)
    negated = NEGATED.get(eqn.primitive)
    [out] = mapped(of_numbers, held, is_linear, negated)
    if len(operands) == 1 and isinstance(operands[0], Owned):
        out = with_pairs(interpreter, of_numbers, operands, out)
    else:
        out = out.calibrated()
    low = 0.0 if negated is None and _low_of(held, is_linear) >= 0 else -inf
    return [replace(out, dtype=versions.dtype(eqn.outvars[0]), low=low)]


def _low_of(operands: Sequence[Any], is_linear: Sequence[bool]) -> float:
    """What the elements of all operands are known not to lie below; nothing is known of plain arrays."""
    own = [value for value, linear in zip(operands, is_linear, strict=True) if linear]
    return min(value.low if isinstance(value, Moments) else -inf for value in own)


def weighing(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The formula of products and convolutions, with weights or of two values that vary."""
    of_numbers, settled = numbers(interpreter, eqn, operands)
    varying = [i for i, value in enumerate(settled) if isinstance(value, Moments)]
    if max(varying) >= 2:  # the sizes of groups
        interpreter.note(eqn, "sizes held as they are at the mean")
        settled[2:] = map(plain, settled[2:])
        varying = [i for i in varying if i < 2]
        if not varying:
            return versions.bind(eqn, settled)
    settled = [as_number(value) if i < 2 else value for i, value in enumerate(settled)]
    if len(varying) > 1:
        out = product(lambda a, b: versions.bind(of_numbers, [a, b, *settled[2:]])[0], *settled[:2])
    else:
        [position] = varying

        def applied(x: Array, weight: Array) -> Array:
            own = [weight, weight, *settled[2:]]
            own[position] = x
            return versions.bind(of_numbers, own)[0]

        weight = settled[1 - position]
        out = settled[position].mapped(lambda x: applied(x, weight), lambda v: applied(v, weight**2))
        if isinstance(operands[position], Owned):
            out = with_pairs(interpreter, of_numbers, operands, out)
        else:
            out = out.calibrated()
    out.dtype = versions.dtype(eqn.outvars[0])
    return [out]


def product(bind: Any, a: Moments, b: Moments) -> Moments:
    r"""A bilinear map of two values that vary,

    .. math:: E[a b] = \mu_a \mu_b + \mathrm{cov}(a, b), \qquad
        v = \mu_a^2 v_b + v_a \mu_b^2 + v_a v_b, \qquad s = \mu_a s_b + s_a \mu_b

    whose covariance the probes estimate, each element for itself. Of one probe that is little but noise, so it counts
    for as much as `K` draws do beside what is known of covariances: that most are near 0. (It carries no gradient: over
    all `t` its own is 0.)
    """
    both = jax.vmap(bind)
    covariance = summed_first(both(a.probes, b.probes))

    def squares(of: Any) -> Array:
        return bind(a.mean**2, of(b)) + bind(of(a), b.mean**2)

    pairs = bind(a.variance, b.variance)
    mean = bind(a.mean, b.mean) + covariance / (len(a.probes) + DRAWS)
    means = [jnp.broadcast_to(m.mean, m.probes.shape) for m in (a, b)]
    probes = both(means[0], b.probes) + both(a.probes, means[1])
    variances, rests = (squares(of) + pairs for of in (lambda m: m.variance, lambda m: m.rest))
    out = Moments(mean, variances, probes, rests).calibrated()
    return replace(out, low=0.0 if min(a.low, b.low) >= 0 else -inf)


def with_pairs(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], out: Moments) -> Moments:
    r"""The first sum in which players meet: the elements of one are added before they are squared,

    .. math:: v = \sum_i p_i (1 - p_i) \Big(\sum_{e \in i} w_e d_e\Big)^2

    whose cross terms are the same map of `d_e d_{e + h}` with weights `w_e w_{e + h}`, for each distance `h` between
    elements of a player along an axis that is summed. Where they don't lie along one, the probes must do.
    """
    [position] = [i for i, value in enumerate(operands) if is_varying(value)]
    owned = operands[position]
    along = _axis_of_pairs(eqn, position, owned.owner)
    if along is None:
        return out
    axis, weight_axis, distances = along
    if axis is None:
        return out.calibrated()
    weight = None if weight_axis is None else as_number(operands[1 - position])
    change, doubt = owned.value - owned.reference, interpreter.moments(owned).variance
    variance = out.variance

    def pairs(x: Any, along: int, h: int) -> tuple[Array, Array]:
        """The elements that have one at a distance, and those."""
        n = x.shape[along]
        return jax.lax.slice_in_dim(x, 0, n - h, axis=along), jax.lax.slice_in_dim(x, h, n, axis=along)

    def filled(x: Array, along: int, h: int) -> Array:
        return jnp.pad(x, [(0, h * (k == along)) for k in range(x.ndim)])

    for h in distances:
        near, far = pairs(change, axis, h)
        is_own = jnp.equal(*pairs(jnp.asarray(owned.owner), axis, h)) & (near != 0)
        # p (1 - p) d_e d_f, of p (1 - p) d_e^2
        terms = filled(where(is_own, pairs(doubt, axis, h)[0] * far / where(is_own, near, 1), 0), axis, h)
        bound = [terms]
        if weight is not None and weight_axis is not None:
            bound.insert(1 - position, filled(jnp.multiply(*pairs(weight, weight_axis, h)), weight_axis, h))
        variance += 2 * versions.bind(eqn, bound)[0]
    return replace(out, variance=jnp.maximum(variance, 0))


def _axis_of_pairs(eqn: JaxprEqn, position: int, owner: np.ndarray) -> tuple[int | None, int | None, list[int]] | None:
    """The axis along which the elements of players lie, that of the weights beside it, and the distances between them.

    None if each player has one element; no axis if they lie in no line that is summed.
    """
    has = owner >= 0
    count = int(has.sum())
    if len(np.unique(owner[has])) == count:
        return None
    places = np.argwhere(has)
    for axis, weight_axis in _summed(eqn, position):
        others = np.delete(places, axis, 1)
        lines = np.unique(np.column_stack([owner[has], others]), axis=0)
        if len(lines) != len(np.unique(owner[has])):
            continue
        size = owner.shape[axis]
        rows = np.moveaxis(owner, axis, 0)
        distances = [h for h in range(1, size) if ((rows[:-h] == rows[h:]) & (rows[h:] >= 0)).any()]
        if len(distances) < MOST_SHIFTS:
            return axis, weight_axis, distances
    return None, None, []


def _summed(eqn: JaxprEqn, position: int) -> list[tuple[int, int | None]]:
    """The axes of an operand that are summed, each with that of the weights."""
    params = eqn.params
    if eqn.primitive in CONV:
        numbers = params["dimension_numbers"]
        if position or params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
            return []
        return [(numbers.lhs_spec[1], numbers.rhs_spec[1])]
    if eqn.primitive in DOT_GENERAL:
        (contracted, _) = params["dimension_numbers"]
        return list(zip(contracted[position], contracted[1 - position], strict=True))
    if eqn.primitive in REDUCE_SUM:
        return [(axis, None) for axis in params["axes"]]
    return []


def everywhere(position: int) -> bool:
    del position
    return True


DOT_GENERAL, CONV, REDUCE_SUM = map(primitives, ("dot_general", "conv_general_dilated", "reduce_sum"))
MOVES = [
    *primitives(
        *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "slice", "split", "concatenate"),
        *("pad", "stack", "unstack", "tile", "stage", "name", "sharding_constraint", "device_put", "dce_sink"),
        *("gather", "dynamic_slice", "dynamic_update_slice", "scatter", "ppermute", "all_gather", "all_to_all"),
    ),
    *("reshard", "mesh_cast", "pvary", "pcast", "all_gather_invariant"),
]
SUMS = [
    *primitives("reduce_sum", "cumsum", "reduce_window_sum", "scatter_add", "scatter_sub", "psum"),
    "psum_invariant",
]
WEIGHTED = [*DOT_GENERAL, *CONV, "ragged_dot_general"]
PLACES: dict[Any, Any] = dict.fromkeys(primitives("gather", "dynamic_slice"), lambda i: i == 0)
PLACES |= dict.fromkeys(primitives("dynamic_update_slice"), lambda i: i < 2)
PLACES |= dict.fromkeys(primitives("scatter", "scatter_add", "scatter_sub"), lambda i: i != 1)
NEGATED: dict[Any, int] = dict.fromkeys(primitives("scatter_sub"), 2)
family(moving, MOVES)
family(adding, SUMS)
family(weighing, WEIGHTED)
