"""Shapley values: the yardstick for all that explains differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._arguments import check_count, check_key, described, some_of, spread_as
from jaxlift._batching.loops import divided, moments_in_turn
from jaxlift._core import versions
from jaxlift._explainer import Explainer, Method
from jaxlift._options import Options, takes

ENUMERATED = 16  # features: 65,536 coalitions


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapleyOptions(Options):
    """The options of `shapley`.

    Attributes:
        groups: which elements come in together, such as the segments of an image: a number of a group for each, of an
            example's shape (or one that broadcasts to it), or a pytree of them as the input is. Integers that aren't
            negative, or strings; the groups are counted in their order. If left out, every element is a feature. The
            elements of a group share its contribution equally.
        interactions: whether to return the interactions of pairs of groups too, a matrix `(n, n)` for each example.
        samples: how many orders are drawn, 2 at least; None enumerates. All examples see the same orders.
        key: the random key of the orders; `jax.random.key(0)` if left out.
        chunk: how many coalitions are evaluated at once.
    """

    groups: Any = None
    interactions: bool = False
    samples: int | None = None
    key: Array | None = None
    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chunk", self.chunk)
        if self.samples is not None:
            check_count("samples", self.samples, least=2)
            if self.interactions:
                raise ValueError(
                    "interactions=True takes all coalitions, and samples= draws orders. Leave samples out, with "
                    f"{ENUMERATED} groups at most; for more, say shapley_moments(..., interactions=True)."
                )
        if self.key is not None:
            check_key(self.key)


@takes(ShapleyOptions)
def shapley(fun: Callable[..., Any], options: ShapleyOptions) -> Explainer:
    r"""Make the function that gives each feature its mean effect over all orders in which features may come in.

    Features that are in have the input's value, the others the reference's. With `v(S)` the output when `S` are in,

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{|S|!\,(n - |S| - 1)!}{n!} \left(v(S \cup i) - v(S)\right)

    (Shapley 1953; Lundberg and Lee 2017, arXiv 1705.07874, eq. 4). Contributions sum to the difference of the outputs.
    Few features are enumerated: `2^n` forward passes. For many, orders are drawn at random (Castro, Gómez and Tejada
    2009, doi 10.1016/j.cor.2008.04.004), each taken forwards and backwards, which errs less than two draws.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.shapley(lambda x: jnp.minimum(x[:, 0], x[:, 1]) + x[:, 2])
    >>> attr(jnp.array([[4.0, 2.0, 1.0]]), reference=jnp.zeros(3))
    Array([[1., 1., 1.]], dtype=float32)

    With ``interactions=True`` scores are of pairs. What two groups do together is the Shapley interaction index
    (Grabisch and Roubens 1999, doi 10.1007/s001820050125),

    .. math:: I_{ij} = \sum_{S \not\ni i, j} \frac{|S|!\,(n - |S| - 2)!}{(n - 1)!}
        \left(v(S \cup ij) - v(S \cup i) - v(S \cup j) + v(S)\right)

    of which either has half: `I_ij / 2` stands at `(i, j)` and at `(j, i)`, and on the diagonal what that leaves of a
    group's Shapley value. So rows sum to Shapley values, and the whole matrix to the difference of the outputs
    (Lundberg, Erion and Lee 2018, arXiv 1802.03888; SHAP's explainer of any model has another index, Shapley-Taylor).

    >>> attr = jaxlift.shapley(lambda x: x[:, 0] * x[:, 1] + x[:, 2], interactions=True)
    >>> attr(jnp.array([[2.0, 3.0, 1.0]]), reference=jnp.zeros(3)).round(4) + 0.0
    Array([[[0., 3., 0.],
            [3., 0., 0.],
            [0., 0., 1.]]], dtype=float32)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`; with `interactions` scores are `(N, n, n)`, for n groups.
        With `samples` and ``full=True`` the result has the scores' standard error. For each pair it takes `2^n` forward
        passes, or `2 samples (n - 1)`.

    Raises:
        ValueError, TypeError: as from `attribute`; from `attr`, if the groups don't fit the input, or there are more
            than 16 to enumerate.
    """
    samples, key, chunk = options.samples, options.key, options.chunk

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        group_of, n = groups_of(options.groups, x)
        value = game_of(fun, x, reference, group_of)
        if samples is None:
            outputs, of_groups = _enumerated(value, n, chunk, options.interactions)
        else:
            outputs, of_groups = _drawn(
                value, n, chunk, jax.random.split(jax.random.key(0) if key is None else key, samples)
            )

        def pull(weights: Array) -> Any:
            mean, error = of_groups(weights)
            if options.interactions:
                return mean
            shares = [shared_in_groups(of, group_of) for of in (mean, error) if of is not None]
            return shares[0] if samples is None else tuple(shares)

        return outputs, pull

    method = Method("shapley", explain, gives="contributions", is_differentiated=False, has_error=samples is not None)
    return Explainer(fun, method, options)


def groups_of(groups: Any, x: Any) -> tuple[Any, int]:
    """The group of each element of an example, and how many groups there are."""
    leaves, structure = jax.tree.flatten(x)
    if groups is None:
        ends = np.cumsum([leaf.size for leaf in leaves])
        own = [np.arange(end - x.size, end).reshape(x.shape) for end, x in zip(ends, leaves, strict=True)]
        return jax.tree.unflatten(structure, own), int(ends[-1])
    try:
        given = [np.asarray(each) for each in structure.flatten_up_to(groups)]
        own = [np.broadcast_to(g, x.shape) for g, x in zip(given, leaves, strict=True)]
    except ValueError as error:
        shapes = jax.tree.map(jnp.shape, x)
        raise ValueError(
            f"the groups must broadcast to an example of shape {shapes}, as its pytree is: got {described(groups)}. "
            "Groups of whole pixels (H, W) are groups[..., None] beside an example (H, W, C)."
        ) from error
    kinds = {"text" if each.dtype.kind in "US" else each.dtype.kind for each in own}
    names, numbers = np.unique(np.concatenate([leaf.ravel() for leaf in own]), return_inverse=True)
    if not (kinds == {"text"} or kinds <= {"i", "u", "b"}) or (kinds != {"text"} and names[0] < 0):
        raise ValueError(
            f"the groups must be integers that aren't negative, or strings, but they are {some_of(names)}, of dtype "
            f"{', '.join(sorted({str(each.dtype) for each in own}))}."
        )
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    own = [part.reshape(x.shape) for part, x in zip(np.split(numbers, ends), leaves, strict=True)]
    return jax.tree.unflatten(structure, own), len(names)


def game_of(fun: Callable[[Any], Array], x: Any, reference: Any, group_of: Any) -> Callable[[Array], Array]:
    """The output as a function of which groups are in; those that aren't have the reference's values."""
    return lambda present: fun(chosen(present, group_of, x, reference))


def chosen(present: Array, group_of: Any, x: Any, other: Any) -> Any:
    """The values of `x` in those groups that are in, and the other's elsewhere."""
    taken = spread_as(x, jax.tree.map(lambda g: present[g], group_of))
    return jax.tree.map(jnp.where, taken, x, other)


def shared_in_groups(of_groups: Array, group_of: Any, dtype: Any = None) -> Any:
    """What each element has of its group's share: those of a group have equal parts."""
    sizes = sum(np.bincount(leaf.ravel(), minlength=len(of_groups)) for leaf in jax.tree.leaves(group_of))
    share = (of_groups / jnp.asarray(sizes, of_groups.dtype)).astype(dtype or of_groups.dtype)
    return jax.tree.map(lambda g: share[g], group_of)


def with_main_effects(pairs: Array, of_groups: Array) -> Array:
    """Halves of the interactions of pairs, and on the diagonal what they leave of each group's contribution."""
    halves = jnp.where(jnp.eye(len(pairs), dtype=bool), 0, pairs / 2)
    return halves + jnp.diag(of_groups - halves.sum(1))


def _enumerated(value: Callable[[Array], Array], n: int, chunk: int, interactions: bool) -> Any:
    """What the method makes of all coalitions: for weights of the outputs, each group's contribution, or pair's."""
    weight_of = _weights_of_coalitions(n)
    values = lax.map(lambda k: value(k >> jnp.arange(n) & 1 == 1), jnp.arange(2**n), batch_size=chunk)

    def of_groups(weights: Array) -> tuple[Array, None]:
        v = jnp.tensordot(values, weights, weights.ndim)
        found = jnp.dot(jnp.asarray(weight_of, v.dtype), v, precision="highest")
        return with_main_effects(_of_pairs(v, n), found) if interactions else found, None

    return (values[-1], values[0]), of_groups


def _drawn(value: Callable[[Array], Array], n: int, chunk: int, keys: Array) -> Any:
    """The same of drawn orders, one for each key, with the standard error.

    A draw is the mean of an order and its reverse.
    """
    y, y_ref = value(jnp.ones(n, bool)), value(jnp.zeros(n, bool))

    def of_groups(weights: Array) -> tuple[Array, Array]:
        def effects(rank: Array) -> Array:
            """What each group adds when it comes in, in one order."""
            between = lax.map(lambda k: (value(rank < k) * weights).sum(), jnp.arange(1, n), batch_size=chunk)
            first, last = (y_ref * weights).sum(), (y * weights).sum()
            return jnp.diff(between, prepend=first, append=last)[rank]

        def draw(key: Array) -> Array:
            rank = jax.random.permutation(key, n)
            return (effects(rank) + effects(n - 1 - rank)) / 2

        count, zeros = len(keys), versions.varied_over(versions.axes_of_map(y), jnp.zeros(n, y.dtype))
        mean, squares = moments_in_turn(draw, keys, zeros)
        return divided((mean, jnp.sqrt(squares / (count * (count - 1)))), 1, (zeros, zeros))

    return (y, y_ref), of_groups


def _weights_of_coalitions(n: int) -> np.ndarray:
    """`(n, 2^n)`: how each feature's Shapley value is made of the outputs of all coalitions, numbered by their bits."""
    if n > ENUMERATED:
        raise ValueError(
            f"{n} features have 2^{n} coalitions, too many to enumerate. Draw orders with samples=, or put features "
            f"together with groups=, {ENUMERATED} groups at most."
        )
    is_in = np.arange(2**n) >> np.arange(n)[:, None] & 1 == 1
    others = is_in.sum(0) - is_in
    weight = np.array([factorial(k) * factorial(n - k - 1) / factorial(n) for k in range(n)])
    return np.where(is_in, 1, -1) * weight[others]


def _of_pairs(v: Array, n: int) -> Array:
    """`(n, n)`: the interaction index of each pair, of the values of all coalitions; its diagonal means nothing.

    A coalition counts by its size without the pair, and by the sign of what is in of the pair: so the sums over all
    coalitions are products of matrices that say who is in and who is out.
    """
    is_in = np.arange(2**n)[:, None] >> np.arange(n) & 1 == 1
    weight = np.array([factorial(k) * factorial(n - k - 2) / factorial(n - 1) for k in range(n - 1)])

    def summed(one: np.ndarray, other: np.ndarray, of_pair: int) -> Array:
        """The weighted sum over the coalitions in which so many of a pair are in."""
        size = is_in.sum(1) - of_pair
        counts = (size >= 0) & (size <= n - 2)
        weighted = v * jnp.asarray(np.where(counts, weight[np.where(counts, size, 0)], 0), v.dtype)
        return jnp.dot(jnp.asarray(one.T, v.dtype), weighted[:, None] * other, precision="highest")

    if n == 1:
        return jnp.zeros((1, 1), v.dtype)
    v = v - v[0]  # what all coalitions have in common only rounds
    either = summed(is_in, ~is_in, 1)
    return summed(is_in, is_in, 2) + summed(~is_in, ~is_in, 0) - either - either.T
