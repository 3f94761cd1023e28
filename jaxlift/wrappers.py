"""Attribution functions made of attribution functions: over noisy inputs, over references, over channels.

Each takes a function `attr(*args, reference=...)`, as `jaxlift.attribute` and others make it, and returns another of
the same signature. They compose with each other, and with `jax.jit` and `jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxlift._arguments import checked_input
from jaxlift._batching.loops import divided, shape_of_one, sum_in_turn

Attribution = Callable[..., Any]


def smooth(
    attr: Attribution, *, noise: Any, key: Array, samples: int = 50, argnums: int | tuple[int, ...] = 0
) -> Attribution:
    """Take the mean of the scores over noisy inputs: SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825).

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: jnp.abs(x).sum(1), rule="gradient", output="multipliers")
    >>> x = jnp.array([[0.01, 3.0]])
    >>> attr(x).tolist()
    [[1.0, 1.0]]
    >>> smoothed = jaxlift.smooth(attr, noise=0.5, key=jax.random.key(0), samples=500)(x)
    >>> bool(jnp.abs(smoothed[0, 0]) < 0.2), float(smoothed[0, 1])
    (True, 1.0)

    The samples run one after the other, so memory doesn't grow with them. Any number of leaves that `attr` returns
    (scores, convergence deltas) are averaged alike.

    Args:
        attr: the attribution function.
        noise: the standard deviation of the Gaussian noise, in the input's units: a number, or an array that broadcasts
            to the input, such as `(N, 1)` for a deviation of each example.
        key: a PRNG key. The noise is the same in each call.
        samples: the number of noisy inputs.
        argnums: which argument of `attr` gets the noise, a pytree of floating-point arrays; or a tuple of such
            arguments. As for `attribute`.

    Returns:
        A function of `attr`'s signature and with its shapes and dtypes.

    Raises:
        ValueError: if `samples` isn't positive or `noise` is negative; when called, if `noise` doesn't broadcast.
        TypeError: when called, if the input or what `attr` returns isn't made of floating-point numbers.
    """
    keys = keys_of_samples(key, samples)
    check_size("noise", noise)
    noisy = argnums if isinstance(argnums, tuple) else (argnums,)

    def smoothed(*args: Any, **options: Any) -> Any:
        x = checked_input({i: args[i] for i in noisy})

        def of_sample(key: Array) -> Any:
            drawn = jax.tree.map(jnp.add, x, draw_like(jax.random.normal, key, x, "noise", noise))
            return attr(*(drawn.get(i, arg) for i, arg in enumerate(args)), **options)

        return mean_in_turn(of_sample, keys)

    return smoothed


def mean_over_references(attr: Attribution) -> Attribution:
    """Take the mean of the scores over references, one after the other.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.mean_over_references(jaxlift.attribute(lambda x: jnp.tanh(x).prod(1)))
    >>> attr(jnp.ones((4, 3)), reference=jnp.arange(6.0).reshape(2, 3)).shape
    (4, 3)

    `jaxlift.attribute` takes many references at once and computes what they share once: N + R forward passes. It holds
    the scores of all N x R pairs. This takes N + 1 forward passes for each reference, and holds N scores.

    Args:
        attr: the attribution function. It is called with one reference at a time, `(...)`.

    Returns:
        A function of `attr`'s signature, for `reference` of shape `(R, ...)`, or a pytree of such arrays. All leaves
        that `attr` returns are averaged alike; so `attribute`'s cancellation is here the mean over references.

    Raises:
        ValueError: when called, if the arrays of the reference have no common first axis, or one of length 0.
        TypeError: when called, if what `attr` returns isn't made of floating-point numbers.
    """

    def mean(*args: Any, reference: Any) -> Any:
        reference = jax.tree.map(jnp.asarray, reference)
        shapes = [leaf.shape for leaf in jax.tree.leaves(reference)]
        lengths = {shape[:1] for shape in shapes}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise ValueError(
                "the reference must have an axis of references first, (R, ...), of one length in all its arrays and at "
                f"least 1, but the shapes are {shapes}. For one reference, call the attribution function itself."
            )
        return mean_in_turn(lambda one: attr(*args, reference=one), reference)

    return mean


def sum_channels(
    attr: Attribution, *, axis: int | tuple[int, ...] = -1, absolute: bool = False, keepdims: bool = False
) -> Attribution:
    """Add up scores over channels, to one score for each pixel or position.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: jnp.tanh(x).sum((1, 2)))
    >>> jaxlift.sum_channels(attr)(jnp.ones((2, 5, 3)), reference=jnp.zeros((5, 3))).shape
    (2, 5)

    Args:
        attr: the attribution function. It must return scores alone, without convergence deltas.
        axis: the axis of the channels in the scores, or several.
        absolute: whether to sum absolute values. Signed sums of contributions keep summation-to-delta.
        keepdims: whether to keep the axis, with length 1. So do `jaxlift.metrics` take scores of whole pixels.

    Returns:
        A function of `attr`'s signature, whose scores lack the axis.

    Raises:
        ValueError: when called, if the scores have no such axis besides the first, which is the batch's.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)

    def summed(*args: Any, **options: Any) -> Any:
        return jax.tree.map(channels_summed, attr(*args, **options))

    def channels_summed(scores: Array) -> Array:
        if not all(-scores.ndim < a < scores.ndim and a != 0 for a in axes):
            raise ValueError(
                f"axis={axis} must be one of the axes 1 to {scores.ndim - 1} of the scores, but their shape is "
                f"{scores.shape}. The attribution function must return scores alone, with the batch first."
            )
        return (jnp.abs(scores) if absolute else scores).sum(axes, keepdims=keepdims)

    return summed


def mean_in_turn(fun: Callable[[Any], Any], xs: Any) -> Any:
    """The mean of `fun` over the first axis of `xs`. One result is held at a time, and low precision summed in more."""
    shapes = jax.eval_shape(fun, shape_of_one(xs))
    for path, leaf in jax.tree.leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"the attribution function must return floating-point scores, but what it returns"
                f"{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, of which a mean can't be taken."
            )
    return divided(sum_in_turn(fun, xs, shapes), len(jax.tree.leaves(xs)[0]), shapes)


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
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1.")
    return jax.random.split(key, samples)


def check_size(name: str, size: Any) -> None:
    """Raise the error for a negative deviation or radius, or NaN. A traced one can't be looked at."""
    if not isinstance(size, Tracer) and not np.all(np.asarray(size) >= 0):
        raise ValueError(f"{name}={size} must be 0 or positive, in the units of the input.")
