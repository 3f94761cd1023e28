"""References by name: what to compare an example with.

`zeros`, `uniform`, `mean` and `frequencies` make one reference for all examples, `dinucleotide_shuffle` and
`mononucleotide_shuffle` several for one example:

>>> import jax, jax.numpy as jnp, jaxlift
>>> from jaxlift import references
>>> sequence = jax.nn.one_hot(jnp.array([0, 1, 2, 0, 1, 3, 0, 0, 1]), 4)
>>> references.dinucleotide_shuffle(sequence, jax.random.key(0), count=20).shape
(20, 9, 4)

For a batch, give each example a key of its own: `jax.vmap(dinucleotide_shuffle, (0, 0, None))`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlift._arguments import check_count, check_key, checked_axis, checked_channels, checked_input, is_known

__all__ = ["dinucleotide_shuffle", "frequencies", "mean", "mononucleotide_shuffle", "uniform", "zeros"]


def zeros(x: ArrayLike) -> Array:
    """Nothing: zeros of the shape of one example.

    >>> zeros(jnp.ones((5, 3)))
    Array([0., 0., 0.], dtype=float32)

    Args:
        x: examples `(N, ...)`.

    Returns:
        `(...)`, of the dtype of `x`.
    """
    return jnp.zeros_like(_examples(x)[0])


def uniform(x: ArrayLike, *, channel_axis: int | None = None) -> Array:
    """Every channel alike: of four letters 1/4 each, at every position.

    >>> uniform(jnp.ones((5, 2, 4)))
    Array([[0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25]], dtype=float32)

    Args:
        x: examples `(N, ...)`, floating-point.
        channel_axis: the axis of the channels in one example, without the batch; the last, if left out.

    Returns:
        `(...)`, of the dtype of `x`.

    Raises:
        ValueError: if there is no such axis.
        TypeError: if the examples are integers, which can't hold shares.
    """
    x = _examples(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"a uniform reference takes floating-point examples, got {x.dtype}: use x.astype(float).")
    axis = checked_axis("channel_axis", -1 if channel_axis is None else channel_axis, x.ndim - 1)
    return jnp.full_like(x[0], 1 / x.shape[1:][axis])


def mean(x: ArrayLike) -> Array:
    """The mean example.

    >>> mean(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    Array([2., 4.], dtype=float32)

    Args:
        x: examples `(N, ...)`.

    Returns:
        `(...)`.
    """
    return _examples(x).mean(0)


def frequencies(x: ArrayLike, *, channel_axis: int | None = None) -> Array:
    """How often each channel is on, over all examples and positions; the same at every position.

    For one-hot sequences these are the background frequencies of the bases, the reference of the paper's genomics
    experiments (section 4.2). Positions without a base (rows of zeros) don't count.

    >>> frequencies(jnp.array([[[1.0, 0], [1, 0]], [[1, 0], [0, 1]]]))
    Array([[0.75, 0.25],
           [0.75, 0.25]], dtype=float32)

    Args:
        x: examples, one-hot along one axis.
        channel_axis: that axis in one example, without the batch: `(L, 4)` has axes 0 and 1, or -2 and -1. The last, if
            left out.

    Returns:
        The shape of one example; it sums to 1 along the channels.

    Raises:
        ValueError: if there is no axis of channels, or the examples aren't one-hot along it (where that is known:
            outside of `jax.jit`), or all are 0.
    """
    x = _examples(x)
    if x.ndim < 2:
        raise ValueError(f"frequencies need examples (N, ..., C) with an axis of channels, got shape {x.shape}.")
    return frequencies_of_mean(x.mean(0), checked_channels("channel_axis", x, channel_axis, "frequencies"))


def frequencies_of_mean(example: Array, axis: int) -> Array:
    """The frequencies that belong to the mean of one-hot examples, which sums to 1 or less along the channels."""
    total = example.mean([other for other in range(example.ndim) if other != axis], keepdims=True)
    if is_known(total) and total.sum() == 0:
        raise ValueError("frequencies need examples with a channel that is on, but all are 0.")
    return jnp.broadcast_to(total / total.sum(), example.shape)


def _examples(x: ArrayLike) -> Array:
    x = jnp.asarray(checked_input(x, is_differentiated=False))
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"expected examples (N, ...), at least one, got shape {x.shape}.")
    return x


def dinucleotide_shuffle(x: ArrayLike, key: Array, count: int = 1) -> Array:
    """Shuffles of a sequence that keep how often each letter follows each other letter.

    Each is drawn uniformly from all sequences with the dinucleotide counts and the first letter of `x` (Altschul and
    Erickson, Mol. Biol. Evol. 2(6):526, 1985); the last letter is then the same too. A position without a base (a row
    of zeros, as for N) counts as a fifth letter. Same key, same shuffles, on any device and in any batch.

    >>> x = jax.nn.one_hot(jnp.array([0, 1, 2, 1, 0]), 4)                # ACGCA
    >>> dinucleotide_shuffle(x, jax.random.key(0)).argmax(-1).tolist()  # there is no other
    [[0, 1, 2, 1, 0]]

    Args:
        x: `(L, 4)` floating-point, one-hot, or 0 where there is no base.
        key: a PRNG key.
        count: how many shuffles.

    Returns:
        `(count, L, 4)`, of the dtype of `x`. NaN where `x` isn't one-hot but nothing can be raised: under `jax.jit` and
        `jax.vmap`.

    Raises:
        ValueError: if `x` has another shape, isn't one-hot or has no base at all, or `count` isn't positive.
        TypeError: if `x` isn't floating-point, or `key` isn't a PRNG key.
    """
    return _dinucleotide_shuffles(_checked_sequence(x, key, count, "dinucleotide"), key, count)


def mononucleotide_shuffle(x: ArrayLike, key: Array, count: int = 1) -> Array:
    """Shuffles of a sequence that keep how often each letter is there, and nothing else.

    Each is a uniformly drawn order of the positions. A position without a base (a row of zeros, as for N) goes where
    others go. Same key, same shuffles, on any device and in any batch.

    >>> x = jax.nn.one_hot(jnp.array([0, 0, 0, 1, 0]), 4)                # AAACA
    >>> mononucleotide_shuffle(x, jax.random.key(0), count=20).argmax(-1).sum(1).tolist() == [1] * 20
    True

    Args:
        x: `(L, 4)` floating-point, one-hot, or 0 where there is no base.
        key: a PRNG key.
        count: how many shuffles.

    Returns:
        `(count, L, 4)`, of the dtype of `x`; NaN as from `dinucleotide_shuffle`.

    Raises:
        ValueError, TypeError: as from `dinucleotide_shuffle`.
    """
    x = _checked_sequence(x, key, count, "mononucleotide")
    high, low = jax.random.bits(key, (2, count, len(x)), jnp.uint32)
    # 64 random bits for each position: that two are equal, and keep their order, is no concern.
    order = lax.sort((high, low, lax.broadcasted_iota(jnp.int32, high.shape, 1)), num_keys=2)[-1]
    return jnp.where(_is_one_hot(x), x[order], jnp.nan)


def _checked_sequence(x: ArrayLike, key: Array, count: int, kind: str) -> Array:
    """The sequence that a shuffle is asked of, or the error that says why it can't be shuffled."""
    if isinstance(x, str):
        raise TypeError(
            f"a {kind} shuffle takes one-hot rows, got the text {x[:20]!r}: make it "
            "jax.nn.one_hot(jnp.array(['ACGT'.index(letter) for letter in text]), 4)."
        )
    check_count("count", count)
    check_key(key)
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != 4:
        hint = "turn it, x.T" if x.ndim == 2 else "jax.vmap it"
        raise ValueError(f"a {kind} shuffle takes one sequence (L, 4), got shape {x.shape}: {hint}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"a {kind} shuffle takes floating-point one-hot rows, got {x.dtype}: use x.astype(float).")
    if is_known(x):
        values = np.asarray(x)
        if not _is_one_hot(values):
            raise ValueError(f"a {kind} shuffle takes rows that are one-hot, or 0 where there is no base.")
        if len(values) and not values.any():
            raise ValueError("the sequence has no base at all, all rows are 0: there is nothing to shuffle.")
    return x


@functools.partial(jax.jit, static_argnames="count")
def _dinucleotide_shuffles(x: Array, key: Array, count: int) -> Array:
    if len(x) < 3:
        return jnp.broadcast_to(x, (count, *x.shape))
    letters = jnp.where(x.any(1), x.argmax(1), 4)
    random = jax.random.bits(key, (count, 2 * len(x) - 1), jnp.uint32)
    shuffled = jax.vmap(functools.partial(_shuffle, letters))(random)
    return jnp.where(_is_one_hot(x), jax.nn.one_hot(shuffled, 5, dtype=x.dtype)[..., :4], jnp.nan)


def _is_one_hot(x: Any) -> Any:
    """Whether the rows of a sequence are one-hot or 0."""
    return (((x == 0) | (x == 1)).all(1) & (x.sum(1) <= 1)).all()


LETTERS = 5


@functools.cache
def _trees() -> np.ndarray:
    """All trees on the letters that lead to each root: `(root, tree, letter) -> the letter that it leads to`.

    There are n^(n - 2) of them on n letters (Cayley): 125. The root leads to itself.
    """
    found = []
    for root in range(LETTERS):
        choices = [range(LETTERS) if letter != root else [root] for letter in range(LETTERS)]
        trees = []
        for tree in itertools.product(*choices):
            ends = range(LETTERS)
            for _ in range(LETTERS):
                ends = [tree[end] for end in ends]
            if set(ends) == {root}:
                trees.append(tree)
        found.append(trees)
    return np.array(found)


def _shuffle(letters: Array, random: Array) -> Array:
    """One shuffle, from `2 L - 1` random words: an Eulerian path through the multigraph of dinucleotides.

    The edges by which a path leaves each letter for the last time form a tree that leads to the last letter. Each tree
    belongs to equally many paths: those in which the other edges out of each letter come in any order. So draw the
    tree, with the probability of its edges' multiplicities; then the orders; then walk.
    """
    source, target, root = letters[:-1], letters[1:], letters[-1]
    counts = jnp.zeros((LETTERS, LETTERS), int).at[source, target].add(1)
    leaving = counts.sum(1)
    # A letter that is not in the sequence hangs on the root, and on nothing else.
    multiplicities = counts.at[:, root].max(leaving == 0).astype(jnp.float32)
    trees = jnp.asarray(_trees())[root]
    is_root = jnp.arange(LETTERS) == root
    weights = jnp.where(is_root[None], 1, multiplicities[jnp.arange(LETTERS)[None], trees]).prod(1)
    up_to = weights.cumsum()
    uniform = (random[0] >> 8).astype(jnp.float32) / 2**24
    tree = trees[(up_to > uniform * up_to[-1]).argmax()]

    # Of the equal edges that a tree's edge may be, the first stands for all.
    edges = (source[None] == jnp.arange(LETTERS)[:, None]) & (target[None] == tree[:, None])
    is_last = jnp.zeros(source.shape, bool).at[edges.argmax(1)].max(edges.any(1) & ~is_root)
    # 64 random bits for each edge: that two are equal, and keep their order, is no concern.
    high, low = random[1:].reshape(2, -1)
    *_, successors = lax.sort((2 * source + is_last, high, low, target), num_keys=3)
    first = jnp.cumulative_sum(leaving) - leaving

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        letter, position = carry
        following = successors[position[letter]]
        return (following, position.at[letter].add(1)), following

    _, walk = lax.scan(step, (letters[0], first), None, length=len(source))
    return jnp.concatenate([letters[:1], walk])
