"""Metrics that erase features in the order of their scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._arguments import check_count, check_key, number_of_examples
from jaxlift._targets import Target
from jaxlift.metrics._reading import (
    Model,
    aimed,
    checked_image,
    checked_scores,
    flat,
    outputs_of,
    ranks,
    read,
    unless_nan,
    weighted,
)
from jaxlift.wrappers import check_size, draw_like


def deletion(fun: Model, x: Any, scores: Any, *, reference: Any, steps: int, target: Target = None) -> Array:
    """Outputs while the features are replaced by the reference's, those of the highest scores first.

    >>> import jax.numpy as jnp, jaxlift
    >>> x = jnp.array([[1.0, 4.0, 2.0]])
    >>> jaxlift.metrics.deletion(lambda x: x.sum(1), x, x, reference=jnp.zeros(3), steps=3)
    Array([[7., 3., 1., 0.]], dtype=float32)

    The deletion curve of Petsiuk et al. 2018 (arXiv 1806.07421, section 4.1), the perturbation of the most relevant
    first of Samek et al. 2017 (arXiv 1509.06321). The better the scores, the faster the output falls; `area` makes one
    number of it.

    Args:
        fun, target: the model and its output.
        x: the input, `(N, ...)`. It may hold integers, such as tokens.
        scores: signed scores like `x`, or with length 1 along some axes but the first. Features are then what has one
            score: `(N, H, W, 1)` erases whole pixels of an image `(N, H, W, C)`. Equal scores keep the array's order.
        reference: what takes the features' place: one `(...)` for all, or each example's own `(N, ...)`.
        steps: in how many steps, at most as many as there are features. After step s, `s * features // steps` are
            replaced.

    Returns:
        `(N, steps + 1)`: the outputs for the input, after each step, and (the last) for the reference.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, or there are fewer features than steps.
        TypeError: if the scores or outputs aren't floating-point numbers.
    """
    x, scores, reference = read(x, scores, reference)
    return _curve(fun, x, reference, scores, steps, target)


def insertion(fun: Model, x: Any, scores: Any, *, reference: Any, steps: int, target: Target = None) -> Array:
    """Outputs while the features are put into the reference, those of the highest scores first.

    >>> import jax.numpy as jnp, jaxlift
    >>> x = jnp.array([[1.0, 4.0, 2.0]])
    >>> jaxlift.metrics.insertion(lambda x: x.sum(1), x, x, reference=jnp.zeros(3), steps=3)
    Array([[0., 4., 6., 7.]], dtype=float32)

    The insertion curve of Petsiuk et al. 2018 (arXiv 1806.07421, section 4.1). The better the scores, the faster the
    output rises. Arguments and errors are those of `deletion`; the first output is the reference's, the last the
    input's.
    """
    x, scores, reference = read(x, scores, reference)
    return _curve(fun, reference, x, scores, steps, target)


def area(curve: Array) -> Array:
    """The area under a curve `(..., steps + 1)` over the unit interval, by the trapezoidal rule.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.area(jnp.array([[0.0, 4.0, 6.0, 7.0]]))
    Array([4.5], dtype=float32)

    The steps count as equally wide, as they are where `steps` divides the number of features.

    Raises:
        ValueError: if the curve has fewer than two points.
    """
    curve = jnp.asarray(curve)
    if curve.shape[-1:] < (2,):
        raise ValueError(f"a curve must have at least two points on its last axis, but its shape is {curve.shape}.")
    return jnp.trapezoid(curve, axis=-1) / (curve.shape[-1] - 1)


def log_odds_change(
    fun: Model,
    x: Any,
    scores: Any,
    *,
    reference: Any,
    original: int | Array | np.ndarray,
    target: int | Array | np.ndarray,
    count: int,
) -> Array:
    """How far erasing the features that speak for one class and against another moves the log-odds to the other.

    The task of DeepLIFT's section 4.1 and Figure 4 (arXiv 1704.02685): to turn an image of the class `original` into
    one of the class `target`, up to `count` features are erased whose score is positive, the highest first. Returned
    is the increase of the log-odds of `target` against `original`, `y[target] - y[original]`, on the erased input over
    the input itself. (So it is the log-odds of `original` against `target` before, less those after.) The higher the
    better.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun = lambda x: x @ jnp.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    >>> x = jnp.ones((1, 3))
    >>> scores = jaxlift.attribute(fun, target=jnp.array([1.0, -1.0]))(x, reference=jnp.zeros(3))
    >>> jaxlift.metrics.log_odds_change(fun, x, scores, reference=jnp.zeros(3), original=0, target=1, count=1)
    Array([2.], dtype=float32)

    Args:
        fun: the model, `(N, ...) -> (N, K)`. It must return logits: their difference is the log-odds.
        x: the input, `(N, ...)`.
        scores: the scores for `original` less those for `target`, like `x` or as `deletion` takes them. One call makes
            them: `attribute(fun, target=one_hot(original, K) - one_hot(target, K))`.
        reference: what takes the features' place (zeros in the paper): one `(...)`, or each example's own `(N, ...)`.
        original, target: the two classes; an int, or ints `(N,)`.
        count: how many features are erased at most; in the paper 157 of 784, 20%.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes, structures or classes don't fit, the batch is empty, or `count` is negative.
        TypeError: if the scores or outputs aren't floating-point numbers.
    """
    x, scores, reference = read(x, scores, reference)
    n = number_of_examples(x)
    check_count("count", count, least=0)

    def log_odds(x: Any) -> Array:
        y = outputs_of(fun, x, n)
        if y.ndim != 2:
            raise ValueError(f"the model must return logits (N, K) of classes, but its output has shape {y.shape}.")
        return weighted(y, target) - weighted(y, original)

    erased = jax.tree.map(lambda rank, scores: (rank < count) & (scores > 0), ranks(scores), scores)
    return unless_nan(scores, log_odds(jax.tree.map(jnp.where, erased, reference, x)) - log_odds(x))


def road(
    fun: Model,
    x: Any,
    scores: Any,
    *,
    key: Array,
    steps: int,
    noise: float | Array = 0.01,
    channel_axis: int | None = None,
    target: Target = None,
) -> Array:
    """Outputs while pixels are replaced by what their neighbours say, those of the highest scores first.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> x = jnp.arange(1.0, 6.0)[None, :, None]  # (N, L, C)
    >>> fun, key = lambda x: x[:, :, 0].sum(1), jax.random.key(0)
    >>> jaxlift.metrics.road(fun, x, x, key=key, steps=5, noise=0).round().tolist()
    [[15.0, 14.0, 12.0, 9.0, 5.0]]

    ROAD of Rong et al. 2022 (arXiv 2202.00449). A model can read the shape of what was removed, and so the class, off
    a constant that takes its place, as in `deletion`. With noisy linear imputation each removed pixel becomes the
    weighted mean of its neighbours, which may be removed too, so that all are the solution of one linear system; then
    noise is added. Neighbours at a side count twice those at a corner, and those beyond the border don't. The system is
    solved by conjugate gradients, for each example and channel.

    The paper's 10% to 90% are ``steps=10``, its least relevant first is this with `-scores`, and its accuracy is the
    mean over examples with ``target=lambda y: (y.argmax(1) == classes) * 1.0``, which is what Quantus returns.

    Args:
        fun, target: the model and its output.
        x: images, floating-point numbers `(N, H, W, C)`, or sequences `(N, L, C)` or volumes. Without channels, write
            `x[..., None]`.
        scores: signed scores of whole pixels, like `x` but with length 1 along the channels:
            `scores.sum(-1, keepdims=True)`. Equal scores keep the array's order.
        key: a PRNG key.
        steps: in how many steps all pixels would be removed. After step s, `s * pixels // steps` are. The last is left
            out, after which there is nothing to go by.
        noise: the standard deviation of the noise, in the input's units: a number, or an array that broadcasts to `x`.
        channel_axis: the axis of the channels in one example, without the batch; the last, if left out.

    Returns:
        `(N, steps)`: the outputs for the input, and after each step but the last.

    Raises:
        ValueError: if shapes don't fit, the batch is empty, there are fewer pixels than steps, or `noise` is negative.
        TypeError: if the input, scores or outputs aren't floating-point numbers.
    """
    x, channels = checked_image(x, channel_axis)
    n = number_of_examples(x)
    scores = checked_scores(x, scores, "the scores")
    of_pixels = (*x.shape[:channels], 1, *x.shape[channels + 1 :])
    if scores.shape != of_pixels:
        raise ValueError(
            f"road removes whole pixels: expected scores of shape {of_pixels}, got {scores.shape}. Write "
            f"scores.sum({channels}, keepdims=True)."
        )
    _check_steps(steps, scores[0].size)
    check_key(key)
    check_size("noise", noise)
    order, alone = ranks(scores), jnp.moveaxis(x, channels, 1)

    def after(step: tuple[Array, Array]) -> Array:
        count, key = step
        gone = order < count
        filled = jax.vmap(_filled)(alone, jnp.squeeze(gone, channels))
        filled = jnp.moveaxis(filled, 1, channels) + draw_like(jax.random.normal, key, x, "noise", noise)
        return aimed(fun, jnp.where(gone, filled, x), n, target)

    counts = [step * scores[0].size // steps for step in range(steps)]
    return unless_nan(scores, lax.map(after, (jnp.array(counts), jax.random.split(key, steps))).T)


def _curve(fun: Model, start: Any, end: Any, scores: Any, steps: int, target: Target) -> Array:
    """The outputs on the way from one input to another, by descending scores."""
    n, features = flat(scores).shape
    _check_steps(steps, features)
    order = ranks(scores)

    def after(count: Array) -> Array:
        return aimed(fun, jax.tree.map(lambda rank, a, b: jnp.where(rank < count, b, a), order, start, end), n, target)

    counts = [step * features // steps for step in range(steps + 1)]
    return unless_nan(scores, lax.map(after, jnp.array(counts)).T)


def _filled(channels: Array, gone: Array) -> Array:
    """Channels `(C, ...)` of one image, whose pixels `gone` `(...)` are the weighted means of their neighbours."""
    wide = channels.astype(jnp.promote_types(channels.dtype, jnp.float32))

    def of_neighbours(values: Array) -> Array:
        """Their weighted sum. Along each axis weights are 1, 2, 1, of which the product's middle isn't a neighbour."""
        total = values
        for axis in range(values.ndim):
            padded = jnp.pad(total, [(int(axis == each),) * 2 for each in range(values.ndim)])
            before, after = (lax.slice_in_dim(padded, i, i + total.shape[axis], axis=axis) for i in (0, 2))
            total = before + 2 * total + after
        return total - 2**values.ndim * values

    def of_channel(values: Array) -> Array:
        # The weights are symmetric, and some pixel is known: the system is positive definite. What is solved for is the
        # difference from the known pixels' mean, which the solver's error is small beside.
        mean = jnp.where(gone, 0, values).sum() / (~gone).sum()
        known = of_neighbours(jnp.where(gone, 0, values - mean))
        solution, _ = jax.scipy.sparse.linalg.cg(
            lambda v: jnp.where(gone, weights * v - of_neighbours(v), 0),
            jnp.where(gone, known, 0),
            tol=float(jnp.finfo(wide.dtype).eps),
            maxiter=10 * sum(gone.shape),
        )
        return solution + mean

    weights = of_neighbours(jnp.ones(gone.shape, wide.dtype))
    return jax.vmap(of_channel)(wide).astype(channels.dtype)


def _check_steps(steps: int, features: int) -> None:
    """Raise the error for steps that don't each have a feature."""
    if not 1 <= steps <= features:
        raise ValueError(f"steps={steps} must be between 1 and the number of features, {features}.")
    check_count("steps", steps)
