"""What users pass, checked: models, options, keys, inputs and references."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxlift._core import versions


def summed(tree: Any) -> Array:
    """The sum over all arrays of a pytree."""
    return reduce(jnp.add, (jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))


def check_option(name: str, value: Any, options: Any, *more: Any) -> None:
    """Raise the error that says which values an option may have."""
    allowed = (*get_args(options), *more)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise the error that says what numbers an option may be."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be an int, {least} at least.")


def check_model(fun: Any) -> None:
    """Raise the error for what isn't a model: not a function, or one that explains a model already."""
    explains = getattr(fun, "fun", None)
    if callable(explains) and hasattr(fun, "method") and hasattr(fun, "with_options"):
        raise TypeError("expected a model, got an attribution function of one: pass the model that it explains.")
    if not callable(fun):
        raise TypeError(
            f"a model is a function of a batch of arrays, (N, ...) -> (N, ...), such as a Flax or Equinox module or a "
            f"lambda: got {described(fun)}, which can't be called."
        )


def check_key(key: Any) -> None:
    """Raise the error for what isn't a PRNG key."""
    dtype = getattr(key, "dtype", None)
    is_key = dtype is not None and (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32)
    if not is_key:
        raise TypeError(f"expected a PRNG key, such as jax.random.key(0), got {described(key)}.")


def described(value: Any) -> str:
    """A value in an error: an array by its shape, a number as it is, and the rest by its type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    if isinstance(value, int | float | str):
        return repr(value) if len(repr(value)) < 50 else f"{repr(value)[:50]}..."
    return f"a {type(value).__name__}"


def checked_axis(name: str, axis: Any, ndim: int) -> int:
    """An axis of an example, counted from 0, or the error that says which there are."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -ndim <= axis < ndim:
        which = f"0 to {ndim - 1}, or {-ndim} to -1 from the end" if ndim else "none"
        raise ValueError(
            f"{name}={axis!r} must be an axis of one example, without the batch's: here these are {which}."
        )
    return axis % ndim


def checked_pair(x: Any, reference: Any) -> tuple[Any, Any]:
    """The input and its reference as arrays of equal shapes and dtypes, or the error that says how they don't fit."""
    x = checked_input(x)
    reference = checked_reference(x, reference)
    for (path, value), ref in zip(jax.tree.leaves_with_path(x), jax.tree.leaves(reference), strict=True):
        if value.shape != ref.shape:
            raise ValueError(
                f"the reference{jax.tree_util.keystr(path)} must have the shape of the input: expected {value.shape}, "
                f"got {ref.shape}. Broadcast it, as in jnp.broadcast_to(reference, x.shape)."
            )
    return spread_alike(x, reference)


def spread_as(x: Any, reference: Any) -> Any:
    """The reference, spread over devices as the input is."""
    return jax.tree.map(versions.spread_as, x, reference)


def spread_alike(x: Any, reference: Any) -> tuple[Any, Any]:
    """Input and reference, spread over devices as the input is. Inside of `jax.shard_map`, where either may vary over
    axes of the mesh of its own, both vary over all of these.
    """

    def as_either(one: Any, other: Any) -> Any:
        return jax.tree.map(lambda a, b: versions.varied_over(versions.axes_of_map(b), a), one, other)

    x, reference = as_either(x, reference), as_either(reference, x)
    return x, spread_as(x, reference)


def checked_reference(x: Any, reference: Any) -> Any:
    """The reference as arrays of the input's structure and dtypes, or the error that says why it can't be that."""
    check_structure(x, reference)
    for leaf in jax.tree.leaves(reference):
        if isinstance(leaf, str):
            raise TypeError(
                f"the reference must be arrays, as the input is, but holds {leaf!r}: write jnp.zeros(x.shape[1:]) for "
                "zeros; jaxlift.references makes others."
            )

    def cast(path: Any, leaf: Array, ref: Any) -> Array:
        ref = jnp.asarray(ref)
        if jnp.issubdtype(ref.dtype, jnp.inexact) and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"the reference{jax.tree_util.keystr(path)} has dtype {ref.dtype}, which the input's {leaf.dtype} "
                "can't hold: give it as integers, as the input is, such as jnp.zeros_like(x[0])."
            )
        return ref.astype(leaf.dtype)

    return jax.tree.map_with_path(cast, x, reference)


def check_structure(x: Any, reference: Any) -> None:
    """Raise the error for a reference that isn't a pytree as the input is."""
    structure, other = jax.tree.structure(x), jax.tree.structure(reference)
    if structure == other:
        return
    if structure == jax.tree.structure(0):
        numbers = all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(reference))
        is_list = isinstance(reference, list | tuple)
        hint = f": write jnp.{'asarray' if numbers else 'stack'}(reference)" if is_list else ""
        raise ValueError(f"the input is one array, so the reference must be one too: got {described(reference)}{hint}.")
    hint = ""
    if isinstance(x, list):
        hint = " A list of arrays is a pytree of as many inputs: for one batch write jnp.stack(x)."
    raise ValueError(f"the reference must have the structure of the input: expected {structure}, got {other}.{hint}")


def checked_input(x: Any, is_differentiated: bool = True) -> Any:
    """The explained input as arrays, or the error that says which leaf can't be explained.

    Integers have no derivatives. They are let through where none are taken.
    """
    leaves: list[Any] = jax.tree.leaves(x)
    if isinstance(x, list) and leaves and all(isinstance(leaf, bool | int | float) for leaf in leaves):
        raise TypeError(
            "the input is a list of numbers, which JAX takes for a pytree of scalars: write jnp.asarray(x)."
        )
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            hint = ": write x.to_numpy(np.float32)" if hasattr(leaf, "to_numpy") else ""
            raise TypeError(f"the input must be arrays, or a pytree of arrays, but holds {described(leaf)}{hint}.")
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
            raise TypeError(
                f"the input must be arrays of numbers, but holds {described(leaf)}: where all of it are numbers, write "
                "x.astype(np.float32)."
            )
    x = jax.tree.map(jnp.asarray, x)
    for path, leaf in jax.tree.leaves_with_path(x):
        is_integer = jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool
        if not jnp.issubdtype(leaf.dtype, jnp.floating) and not (is_integer and not is_differentiated):
            raise TypeError(
                f"the input{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, but only real floating-point numbers "
                "have differences to explain. Cast numbers with x.astype(jnp.float32). For token ids, explain the "
                "embeddings: name them with jax.ad_checkpoint.checkpoint_name and say layer=, or make them first and "
                "pass the function that goes on from there. If this isn't the input, argnums= says which argument is."
            )
    return x


def number_of_examples(x: Any) -> int:
    """The number of examples, which all leaves of the input have in common."""
    sizes = {jax.tree_util.keystr(path): leaf.shape[:1] for path, leaf in jax.tree.leaves_with_path(x)}
    if not sizes:
        raise ValueError("the input has no arrays to explain.")
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"the input's arrays must have one batch axis first, of one length, but they begin with {sizes}. For one "
            "example, write x[None]. Of several arguments, such as parameters and input, argnums= says which is "
            "explained."
        )
    [(n,)] = set(sizes.values())
    if n == 0:
        raise ValueError("the batch is empty: expected at least one example, got an input of length 0.")
    return n


def is_eager() -> bool:
    """Whether numbers are computed as the program runs, and not traced by `jax.jit` or the like."""
    return not isinstance(jax.lax.add(np.float32(0), np.float32(0)), Tracer)


def is_known(tree: Any) -> bool:
    """Whether the numbers of a pytree of arrays can be looked at here."""
    return not any(
        isinstance(leaf, Tracer) or not getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree)
    )


def checked_channels(name: str, x: Any, channel_axis: int | None, of: str) -> int:
    """The axis along which examples `(N, ...)` are one-hot, counted from 0 in one example.

    Where the numbers are known they are looked at: along that axis they must be one-hot, or 0, or a distribution over
    letters where one isn't known. Where they aren't, and the axis is left open, the shape must not say otherwise.
    """
    shape = x.shape[1:]
    axis = checked_axis(name, -1 if channel_axis is None else channel_axis, len(shape))
    if is_known(x):
        if not _is_one_hot(x, axis + 1):
            others = [other for other in range(len(shape)) if other != axis and _is_one_hot(x, other + 1)]
            where = f"they are so along axis {others[0]}: say {name}={others[0]}" if others else "use one-hot examples"
            raise ValueError(
                f"{of} needs examples that are one-hot along axis {axis} of one example, {name}, whose shape is "
                f"{shape}, but these aren't; {where}."
            )
    elif channel_axis is None and shape[axis] != LETTERS and shape.count(LETTERS) == 1:
        raise ValueError(
            f"{of} takes the last axis of an example for the one-hot one, but examples of shape {shape} look one-hot "
            f"along axis {shape.index(LETTERS)}: say {name}={shape.index(LETTERS)}, or {name}=-1 if it is the last."
        )
    return axis


LETTERS = 4  # of DNA


def _is_one_hot(x: Any, axis: int) -> bool:
    """Whether numbers are not negative, and sum to 1 along an axis, or to 0."""
    x = np.asarray(x).astype(np.float64)
    total = x.sum(axis)
    return bool((x >= 0).all() and ((np.abs(total - 1) < 1e-2) | (total == 0)).all())


def called(
    fun: Callable[..., Any], args: tuple[Any, ...], x: Any, is_one_argument: bool, batched: Collection[int]
) -> Any:
    """The outputs of a model on a batch of one example, or the error that says why it fails.

    Args:
        fun, args: the model and its arguments.
        x: what is explained of them.
        is_one_argument: whether that is one of the arguments, and not a tuple of several.
        batched: which arguments have a row for each example.
    """
    try:
        return fun(*args)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"the model leaves JAX: it gives a traced array to NumPy or another library, {_line_of(error)}. Write it "
            "in jax.numpy."
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.NonConcreteBooleanIndexError) as error:
        raise TypeError(
            f"the model asks for the numbers of an array, {_line_of(error)}, which JAX only traces here, as under "
            "jax.jit. Choose by numbers with jnp.where or jax.lax.cond, in place of if and of array[mask]."
        ) from error
    except (jax.errors.JAXTypeError, jax.errors.JaxRuntimeError, NotImplementedError):
        raise
    except Exception as error:
        if is_own(error):
            raise
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0].rstrip(':') if str(error).strip() else ''}"
        if type(error).__name__ == "TraceContextError":
            raise TypeError(
                f"the model changes its own state when it is called ({said}). Batch statistics and random numbers do: "
                "put it into evaluation mode, model.eval(). If it draws numbers in that mode too, split it outside, "
                "graphdef, state = nnx.split(model), and explain "
                "lambda x: nnx.merge(graphdef, state, copy=True)(x)."
            ) from error
        if type(error).__name__ in _OF_LINEN:
            raise TypeError(
                f"the model isn't called as a Linen module is: {_OF_LINEN[type(error).__name__]} ({said})."
            ) from error
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
        is_pytree = is_one_argument and jax.tree.structure(x) != jax.tree.structure(0)
        if not is_pytree and _is_of_any_batch(error, fun, args, batched):
            error.add_note(
                f"The model raises this itself: on a batch of one example, of shape {shapes}, and on others."
            )
            raise
        if "shard_map" in str(error):
            raise ValueError(
                f"the model fails on a batch of one example, of shape {shapes}, in jax.shard_map ({said}). Examples "
                "are explained one by one, and one can't be divided among devices. If the model maps its batch over "
                "devices, explain the function that it maps, and map the attribution: jax.shard_map(lambda x: "
                "attr(x, reference=reference), mesh=mesh, in_specs=P(axis), out_specs=P(axis)). Or leave the map "
                "away, and call a jitted attr with an input that is spread over devices. jaxlift.vjp explains a sum "
                "over a whole batch as it is."
            ) from error
        pytree = ""
        if is_pytree:
            pytree = (
                f" The model is called with one argument, {described(x)} of arrays; if it takes them as arguments of "
                "their own, call attr(a, b, reference=(ra, rb)) with argnums=(0, 1)."
            )
        raise ValueError(
            f"the model fails on a batch of one example, of shape {shapes} ({said}). The input must have a batch axis "
            "first, (N, ...): for one example write x[None], and reference= as one example. Where another axis is "
            "missing, such as that of channels, write x[..., None]. If the model takes one example and no batch, pass "
            f"jax.vmap(model).{pytree}"
        ) from error


# What Flax Linen says of a module that isn't called as its models are.
_OF_LINEN = {
    "CallCompactUnboundModuleError": "it has no variables of its own, so explain lambda x: module.apply(variables, x)",
    "ScopeCollectionNotFound": "its variables are all that init returned, {'params': ..., ...}",
    "ApplyScopeInvalidVariablesTypeError": "its variables are all that init returned, {'params': ..., ...}",
    "ModifyScopeVariableError": "it changes its own state, as batch statistics in training mode do, so put it into "
    "evaluation mode, with train=False or use_running_average=True",
}
# Where JAX, NumPy and this package lie.
PACKAGES = tuple(f"{Path(file).parent}{os.sep}" for file in (jax.__file__, np.__file__, __file__))


def _line_of(error: Exception) -> str:
    """Where the user's code raised an error: its last line that is neither JAX's, NumPy's nor this package's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(PACKAGES)]
    return f"at {own[-1].filename}:{own[-1].lineno}" if own else "at an unknown line"


def _is_of_any_batch(
    error: Exception, fun: Callable[..., Any], args: tuple[Any, ...], batched: Collection[int]
) -> bool:
    """Whether a model that fails on one example says the same of two, and of one without the axis of a batch."""

    def said(change: Callable[[Array], Array]) -> tuple[type, str] | None:
        try:
            jax.eval_shape(
                lambda rows: fun(*(rows.get(i, arg) for i, arg in enumerate(args))),
                {i: jax.tree.map(change, args[i]) for i in batched},
            )
        except Exception as other:
            return type(other), str(other)
        return None

    own = type(error), str(error)
    return said(lambda leaf: jnp.concatenate([leaf, leaf])) == own and said(lambda leaf: leaf[0]) == own


def is_own(error: Exception) -> bool:
    """Whether an error was raised by this package, inside of a function that it made, such as `below(model, name)`."""
    trace = error.__traceback__ and error.__traceback__.tb_next  # past the call of the model
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("jaxlift.")


def some_of(names: Sequence[Any] | np.ndarray, most: int = 5) -> str:
    """Names with commas between them; of many the first, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
