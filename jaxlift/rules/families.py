"""What a rule is given: the kinds of map that an equation may be, and where in the program it stands.

Every equation belongs to a family. Maps that move, copy or add entries pass a change on as it is, whatever the rule; of
the others a rule is asked, by the method of `jaxlift.Rule` that bears the family's name, with one of these for the map:

| family        | the map                                     | here                |
|---------------|---------------------------------------------|---------------------|
| pointwise     | an elementwise function of one array        | `PointwiseFunction` |
| elementwise   | an elementwise function of several          | `Elementwise`       |
| linear        | a product or convolution with weights       | `LinearMap`         |
| bilinear      | a product of two values that both vary      | `BilinearMap`       |
| normalisation | a value times or over a statistic of itself | `BilinearMap`       |
| maximum       | a maximum over elements                     | `Maximum`           |
| softmax       | softmax and logsumexp                       | `Softmax`           |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.differences import where
from jaxlift._core.versions import JaxprEqn
from jaxlift._pointwise.function import PointwiseFunction

Family = Literal["pointwise", "elementwise", "linear", "bilinear", "normalisation", "maximum", "softmax"]


@dataclass(frozen=True)
class Place:
    """Where in the program an equation stands, for the choice of a rule.

    Attributes:
        family: what kind of map it is.
        fed_by: the linear maps that feed it, the nearest on each path: a subset of ``{"dense", "conv"}``. For a linear
            map, its own kind.
        scope: the name scopes around it (`jax.named_scope`, Flax module names), joined by ``/``.
        function: of a pointwise function, the function.
    """

    family: Family
    fed_by: frozenset[str]
    scope: str
    function: PointwiseFunction | None = None


@dataclass(frozen=True, eq=False)
class LinearMap:
    """`L x + b` with constant weights: a matrix product or a convolution, and the bias that is added to it.

    Attributes:
        kind: ``"dense"`` or ``"conv"``.
        apply: computes `L x` of `x` and weights.
        weights: the weights of `L`.
        bias: `b`, an array that broadcasts to the output; 0 where nothing is added.
    """

    kind: str
    apply: Callable[[Array, Array], Array] = field(repr=False)
    weights: Array
    bias: Array | float = 0.0

    def __call__(self, x: Array) -> Array:
        """`L x`, without the bias."""
        return self.apply(x, self.weights)

    def transpose(self, x: Array, cotangent: Array) -> Array:
        """`L^T cotangent`, of the shape of `x`. Of a cotangent with more digits than the output those are cut off."""
        return jax.linear_transpose(self, x)(cotangent.astype(jax.eval_shape(self, x).dtype))[0]

    def with_weights(self, weights: Array) -> LinearMap:
        """The same map with other weights."""
        return replace(self, weights=weights)


@dataclass(frozen=True, eq=False)
class BilinearMap:
    """`B(x, z)`, linear in each of two values while the other is held: a product, a matrix product, attention's.

    Of a normalisation it may be the quotient `x / z`, where the statistic `z` is what isn't linear.

    Attributes:
        name: the primitive's, such as ``"dot_general"`` or ``"mul"``; in a normalisation, ``"mul"`` or ``"div"``.
        apply: computes `B(x, z)`.
        statistic: in a normalisation, which operand is the statistic of the other, 0 or 1.
    """

    name: str
    apply: Callable[[Array, Array], Array] = field(repr=False)
    statistic: int | None = None

    def __call__(self, x: Array, z: Array) -> Array:
        return self.apply(x, z)

    def transpose(self, values: Sequence[Array], cotangent: Array) -> tuple[Array, Array]:
        """The derivative's transpose at two values: the cotangents of both."""
        y, pull = jax.vjp(self.apply, *values)
        return pull(cotangent.astype(y.dtype))


@dataclass(frozen=True, eq=False)
class Elementwise:
    """An elementwise function `g` of several operands.

    Attributes:
        name: the primitive's, such as ``"div"`` or ``"max"``. A product with a reciprocal or an inverse root is a
            ``"div"`` too, unless the rule has a `bilinear` of its own.
        equation: the equation of the program; of such a product, that of the division.
        varying: the positions of the operands that depend on the explained input.
        lows: what each of these is known not to lie below, on either side.
        outputs: of a quotient, its values at the input and at the reference.
        divisors: of a quotient, the divisor's, before they were repeated along axes: they broadcast to the output.
    """

    name: str
    equation: JaxprEqn = field(repr=False)
    varying: tuple[int, ...]
    lows: tuple[float, ...]
    outputs: tuple[Array, ...] = field(default=(), repr=False)
    divisors: tuple[Array, ...] = field(default=(), repr=False)

    def __call__(self, *operands: Any) -> Array:
        return versions.bind(self.equation, operands)[0]

    def derivatives(self, operands: Sequence[Any]) -> list[Array]:
        """JAX's derivatives in the operands that vary and are numbers; 0 in the others."""
        chosen = [i for i in self.varying if jnp.issubdtype(jnp.result_type(operands[i]), jnp.inexact)]

        def of_chosen(*chosen_operands: Array) -> Array:
            replaced = dict(zip(chosen, chosen_operands, strict=True))
            return self(*(replaced.get(i, operand) for i, operand in enumerate(operands)))

        y, pull = jax.vjp(of_chosen, *(operands[i] for i in chosen))
        found = dict(zip(chosen, pull(jnp.ones_like(y)), strict=True))
        return [found.get(i, jnp.zeros_like(y)) for i in self.varying]


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax or logsumexp of logits, wherever and however the program computes it.

    Attributes:
        exact: for logits at the input and at the reference, and a cotangent of the output, the cotangent of the logits
            that is complete: the derivative with the logarithmic mean in the place of the softmax (see
            `jaxlift.primitives.softmax`). Where both logits are the same it is the derivative.
    """

    exact: Callable[[Array, Array, Array], Array] = field(repr=False)


@dataclass(frozen=True)
class Maximum:
    """A maximum over some axes of its candidates: of minima, of the negated ones.

    What is asked of it about one side is computed for N inputs and for R references. So it is best asked about `x` and
    about `r` apart, and what is left for the N * R pairs is elementwise.

    Attributes:
        axes: the axes over which the maximum is taken.
    """

    axes: tuple[int, ...]

    def value(self, x: Array) -> Array:
        """The maximum of one side, with axes of length 1."""
        return x.max(self.axes, keepdims=True)

    def first(self, x: Array) -> Array:
        """Whether a candidate is the first that attains the maximum of one side. NaN never does."""
        place = _places(x.shape, self.axes)
        return place == _winner(x, place, self.axes)

    def shares(self, x: Array) -> Array:
        """The share of each candidate in the maximum of one side: those that tie for it have equal parts of 1."""
        # There is always a first, though XLA may compute `x` twice with different last bits, and then no candidate need
        # equal the maximum. The ties are counted among those that were found, and so behind a barrier.
        ties = lax.optimization_barrier(self.first(x) | (x == x.max(self.axes, keepdims=True)))
        count = ties.sum(self.axes, keepdims=True, dtype=jnp.int32)
        return where(ties, 1 / count.astype(x.dtype), 0)


def _places(shape: Sequence[int], axes: Sequence[int]) -> Array:
    """The row-major place of each element among those over `axes`, broadcastable to `shape`."""
    place = jnp.zeros((1,) * len(shape), jnp.int32)
    for axis in axes:
        along = lax.broadcasted_iota(jnp.int32, [n if i == axis else 1 for i, n in enumerate(shape)], axis)
        place = place * shape[axis] + along
    return place


def _winner(x: Array, place: Array, axes: Sequence[int]) -> Array:
    """The place of the first element that attains the maximum over `axes`: some place, unless all are NaN."""

    def first(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, i), (b, j) = one, other
        other_is = (b > a) | ((b == a) & (j < i))
        return jnp.where(other_is, b, a), jnp.where(other_is, j, i)

    nowhere = jnp.iinfo(place.dtype).max
    # NaN wins nothing. Places that depend on `x` are sharded as it is; XLA would gather what it finds among constants.
    operands = lax.stop_gradient(x), jnp.where(jnp.isnan(x), nowhere, place)
    start = jnp.asarray(-jnp.inf, x.dtype), jnp.asarray(nowhere, place.dtype)
    _, found = lax.reduce(operands, start, first, axes)
    return jnp.expand_dims(found, axes)
