"""Values each of whose elements depends on one player: which equations leave them so, and what they are after those.

Such an element is one of two numbers, so nothing has to be approximated before players meet: one-hot letters, pixels
and whatever is done to each alone, embeddings of tokens with their normalisation and their queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlift._core import versions
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.calls import HANDED_ON
from jaxlift._moments.interpreter import owned_by
from jaxlift._moments.linear import CONV, DOT_GENERAL, MOVES, PLACES, SUMS, everywhere
from jaxlift._moments.values import Owned, Value
from jaxlift.primitives.pointwise import ELEMENTWISE

CHOICES = frozenset(primitives("reduce_max", "reduce_min", "argmax", "argmin", "reduce_and", "reduce_or"))
ADDING = frozenset(SUMS) | frozenset(DOT_GENERAL) | frozenset(CONV)
GATHER = frozenset(primitives("gather"))


def owned(eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Owned] | None:
    """The outputs of an equation, if each of their elements depends on one player at most."""
    owners = owners_of(eqn, inputs)
    if owners is None:
        return None
    ends = [[getattr(value, side) if isinstance(value, Owned) else value for value in inputs] for side in SIDES]
    outputs = zip(*(versions.bind(eqn, end) for end in ends), owners, strict=True)
    return [Owned(value, reference, owner) for value, reference, owner in outputs]


SIDES = ("value", "reference")


def owners_of(eqn: JaxprEqn, inputs: Sequence[Value]) -> list[np.ndarray] | None:
    """The players of the outputs' elements; None if they meet in some."""
    own = [value.owner if isinstance(value, Owned) else None for value in inputs]
    if eqn.primitive in ELEMENTWISE or eqn.primitive in HANDED_ON:
        return _common(own, versions.shape(eqn.outvars[0])) if len(eqn.outvars) == 1 else None
    if eqn.primitive in CHOICES:
        [owner] = own
        assert owner is not None
        return _along(owner, tuple(eqn.params["axes"]))
    if eqn.primitive in GATHER and own[0] is None and own[1] is not None:
        return _taken(eqn, own[1])
    if eqn.primitive in MOVES:
        return _moved(eqn, own, inputs)
    if eqn.primitive in ADDING and eqn.primitive not in PLACES and sum(owner is not None for owner in own) == 1:
        return _added(eqn, own)
    return None


_NONE = np.iinfo(np.int32).max


def _common(owners: Sequence[np.ndarray | None], shape: tuple[int, ...] | None = None) -> list[np.ndarray] | None:
    """The player that all name who name one, element by element."""
    named = [np.broadcast_to(owner, owner.shape if shape is None else shape) for owner in owners if owner is not None]
    largest = np.max(named, 0)
    agree = all(((owner == largest) | (owner < 0) | (owner == _NONE)).all() for owner in named)
    return [largest.astype(np.int32)] if agree and not (largest == _NONE).any() else None


def _along(owner: np.ndarray, axes: tuple[int, ...]) -> list[np.ndarray] | None:
    """The player of all elements along some axes."""
    return _common([owner.max(axes, initial=-1), np.where(owner < 0, _NONE, owner).min(axes, initial=_NONE)])


def _taken(eqn: JaxprEqn, owner: np.ndarray) -> list[np.ndarray] | None:
    """What is taken from a table is its place's, as embeddings are their tokens'."""
    rows = _along(owner, (owner.ndim - 1,))
    if rows is None:
        return None
    shape = versions.shape(eqn.outvars[0])
    return [np.broadcast_to(np.expand_dims(rows[0], eqn.params["dimension_numbers"].offset_dims), shape)]


def _moved(eqn: JaxprEqn, own: Sequence[np.ndarray | None], inputs: Sequence[Any]) -> list[np.ndarray] | None:
    """Players go where their elements go, which must be known. What stands between them is nobody's."""
    linear_in = PLACES.get(eqn.primitive, everywhere)
    moved = []
    for i, (value, owner) in enumerate(zip(inputs, own, strict=True)):
        if linear_in(i):
            moved.append(np.full(np.shape(value), -1, np.int32) if owner is None else owner)
        elif owner is not None or isinstance(value, Tracer):
            return None
        else:
            moved.append(np.asarray(value))
    if eqn.params.get("fill_value", None) is not None:
        return None
    with jax.ensure_compile_time_eval():
        return [np.asarray(out) for out in versions.bind(eqn, moved)]


def _added(eqn: JaxprEqn, own: Sequence[np.ndarray | None]) -> list[np.ndarray] | None:
    """Players by their numbers' binary digits, as signs: those of the elements in a sum are all the same where each sum
    of signs is, up to its own sign, as large as the count of the elements.
    """
    [position] = [i for i, owner in enumerate(own) if owner is not None]
    owner = own[position]
    assert owner is not None
    digits = np.arange(max(1, ceil(log2(owner.max() + 2))))
    has = owner >= 0
    signs = np.where(has, np.where(owner >> digits.reshape(-1, *[1] * owner.ndim) & 1, 1.0, -1.0), 0.0)
    of_numbers = versions.for_numbers(eqn, jnp.float32)

    def summed(each: Any) -> Any:
        operands = [
            each if i == position else jnp.ones(versions.shape(atom), jnp.float32) for i, atom in enumerate(eqn.invars)
        ]
        return versions.bind(of_numbers, operands)[0]

    with jax.ensure_compile_time_eval():
        count = np.asarray(summed(jnp.asarray(has, jnp.float32)))
        sums = np.asarray(jax.vmap(summed)(jnp.asarray(signs, jnp.float32)))
    if not (np.abs(sums) == count).all():
        return None
    found = ((sums > 0) << digits.reshape(-1, *[1] * count.ndim)).sum(0)
    return [np.where(count > 0, found, -1).astype(np.int32)]


owned_by(owned)
