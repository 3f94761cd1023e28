"""Attribution functions made of attribution functions: over noisy inputs, over channels.

Each takes a function `attr(*args, reference=...)`, as `jaxlift.attribute` and others make it, and returns another of
the same signature. They compose with each other, and with `jax.jit` and `jax.vmap`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, Never

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxlift._arguments import check_count, check_key, check_option, checked_axis, checked_input, described
from jaxlift._batching.loops import divided, moments_in_turn, shape_of_one, sum_in_turn
from jaxlift._explainer import Attribution
from jaxlift._options import check_keywords

AttributionFunction = Callable[..., Any]
Statistic = Literal["mean", "squares", "variance"]


def smooth(
    attr: AttributionFunction,
    *,
    noise: Any,
    key: Array,
    samples: int = 50,
    statistic: Statistic = "mean",
    argnums: int | tuple[int, ...] = 0,
    **unknown: Never,
) -> AttributionFunction:
    """Take the mean of the scores over noisy inputs: SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825).

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: jnp.abs(x).sum(1), rule="gradient", output="multipliers")
    >>> x = jnp.array([[0.01, 3.0]])
    >>> attr(x).tolist()
    [[1.0, 1.0]]
    >>> smoothed = jaxlift.smooth(attr, noise=0.5, key=jax.random.key(0), samples=500)(x)
    >>> bool(jnp.abs(smoothed[0, 0]) < 0.2), float(smoothed[0, 1])
    (True, 1.0)

    The samples run one after the other, so memory doesn't grow with them. All arrays that `attr` returns are averaged
    alike: with ``full=True`` the deltas, cancellations, outputs and standard errors too. What is None stays so. Squares
    and variances are of the scores alone: they sum to nothing, so deltas, cancellations and standard errors become
    None.

    Args:
        attr: the attribution function.
        noise: the standard deviation of the Gaussian noise, in the input's units: a number, or an array that broadcasts
            to the input, such as `(N, 1)` for a deviation of each example.
        key: a PRNG key. The noise is the same in each call.
        samples: the number of noisy inputs.
        statistic: what is taken of the scores: their ``"mean"``; the mean of their ``"squares"``, SmoothGrad-Squared
            (Hooker et al. 2019, arXiv 1806.10758); or their ``"variance"``, VarGrad (Adebayo et al. 2018, arXiv
            1810.03307), the mean of the squared deviations from their mean.
        argnums: which argument of `attr` gets the noise, a pytree of floating-point arrays; or a tuple of such
            arguments. As for `attribute`.

    Returns:
        A function of `attr`'s signature and with its shapes and dtypes.

    Raises:
        ValueError: if `samples` isn't positive, or is 1 where a variance is taken, `noise` is negative or there is no
            such `statistic`; when called, if `noise` doesn't broadcast.
        TypeError: when called, if the input or what `attr` returns isn't made of floating-point numbers.
    """
    check_keywords("smooth", unknown, ("noise", "key", "samples", "statistic", "argnums"))
    check_attribution("smooth", attr)
    keys = keys_of_samples(key, samples)
    check_size("noise", noise)
    check_option("statistic", statistic, Statistic)
    if statistic == "variance":
        check_count("samples", samples, least=2)
    noisy = argnums if isinstance(argnums, tuple) else (argnums,)

    def smoothed(*args: Any, **options: Any) -> Any:
        if not all(0 <= i < len(args) for i in noisy):
            raise TypeError(f"argnums={argnums} must be among the positional arguments of the call: got {len(args)}.")
        for leaf in jax.tree.leaves([args[i] for i in noisy]):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"smooth adds noise to the input, which has dtype {jnp.result_type(leaf)}: make the embeddings of "
                    "tokens first, jaxlift.below(model, name)(tokens), and smooth an attribution of the function that "
                    "goes on from there, jaxlift.above(model, name), with argnums=0."
                )
        x = checked_input({i: args[i] for i in noisy})

        def of_sample(key: Array) -> Any:
            drawn = jax.tree.map(jnp.add, x, draw_like(jax.random.normal, key, x, "noise", noise))
            return attributed("smooth", attr, *(drawn.get(i, arg) for i, arg in enumerate(args)), **options)

        def squares(key: Array) -> Any:
            found = of_sample(key)
            return _with_scores(found, jax.tree.map(jnp.square, _scores_of(found)))

        if statistic == "variance":
            mean, variance = mean_and_variance_in_turn(of_sample, keys)
            return _with_scores(mean, _scores_of(variance))
        return mean_in_turn(of_sample if statistic == "mean" else squares, keys)

    return smoothed


def sum_channels(
    attr: AttributionFunction, *, axis: int | tuple[int, ...] = -1, absolute: bool = False, keepdims: bool = False
) -> AttributionFunction:
    """Add up scores over channels, to one score for each pixel or position.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: jnp.tanh(x).sum((1, 2)))
    >>> jaxlift.sum_channels(attr)(jnp.ones((2, 5, 3)), reference=jnp.zeros((5, 3))).shape
    (2, 5)

    Args:
        attr: the attribution function. Of an `Attribution`, from ``full=True``, scores are summed and the rest stays;
            but the standard error, which isn't known of sums, becomes None.
        axis: the axis of the channels in the scores of one example, or several: counted without the batch's, as
            `channel_axis` is. Where axes of references or outputs come first (``average=False``, ``target="all"``),
            count from the end.
        absolute: whether to sum absolute values. Signed sums of contributions keep summation-to-delta.
        keepdims: whether to keep the axis, with length 1. So do `jaxlift.metrics` take scores of whole pixels.

    Returns:
        A function of `attr`'s signature, whose scores lack the axis.

    Raises:
        ValueError: when called, if the scores of an example have no such axis.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    check_attribution("sum_channels", attr)

    def summed(*args: Any, **options: Any) -> Any:
        found = attributed("sum_channels", attr, *args, **options)
        if isinstance(found, Attribution):
            return found._replace(scores=jax.tree.map(channels_summed, found.scores), standard_error=None)
        return jax.tree.map(channels_summed, found)

    def channels_summed(scores: Array) -> Array:
        summed_over = tuple(checked_axis("axis", each, scores.ndim - 1) + 1 for each in axes)
        return (jnp.abs(scores) if absolute else scores).sum(summed_over, keepdims=keepdims)

    return summed


def check_attribution(name: str, attr: Any) -> None:
    """Raise the error for what can't be called as an attribution function is."""
    if not callable(attr):
        raise TypeError(
            f"{name} takes an attribution function, such as jaxlift.attribute(model): got {described(attr)}."
        )


def attributed(name: str, attr: AttributionFunction, *args: Any, **options: Any) -> Any:
    """What an attribution function returns, or the error for a function that isn't one: a model, most likely."""
    try:
        parameters = inspect.signature(attr).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # not known, as for functions of other languages
    if parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        unknown = options.keys() - {each.name for each in parameters}
        if unknown:
            raise TypeError(
                f"{name} takes an attribution function, attr(x, reference=...), but the function that it was given has "
                f"no {', '.join(sorted(unknown))}=: for a model, write {name}(jaxlift.attribute(model), ...)."
            )
    return attr(*args, **options)


def _scores_of(found: Any) -> Any:
    return found.scores if isinstance(found, Attribution) else found


def _with_scores(found: Any, scores: Any) -> Any:
    """Other scores in place of those that were found, of which nothing is known but the outputs."""
    if isinstance(found, Attribution):
        return Attribution(scores, output=found.output, output_reference=found.output_reference)
    return scores


def mean_in_turn(fun: Callable[[Any], Any], xs: Any) -> Any:
    """The mean of `fun` over the first axis of `xs`. One result is held at a time, and low precision summed in more."""
    shapes = _checked_shapes(fun, xs)
    return divided(sum_in_turn(fun, xs, shapes), len(jax.tree.leaves(xs)[0]), shapes)


def mean_and_variance_in_turn(fun: Callable[[Any], Any], xs: Any) -> tuple[Any, Any]:
    """The same, and the mean of the squared deviations from it."""
    shapes = _checked_shapes(fun, xs)
    mean, squares = moments_in_turn(fun, xs, shapes)
    return divided(mean, 1, shapes), divided(squares, len(jax.tree.leaves(xs)[0]), shapes)


def _checked_shapes(fun: Callable[[Any], Any], xs: Any) -> Any:
    """The shapes of what an attribution function returns, or the error for what no mean can be taken of."""
    shapes = jax.eval_shape(fun, shape_of_one(xs))
    for path, leaf in jax.tree.leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"the attribution function must return floating-point scores, but what it returns"
                f"{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, of which a mean can't be taken."
            )
    return shapes


def draw_like(draw: Callable[..., Array], key: Array, x: Any, name: str, size: Any) -> Any:
    """Random numbers of the shapes and dtypes of `x`, times `size`, which is called `name` in errors."""
    leaves, structure = jax.tree.flatten(x)
    shape = np.shape(size)
    drawn = []
    for of_leaf, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        if len(shape) > leaf.ndim or any(a not in (1, b) for a, b in zip(shape[::-1], leaf.shape[::-1], strict=False)):
            raise ValueError(
                f"{name} must be a number, or broadcast to the input of shape {leaf.shape}, but its shape is {shape}."
            )
        drawn.append(jnp.asarray(size, leaf.dtype) * draw(of_leaf, leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, drawn)


def keys_of_samples(key: Array, samples: int) -> Array:
    """A PRNG key for each sample."""
    check_key(key)
    check_count("samples", samples)
    return jax.random.split(key, samples)


def check_size(name: str, size: Any) -> None:
    """Raise the error for a negative deviation or radius, or NaN. A traced one can't be looked at."""
    if not isinstance(size, Tracer) and not np.all(np.asarray(size) >= 0):
        raise ValueError(f"{name}={size} must be 0 or positive, in the units of the input.")
