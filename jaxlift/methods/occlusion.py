"""Methods that change the input and look at what becomes of the output: occlusion and in-silico mutagenesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._arguments import check_count, checked_axis, spread_as
from jaxlift._explainer import Explainer, Method
from jaxlift._options import Options, takes
from jaxlift.methods.shapley import game_of, groups_of


@dataclass(frozen=True, kw_only=True, eq=False)
class MutagenesisOptions(Options):
    """The options of `mutagenesis`.

    Attributes:
        chunk: how many changes of the input are evaluated at once.
    """

    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chunk", self.chunk)


@dataclass(frozen=True, kw_only=True, eq=False)
class OcclusionOptions(MutagenesisOptions):
    """The options of `occlusion`.

    Attributes:
        window: the size of a window, an int for each axis of an example, such as `(4, 4, 1)`; or a pytree of such
            tuples, as the input is. Other arrays of the input stay as they are while one is occluded.
        strides: the steps from one window to the next, likewise; 1 if left out. The last windows may reach beyond the
            input.
        groups: which elements are replaced together, as for `shapley`: parts of any form, in place of windows. A part
            may have elements of several arrays.
    """

    window: Any = None
    strides: Any = None
    groups: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups is not None and (self.window is not None or self.strides is not None):
            raise ValueError("groups= says which parts are occluded, and so does window=: give one of both.")


@takes(OcclusionOptions)
def occlusion(fun: Callable[..., Any], options: OcclusionOptions) -> Explainer:
    """Make the function that replaces parts of the input by the reference's, and scores them by what the output loses.

    A feature's score is the mean loss over all windows that it is in (Zeiler and Fergus 2014, arXiv 1311.2901, section
    4.2). With windows of one feature, the default, it is the effect of that feature alone. With `groups` all elements
    of a group have what the output loses without it. Scores don't sum to the difference of the outputs, unless parts
    are single features and the model is linear.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.occlusion(lambda x: x[:, 0] * x[:, 1] + x[:, 2])
    >>> attr(jnp.array([[2.0, 3.0, 1.0]]), reference=jnp.zeros(3))
    Array([[6., 6., 1.]], dtype=float32)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`. It takes a forward pass for each window, or group, and pair.

    Raises:
        ValueError, TypeError: as from `attribute`; from `attr`, if windows, strides or groups don't fit the input.
    """
    window, strides, chunk = options.window, options.strides, options.chunk

    def explain_groups(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        group_of, n = groups_of(options.groups, x)
        value, y = game_of(fun, x, reference, group_of), fun(x)
        losses = lax.map(lambda k: y - value(jnp.arange(n) != k), jnp.arange(n), batch_size=chunk)

        def pull(weights: Array) -> Any:
            loss = jnp.tensordot(losses, weights, y.ndim)
            return jax.tree.map(lambda g: loss[g], group_of)

        return (y, fun(reference)), pull

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        y = fun(x)
        leaves, structure = jax.tree.flatten(x)
        windows = _sizes("window", window, x)
        for leaf, sizes in zip(leaves, windows, strict=True):
            if any(size > length for size, length in zip(sizes, leaf.shape, strict=True)):
                raise ValueError(
                    f"window={window!r} is larger than an example, whose shape is {leaf.shape}: make it at most as "
                    "long as each axis."
                )
        grids = [
            [_covers(*axis) for axis in zip(leaf.shape, sizes, steps, strict=True)]
            for leaf, sizes, steps in zip(leaves, windows, _sizes("strides", strides, x), strict=True)
        ]

        def loss(i: int, k: Array) -> Array:
            """What the output loses without window `k` of array `i`."""
            cells = jnp.unravel_index(k, [len(covers) for covers in grids[i]])
            inside = jnp.ones((), bool)
            for covers, cell in zip(grids[i], cells, strict=True):
                inside = inside[..., None] & jnp.expand_dims(jnp.asarray(covers)[cell], range(inside.ndim))
            inside = spread_as(leaves[i], inside)
            occluded = jnp.where(inside, jax.tree.leaves(reference)[i], leaves[i])
            return y - fun(jax.tree.unflatten(structure, [*leaves[:i], occluded, *leaves[i + 1 :]]))

        losses = [
            lax.map(partial(loss, i), jnp.arange(prod(map(len, grid))), batch_size=chunk)
            for i, grid in enumerate(grids)
        ]

        def pull(weights: Array) -> Any:
            return jax.tree.unflatten(
                structure,
                [_spread(jnp.tensordot(each, weights, y.ndim), grid) for each, grid in zip(losses, grids, strict=True)],
            )

        return (y, fun(reference)), pull

    explain = explain if options.groups is None else explain_groups
    return Explainer(fun, Method("occlusion", explain, gives="contributions", is_differentiated=False), options)


def _sizes(name: str, sizes: Any, x: Any) -> list[tuple[int, ...]]:
    """For each array of an example, an int for each of its axes."""
    leaves, structure = jax.tree.flatten(x)
    if sizes is None:
        return [(1,) * leaf.ndim for leaf in leaves]
    try:
        found = [tuple(map(int, each)) for each in structure.flatten_up_to(sizes)]
    except (TypeError, ValueError):
        found = [()]
    if [len(each) for each in found] != [leaf.ndim for leaf in leaves] or any(
        size < 1 for each in found for size in each
    ):
        shapes = jax.tree.map(jnp.shape, x)
        raise ValueError(f"{name}={sizes!r} must give a positive int for each axis of an example, of shape {shapes}.")
    return found


def _covers(length: int, size: int, stride: int) -> np.ndarray:
    """Which windows along an axis cover which of its elements."""
    if stride > size and length > size:
        raise ValueError(f"strides of {stride} leave gaps between windows of {size}: make them at most as long.")
    starts = stride * np.arange(-(-max(length - size, 0) // stride) + 1)[:, None]
    return (starts <= np.arange(length)) & (np.arange(length) < starts + size)


def _spread(effects: Array, grid: list[np.ndarray]) -> Array:
    """For each element, the mean over the windows that cover it, which along each axis are independent."""
    effects = effects.reshape([len(covers) for covers in grid])
    for covers in grid:
        effects = jnp.tensordot(effects, jnp.asarray(covers / covers.sum(0), effects.dtype), ((0,), (0,)))
    return effects


@takes(MutagenesisOptions)
def mutagenesis(fun: Callable[..., Any], options: MutagenesisOptions) -> Explainer:
    """Make the function that tries all single changes of a one-hot sequence, and scores each by what the output gains.

    The score of a channel at a position is the output with that channel there less the output as it is: in-silico
    mutagenesis (Zhou and Troyanskaya 2015, doi 10.1038/nmeth.3547). It is 0 for the letter that is there.

    >>> import jax.numpy as jnp, jaxlift
    >>> weights = jnp.array([[1.0, 2.0], [0.0, 5.0]])
    >>> attr = jaxlift.mutagenesis(lambda x: jnp.tensordot(x, weights, 2))
    >>> attr(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]))
    Array([[[ 0.,  1.],
            [-5.,  0.]]], dtype=float32)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args)`, of the input's shape, which is one array, one-hot along `channel_axis`. It takes a forward pass
        for each channel of each position. No reference is needed. The scores have no sum: with ``full=True`` there is
        no delta and no cancellation.

    Raises:
        ValueError, TypeError: as from `attribute`; from `attr`, if the input isn't one array, or, outside of `jax.jit`,
            isn't one-hot.
    """

    def explain(fun: Callable[[Any], Array], x: Array, reference: Any) -> Any:
        del reference
        channel_axis = checked_axis("channel_axis", options.last_channel_axis, x.ndim)
        y = fun(x)
        channels_last = jnp.moveaxis(x, channel_axis, -1)

        def gain(k: Array) -> Array:
            *position, channel = jnp.unravel_index(k, channels_last.shape)
            letter = jax.nn.one_hot(channel, channels_last.shape[-1], dtype=x.dtype)
            return fun(jnp.moveaxis(channels_last.at[tuple(position)].set(letter), -1, channel_axis)) - y

        gains = lax.map(gain, jnp.arange(x.size), batch_size=options.chunk)

        def pull(weights: Array) -> Array:
            scores = jnp.tensordot(gains, weights, y.ndim).reshape(channels_last.shape)
            return jnp.moveaxis(scores, -1, channel_axis)

        return (y, y), pull

    method = Method(
        "mutagenesis", explain, gives="map", needs_reference=False, is_differentiated=False, needs_one_hot=True
    )
    return Explainer(fun, method, options)
