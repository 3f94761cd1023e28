"""Metrics of scores alone: how far two agree, how simple they are, and where they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import check_count, number_of_examples
from jaxlift.metrics._reading import check_shapes, checked_scores, correlation, flat, ranks, unless_nan


def rank_agreement(a: Any, b: Any) -> Array:
    """Spearman's rank correlation of two attributions, for each example.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.rank_agreement(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[-1.0, 5.0, 6.0]]))
    Array([1.], dtype=float32)

    Equal scores share the mean of their ranks. It takes O(F log F) for F scores.

    Args:
        a, b: scores `(N, ...)`, arrays or pytrees of one structure and with equal shapes.

    Returns:
        `(N,)`, from -1 to 1; NaN where all scores are equal, which have no order.

    Raises:
        ValueError: if shapes or structures don't fit, or the batch is empty.
        TypeError: if the scores aren't floating-point numbers.
    """
    a = checked_scores(a, a, "the first scores")
    b = checked_scores(a, b, "the second scores")
    number_of_examples(a)
    check_shapes("the second scores", a, b)
    dtype = jnp.result_type(*jax.tree.leaves((a, b)))
    p, q = (_centred_ranks(flat(tree)).astype(jnp.promote_types(dtype, jnp.float32)) for tree in (a, b))
    # At most 1, so that the sums of F squares stay within any range.
    p, q = p / p.shape[1], q / q.shape[1]
    return unless_nan((a, b), correlation(p, q, 1)).astype(dtype)


def complexity(scores: Any) -> Array:
    r"""The entropy of how scores are spread over features, in nats; the lower, the fewer features matter.

    .. math:: -\sum_i p_i \ln p_i, \quad p_i = |\phi_i| / \sum_j |\phi_j|

    The complexity of Bhatt et al. 2020 (arXiv 2005.00631). It is between 0, for one feature alone, and the logarithm of
    the number of features.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.complexity(jnp.array([[0.0, 3.0, 0.0], [1.0, -1.0, 0.0]])).round(3)
    Array([0.   , 0.693], dtype=float32)

    Args:
        scores: signed scores `(N, ...)`, an array or a pytree of arrays.

    Returns:
        `(N,)`; NaN where all scores are 0.

    Raises:
        ValueError: if the batch is empty.
        TypeError: if the scores aren't floating-point numbers.
    """
    shares, dtype = _shares(scores)
    return jax.scipy.special.entr(shares).sum(1).astype(dtype)


def sparseness(scores: Any) -> Array:
    r"""The Gini index of the scores' magnitudes; the higher, the fewer features matter.

    .. math:: \frac{1}{F \sum_i |\phi|_{(i)}} \sum_{i=1}^F (2 i - F - 1) |\phi|_{(i)}, \quad
        |\phi|_{(1)} \le \dots \le |\phi|_{(F)}

    Chalasani et al. 2020 (arXiv 1810.06583). It is between 0, for scores of one magnitude, and 1 - 1/F, for one feature
    alone. (Quantus adds 1e-7 to each magnitude, which changes it where scores are as small.)

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.sparseness(jnp.array([[0.0, 3.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]])).tolist()
    [0.75, 0.0]

    Args:
        scores: signed scores `(N, ...)`, an array or a pytree of arrays.

    Returns:
        `(N,)`; NaN where all scores are 0.

    Raises:
        ValueError: if the batch is empty.
        TypeError: if the scores aren't floating-point numbers.
    """
    shares, dtype = _shares(scores)
    features = shares.shape[1]
    weights = (2 * jnp.arange(1, features + 1, dtype=shares.dtype) - features - 1) / features
    return (jnp.sort(shares, axis=1) @ weights).astype(dtype)


def complexity_rise(scores: Any, randomised: Any, *, bins: int = 100) -> Array:
    r"""How much more complex scores are where the model has random parameters, in proportion; the higher the better.

    .. math:: \big( H(\phi^{rand}) - H(\phi) \big) / H(\phi)

    The efficient randomisation test of Hedström et al. 2024 (eMPRT, arXiv 2401.06465): scores that explain what was
    learnt should get less orderly where nothing was. H is the entropy of the histogram of an example's scores, over
    `bins` of equal width from the least score to the greatest. It needs no similarity, no layers and two attributions
    alone.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> learnt = jnp.zeros((1, 500)).at[:, 7].set(1.0)  # one feature matters
    >>> random = jax.random.normal(jax.random.key(0), (1, 500))
    >>> bool(jaxlift.metrics.complexity_rise(learnt, random) > 100)
    True

    Args:
        scores: those of the trained model, `(N, ...)`, an array or a pytree of arrays.
        randomised: those of the model with random parameters (`parameter_randomisation` says where to get them).
        bins: how many the histograms have.

    Returns:
        `(N,)`. Scores that are all equal have the entropy 0: infinity, or NaN if both are, where those of the trained
        model are equal.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, or `bins` isn't positive.
        TypeError: if the scores aren't floating-point numbers.
    """
    check_count("bins", bins)
    scores = checked_scores(scores, scores, "the scores")
    randomised = checked_scores(scores, randomised, "the randomised model's scores")
    number_of_examples(scores)
    check_shapes("the randomised model's scores", scores, randomised)

    def entropy(tree: Any) -> Array:
        values, dtype = _wide(tree)
        least, width = values.min(1, keepdims=True), jnp.ptp(values, axis=1, keepdims=True)
        # The greatest belongs to the last bin.
        places = jnp.floor((values - least) / jnp.where(width == 0, 1, width) * bins).astype(int).clip(0, bins - 1)
        counts = jax.vmap(lambda places: jnp.bincount(places, length=bins))(places)
        return jax.scipy.special.entr(counts.astype(values.dtype) / values.shape[1]).sum(1).astype(dtype)

    before = entropy(scores)
    return unless_nan((scores, randomised), (entropy(randomised) - before) / before)


def pointing_game(scores: Any, mask: Any) -> Array:
    """Whether the highest score is within the mask: 1 if it is, 0 if not.

    Zhang et al. 2018 (arXiv 1608.00507); the mean over examples is the accuracy. They count a hit within 15 pixels of
    the object too: grow the mask for that. Where several scores are the highest, it is the share of those within. (For
    Quantus it is a hit if any of them is, and, instead of NaN, if the mask is empty.)

    >>> import jax.numpy as jnp, jaxlift
    >>> scores, mask = jnp.array([[0.1, 0.9, 0.3], [2.0, 1.0, -3.0]]), jnp.array([[False, True, True]] * 2)
    >>> jaxlift.metrics.pointing_game(scores, mask).tolist()
    [1.0, 0.0]

    Args:
        scores: signed scores `(N, ...)`, an array or a pytree of arrays. What speaks against the target may be far
            below zero: for magnitudes, write `jnp.abs(scores)`. For pixels, sum over channels first:
            `scores.sum(-1, keepdims=True)`.
        mask: what the target is, booleans like `scores`.

    Returns:
        `(N,)`; NaN where the mask is empty.

    Raises:
        ValueError: if shapes or structures don't fit, or the batch is empty.
        TypeError: if the scores aren't floating-point numbers, or the mask isn't of booleans.
    """
    scores, values, inside = _within(scores, mask)
    highest = values == values.max(1, keepdims=True)
    return unless_nan(scores, _share(inside & highest, highest, inside, values.dtype))


def relevance_mass(scores: Any, mask: Any) -> Array:
    """How much of the positive scores is within the mask: from 0 to 1.

    The relevance mass accuracy of Arras et al. 2021 (arXiv 2003.07258), where relevance isn't negative: scores below 0
    count as 0 here, which is one of the paper's ways to pool them. For magnitudes, write `jnp.abs(scores)`. (Quantus
    adds signed scores, if its `abs` is False.)

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.relevance_mass(jnp.array([[1.0, 3.0, -2.0]]), jnp.array([[False, True, True]])).tolist()
    [0.75]

    Arguments and errors are those of `pointing_game`. NaN where no score is positive, or the mask is empty.
    """
    scores, values, inside = _within(scores, mask)
    positive = jnp.maximum(values, 0)
    mass = jnp.where(inside, positive, 0).sum(1) / positive.sum(1)
    return unless_nan(scores, jnp.where(inside.any(1), mass, jnp.nan).astype(values.dtype))


def relevance_rank(scores: Any, mask: Any) -> Array:
    """How many of the K highest scores are within the mask of K features, as a share: from 0 to 1.

    The relevance rank accuracy of Arras et al. 2021 (arXiv 2003.07258). Equal scores keep the array's order.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.relevance_rank(jnp.array([[1.0, 3.0, -2.0]]), jnp.array([[False, True, True]])).tolist()
    [0.5]

    Arguments and errors are those of `pointing_game`. NaN where the mask is empty.
    """
    scores, values, inside = _within(scores, mask)
    chosen = flat(ranks(scores)) < inside.sum(1, keepdims=True)
    return unless_nan(scores, _share(inside & chosen, inside, inside, values.dtype))


def _centred_ranks(flat: Array) -> Array:
    """Twice the ranks of `(N, F)`, equal ones at their mean, less the mean of all.

    Where `l` numbers are less than one and `u` aren't greater, those equal to it have the ranks `l` to `u - 1`, counted
    from 0: their mean is `(l + u - 1) / 2`, and that of all is `(F - 1) / 2`. These are whole numbers.
    """
    ordered = jnp.sort(flat, axis=1)
    less, not_greater = (jax.vmap(partial(jnp.searchsorted, side=side))(ordered, flat) for side in ("left", "right"))
    return less + not_greater - flat.shape[1]


def _wide(scores: Any) -> tuple[Array, Any]:
    """All scores of each example `(N, F)`, in float32 at least, and the dtype that they came in."""
    rows = flat(scores)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32)), rows.dtype


def _shares(scores: Any) -> tuple[Array, Any]:
    """The share of each score in the sum of magnitudes, `(N, F)`, and the dtype of a result."""
    scores = checked_scores(scores, scores, "the scores")
    number_of_examples(scores)
    values, dtype = _wide(scores)
    magnitudes = jnp.abs(values)
    # By the greatest first, so that no sum leaves the range.
    magnitudes = magnitudes / magnitudes.max(1, keepdims=True)
    return magnitudes / magnitudes.sum(1, keepdims=True), dtype


def _within(scores: Any, mask: Any) -> tuple[Any, Array, Array]:
    """Scores as they are and as `(N, F)`, and the mask as `(N, F)`."""
    scores = checked_scores(scores, scores, "the scores")
    mask = jax.tree.map(jnp.asarray, mask)
    number_of_examples(scores)
    check_shapes("the mask", scores, mask)
    for leaf in jax.tree.leaves(mask):
        if leaf.dtype != bool:
            raise TypeError(f"the mask must be booleans, but has dtype {leaf.dtype}: write mask > 0.")
    return scores, flat(scores), flat(mask)


def _share(part: Array, whole: Array, inside: Array, dtype: Any) -> Array:
    """The share of booleans `(N, F)`; NaN where the mask is empty."""
    return jnp.where(inside.any(1), part.sum(1) / whole.sum(1), jnp.nan).astype(dtype)
