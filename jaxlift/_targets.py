"""Targets: which of a model's outputs is explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


def _as_they_are(outputs: Any, *_: Any) -> Any:
    """The outputs of a model, for a target that is made of them."""
    return outputs


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows"],
    meta_fields=["weights", "values", "names", "positional"],
)
@dataclass(frozen=True, eq=False)
class Held:
    """A target whose weights are those at the input, and held constant: `sum(weights * values)` of each example.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> model = lambda x: x @ jnp.array([[1.0, -1.0], [2.0, 0.5], [-3.0, 1.0]])      # (N, 3) -> (N, 2)
    >>> x = jnp.array([[1.0, 1.0, 0.0]])
    >>> attr = jaxlift.attribute(model, target=jaxlift.Held(jax.nn.softmax), full=True)
    >>> found = attr(x, reference=jnp.zeros(3))
    >>> w = jax.nn.softmax(model(x))
    >>> bool(jnp.allclose(found.output, (w * model(x)).sum(1))), bool(jnp.abs(found.delta[0]) < 1e-6)
    (True, True)

    A function of the outputs in its place, such as ``lambda y: (jax.nn.softmax(y) * y).sum(1)``, explains the weights
    too, and `jax.lax.stop_gradient` in it says nothing to rules that compare: a value has a difference from its
    reference whether or not it has a gradient. Held weights are the same numbers at the input and at the reference.
    They are made of values that the method has, and cost no pass of the model.

    All functions take a batch, `(N, ...)`, and treat its examples alike. As a pytree its leaves are the rows, so that
    it can be an argument of what is compiled: ``jax.jit(lambda x, t: attr(x, reference=r, target=t))``.

    Attributes:
        weights: ``weights(values, *rows)``, which returns what `values` are, an array `(N, ...)` or a pytree of them;
            with `names` the axis of the targets follows the first, `(N, K, ...)`.
        values: ``values(outputs, *rows)``, an array `(N, ...)` or a pytree of them; the outputs as they are, if left
            out.
        rows: arrays `(N, ...)` with what belongs to each example, such as masks.
        names: of the targets, where several are explained in one run. The results have their axis where those of
            ``target="all"`` have that of the outputs.
        positional: whether it matters at which position of an output something is. (Of the two strands of a sequence
            the outputs run in opposite directions.)
    """

    weights: Callable[..., Any]
    values: Callable[..., Any] = _as_they_are
    rows: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    positional: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "values"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"Held takes functions of a batch, but {name} is a {type(getattr(self, name)).__name__}. Weights "
                    "that are known go to target= as they are, an array of floating-point numbers."
                )
        if isinstance(self.rows, Array | np.ndarray):
            raise TypeError("the rows of a held target are a tuple of arrays: for one array, write rows=(array,).")

    def values_of_one(self, outputs: Any) -> Any:
        """The values of one example, in a batch of one."""
        return self.values(outputs, *(row[None] for row in self.rows))

    def weights_of_one(self, flat: Array, shapes: Any) -> Array:
        """The weights of one example's values, `(V,)`, or `(K, V)` of several targets.

        Args:
            flat: the values side by side, `(V,)`.
            shapes: of the values without a batch, as a pytree of them.
        """
        like, structure = jax.tree.flatten(shapes)
        ends = np.cumsum([prod(each.shape) for each in like])
        leaves = [
            piece.reshape(1, *each.shape).astype(each.dtype)
            for piece, each in zip(jnp.split(flat, ends[:-1]), like, strict=True)
        ]
        weights = self.weights(jax.tree.unflatten(structure, leaves), *(row[None] for row in self.rows))
        targets = (len(self.names),) if self.names else ()
        wanted = jax.tree.map(lambda leaf: (1, *targets, *leaf.shape), shapes)
        found = jax.tree.map(jnp.shape, weights)
        if found != wanted:
            raise ValueError(
                f"the weights of a held target must have the shapes of its values{' for each name' if targets else ''}:"
                f" expected {wanted} for a batch of one example, got {found}."
            )
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], weights)
        return side_by_side(one, targets).astype(flat.dtype)


def side_by_side(tree: Any, leading: tuple[int, ...] = ()) -> Array:
    """All numbers of a pytree in one array, after leading axes that its arrays have in common."""
    return jnp.concatenate([leaf.reshape(*leading, -1) for leaf in jax.tree.leaves(tree)], -1)


Target = int | Sequence[int] | Array | np.ndarray | Callable[[Any], Any] | Held | Literal["all"] | None


def checked_target(target: Any, normalize: bool = False) -> Target:
    """A target, lists as arrays, or the error that says which targets there are."""
    if isinstance(target, list):  # an argument of jax.jit is a list of what it traces
        target = (jnp if any(isinstance(each, Tracer) for each in target) else np).asarray(target)
    if isinstance(target, tuple):
        target = tuple(_as_number(each) for each in target)
    target = _as_number(target)
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize_target={normalize!r} must be True or False.")
    if isinstance(target, float | np.floating) and float(target).is_integer():
        raise TypeError(
            f"target={target!r} must be an int to say which output is explained: write target={int(target)}."
        )
    is_index = isinstance(target, int | np.integer) and not isinstance(target, bool)
    is_indices = isinstance(target, tuple) and all(isinstance(each, int | np.integer) for each in target)
    is_array = isinstance(target, jax.Array | np.ndarray)
    is_function = callable(target) or isinstance(target, Held)
    if not (target is None or is_index or is_indices or is_array or is_function or target == "all"):
        raise (ValueError if isinstance(target, str) else TypeError)(
            f"target={target!r} must be None, an int, a tuple of ints, an array of ints or of weights, a function of "
            "the outputs, jaxlift.Held, or 'all'."
        )
    if normalize and is_function:
        raise ValueError(
            "normalize_target=True takes the mean over all outputs off a weighted sum of them, but the target is a "
            "function. Give it as an int or as weights."
        )
    return cast(Target, target)


def _as_number(index: Any) -> Any:
    """A number that is known, if that is what an array holds: it is checked as one."""
    is_array = isinstance(index, jax.Array | np.ndarray | np.integer) and not isinstance(index, Tracer)
    return index.item() if is_array and np.ndim(index) == 0 else index


def aim_of_each(target: Target, n: int, output: Callable[[], Any]) -> Any:
    """What is vmapped over examples: a target for each of them, if that is how the target is given, or a held one."""
    if target is None or callable(target) or isinstance(target, int | str | tuple):
        return None
    if isinstance(target, Held):
        rows = tuple(map(jnp.asarray, target.rows))
        if any(row.shape[:1] != (n,) for row in rows):
            raise ValueError(
                f"the rows of a held target must have length {n}, as the batch has, but their shapes are "
                f"{[row.shape for row in rows]}."
            )
        return replace(target, rows=rows)
    target = cast(Array | np.ndarray, target)  # `checked_target` has made lists arrays
    if not is_of_each(target, output):
        return None
    aim = jnp.asarray(target)
    if aim.shape[0] != n:
        raise ValueError(
            f"a target for each example must have length {n}, as the batch has, but its shape is {aim.shape}."
        )
    return aim


def is_of_each(target: Array | np.ndarray, output: Callable[[], Any]) -> bool:
    """Whether an array is a target for each example: labels, or weights with one axis more than an example's output.

    Args:
        target: the array.
        output: gives the shape of one example's output, where that matters.
    """
    dtype, ndim = jnp.result_type(target), np.ndim(target)
    if jnp.issubdtype(dtype, jnp.floating):
        return ndim > 1 and ndim == len(output().shape) + 1
    if not jnp.issubdtype(dtype, jnp.integer):
        hint = ": write target.astype(float) for weights" if jnp.issubdtype(dtype, jnp.bool_) else ""
        raise TypeError(f"a target array must hold indices or weights, but its dtype is {dtype}{hint}.")
    if ndim == 0:
        return False
    (count,) = _single_axis(output().shape, target)
    if ndim > 1:
        raise ValueError(
            f"integer targets are one label for each example, (N,), but their shape is {np.shape(target)}. Of one-hot "
            "labels take target.argmax(1), of a column target[:, 0]; weights of outputs are floating-point numbers."
        )
    if not isinstance(target, Tracer):  # what is known is checked, under jax.jit too
        known = np.asarray(target)
        if not ((-count <= known) & (known < count)).all():
            raise ValueError(
                f"targets must be between 0 and {count - 1}, or {-count} and -1 from the end, but they are between "
                f"{known.min()} and {known.max()}."
            )
    return True


def weights_of(y: Array, target: Any, normalize: bool) -> Array:
    """The weights of one example's outputs `y` in what is explained; with leading axes where that is several sums."""
    if isinstance(target, Held):
        raise ValueError(
            "a held target has the weights of one input, which say nothing of others: give a function of the outputs."
        )
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
                f"weights of shape {weights.shape} don't fit the outputs of an example, of shape {y.shape}. "
                "Floating-point targets are weights: labels must be integers, as in target.astype(int)."
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
        hint = " A label for each example is an array: jnp.asarray(target)." if y.ndim == 1 else ""
        raise ValueError(
            f"target={target} has {len(target)} indices, but an example's outputs have shape {y.shape}.{hint}"
        )
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
