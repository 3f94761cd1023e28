"""What is carried for a value of the program: its moments as functions of the players' probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._core.compilers import summed_first
from jaxlift._core.differences import where
from jaxlift._core.values import Node

# How many units a layer's own variance counts for beside the probes' estimate of it: where a layer has few, or few that
# vary much, one draw of signs says little.
PRIOR = 4.0
# How many probes a layer's factor counts for beside a unit's own. A draw's square has the relative variance 2, so 16 is
# right where the factors of units lie within a third or so of the layer's (`2 / 16` is its square). 8 was as near with
# many probes, and noisier with one on gated networks and attention.
DRAWS_OF_LAYER = 16.0


@dataclass(frozen=True)
class Players:
    """Who comes in, and with which probability.

    Attributes:
        p: the probability of each player, in which the mean of the output is differentiated.
        signs: `(K, n)`, random signs, a row for each probe.
    """

    p: Array
    signs: Array


@dataclass(eq=False)
class Owned:
    """A value each of whose elements depends on one player at most: all of its distribution is its two ends.

    Attributes:
        value, reference: what it is where all players are in, and where none is.
        owner: the player of each element, a plain array; -1 where there is none.
        moments: the same as moments, once something has asked for them.
    """

    value: Array
    reference: Array
    owner: np.ndarray = field(repr=False)
    moments: Moments | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.owner.shape


@dataclass(eq=False)
class Moments:
    """A value that depends on many players, taken to be normal, each element by itself.

    Attributes:
        mean, variance: differentiable in the players' probabilities.
        probes: `(K, ...)`, what the value would differ by from its mean if all maps were linear and each player were in
            or out by a random sign. Its products are unbiased for covariances.
        rest: the variance that nonlinearities add, which no probe carries.
        dtype: that of the program's value: integers and truth values are carried as numbers.
        low: what the value is known not to lie below.
        origin: what a larger map is recognised by.
    """

    mean: Array
    variance: Array
    probes: Array
    rest: Array
    dtype: Any = None
    low: float = -inf
    origin: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.probes, self.rest = lax.stop_gradient((self.probes, self.rest))
        if self.dtype is None:
            self.dtype = self.mean.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    @property
    def spread(self) -> Array:
        """The estimate of the variance from the probes: unbiased but noisy, each element for itself."""
        return summed_first(jnp.abs(self.probes) ** 2) / len(self.probes) + self.rest

    def mapped(self, fun: Callable[[Array], Array], squares: Callable[[Array], Array] | None = None) -> Moments:
        """A linear map of it, given with another for the variances: its weights squared."""
        squares = squares or fun
        return Moments(fun(self.mean), squares(self.variance), jax.vmap(fun)(self.probes), squares(self.rest))

    def calibrated(self) -> Moments:
        """The same with the variance scaled to the probes' estimate, which knows how elements covary: each by a factor
        of its own shrunk to one for the whole value, since what is noise in each element is little in their sum.
        """
        total, largest = self.variance.sum(), self.variance.max(initial=0)
        draws, spread = len(self.probes), self.spread
        sizes = self.variance / where(largest > 0, largest, 1)  # whose squares stay within the range
        count = where(largest > 0, sizes.sum() ** 2 / where(largest > 0, (sizes**2).sum(), 1), 0) * draws
        of_layer = where(total > 0, spread.sum() / where(total > 0, total, 1), 1)
        of_layer = (count * of_layer + PRIOR) / (count + PRIOR)
        varies = self.variance > 0
        own = where(varies, spread / where(varies, self.variance, 1), of_layer)
        factor = lax.stop_gradient((draws * own + DRAWS_OF_LAYER * of_layer) / (draws + DRAWS_OF_LAYER))
        return Moments(self.mean, self.variance * factor, self.probes, self.rest, self.dtype, self.low)


@dataclass(eq=False)
class Function:
    """An elementwise function of one value, of as many steps as are seen so far."""

    node: Node
    of: Moments
    settled: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


Value = Any  # a plain array, or one of these


def is_varying(value: Value) -> TypeGuard[Owned | Moments | Function]:
    return isinstance(value, Owned | Moments | Function)


def spread_over(players: Players, owned: Owned) -> Moments:
    """The moments of a value that depends on one player in each element, which are exact."""
    value, reference = (_number(side) for side in (owned.value, owned.reference))
    has, owner = jnp.asarray(owned.owner >= 0), jnp.maximum(owned.owner, 0)
    p = players.p.astype(value.dtype)
    mine = where(has, p[owner], 0)
    signs = where(has, players.signs[:, owner], 0).astype(value.dtype)
    change = where(has, value - reference, 0)
    doubt = mine * (1 - mine)
    return Moments(
        reference + mine * change,
        doubt * change**2,
        (jnp.sqrt(doubt) * change)[None] * signs,
        jnp.zeros_like(change),
        owned.value.dtype,
    )


def _number(array: Array) -> Array:
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(jnp.result_type(float))


def correlation(a: Moments, b: Moments) -> Array:
    """The correlation of two values of one shape, one number for all of their elements."""
    both = (a.probes * b.probes).sum() / len(a.probes)
    sizes = jnp.sqrt(a.spread.sum() * b.spread.sum())
    return jnp.clip(where(sizes > 0, both / where(sizes > 0, sizes, 1), 0), -1, 1)


def certain(value: Any, probes: int) -> Moments:
    """A value that doesn't vary, as one that might."""
    mean = _number(jnp.asarray(value))
    zeros = jnp.zeros_like(mean)
    return Moments(mean, zeros, jnp.broadcast_to(zeros, (probes, *mean.shape)), zeros, jnp.asarray(value).dtype)


# Origins of a value.


@dataclass(frozen=True, eq=False)
class Total:
    """A sum of exponentials over some axes; `along` says for each of its own axes which of theirs it runs along."""

    exponential: Function
    axes: tuple[int, ...]
    along: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Shifted:
    """A value less something that is constant along some axes."""

    of: Moments
    along: frozenset[int]
