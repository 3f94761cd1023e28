"""Functions over many rows: all at once, or some at a time in a loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.compilers import with_channels_last


def map_over(fun: Callable[[Any], Any], xs: Any, size: int | None, spread: tuple[str, ...] = ()) -> Any:
    """`fun` over the leading axis of `xs`, of which so many are taken at once; all, if None. Where `fun` constrains a
    sharding, that axis is spread over these axes of the mesh.
    """
    mapped = jax.vmap(fun, spmd_axis_name=spread or None)
    first = jax.tree.leaves(xs)[0]
    xs = jax.tree.map(lambda leaf: versions.spread_as(first, leaf, slice(1)), xs)  # as vmap wants it
    if size is None:
        return mapped(xs)
    count, chunk, rest = _chunks(xs, size)
    parts = []
    if count:
        outputs = lax.map(with_channels_last(lambda i: mapped(chunk(i))), jnp.arange(count))
        parts.append(jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), outputs))
    if rest is not None:
        parts.append(mapped(rest))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def mean_over(fun: Callable[[Any], Any], xs: Any, size: int | None) -> Any:
    """The mean of `map_over`, without the results that it is the mean of if they are taken in turn."""
    if size is None:
        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(fun)(xs))

    def summed(chunk: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.sum(0, dtype=_wide(leaf.dtype)), jax.vmap(fun)(chunk))

    one = jax.eval_shape(fun, shape_of_one(xs))
    count, chunk, rest = _chunks(xs, size)
    totals = [sum_in_turn(lambda i: summed(chunk(i)), jnp.arange(count), one)] if count else []
    totals += [] if rest is None else [summed(rest)]
    return divided(reduce(partial(jax.tree.map, jnp.add), totals), len(jax.tree.leaves(xs)[0]), one)


def sum_in_turn(fun: Callable[[Any], Any], xs: Any, like: Any) -> Any:
    """The sum of `fun` over the leading axis of `xs`. One result is held at a time, and low precision summed in more.

    Args:
        like: the shapes of the result, and the dtypes of what is summed.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _wide(leaf.dtype)), like)
    fun = with_channels_last(fun)
    total, _ = lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, fun(x)), None), zeros, xs)
    return total


def moments_in_turn(fun: Callable[[Any], Any], xs: Any, like: Any) -> tuple[Any, Any]:
    """The mean of `fun` over the leading axis of `xs`, and the sum of its squared deviations from that (Welford 1962).

    One result is held at a time, and low precision summed in more: these are what `divided` makes of a sum.

    Args:
        like: the shapes of the result.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _wide(leaf.dtype)), like)
    fun = with_channels_last(fun)

    def add(statistics: tuple[Any, Any], numbered: tuple[Array, Any]) -> tuple[tuple[Any, Any], None]:
        (mean, squares), (number, x) = statistics, numbered
        value = fun(x)
        new = jax.tree.map(lambda mean, value: mean + (value - mean) / number, mean, value)
        grown = jax.tree.map(lambda q, old, new, value: q + (value - old) * (value - new), squares, mean, new, value)
        return (new, grown), None

    count = len(jax.tree.leaves(xs)[0])
    statistics, _ = lax.scan(add, (zeros, zeros), (jnp.arange(1, count + 1), xs))
    return statistics


def divided(total: Any, count: int, like: Any) -> Any:
    """The mean that belongs to a sum, in the dtypes of what was summed."""
    return jax.tree.map(lambda leaf, one: (leaf / count).astype(one.dtype), total, like)


def _wide(dtype: Any) -> Any:
    """What numbers of this dtype are summed in."""
    return jnp.promote_types(dtype, jnp.float32)


def _chunks(xs: Any, size: int) -> tuple[int, Callable[[Array], Any], Any]:
    """How many chunks of so many rows there are, what takes one of them, and the rows that are left; None for none.

    Rows of a chunk are not neighbours: where the rows are spread over devices, so is each chunk. No chunk is copied
    before it is needed; so axes of length 1 are left out until then, for which XLA may want another layout in a loop.
    """
    rows = len(jax.tree.leaves(xs)[0])
    count, left = divmod(rows, size)

    def apart(leaf: Array) -> Array:
        return leaf[: count * size].reshape(size, count, *(length for length in leaf.shape[1:] if length != 1))

    def chunk_of(i: Array, leaf: Array, like: Array) -> Array:
        return lax.dynamic_index_in_dim(leaf, i, 1, keepdims=False).reshape(size, *like.shape[1:])

    parts = jax.tree.map(apart, xs)

    def chunk(i: Array) -> Any:
        return jax.tree.map(partial(chunk_of, i), parts, xs)

    return count, chunk, jax.tree.map(lambda leaf: leaf[rows - left :], xs) if left else None


def shape_of_one(xs: Any) -> Any:
    """The shapes and dtypes of one row."""
    return jax.tree.map(versions.row_of, xs)
