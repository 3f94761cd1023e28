"""Elements taken from places, and put in places, that may depend on the explained input.

With `G(x, i)` linear in the elements `x` for each place `i`, the Shapley values of elements and place are

    G(x, i) - G(r, j) = [G(D, i) + G(D, j)] / 2  +  [G(x, i) - G(x, j) + G(r, i) - G(r, j)] / 2

the second of which is credited to the place: to those of its coordinates that differ, in equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import difference, where, winners_share
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family
from jaxlift._core.values import Settled, Value, Varying, both_sides, carrier_dtype, feeds, on_each_side
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.bilinear import midpoint
from jaxlift.primitives.definitions import at_places, defined_as
from jaxlift.primitives.linear import carrying, extended_to_integers

# For an equation, the cotangent of its output, the change that moving makes there, and the differences of the places:
# the cotangents of the places.
Credit = Callable[[JaxprEqn, Array, Array, Sequence[Array]], list[Array]]


def indexing(linear_in: Callable[[int], bool], credit: Credit, negated: int | None = None) -> Evaluation:
    """The evaluation of a primitive that is linear in the operands of some positions, and whose others are places."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        places = [i for i in range(len(settled)) if not linear_in(i)]
        if not any(isinstance(settled[i], Varying) for i in places):
            return carrying(linear_in, negated)(interpreter, eqn, settled)

        def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, ...]:
            del explained
            ends = held[1:]

            def at_each_end(elements: Sequence[Array]) -> list[Array]:
                moved = ([end[k] if k in places else e for k, e in enumerate(elements)] for end in ends)
                return [versions.bind(eqn, operands)[0] for operands in moved]

            def mean(elements: Sequence[Array]) -> Array:
                return midpoint(*at_each_end(elements))

            change = midpoint(*(difference(*at_each_end(elements)) for elements in ends))
            apart = [_difference_of_places(ends[0][i], ends[1][i]) for i in places]
            of_elements = jax.vjp(mean, ends[0])[1](cotangent)[0]
            every = [*of_elements]
            for i, of_place in zip(places, credit(eqn, cotangent, change, apart), strict=True):
                every[i] = of_place
            return tuple(every[k] for k, o in enumerate(settled) if isinstance(o, Varying))

        return [of_all(eqn, settled, pull)]

    return extended_to_integers(evaluate, linear_in)


def _difference_of_places(i: Array, j: Array) -> Array:
    return i.astype(carrier_dtype()) - j.astype(carrier_dtype())


def of_all(eqn: JaxprEqn, operands: Sequence[Settled], pull: Callable[[Array, Any, Any], tuple[Array, ...]]) -> Varying:
    """The output of an equation on operands whose multipliers `pull` gives.

    It is called with a cotangent, the carriers of those that vary, and the output and all operands at the input and at
    the reference, and gives the cotangents of those that vary.
    """
    [(value, reference)] = on_each_side(eqn, operands)
    varying = [o for o in operands if isinstance(o, Varying)]
    values, references = jax.tree.map(jnp.asarray, both_sides(operands))

    carriers = tuple(o.carrier for o in varying)
    carrier = with_multipliers(lambda explained, held: held[0], pull, carriers, (value, values, references))
    return Varying(carrier, reference, None, feeds(operands))


def shared(credit: Array, d: Array, count: Array) -> Array:
    """What is credited to a coordinate that differs by `d`, one of so many that differ, per unit of its difference."""
    return where(d == 0, 0, credit / where(d == 0, 1, count * d))


def shared_in_rows(credit: Array, d: Array) -> Array:
    """The same for a place on each row, whose coordinates are the last axis."""
    return shared(credit[..., None], d, (d != 0).sum(-1, keepdims=True))


def of_all_together(eqn: JaxprEqn, cotangent: Array, change: Array, differences: Sequence[Array]) -> list[Array]:
    """One place, or several for which no part of the change is known to be one's own: what differs has equal parts."""
    del eqn
    count = sum(((d != 0).sum(dtype=cotangent.dtype) for d in differences), start=jnp.zeros((), cotangent.dtype))
    return [shared((cotangent * change).sum(), d, count) for d in differences]


def of_rows(eqn: JaxprEqn, cotangent: Array, change: Array, differences: Sequence[Array]) -> list[Array]:
    """A place for each slice that is gathered, with its coordinates on the last axis."""
    [d] = differences
    return [shared_in_rows((cotangent * change).sum(eqn.params["dimension_numbers"].offset_dims), d)]


def scattered(position: int) -> bool:
    """Scatters are linear in what they scatter to and in the updates, but not in the places between these."""
    return position != 1


def scatter_add(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """Evaluates sums at places that may vary, such as counts: seen from its transpose, which gathers cotangents.

    What an update adds differs by where it is added, at `i` or at `j`: its place has the credit of `ct_i - ct_j`, times
    the midpoint of the update.
    """
    settled = [interpreter.settle(operand) for operand in operands]
    if not isinstance(settled[1], Varying):
        return carrying(scattered)(interpreter, eqn, settled)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        (_, i, updates), (_, j, updates_ref) = held[1:]

        def gathered(places: Array) -> Array:
            def added(updates: Array) -> Array:
                return versions.bind(eqn, [jnp.zeros_like(cotangent), places, updates])[0]

            return jax.vjp(added, updates)[1](cotangent)[0]

        at_i, at_j, d = gathered(i), gathered(j), _difference_of_places(i, j)
        windows = eqn.params["dimension_numbers"].update_window_dims
        credit = ((at_i - at_j) * midpoint(updates, updates_ref)).sum(windows)
        every = cotangent, shared_in_rows(credit, d), midpoint(at_i, at_j)
        return tuple(every[k] for k, o in enumerate(settled) if isinstance(o, Varying))

    return [of_all(eqn, settled, pull)]


def scatter_extremum(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], sign: int) -> Sequence[Value]:
    """The evaluation of maxima (`sign` 1) and minima (-1) at places: as for `reduce_max`, the winner takes the change.

    The winner is the input's where it is the larger of the two maxima, the reference's elsewhere; those that tie for it
    each differ by at least the change, and share it. XLA may compute an element twice with different last bits: what is
    that near the winner ties with it, or else nobody might win.
    """
    settled = [interpreter.settle(operand) for operand in operands]
    if isinstance(settled[1], Varying):
        return defined_as(at_places(jnp.maximum if sign > 0 else jnp.minimum))(interpreter, eqn, settled)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        y, (x, places, updates), (r, _, updates_ref) = held
        y_ref = versions.bind(eqn, [r, places, updates_ref])[0]

        def put(updates: Array) -> Array:
            """The sum of updates at their places, and by its transpose, what stands at the place of each."""
            numbers = eqn.params["dimension_numbers"]
            return lax.scatter_add(jnp.zeros_like(y), places, updates, numbers, mode=eqn.params["mode"])

        _, at = jax.vjp(put, updates)
        by_input = sign * y >= sign * y_ref
        best = where(by_input, y, y_ref)

        def wins(element: Array, best: Array) -> Array:
            return (element == best) | (jnp.abs(element - best) <= 4 * jnp.finfo(best.dtype).eps * jnp.abs(best))

        won = wins(where(by_input, x, r), best)
        won_updates = wins(where(at(by_input.astype(y.dtype))[0] > 0, updates, updates_ref), at(best)[0])
        count = won.astype(y.dtype) + put(won_updates.astype(y.dtype))
        each, rise = cotangent / where(count == 0, 1, count), y - y_ref
        cotangents = (
            where(won, each * winners_share(rise, x - r), 0),
            where(won_updates, at(each)[0] * winners_share(at(rise)[0], updates - updates_ref), 0),
        )
        return tuple(ct for ct, o in zip(cotangents, (settled[0], settled[2]), strict=True) if isinstance(o, Varying))

    return [of_all(eqn, settled, pull)]


family(indexing(lambda position: position == 0, of_rows), primitives("gather"))
family(indexing(lambda position: position == 0, of_all_together), primitives("dynamic_slice"))
family(indexing(lambda position: position < 2, of_all_together), primitives("dynamic_update_slice"))
family(indexing(scattered, of_all_together), primitives("scatter"))
family(indexing(scattered, of_all_together, negated=2), primitives("scatter_sub"))
family(extended_to_integers(scatter_add, scattered), primitives("scatter_add"))
family(extended_to_integers(partial(scatter_extremum, sign=1), scattered), primitives("scatter_max"))
family(extended_to_integers(partial(scatter_extremum, sign=-1), scattered), primitives("scatter_min"))
