"""Targets: which of a model's outputs is explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

Target = int | Sequence[int] | Array | np.ndarray | Callable[[Any], Any] | Literal["all"] | None


def checked_target(target: Any, normalize: bool = False) -> Target:
    """A target, lists as arrays, or the error that says which targets there are."""
    if isinstance(target, list):
        target = np.asarray(target)
    if isinstance(target, float | np.floating) and float(target).is_integer():
        raise TypeError(
            f"target={target!r} must be an int to say which output is explained: write target={int(target)}."
        )
    is_index = isinstance(target, int | np.integer) and not isinstance(target, bool)
    is_indices = isinstance(target, tuple) and all(isinstance(each, int | np.integer) for each in target)
    is_array = isinstance(target, jax.Array | np.ndarray)
    if not (target is None or is_index or is_indices or is_array or callable(target) or target == "all"):
        raise (ValueError if isinstance(target, str) else TypeError)(
            f"target={target!r} must be None, an int, a tuple of ints, an array of ints or of weights, a function of "
            "the outputs, or 'all'."
        )
    if normalize and callable(target):
        raise ValueError(
            "normalize_target=True takes the mean over all outputs off a weighted sum of them, but the target is a "
            "function. Give it as an int or as weights."
        )
    return cast(Target, target)


def aim_of_each(target: Target, n: int, output: Callable[[], Any]) -> Array | None:
    """What is vmapped over examples: a target for each of them, if that is how the target is given."""
    if target is None or callable(target) or isinstance(target, int | str | tuple):
        return None
    aim = jnp.asarray(target)
    if jnp.issubdtype(aim.dtype, jnp.integer):
        if aim.ndim == 0:
            return None
        (count,) = _single_axis(output().shape, target)
        if not isinstance(target, Tracer):  # what is known is checked, under jax.jit too
            known = np.asarray(target)
            if not ((-count <= known) & (known < count)).all():
                raise ValueError(
                    f"targets must be between 0 and {count - 1}, but they are between {known.min()} and {known.max()}."
                )
        per_example = True
    elif jnp.issubdtype(aim.dtype, jnp.floating):
        per_example = aim.ndim > 1 and aim.ndim == len(output().shape) + 1
    else:
        raise TypeError(f"a target array must hold indices or weights, but its dtype is {aim.dtype}.")
    if per_example and aim.shape[0] != n:
        raise ValueError(
            f"a target for each example must have length {n}, as the batch has, but its shape is {aim.shape}."
        )
    return aim if per_example else None


def weights_of(y: Array, target: Any, normalize: bool) -> Array:
    """The weights of one example's outputs `y` in what is explained; with leading axes where that is several sums."""
    if target is None or callable(target):
        if y.size != 1:
            raise ValueError(
                f"the model has outputs of shape {y.shape} for each example: say which is explained, with target= an "
                "int, weights, a function of the outputs, or 'all'."
            )
        weights = jnp.ones_like(y)
    elif isinstance(target, str):
        weights = jnp.eye(y.size, dtype=y.dtype).reshape(*y.shape, *y.shape)
    elif isinstance(target, int | tuple) or jnp.issubdtype(target.dtype, jnp.integer):
        weights = _one_hot(y, target)
    else:
        weights = jnp.asarray(target, y.dtype)
        if weights.shape != y.shape:
            raise ValueError(
                f"weights of shape {weights.shape} don't fit the outputs of an example, of shape {y.shape}."
            )
    if normalize:
        axes = tuple(range(weights.ndim - y.ndim, weights.ndim))
        weights = weights - weights.mean(axes, keepdims=True)
    return weights


def _one_hot(y: Array, target: Any) -> Array:
    """The weights that pick one output, by an int, a tuple of ints, or a traced int."""
    if not isinstance(target, tuple):
        _single_axis(y.shape, target)
        target = (target,)
    if len(target) != y.ndim:
        raise ValueError(f"target={target} has {len(target)} indices, but an example's outputs have shape {y.shape}.")
    weights = jnp.ones((), y.dtype)
    for index, size in zip(target, y.shape, strict=True):
        if isinstance(index, int) and not -size <= index < size:
            raise ValueError(
                f"target {index} is out of range: expected 0 to {size - 1}, for outputs of shape {y.shape}."
            )
        picked = jax.nn.one_hot(jnp.where(index < 0, index + size, index), size, dtype=y.dtype)
        # An index that only shows when the program runs can't raise; it must not pass for a score of 0.
        picked = jnp.where(picked.sum() == 1, picked, jnp.nan)
        weights = weights[..., None] * jnp.expand_dims(picked, range(weights.ndim))
    return weights


def _single_axis(shape: tuple[int, ...], target: Any) -> tuple[int]:
    """The number of outputs of an example, which must have one axis for an int to pick among them."""
    if len(shape) != 1:
        hint = "leave the target out" if not shape else f"give a tuple of {len(shape)} ints"
        raise ValueError(
            f"target={target} picks one of several outputs, but an example's outputs have shape {shape}: {hint}."
        )
    return shape
