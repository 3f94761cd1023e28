"""Metrics that move the input at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from jaxlift._arguments import check_count, checked_input, number_of_examples
from jaxlift._targets import Target
from jaxlift.metrics._reading import (
    Model,
    aimed,
    check_shapes,
    checked_image,
    checked_scores,
    correlation,
    flat,
    read,
    reference_of_each,
    scores_alone,
    shaped_as,
    summed,
    unless_nan,
)
from jaxlift.wrappers import check_attribution, check_size, draw_like, keys_of_samples


def infidelity(
    fun: Model,
    x: Any,
    multipliers: Any,
    *,
    perturbation: float | Array | Callable[[Array, Any], Any],
    key: Array,
    samples: int = 100,
    target: Target = None,
    scaled: bool = False,
) -> Array:
    r"""How far multipliers are from saying what perturbations of the input do to the output; 0 is best.

    .. math:: \mathrm{E}_I \big[ \big( I \cdot m - (f(x) - f(x - I)) \big)^2 \big]

    Definition 2.1 of Yeh et al. 2019 (arXiv 1901.09392). With `scaled`, as in the experiments of its authors, it is

    .. math:: \min_\beta \mathrm{E}_I \big[ \big( \beta I \cdot m - (f(x) - f(x - I)) \big)^2 \big], \quad
        \beta = \mathrm{E}[I \cdot m \, (f(x) - f(x - I))] / \mathrm{E}[(I \cdot m)^2]

    Multipliers then count times the number that fits best, for each example: only their direction matters. The samples
    run one after the other. Compare methods with one key: they meet the same perturbations, so that their difference
    varies less than with a key for each.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun, x = lambda x: x @ jnp.array([1.0, -2.0]), jnp.ones((3, 2))
    >>> multipliers = jaxlift.attribute(fun, output="multipliers")(x, reference=jnp.zeros(2))
    >>> jaxlift.metrics.infidelity(fun, x, multipliers, perturbation=0.5, key=jax.random.key(0)).round(5).tolist()
    [0.0, 0.0, 0.0]

    Args:
        fun, target: the model and its output.
        x: the input, floating-point arrays `(N, ...)`.
        multipliers: scores like `x` per unit of the input: `attribute(..., output="multipliers")`, or a gradient. Those
            times a difference, contributions, must be divided by it first. (Quantus multiplies the perturbation with
            whatever it is given. Captum does too, but its `infidelity_perturb_func_decorator(True)` divides the
            perturbation by the difference, and so takes contributions.)
        perturbation: the standard deviation of Gaussian `I`, in the input's units: a number, or an array that
            broadcasts to `x`. Or a function `(key, x) -> I`, with `I` like `x`: `noisy_baseline` and `square_removal`
            make the paper's.
        key: a PRNG key.
        samples: the number of perturbations.
        scaled: whether to take the multipliers times the best `beta`, the mean over the samples; Captum calls it
            `normalize`. Multipliers of zeros stay zeros.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, or there are no samples.
        TypeError: if something isn't made of floating-point numbers.
    """
    x = checked_input(x)
    n = number_of_examples(x)
    multipliers = checked_scores(x, multipliers, "the multipliers")
    check_shapes("the multipliers", x, multipliers)
    keys = keys_of_samples(key, samples)
    if not callable(perturbation):
        check_size("perturbation", perturbation)
        if not isinstance(perturbation, Tracer) and not np.any(np.asarray(perturbation)):
            raise ValueError(
                "perturbation is 0, of which any multipliers say all: give the standard deviation of noise, in the "
                "input's units, or a function (key, x) -> I, such as noisy_baseline(reference, noise=...)."
            )
    original = aimed(fun, x, n, target)

    def of_sample(key: Array) -> tuple[Array, Array]:
        if callable(perturbation):
            change = perturbation(key, x)
            check_shapes("what perturbation(key, x) returns", x, change)
        else:
            change = draw_like(jax.random.normal, key, x, "perturbation", perturbation)
        said = summed(jax.tree.map(jnp.multiply, change, multipliers))
        return said, original - aimed(fun, jax.tree.map(jnp.subtract, x, change), n, target)

    said, seen = lax.map(of_sample, keys)
    if scaled:
        # Of unit size first, so that squares of small multipliers don't vanish.
        largest = jnp.abs(said).max(0, keepdims=True)
        said = said / jnp.where(largest == 0, 1, largest)
        beta = (said * seen).mean(0, keepdims=True) / (said * said).mean(0, keepdims=True)
        said = jnp.where(largest == 0, 0, beta * said)
    return ((said - seen) ** 2).mean(0)


def noisy_baseline(reference: Any, *, noise: float | Array) -> Callable[[Array, Any], Any]:
    """The difference from a noisy reference, as a perturbation for `infidelity`.

    .. math:: I = x - (x_0 + \\varepsilon), \\quad \\varepsilon \\sim N(0, \\sigma^2)

    Yeh et al. 2019 (arXiv 1901.09392). Their experiments clip the noise so that inputs stay within 0 and 1; this is the
    paper's formula, without.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> perturbation = jaxlift.metrics.noisy_baseline(jnp.zeros(3), noise=0.1)
    >>> perturbation(jax.random.key(0), jnp.ones((2, 3))).shape
    (2, 3)

    Args:
        reference: one `(...)` for all, or each example's own `(N, ...)`.
        noise: the standard deviation, in the input's units: a number, or an array that broadcasts to the input.

    Returns:
        A function `(key, x)` of a PRNG key and the input, floating-point arrays `(N, ...)`, that returns `I` like `x`.

    Raises:
        ValueError: if `noise` is negative; when called, if the reference doesn't fit.
    """
    check_size("noise", noise)

    def perturbation(key: Array, x: Any) -> Any:
        drawn = draw_like(jax.random.normal, key, x, "noise", noise)
        return jax.tree.map(
            lambda x, reference, drawn: x - reference - drawn, x, reference_of_each(x, reference), drawn
        )

    return perturbation


def square_removal(
    reference: Any, *, sizes: Sequence[int], channel_axis: int | None = None
) -> Callable[[Array, Any], Array]:
    """A square of the image, replaced by the reference's, as a perturbation for `infidelity`.

    Yeh et al. 2019 (arXiv 1901.09392). All squares within the image, of all sizes, are equally likely; the authors sum
    over all of them, of side 1 to 10 and with a reference of zeros. Of a sequence `(N, L, C)` it takes intervals, of a
    volume cubes.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> perturbation = jaxlift.metrics.square_removal(jnp.zeros((8, 8, 3)), sizes=[2])
    >>> perturbation(jax.random.key(0), jnp.ones((1, 8, 8, 3))).sum().tolist()
    12.0

    Args:
        reference: one `(...)` for all, or each example's own `(N, ...)`.
        sizes: the sides that squares may have, in pixels.
        channel_axis: the axis of the channels in one example, without the batch; the last, if left out.

    Returns:
        A function `(key, x)` of a PRNG key and the images, one floating-point array `(N, ...)`, that returns `I` like
        `x`. Each example has a square of its own.

    Raises:
        ValueError: if there are no sizes, or one isn't positive; when called, if one is greater than the image, or if
            shapes don't fit.
    """
    sizes = np.ravel(sizes).tolist()
    if not sizes:
        raise ValueError("sizes is empty: expected the sides of the squares, in pixels, such as sizes=[2, 3, 4].")
    for size in sizes:
        check_count("sizes", size)

    def perturbation(key: Array, x: Any) -> Array:
        x, channels = checked_image(x, channel_axis)
        space = [axis for axis in range(1, x.ndim) if axis != channels]
        least = min(x.shape[axis] for axis in space)
        if max(sizes) > least:
            raise ValueError(f"sizes={sizes} must fit into the image, whose shortest side is {least}.")
        of_size, *of_axes = jax.random.split(key, 1 + len(space))
        places = np.array([[x.shape[axis] - size + 1 for axis in space] for size in sizes])
        chosen = jax.random.categorical(of_size, jnp.log(places.prod(1)), shape=(len(x),))
        inside = jnp.array(True)
        for axis, of_axis, count in zip(space, of_axes, jnp.asarray(places)[chosen].T, strict=True):
            begin = jnp.expand_dims(jax.random.randint(of_axis, (len(x),), 0, count), range(1, x.ndim))
            end = begin + jnp.expand_dims(jnp.array(sizes)[chosen], range(1, x.ndim))
            position = lax.broadcasted_iota(int, (1, *x.shape[1:]), axis)
            inside &= (begin <= position) & (position < end)
        return jnp.where(inside, x - reference_of_each(x, reference), 0)

    return perturbation


def sensitivity_n(
    fun: Model,
    x: Any,
    scores: Any,
    *,
    reference: Any,
    sizes: Sequence[int],
    key: Array,
    samples: int = 100,
    target: Target = None,
) -> Array:
    r"""How well sums of scores foretell what happens when the reference takes the place of n features; 1 is best.

    .. math:: \mathrm{corr}_S \Big( \sum_{i \in S} \phi_i, \; f(x) - f(x_{S \leftarrow x_0}) \Big), \quad |S| = n

    Sensitivity-n of Ancona et al. 2018 (arXiv 1711.06104), for each n: Pearson's correlation over random subsets S of n
    features. The samples run one after the other. A subset is the same for all examples, and larger ones contain
    smaller ones.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun, x = lambda x: x @ jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.ones((1, 4))
    >>> scores = jaxlift.attribute(fun)(x, reference=jnp.zeros(4))
    >>> jaxlift.metrics.sensitivity_n(
    ...     fun, x, scores, reference=jnp.zeros(4), sizes=[1, 3], key=jax.random.key(0)
    ... ).round(5).tolist()
    [[1.0, 1.0]]

    (Quantus's `SensitivityN` is another quantity: features go in the order of their scores, a step at a time, and the
    correlation is over the examples of the batch.)

    Args:
        fun, target: the model and its output.
        x: the input, `(N, ...)`.
        scores: contributions like `x`, or with length 1 along axes whose features go together, as for `deletion`.
        reference: what takes the features' place: one `(...)` for all, or each example's own `(N, ...)`.
        sizes: the numbers n, below that of the features, of which all are but one subset. The paper takes them from 1
            to 80% of the features, evenly in their logarithm.
        key: a PRNG key.
        samples: the number of subsets, at least 2.

    Returns:
        `(N, len(sizes))`, from -1 to 1; NaN where sums or outputs don't vary.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, a size is out of range, or there are fewer
            than 2 samples.
        TypeError: if the scores or outputs aren't floating-point numbers.
    """
    x, scores, reference = read(x, scores, reference)
    rows = flat(scores)
    n, features = rows.shape
    sizes = np.ravel(sizes).tolist()
    if not sizes or not all(isinstance(size, int) and 1 <= size < features for size in sizes):
        raise ValueError(f"sizes={sizes} must be ints from 1 to {features - 1}, one less than the number of features.")
    check_count("samples", samples, least=2)
    keys = keys_of_samples(key, samples)
    original = aimed(fun, x, n, target)

    def of_subset(size: Array, key: Array) -> tuple[Array, Array]:
        rank = jax.random.permutation(key, features)[None]
        mixed = jax.tree.map(
            lambda rank, x, reference: jnp.where(rank < size, reference, x), shaped_as(scores, rank), x, reference
        )
        return jnp.where(rank < size, rows, 0).sum(1), original - aimed(fun, mixed, n, target)

    def of_size(size: Array) -> Array:
        said, seen = lax.map(partial(of_subset, size), keys)
        return correlation(said - said.mean(0, keepdims=True), seen - seen.mean(0, keepdims=True), 0)

    return unless_nan(scores, lax.map(of_size, jnp.array(sizes)).T)


def sensitivity(
    attr: Callable[..., Any],
    x: Any,
    *,
    radius: float | Array,
    key: Array,
    reference: Any = None,
    samples: int = 50,
    relative: bool = False,
) -> Array:
    r"""How much an attribution changes, at most, if its input changes a little; 0 is best.

    .. math:: \max_{\|y - x\|_\infty \le \rho} \|\phi(y) - \phi(x)\|_2

    Definition 3.1 of Yeh et al. 2019 (arXiv 1901.09392), estimated by inputs `y` drawn uniformly, one after the other.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: x.sum(1))
    >>> change = jaxlift.metrics.sensitivity(
    ...     attr, jnp.ones((1, 4)), reference=jnp.zeros(4), radius=0.1, key=jax.random.key(0)
    ... )
    >>> bool(0.05 < change[0] < 0.2)
    True

    Args:
        attr: an attribution function, `attr(x)` or `attr(x, reference=...)`, that returns scores alone, `(N, ...)` or a
            pytree of such arrays.
        x: the input, floating-point arrays `(N, ...)`.
        radius: the largest change of a number of `x`; or an array of them that broadcasts to `x`.
        key: a PRNG key.
        reference: passed on to `attr`, unless it is None.
        samples: the number of inputs that are tried.
        relative: whether to divide by the norm of the attribution at `x`, as Captum and Quantus do. An attribution of
            zeros then has the sensitivity infinity, or NaN if it remains zeros.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes don't fit, the batch is empty, or there are no samples.
        TypeError: if the input isn't made of floating-point numbers.
    """
    check_attribution("sensitivity", attr)
    x = checked_input(x)
    n = number_of_examples(x)
    keys = keys_of_samples(key, samples)
    check_size("radius", radius)
    explain = attr if reference is None else partial(attr, reference=reference)
    scores = scores_alone("sensitivity", explain(x), n)
    uniform = partial(jax.random.uniform, minval=-1, maxval=1)

    def norm(tree: Any) -> Array:
        return jnp.sqrt(summed(jax.tree.map(jnp.square, tree)))

    def further(largest: Array, key: Array) -> tuple[Array, None]:
        moved = jax.tree.map(jnp.add, x, draw_like(uniform, key, x, "radius", radius))
        return jnp.maximum(largest, norm(jax.tree.map(jnp.subtract, explain(moved), scores))), None

    size = norm(scores)
    largest, _ = lax.scan(further, jnp.zeros_like(size), keys)
    return largest / size if relative else largest
