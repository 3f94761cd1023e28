"""In-silico experiments: what becomes of a model's outputs when its sequences are changed on purpose.

Attribution says which positions an output owes something to; these say what a change does, motifs put in or taken out
among them:

>>> import jax, jax.numpy as jnp
>>> from jaxlift.genomics import experiments
>>> def model(x):                                                     # how often TGA is there, (N, L, 4) -> (N,)
...     found = jax.lax.conv(x.mT, jax.nn.one_hot(jnp.array([[3, 2, 0]]), 4).mT, (1,), "VALID")
...     return (found > 2.5).sum((1, 2)).astype(float)
>>> backgrounds = jnp.zeros((2, 9, 4)).at[..., 1].set(1)              # CCCCCCCCC
>>> result = experiments.marginalize(model, "TGA", backgrounds)
>>> result.before, result.after, result.difference
(Array([0., 0.], dtype=float32), Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))

A model takes a batch of one-hot sequences `(N, L, 4)`, or `(N, 4, L)` with ``channel_axis=-2``, and each of its
examples is evaluated alone, as for `jaxlift.attribute`. Where `target` is left out its outputs may be a pytree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlift import references
from jaxlift._arguments import (
    LETTERS,
    called,
    check_count,
    check_key,
    check_model,
    check_option,
    checked_axis,
    checked_channels,
    checked_input,
    described,
    is_known,
    number_of_examples,
)
from jaxlift._batching.loops import map_over, shape_of_one
from jaxlift._batching.partial_evaluation import staged, traced
from jaxlift._explainer import Explainer, Method
from jaxlift._targets import Target, checked_target, weights_of
from jaxlift.genomics._reuse import changed_outputs
from jaxlift.methods.occlusion import MutagenesisOptions
from jaxlift.scoring._letters import one_hot_of

__all__ = ["Experiment", "ablate", "marginalize", "saturation"]

Model = Callable[..., Any]


class Experiment(NamedTuple):
    """A model's outputs, arrays or pytrees of them.

    Attributes:
        before: for the sequences as they are, `(N, ...)`.
        after: for the changed ones, `(N, ...)` or, with the axes of the changes, `(N, P, ...)` and `(N, S, K, ...)`.
    """

    before: Any
    after: Any

    @property
    def difference(self) -> Any:
        """`after - before`, which is what the changes added."""

        def less(after: Array, before: Array) -> Array:
            return after - jnp.expand_dims(before, range(1, 1 + after.ndim - before.ndim))

        return jax.tree.map(less, self.after, self.before)


def marginalize(
    model: Model,
    motif: str | ArrayLike,
    backgrounds: ArrayLike,
    *,
    at: int | Sequence[int] | None = None,
    strand: Literal["+", "-"] = "+",
    key: Array | None = None,
    target: Target = None,
    channel_axis: int = -1,
    batch_size: int | None = None,
) -> Experiment:
    """Put a motif into background sequences, and see what the outputs are without it and with it.

    The mean of the difference over backgrounds, such as dinucleotide shuffles of sequences that the model was trained
    on, is the motif's effect with what surrounds it averaged out: global importance analysis (Koo et al. 2021, doi
    10.1371/journal.pcbi.1008925). Several positions scan its distance from what the backgrounds have in common.

    >>> import jax.numpy as jnp
    >>> model = lambda x: x[..., 3] @ jnp.arange(6.0)                                  # where T is, (N, 6, 4) -> (N,)
    >>> marginalize(model, "TNT", jnp.zeros((1, 6, 4)), at=[0, 1, 2]).after
    Array([[2., 4., 6.]], dtype=float32)

    Args:
        model: the model.
        motif: letters, in which N leaves the background as it is; or an array `(W, 4)`, letters last, whose rows of
            zeros do that. Rows that are a distribution over letters, those of a position weight matrix and of IUPAC's
            letters for several bases, are drawn from for each background. Its consensus is
            ``jax.nn.one_hot(matrix.argmax(1), 4)``.
        backgrounds: sequences `(N, L, 4)`.
        at: where the motif's first letter goes, from 0; in the middle, if left out. Or several such positions.
        strand: ``"-"`` puts its reverse complement there.
        key: a PRNG key, for drawing.
        target: which output; all as they are, if left out. An int, a tuple of ints, weights of the shape of an
            example's outputs, a function of the outputs, or ``"all"``.
        channel_axis: the axis of the letters in one example.
        batch_size: how many sequences are evaluated at once; all, if None.

    Returns:
        The `Experiment`; with several positions its `after` has their axis after the first, `(N, P, ...)`.

    Raises:
        ValueError: if the motif has other letters or isn't of distributions, doesn't fit where it is put, or needs a
            key; the backgrounds aren't one-hot, or 0 where a letter isn't known; or the model isn't batched.
        TypeError: if the model can't be called, or the key isn't one.
    """
    x = _sequences(backgrounds, channel_axis, "marginalize")
    run = _runner(model, x, target, channel_axis, batch_size)
    check_option("strand", strand, Literal["+", "-"])
    matrix = _motif(motif, x.dtype)
    if strand == "-":
        matrix = matrix[::-1, ::-1]  # A and T, C and G are each other's mirror images in ACGT
    n, length, width = len(x), x.shape[1], len(matrix)
    places = np.asarray((length - width) // 2 if at is None else at)
    if places.ndim > 1 or not places.size or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(f"at={at!r} must be an int, or a sequence of ints: where the motif's first letter goes.")
    if places.min() < 0 or places.max() + width > length:
        raise ValueError(
            f"a motif of {width} letters at {at if at is not None else 'the centre'} doesn't fit into sequences of "
            f"{length}: its first letter may stand at 0 to {length - width}."
        )
    motifs = _drawn(matrix, n, key)

    def put(pair: tuple[Array, Array]) -> Array:
        i, place = pair
        there = lax.dynamic_slice_in_dim(x[i], place, width)
        inserted = jnp.where(motifs[i].any(1, keepdims=True), motifs[i], there)
        return lax.dynamic_update_slice_in_dim(x[i], inserted, place, 0)

    pairs = np.repeat(np.arange(n), places.size), np.tile(places.reshape(-1), n)
    after = run(put, jax.tree.map(jnp.asarray, pairs))
    return Experiment(
        run(lambda i: x[i], jnp.arange(n)),
        jax.tree.map(lambda leaf: leaf.reshape(n, *places.shape, *leaf.shape[1:]), after),
    )


def ablate(
    model: Model,
    x: ArrayLike,
    spans: ArrayLike | Sequence[tuple[int, int]],
    *,
    key: Array,
    shuffles: int = 20,
    shuffle: Callable[[Array, Array, int], Array] = references.dinucleotide_shuffle,
    target: Target = None,
    channel_axis: int = -1,
    batch_size: int | None = None,
) -> Experiment:
    """Take out parts of sequences, by shuffling their letters, and see what the outputs are without them.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.nn.one_hot(jnp.array([[0, 1, 2, 3, 0, 2]]), 4)
    >>> result = ablate(lambda x: {"first": x[:, :1, 0]}, x, [(0, 4), (2, 6)], key=jax.random.key(0), shuffles=3)
    >>> result.after["first"].shape
    (1, 2, 3, 1)

    Args:
        model: the model.
        x: sequences `(N, L, 4)`.
        spans: the parts, pairs of a start and an end, counted from 0, with the end not included: `S` of them for all
            sequences `(S, 2)`, or for each sequence its own `(N, S, 2)`. Each length is compiled for itself.
        key: a PRNG key. Each span of each sequence has its own shuffles.
        shuffles: how many of each span.
        shuffle: how a span is shuffled: `jaxlift.references.dinucleotide_shuffle`, which keeps its first and its last
            letter, or `mononucleotide_shuffle`.
        target, channel_axis, batch_size: as for `marginalize`.

    Returns:
        The `Experiment`; its `after` is `(N, S, shuffles, ...)`.

    Raises:
        ValueError: if a span isn't one of the sequences', or these aren't one-hot, or 0 where a letter isn't known.
        TypeError: as from `marginalize`.
    """
    check_count("shuffles", shuffles)
    check_key(key)
    x = _sequences(x, channel_axis, "ablate")
    run = _runner(model, x, target, channel_axis, batch_size)
    n, length = x.shape[:2]
    given = np.asarray(spans)
    if given.ndim not in (2, 3) or given.shape[-1] != 2 or not given.size or (given.ndim == 3 and len(given) != n):
        raise ValueError(
            f"spans must be pairs of a start and an end, (S, 2) for all sequences or ({n}, S, 2) for each, got shape "
            f"{given.shape}."
        )
    wrong = (given[..., 0] < 0) | (given[..., 1] > length) | (given[..., 0] >= given[..., 1])
    if wrong.any() or not np.issubdtype(given.dtype, np.integer):
        first = tuple(given[wrong][0].tolist()) if wrong.any() else given.dtype
        raise ValueError(f"spans must be whole numbers with 0 <= start < end <= {length}, got {first}.")
    given = np.broadcast_to(given, (n, *given.shape[-2:]))
    count = given.shape[1]
    starts, lengths = given[..., 0].reshape(-1), (given[..., 1] - given[..., 0]).reshape(-1)
    keys = jax.random.split(key, (n, count)).reshape(n * count, *key.shape)

    def of_length(width: int, cases: Array) -> Any:
        """The outputs for spans of one length."""

        def shuffled(case: Array) -> Array:
            part = lax.dynamic_slice_in_dim(x[case // count], jnp.asarray(starts)[case], width)
            return shuffle(part, keys[case], shuffles)

        parts = jax.jit(jax.vmap(shuffled))(cases)

        def replaced(pair: tuple[Array, Array]) -> Array:
            i, k = pair
            case = cases[i]
            return lax.dynamic_update_slice_in_dim(x[case // count], parts[i, k], jnp.asarray(starts)[case], 0)

        pairs = jnp.repeat(jnp.arange(len(cases)), shuffles), jnp.tile(jnp.arange(shuffles), len(cases))
        return run(replaced, pairs)

    order = np.argsort(lengths, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    outputs = [of_length(int(lengths[group[0]]), jnp.asarray(group)) for group in groups]

    def arranged(*leaves: Array) -> Array:
        rows = jnp.concatenate(leaves).reshape(n * count, shuffles, *leaves[0].shape[1:])
        return rows[np.argsort(order)].reshape(n, count, *rows.shape[1:])

    return Experiment(run(lambda i: x[i], jnp.arange(n)), jax.tree.map(arranged, *outputs))


def saturation(
    model: Model,
    x: ArrayLike,
    *,
    target: Target = None,
    channel_axis: int = -1,
    chunk: int = 64,
    batch_size: int | None = 1,
) -> Array:
    """The effects of all single substitutions: `jaxlift.mutagenesis`, without computing again what can't change.

    A substitution reaches a window of positions of each convolution, elementwise operation and pooling. Only these
    windows are computed; sums, means and maxima over the positions are updated by what changed there. From the first
    operation on that isn't one of those (a dense layer of all positions, attention, a recurrence), or from where the
    window is as long as the sequence, everything is computed. The scores are those of `jaxlift.mutagenesis` to
    rounding, in any case.

    >>> import jax.numpy as jnp
    >>> weights = jnp.array([[1.0, 2.0], [0.0, 5.0], [2.0, 2.0]])
    >>> saturation(lambda x: jnp.tensordot(x, weights, 2), jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]))
    Array([[[ 0.,  1.],
            [-5.,  0.],
            [ 0.,  0.]]], dtype=float32)

    Args:
        model: the model.
        x: sequences `(N, L, C)`, one-hot along `channel_axis`.
        target: which output, as for `jaxlift.attribute`.
        channel_axis: the axis of the letters in one example.
        chunk: how many substitutions are evaluated at once.
        batch_size: how many sequences; all, if None.

    Returns:
        `(N, L, C)`, or with the axes of the outputs before those of the sequence: as `jaxlift.mutagenesis`.

    Raises:
        ValueError, TypeError: as from `jaxlift.mutagenesis`; and if an example has other axes than its positions' and
            its letters'.
    """
    options = MutagenesisOptions(target=target, channel_axis=channel_axis, chunk=chunk, batch_size=batch_size)

    def explain(fun: Callable[[Any], Array], x: Array, reference: Any) -> Any:
        del reference
        if x.ndim != 2:
            raise ValueError(
                f"saturation takes sequences (N, L, C), but an example has shape {x.shape}: jaxlift.mutagenesis takes "
                "examples of any shape."
            )
        y, axis = fun(x), checked_axis("channel_axis", channel_axis, x.ndim)
        length, letters = x.shape[1 - axis], x.shape[axis]
        changed = changed_outputs(fun, x, 1 - axis)

        def gain(x: Array, number: Array) -> Array:
            at, letter = jnp.divmod(number, letters)
            now = lax.dynamic_slice_in_dim(x, at, 1, 1 - axis)
            new = jnp.expand_dims(jax.nn.one_hot(letter, letters, dtype=x.dtype), 1 - axis)
            return jnp.where((now == new).all(), 0, changed(x, (at, new)) - fun(x))

        size = min(chunk, x.size)
        numbers = (
            jnp.arange(-(-x.size // size) * size) % x.size
        )  # whole chunks: a last one that is shorter compiles anew
        stages = staged(traced(gain, x, shape_of_one(numbers)), x, shape_of_one(numbers))
        known = stages.on_first(x)
        gains = map_over(lambda number: stages.joint(known, stages.on_second(number)), numbers, size)

        def pull(weights: Array) -> Array:
            scores = jnp.tensordot(gains[: x.size], weights, y.ndim).reshape(length, letters)
            return scores if axis == 1 else scores.T

        return (y, y), pull

    method = Method(
        "saturation", explain, gives="map", needs_reference=False, is_differentiated=False, needs_one_hot=True
    )
    check_model(model)
    return Explainer(model, method, options)(x)


def _sequences(x: ArrayLike, channel_axis: int, of: str) -> Array:
    """Sequences with the letters last, or the error that says what they are."""
    x = jnp.asarray(checked_input(x, is_differentiated=False))
    if x.ndim != 3:
        raise ValueError(f"{of} takes sequences (N, L, 4), got shape {x.shape}. For one sequence write x[None].")
    number_of_examples(x)
    axis = checked_channels("channel_axis", x, channel_axis, of)
    if x.shape[1 + axis] != LETTERS:
        raise ValueError(
            f"{of} takes sequences of {LETTERS} letters, got shape {x.shape}, channel_axis={channel_axis}."
        )
    if is_known(x) and not ((x == 0) | (x == 1)).all():
        raise ValueError(f"{of} takes sequences that are one-hot, or 0 where a letter isn't known, got other numbers.")
    return x if axis == 1 else x.mT


def _motif(motif: str | ArrayLike, dtype: Any) -> np.ndarray:
    """The rows of a motif: distributions over the letters, or zeros."""
    if isinstance(motif, str):
        known = set("ACGTURYSWKMBDHVN")
        wrong = sorted(set(motif.upper()) - known)
        if wrong or not motif:
            got = f"the letters {wrong}" if wrong else "none"
            raise ValueError(f"a motif has letters of A, C, G, T, N and IUPAC's for several bases, got {got}.")
        letters = np.frombuffer(motif.upper().encode(), np.uint8)
        return one_hot_of(letters, "zeros", "shares").astype(dtype)
    matrix: Any = np.asarray(motif)
    if matrix.ndim != 2 or matrix.shape[1] != LETTERS or not len(matrix):
        raise ValueError(f"a motif is text, or an array (W, {LETTERS}), letters last, got shape {matrix.shape}.")
    total: Any = matrix.sum(1)
    if not ((matrix >= 0).all() and ((np.abs(total - 1) < 1e-3) | (total == 0)).all()):
        raise ValueError(
            "the rows of a motif must be one-hot, a distribution over the letters, or 0 where the background stays; "
            f"their sums are {total.tolist()}. Divide counts by their sums."
        )
    return matrix.astype(dtype)


def _drawn(matrix: np.ndarray, n: int, key: Array | None) -> Array:
    """A motif for each background, `(N, W, 4)`."""
    if ((matrix == 0) | (matrix == 1)).all():
        return jnp.broadcast_to(jnp.asarray(matrix), (n, *matrix.shape))
    if key is None:
        raise ValueError(
            "the motif has positions with several letters: give key=jax.random.key(0) to draw from them, or its "
            "consensus, jax.nn.one_hot(matrix.argmax(1), 4)."
        )
    check_key(key)
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(matrix))
    letters = jax.random.categorical(key, logits, shape=(n, len(matrix)))
    is_drawn = jnp.asarray(matrix).any(1, keepdims=True)[None]
    return jnp.where(is_drawn, jax.nn.one_hot(letters, LETTERS, dtype=matrix.dtype), 0)


def _runner(
    model: Model, x: Array, target: Target, channel_axis: int, batch_size: int | None
) -> Callable[[Callable[[Any], Array], Any], Any]:
    """What evaluates a model on sequences `(L, 4)`, each made of one of several cases when its turn comes."""
    check_model(model)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    target = checked_target(target)
    if isinstance(target, jax.Array | np.ndarray) and not jnp.issubdtype(target.dtype, jnp.floating):
        raise TypeError(
            f"one target is taken for all sequences, an int, weights or a function: got {described(target)}."
        )

    def outputs(sequence: Array) -> Any:
        one = (sequence if channel_axis % 2 else sequence.T)[None]
        found = called(model, (one,), one, True, (0,))
        if callable(target):
            found = target(found)
        for leaf in jax.tree.leaves(found):
            if jnp.shape(leaf)[:1] != (1,):
                raise ValueError(
                    "the model must be batched, (N, L, 4) -> (N, ...), but on a batch of one sequence it has an output "
                    f"of shape {jnp.shape(leaf)}. If it takes one sequence and no batch, pass jax.vmap(model)."
                )
        y = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], found)
        if target is None or callable(target):
            return y
        if not isinstance(y, jax.Array):
            raise ValueError(f"target={target!r} picks from one output, but the model has several: give a function.")
        return jnp.tensordot(weights_of(y, target, False), y, y.ndim)

    def run(made: Callable[[Any], Array], cases: Any) -> Any:
        return jax.jit(lambda cases: map_over(lambda case: outputs(made(case)), cases, batch_size))(cases)

    return run
