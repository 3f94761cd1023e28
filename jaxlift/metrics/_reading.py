"""What metrics read: inputs, scores, and the outputs of models that a target says."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._arguments import (
    check_model,
    checked_axis,
    checked_input,
    checked_reference,
    described,
    number_of_examples,
)
from jaxlift._explainer import Attribution
from jaxlift._targets import Target, aim_of_each, checked_target, weights_of

Model = Callable[[Any], Any]


def read(x: Any, scores: Any, reference: Any) -> tuple[Any, Any, Any]:
    """Input, scores and the reference of each example as arrays that broadcast, or the error that says why not."""
    x = checked_input(x, is_differentiated=False)
    number_of_examples(x)
    scores = checked_scores(x, scores, "the scores")
    for leaf, of_leaf in zip(jax.tree.leaves(x), jax.tree.leaves(scores), strict=True):
        fits = of_leaf.ndim == leaf.ndim and of_leaf.shape[0] == leaf.shape[0]
        if not fits or any(a not in (1, b) for a, b in zip(of_leaf.shape, leaf.shape, strict=True)):
            raise ValueError(
                f"scores of shape {of_leaf.shape} don't fit an input of shape {leaf.shape}: expected the same shape, "
                "or length 1 along axes whose features go together, as in scores.sum(-1, keepdims=True)."
            )
    return x, scores, reference_of_each(x, reference)


def reference_of_each(x: Any, reference: Any) -> Any:
    """The reference of each example, in the shapes of `x`, or the error that says why it doesn't fit."""

    def of_each(leaf: Array, reference: Array) -> Array:
        if reference.shape not in (leaf.shape, leaf.shape[1:]):
            raise ValueError(
                f"a reference of shape {reference.shape} doesn't fit an input of shape {leaf.shape}: expected one for "
                "all (...), or each example's own (N, ...)."
            )
        return jnp.broadcast_to(reference, leaf.shape)

    return jax.tree.map(of_each, x, checked_reference(x, reference))


def checked_scores(x: Any, scores: Any, name: str) -> Any:
    """Scores as floating-point arrays in the structure of `x`, or the error that says what they are."""
    x, scores = (each.scores if isinstance(each, Attribution) else each for each in (x, scores))
    if callable(scores):
        raise TypeError(f"{name} must be arrays, but are a function: call it, attr(x, reference=...).")
    scores = jax.tree.map(jnp.asarray, scores)
    structure, other = jax.tree.structure(x), jax.tree.structure(scores)
    if structure != other:
        raise ValueError(f"{name} must have the structure {structure}, but have {other}.")
    for leaf in jax.tree.leaves(scores):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point numbers, but have dtype {leaf.dtype}.")
    return scores


def check_shapes(name: str, x: Any, other: Any) -> None:
    """Raise the error for arrays that aren't of the shapes of `x`."""
    expected, shapes = (jax.tree.map(jnp.shape, tree) for tree in (x, other))
    if expected != shapes:
        raise ValueError(f"{name} must have the shapes {expected}, but have {shapes}.")


def outputs_of(fun: Model, x: Any, n: int) -> Array:
    """What the model returns for a batch of n, if that is one floating-point array with their outputs."""
    check_model(fun)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(fun(x))]
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or shapes[0][:1] != (n,):
        raise ValueError(
            f"the model must return one array of {n} rows for a batch of {n}, but it returns the shapes {shapes}. "
            "Choose among several in a function of your own, such as `lambda x: model(x)['logits']`."
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"the model's output has dtype {leaves[0].dtype}: it must return scores or logits.")
    return leaves[0]


def aimed(fun: Model, x: Any, n: int, target: Target) -> Array:
    """The output of each example, `(N,)`, that the target says."""
    if callable(target):
        return weighted(outputs_of(lambda x: target(fun(x)), x, n), None)
    return weighted(outputs_of(fun, x, n), target)


def weighted(y: Array, target: Any) -> Array:
    """The target's sum of outputs, for each example."""
    if isinstance(target, str):
        raise ValueError(f"target={target!r} must be None, an int, an array, or a function of the outputs.")
    target = checked_target(target)
    one = jax.ShapeDtypeStruct(y.shape[1:], y.dtype)
    aim = aim_of_each(target, y.shape[0], lambda: one)

    def of_example(y: Array, aim: Array | None) -> Array:
        weights = weights_of(y, target if aim is None else aim, normalize=False)
        # An output that isn't asked for may be infinite.
        return jnp.where(weights == 0, 0, weights * y).sum()

    return jax.vmap(of_example)(y, aim)


def flat(tree: Any) -> Array:
    """All numbers of each example, `(N, F)`."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


def summed(tree: Any) -> Array:
    """The sum over all numbers of each example, `(N,)`."""
    return reduce(jnp.add, (leaf.sum(range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)))


def ranks(scores: Any) -> Any:
    """The place of each score in its example's descending order, from 0, in the scores' structure."""
    return shaped_as(scores, jnp.argsort(jnp.argsort(flat(scores), axis=1, descending=True), axis=1))


def shaped_as(scores: Any, rows: Array) -> Any:
    """Rows `(M, F)`, as `flat` makes them, in the structure of the scores: M examples."""
    leaves, structure = jax.tree.flatten(scores)
    pieces = jnp.split(rows, np.cumsum([leaf[0].size for leaf in leaves])[:-1], axis=1)
    shaped = [piece.reshape(-1, *leaf.shape[1:]) for piece, leaf in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def correlation(a: Array, b: Array, axis: int) -> Array:
    """Pearson's correlation along an axis of arrays whose mean along it is 0. NaN where one of them is 0."""
    return (a * b).sum(axis) / jnp.sqrt((a * a).sum(axis) * (b * b).sum(axis))


def unless_nan(scores: Any, result: Array) -> Array:
    """The result `(N, ...)`, NaN for examples with a score that is."""
    bad = reduce(
        jnp.logical_or, (jnp.isnan(leaf).reshape(leaf.shape[0], -1).any(1) for leaf in jax.tree.leaves(scores))
    )
    return jnp.where(jnp.expand_dims(bad, range(1, result.ndim)), jnp.nan, result)


def scores_alone(name: str, scores: Any, n: int) -> Any:
    """What an attribution function returns, if it is scores of n examples and nothing else."""
    if isinstance(scores, Attribution):
        raise ValueError(f"{name} takes an attribution function that returns scores alone: leave out full=True.")
    for leaf in jax.tree.leaves(scores):
        if jnp.shape(leaf)[:1] != (n,):
            raise ValueError(
                f"the scores must begin with the batch's axis, of length {n}, but have shape {jnp.shape(leaf)}."
            )
    return scores


def checked_image(x: Any, channel_axis: int | None) -> tuple[Array, int]:
    """One array of images, sequences or volumes, and where its channels are, counted with the batch's axis."""
    x = checked_input(x)
    if not isinstance(x, jax.Array):
        raise ValueError(f"expected one array of images, (N, H, W, C) or the like, but the input is {described(x)}.")
    axis = checked_axis("channel_axis", -1 if channel_axis is None else channel_axis, x.ndim - 1) + 1
    if x.ndim < 3:
        raise ValueError(
            f"an input of shape {x.shape} has no positions besides its channels: expected (N, L, C), (N, H, W, C) or "
            "the like. Where there is one channel, without an axis, write x[..., None]."
        )
    return x, axis
