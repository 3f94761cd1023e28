"""The reference of a run: one for all examples, or some for each, from a name, a file, an array or a function."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift import references
from jaxlift.scoring import _identity
from jaxlift.scoring._examples import (
    PLAIN,
    ArrayExamples,
    Encoding,
    Examples,
    Records,
    Status,
    channels,
    is_path,
    open_array,
)

SHUFFLES = ("dinucleotide_shuffle", "mononucleotide_shuffle")
NAMES = ("zeros", "uniform", "mean", "frequencies", *SHUFFLES)
OF_A_GENOME = "gc_matched"  # the name of what is none without a genome, for the command


@runtime_checkable
class OfExamples(Protocol):
    """What makes the reference of a run from its examples, such as `jaxlift.genomics.MatchedRegions`."""

    def of_examples(self, examples: Examples) -> Reference: ...


Given = str | Path | np.ndarray | Array | Examples | OfExamples | Callable[[np.ndarray], Any] | None


@dataclass
class Reference:
    """What examples are compared with.

    Attributes:
        description: what it is, for the metadata.
        constant: one for all examples, `(...)`, or those that all share, `(R, ...)`.
        count: how many each example has for itself; 0 where all have the same.
        of_records: makes those on the host, `(n, count, ...)`, and marks the examples for which it can't.
        shuffled: makes those on the device instead, of the examples and a number for each, from `Examples.keys`.
        close: what to do when it is no longer needed.
    """

    description: dict[str, Any] | None
    constant: np.ndarray | None = None
    count: int = 0
    of_records: Callable[[Records, int], np.ndarray] | None = None
    shuffled: Callable[[Array, Array], Array] | None = None
    close: Callable[[], None] = lambda: None


def read_reference(
    given: Given,
    examples: Examples,
    *,
    paired: bool,
    shared: bool = False,
    shuffles: int,
    seed: int,
    stored: np.ndarray | None,
    encoding: Encoding = PLAIN,
) -> Reference:
    """What a user's `reference=` means beside these examples.

    Args:
        given: a name, a path, an array, frequencies of letters, `Examples`, a function of one example, or None.
        examples: what is compared.
        paired: whether an array as long as the examples has one reference for each of them.
        shared: whether all of them share such an array.
        shuffles: how many shuffles of each example.
        seed: what they are drawn from.
        stored: the reference that the store has already; a mean of all examples isn't taken again.
        encoding: of letters in a file, with the axis of the one-hot encoding in each example.
    """
    if is_path(given):
        given = str(given)
    is_made = given in NAMES or _is_numbers(given) if isinstance(given, str) else callable(given)
    if (paired or shared) and (is_made or isinstance(given, OfExamples)):
        name = given if isinstance(given, str) else _identity.name_of(given)
        raise ValueError(
            f"pairing={'paired' if paired else 'shared'!r} says how the references of an array go with the examples, "
            f"but reference={name} is none: leave one of them out."
        )
    if given is None:
        return Reference(None)
    if isinstance(given, Examples):
        return _of_array(given, examples, paired, shared)
    if isinstance(given, OfExamples):
        return given.of_examples(examples)
    if callable(given):
        return _of_function(given, examples)
    if isinstance(given, str) and _is_numbers(given):
        given = np.array([float(part) for part in given.split(",")])
    if not isinstance(given, str | Path):
        if np.ndim(given) == 1 and len(examples.shape) == 2:
            return _background(np.asarray(given), examples, encoding.channel_axis)
        return _of_array(ArrayExamples(np.asarray(given), "the array"), examples, paired, shared)
    match given:
        case "zeros":
            return Reference({"name": given}, np.zeros(examples.shape, np.float32))
        case "uniform":
            channels(examples, encoding.channel_axis, "a uniform reference")
            letters = examples.shape[encoding.channel_axis]
            return Reference({"name": given}, np.full(examples.shape, 1 / letters, np.float32))
        case "mean":
            return Reference({"name": given}, mean_of(examples) if stored is None else stored)
        case "frequencies":
            if stored is None:
                mean, axis = jnp.asarray(mean_of(examples)), channels(examples, encoding.channel_axis, "frequencies")
                stored = np.asarray(references.frequencies_of_mean(mean, axis % mean.ndim))
            return Reference({"name": given}, stored)
        case "dinucleotide_shuffle" | "mononucleotide_shuffle":
            return _shuffles(str(given), examples, shuffles, seed, encoding.channel_axis)
    try:
        array = open_array(given, encoding)
    except FileNotFoundError:
        like = difflib.get_close_matches(str(given), [*NAMES, OF_A_GENOME], 1, 0.5)
        meant = f" Did you mean {like[0]!r}?" if like and like[0] != given else ""
        raise ValueError(
            f"reference={str(given)!r} must be one of {', '.join(map(repr, NAMES))}, {OF_A_GENOME!r} of windows of a "
            "genome, in Python MatchedRegions(...), the path of an array, an array, or a function; and there is no "
            f"such file.{meant}"
        ) from None
    with contextlib.ExitStack() as refused:
        refused.callback(array.close)
        reference = _of_array(array, examples, paired, shared)
        refused.pop_all()
    return reference


def _is_numbers(text: str) -> bool:
    """Whether a text is numbers with commas between them."""
    try:
        return len([float(part) for part in text.split(",")]) > 1
    except ValueError:
        return False


def _background(frequencies: np.ndarray, examples: Examples, channel_axis: int) -> Reference:
    """The same frequencies of letters at each position."""
    axis = channels(examples, channel_axis, "frequencies of letters")
    letters = examples.shape[axis]
    if frequencies.shape != (letters,) or not (frequencies >= 0).all() or abs(frequencies.sum() - 1) > 1e-3:
        raise ValueError(
            f"the frequencies of {letters} letters must be {letters} numbers of 0 or more with the sum 1, got "
            f"{frequencies.tolist()}."
        )
    constant = np.broadcast_to(frequencies[:, None] if axis == -2 else frequencies, examples.shape)
    return Reference({"name": "frequencies", "frequencies": frequencies.tolist()}, np.array(constant))


def mean_of(examples: Examples) -> np.ndarray:
    """The mean of all examples that are not bad, in one pass."""
    if examples.count is None:
        raise ValueError(
            "a stream can be read only once: give the reference as an array, not as a mean of all examples."
        )
    total, good = np.zeros(examples.shape), 0
    step = max(1, 2**24 // max(1, total.nbytes))
    for start in range(0, examples.count, step):
        records = examples.read(start, start + step)
        kept = records.values[records.status == Status.SCORED]
        total, good = total + kept.sum(0, dtype=np.float64), good + len(kept)
    if not good:
        raise ValueError(f"{examples.source}: there is no example to take the mean of.")
    return total / good


def _shuffles(name: str, examples: Examples, count: int, seed: int, channel_axis: int) -> Reference:
    called = name.replace("_", " ")
    if len(examples.shape) != 2 or channel_axis not in (-2, -1, 0, 1) or examples.shape[channel_axis] != 4:
        raise ValueError(
            f"a {called} takes one-hot sequences (L, 4), or (4, L) with channel_axis=-2, got examples of "
            f"shape {examples.shape} with channel_axis={channel_axis}."
        )
    if count < 1:
        raise ValueError(f"shuffles={count} must be at least 1.")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed} must be a number of 64 bits, -2**63 to 2**63 - 1.")
    axis = channel_axis % 2 - 2  # counted from the end

    def checked(records: Records, start: int) -> np.ndarray:
        x = np.moveaxis(records.values, axis, -1)
        one_hot = ((x == 0) | (x == 1)).all((1, 2)) & (x.sum(2) <= 1).all(1)
        for i in np.flatnonzero(~one_hot & (records.status == Status.SCORED)):
            records.status[i] = Status.NO_REFERENCE
            records.messages[start + int(i)] = f"a sequence that isn't one-hot has no {called}s"
        return np.zeros((len(x), 0))

    shuffle = getattr(references, name)

    def shuffled(x: Array, numbers: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        shuffles = jax.vmap(lambda x, key: shuffle(x, key, count))
        return jnp.moveaxis(shuffles(jnp.moveaxis(x, axis, -1), keys), -1, axis)

    description = {"name": name, "shuffles": count, "seed": seed}
    return Reference(description, None, count, checked, shuffled)


def _of_function(fun: Callable[[np.ndarray], Any], examples: Examples) -> Reference:
    shape = _shape_of_made(fun, examples)
    if shape not in (examples.shape, (*shape[:1], *examples.shape)) or 0 in shape[: len(shape) - len(examples.shape)]:
        raise ValueError(
            f"reference={_identity.name_of(fun)} must return one reference {examples.shape} or several (R, ...), but "
            f"it returned an array of shape {shape}."
        )
    count = 1 if shape == examples.shape else shape[0]

    def of_records(records: Records, start: int) -> np.ndarray:
        made = np.zeros((len(records.values), count, *examples.shape), np.float32)
        for i in np.flatnonzero(records.status == Status.SCORED):
            try:
                reference = np.asarray(fun(records.values[i]))
                if reference.shape != shape:
                    raise ValueError(f"the reference has shape {reference.shape}, that of the first example {shape}")
                if not np.isfinite(reference).all():
                    raise ValueError("the reference has a NaN or an infinity")
                made[i] = reference
            except Exception as error:
                records.status[i] = Status.NO_REFERENCE
                records.messages[start + int(i)] = f"{type(error).__name__}: {error}"
        return made

    return Reference({"name": _identity.name_of(fun)}, None, count, of_records)


def _shape_of_made(fun: Callable[[np.ndarray], Any], examples: Examples) -> tuple[int, ...]:
    """The shape of what a function makes of the first example of which it makes something."""
    failure: Exception | None = None
    if examples.count is None:
        some = examples.first()[None]
    else:
        records = examples.read(0, 16)
        good = records.values[records.status == Status.SCORED]
        some = good if len(good) else examples.first()[None]
    for example in some:
        try:
            return np.shape(fun(example))
        except Exception as error:
            failure = failure or error
    raise ValueError(
        f"reference={_identity.name_of(fun)} makes no reference of the first {len(some)} examples "
        f"({type(failure).__name__}: {failure})."
    ) from failure


def _of_array(array: Examples, examples: Examples, paired: bool, shared: bool) -> Reference:
    """Read by its rank, as `attribute` does, but for what that only warns of: comparing each of many with each."""
    own = array.count is not None and array.count == examples.count
    one_each, several_each = array.shape == examples.shape, array.shape[1:] == examples.shape
    if own and ((one_each and paired) or several_each):
        return _of_each(array, 1 if one_each else array.shape[0], examples)
    if paired:
        raise ValueError(
            f"{array.source} has shape {(array.count, *array.shape)}, but pairing='paired' takes one reference for "
            f"each of {examples.count} examples: {(examples.count, *examples.shape)}."
        )
    if own and one_each and not shared and examples.count != 1:
        n = examples.count or 0
        raise ValueError(
            f"{array.source} has as many references as there are examples, {n}: say pairing='paired' to compare each "
            f"example with its own, or pairing='shared' to compare each with all of them, {n * n} comparisons."
        )
    if not one_each and (array.count, *array.shape) != examples.shape:
        raise ValueError(
            f"a reference of shape {(array.count, *array.shape)} doesn't fit {examples.count} examples of shape "
            f"{examples.shape}: expected one (...), shared ones (R, ...), several for each example (N, R, ...), or one "
            "for each (N, ...) and attribute(..., pairing='paired')."
        )
    records = array.read(0, array.count or 0)
    array.close()
    if records.messages or not len(records.values):
        raise ValueError(
            f"{array.source}: the reference can't be used: {next(iter(records.messages.values()), 'it is empty')}."
        )
    return Reference({"name": array.source, "checksum": _identity.checksum(records.values)}, records.values)


def _of_each(array: Examples, count: int, examples: Examples) -> Reference:
    def of_records(records: Records, start: int) -> np.ndarray:
        read = array.read(start, start + len(records.values))
        for i in np.flatnonzero((read.status != Status.SCORED) & (records.status == Status.SCORED)):
            records.status[i] = Status.NO_REFERENCE
            records.messages[start + int(i)] = f"its reference: {read.messages[start + int(i)]}"
        return read.values.reshape(-1, count, *examples.shape)

    return Reference({"name": array.source, "sample": array.sample()}, None, count, of_records, close=array.close)
