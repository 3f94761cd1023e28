"""What is explained of a sequence model's outputs, by name.

>>> import jax, jax.numpy as jnp, jaxlift
>>> from jaxlift.genomics import targets
>>> kernel = jnp.arange(12.0).reshape(4, 3) / 10
>>> def model(x):                                                    # (N, L, 4) -> logits (N, L, 3), log counts (N, 1)
...     h = jnp.tanh(x @ kernel)
...     return {"profile": h, "counts": h.sum((1, 2))[:, None]}
>>> x = jax.nn.one_hot(jnp.array([[0, 1, 2, 3, 3]]), 4)
>>> both = targets.named(counts=targets.log_counts(), profile=targets.profile(softmax="held"))
>>> jaxlift.attribute(model, target=both)(x, reference=jnp.zeros((5, 4))).shape
(1, 2, 5, 4)

Each function makes a target, for `target=` of `jaxlift.attribute` and of other methods. `head` says which of a model's
outputs it is made of: the key of a dictionary, the field of a named tuple or of a module, the number in a list or a
tuple; or a tuple of these that leads to an output further inside. It may be left out where the model returns one array,
or calls the heads of these targets ``counts`` and ``profile``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._arguments import check_count, check_option, checked_axis, described, is_known
from jaxlift._targets import Held, checked_target, weights_of

__all__ = [
    "difference",
    "from_text",
    "held",
    "log_counts",
    "log_mean",
    "mask",
    "named",
    "of_head",
    "profile",
    "weighted",
]

Head = str | int | tuple[str | int, ...] | None
Softmax = Literal["explained", "held"]
Outputs = Callable[[Any], Array]


def log_counts(head: Head = None) -> Outputs:
    """The log counts that a head predicts, `(N,)`, or summed over tracks `(N, K)`.

    That is what the authors of BPNet and ChromBPNet explain of counts, the sum of their tracks' (`bpnet` and
    `chrombpnet`, ``tf.reduce_sum(model.outputs[1], axis=-1)``), and bpnet-lite, whose models have one track
    (`CountWrapper`).

    >>> log_counts()({"counts": jnp.array([[1.0, 2.0]]), "profile": jnp.zeros((1, 5))})
    Array([3.], dtype=float32)

    Args:
        head: which output; left out, that called ``counts``, or the only one.

    Returns:
        A target, a function of the model's outputs.

    Raises:
        ValueError: when called, if there is no such head or its shape is another.
    """

    def target(outputs: Any) -> Array:
        y = picked(outputs, head, "counts")
        if y.ndim not in (1, 2):
            raise ValueError(
                f"log counts have the shape (N,) or (N, K), but the head has {y.shape}. For an output with positions "
                "take profile, weighted or log_mean."
            )
        return y.reshape(len(y), -1).sum(1)

    return target


def profile(
    head: Head = None, softmax: Softmax = "explained", *, axis: int | tuple[int, ...] | None = None
) -> Outputs | Held:
    r"""Where the counts go: the logits of a profile, weighted by their softmax.

    .. math:: \sum_i p_i\, (l_i - \bar l), \qquad p = \mathrm{softmax}(l)

    With ``softmax="explained"`` the probabilities `p` are explained along with the logits, as by bpnet-lite
    (`ProfileWrapper`). With ``softmax="held"`` they are numbers, those of the input, also for the reference, as by
    chrombpnet (`get_weightedsum_meannormed_logits`, which stops the gradient there). BPNet's own code has the latter,
    without the mean of the logits taken off, and the mean over tracks where this has the sum (`profile_contrib`, "wn").

    >>> logits = jnp.array([[0.0, 1.0, 5.0]])
    >>> round(float(profile()(logits)[0]), 2)
    2.9
    >>> [round(float(p), 2) for p in profile(softmax="held").weights(logits)[0]]
    [0.01, 0.02, 0.98]

    Args:
        head: which output: logits `(N, L)` or `(N, L, K)`, in any order of axes after the batch's. Left out, that
            called ``profile``, or the only one.
        softmax: whether what the softmax comes to is explained or held constant.
        axis: the axes of one example along which probabilities sum to 1, as 0 for those of `(L, K)` where each track
            has a profile of its own; the target is then the sum over tracks. Left out, all: bpnet-lite has one softmax
            over positions and strands.

    Returns:
        A target: a function of the model's outputs, or `jaxlift.Held`.

    Raises:
        ValueError: if there is no such option; when called, if there is no such head, or a softmax over one number.
    """
    check_option("softmax", softmax, Softmax)

    def axes_of(logits: Array) -> tuple[int, ...]:
        if axis is None:
            return tuple(range(1, logits.ndim))
        given = axis if isinstance(axis, tuple) else (axis,)
        return tuple(checked_axis("axis", each, logits.ndim - 1) + 1 for each in given)

    def centred(outputs: Any) -> Array:
        logits = picked(outputs, head, "profile")
        axes = axes_of(logits)
        if np.prod([logits.shape[each] for each in axes]) < 2:
            raise ValueError(
                f"a profile's softmax needs several logits, but the head has the shape {logits.shape}: choose the head "
                "of the profile."
            )
        return logits - logits.mean(axes, keepdims=True)

    def probabilities(logits: Array) -> Array:
        return jax.nn.softmax(logits, axes_of(logits))

    def explained(outputs: Any) -> Array:
        logits = centred(outputs)
        return (probabilities(logits) * logits).sum(range(1, logits.ndim))

    return explained if softmax == "explained" else Held(probabilities, centred)


def weighted(weights: Any, head: Head = None, *, per_example: bool = False) -> Held:
    r"""A weighted sum of outputs, `\sum_i w_i y_i`: a mask of positions, a track, a contrast.

    >>> import jaxlift
    >>> target = weighted(jnp.array([0.0, 1.0, 1.0]))
    >>> jaxlift.attribute(lambda x: x**2, target=target)(jnp.array([[1.0, 2.0, 3.0]]), reference=jnp.zeros(3))
    Array([[0., 4., 9.]], dtype=float32)

    Args:
        weights: of an example's outputs, such as `(L, K)`; those of the first axes stand for all of the others, as
            `(L,)` for all tracks. With `per_example`, of each example, `(N, L, K)` or `(N, L)`, as from `mask`.
        head: which output.
        per_example: whether the first axis is that of the examples.

    Returns:
        A target.

    Raises:
        ValueError: if weights aren't finite; when called, if they don't fit the head's shape or the batch.
    """
    weights, spread = _spreading(weights, per_example)
    rows = (weights,) if per_example else ()
    return Held(spread, lambda outputs, *_: picked(outputs, head), rows, positional=True)


def log_mean(weights: Any, head: Head = None, *, per_example: bool = False, pseudocount: float = 1e-3) -> Held:
    r"""The logarithm of a weighted mean of outputs that are counts, `\log(\sum_i w_i y_i / \sum_i w_i + \epsilon)`.

    With the mask of a gene's exons its difference between two alleles is AlphaGenome's log fold change
    (`GeneMaskLFCScorer`), whose pseudocount is 0.001. It has one for each track; here the mean is over all outputs that
    have a weight, so give weights to one track.

    >>> import jaxlift
    >>> target = log_mean(jnp.array([0.0, 1.0, 1.0]), pseudocount=0.0)
    >>> attr = jaxlift.attribute(lambda x: x, target=target)
    >>> attr(jnp.array([[1.0, 2.0, 2.0]]), reference=jnp.ones(3)).sum() / jnp.log(2.0)
    Array(1., dtype=float32)

    Args:
        weights, head, per_example: as for `weighted`.
        pseudocount: what is added to the mean.

    Returns:
        A target.

    Raises:
        ValueError: if weights aren't finite, are negative, or have no sum; when called, as for `weighted`.
    """
    weights, spread = _spreading(weights, per_example)
    if is_known(weights):
        known = np.asarray(weights)
        empty = np.flatnonzero(known.reshape(len(known) if per_example else 1, -1).sum(1) == 0)
        if (known < 0).any() or len(empty):
            which = f": those of the examples {', '.join(map(str, empty[:20]))} are 0" if per_example else ""
            raise ValueError(f"a mean needs weights of 0 or more that aren't all 0{which}.")

    def values(outputs: Any, *rows: Array) -> Array:
        y = picked(outputs, head)
        w = spread(y, *rows)
        others = range(1, y.ndim)
        return jnp.log((w * y).sum(others) / w.sum(others) + pseudocount)

    return Held(lambda y, *_: jnp.ones_like(y), values, (weights,) if per_example else (), positional=True)


def mask(windows: Any, intervals: Iterable[Any], *, length: int, bin: int = 1, offset: int | None = None) -> np.ndarray:
    """Where intervals of the genome lie in a model's output: a gene's exons, or a splice site.

    >>> windows = {"contig": ["chr1", "chr1"], "start": [100, 100], "end": [110, 110], "strand": ["+", "-"]}
    >>> mask(windows, [("chr1", 103, 105)], length=8)
    array([[0., 0., 1., 1., 0., 0., 0., 0.],
           [0., 0., 0., 0., 1., 1., 0., 0.]], dtype=float32)

    Give it to `weighted` or `log_mean`, with ``per_example=True``.

    Args:
        windows: what the model sees: `jaxlift.genomics.Windows`, or columns ``contig``, ``start``, ``end`` and, if not
            all are of the genome's strand, ``strand``, where "-" is the reverse complement: a mapping, or an object
            with such attributes. 0-based and half-open.
        intervals: ``(contig, start, end)``, 0-based and half-open: for all windows; or a list of them for each window.
        length: how many positions the output has.
        bin: how many bases are one position of the output.
        offset: the base of the window at which the output begins. Left out, as many are left out before it as after.

    Returns:
        `(N, length)`, float32: how much of each position is in an interval, from 0 to 1.

    Raises:
        ValueError: if a window has no base of its intervals in the output, or the output doesn't fit the windows.
    """
    check_count("length", length)
    check_count("bin", bin)
    contigs, starts, ends, strands = _columns(windows)
    intervals = list(intervals)
    is_for_all = not intervals or (len(intervals[0]) == 3 and isinstance(intervals[0][0], str))
    of_each = [intervals] * len(contigs) if is_for_all else intervals
    if len(of_each) != len(contigs):
        raise ValueError(f"expected a list of intervals for each of {len(contigs)} windows, got {len(of_each)} lists.")
    masks = np.zeros((len(contigs), length), np.float32)
    for row, contig, start, end, strand, own in zip(masks, contigs, starts, ends, strands, of_each, strict=True):
        width, covered = int(end - start), length * bin
        first = (width - covered) // 2 if offset is None else offset
        is_even = offset is not None or (width - covered) % 2 == 0
        if first < 0 or first + covered > width or not is_even:
            raise ValueError(
                f"{length} positions of {bin} bases don't fit a window of {width}"
                + ("" if is_even else " with as many bases before them as after: say offset=")
                + ("" if offset is None else f" from offset={offset}")
                + "."
            )
        bases = np.zeros(width, np.float32)
        for where, low, high in map(_checked_interval, own):
            if where == contig:
                bases[max(low - start, 0) : max(high - start, 0)] = 1
        bases = bases[::-1] if strand == "-" else bases
        row[:] = bases[first : first + covered].reshape(length, bin).mean(1)
    empty = np.flatnonzero(~masks.any(1))
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(masks)} windows have no base of their intervals in the output: window "
            f"{', '.join(map(str, empty[:20]))}. Leave them out, or check the names of the contigs."
        )
    return masks


def difference(a: Any, b: Any) -> Outputs | Held:
    """One target less another, such as two heads or two tracks.

    >>> target = difference(log_counts("treated"), log_counts("control"))
    >>> target({"treated": jnp.array([3.0]), "control": jnp.array([1.0])})
    Array([2.], dtype=float32)

    Args:
        a, b: targets: what the functions of this module make, functions of the outputs, or ints.

    Returns:
        A target.

    Raises:
        ValueError: if both have names, and not the same.
    """
    if callable(a) and callable(b):
        return lambda outputs: a(outputs) - b(outputs)  # pyright: ignore[reportOperatorIssue] (they return arrays)
    one, other = held(a), held(b)
    if one.names != other.names:
        raise ValueError(f"a difference is between targets of the same names, got {one.names} and {other.names}.")
    return _together([one, other], lambda i, leaf: -leaf if i else leaf, one.names)


def named(targets: Mapping[str, Any] | None = None, /, **more: Any) -> Held:
    """Several targets in one run, by name: they share all forward passes.

    >>> import jaxlift
    >>> target = named(first=0, second=1)
    >>> target.names
    ('first', 'second')
    >>> attr = jaxlift.attribute(lambda x: x @ jnp.array([[1.0, 2.0]]), target=target)
    >>> attr(jnp.array([[3.0]]), reference=jnp.zeros(1))
    Array([[[3.],
            [6.]]], dtype=float32)

    Args:
        targets, more: the targets by name.

    Returns:
        A target. Scores are `(N, [R,] K, ...)`, and what ``full=True`` has beside them `(N, [R,] K)`.

    Raises:
        ValueError: if there is none, or one of them has names itself.
    """
    of_name = {**(targets or {}), **more}
    parts = [held(target) for target in of_name.values()]
    if not parts or any(part.names for part in parts):
        raise ValueError(f"named takes one target or more, none of which has names itself: got {list(of_name)}.")

    def placed(i: int, leaf: Array) -> Array:
        return jnp.zeros((len(leaf), len(parts), *leaf.shape[1:]), leaf.dtype).at[:, i].set(leaf)

    return _together(parts, placed, tuple(of_name))


NAMES: Mapping[str, Callable[[Head], Any]] = {
    "counts": log_counts,
    "profile": profile,
    "profile_held": partial(profile, softmax="held"),
}


def from_text(text: str, head: str | None = None) -> Any:
    """The target that a text names, as on the command line: ``counts``, ``profile`` or ``profile_held``.

    >>> from_text("counts@0,profile@1").names
    ('counts', 'profile')

    Args:
        text: a name, and after an ``@`` the head; several such with commas between them.
        head: the head of those that name none. The way to an output further inside has slashes, ``human/counts``.

    Returns:
        The target; of several, what `named` returns, by their names, or as they are written where names repeat.

    Raises:
        ValueError: for another name, with those that there are.
    """
    written = [each.strip() for each in text.split(",")]
    split = [each.partition("@") for each in written]
    for name, at, own in split:
        if name not in NAMES or (at and not own):
            raise ValueError(
                f"no target is called {name + at + own!r}: there are {', '.join(NAMES)}, each with @HEAD after it "
                "where the model returns several arrays."
            )
    made = [NAMES[name](_as_path(own or head)) for name, _, own in split]
    if len(made) == 1:
        return made[0]
    names = [name for name, _, _ in split]
    names = names if len(set(names)) == len(names) else written
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} names a target twice.")
    return named(dict(zip(names, made, strict=True)))


def of_head(head: str, numbers: tuple[int, ...] = ()) -> Outputs:
    """The target that is a head itself, or one number of it: ``--head counts --target 0`` on the command line.

    >>> of_head("tracks", (1,))({"tracks": jnp.array([[1.0, 2.0]])})
    Array([2.], dtype=float32)

    Args:
        head: which output; the way to one further inside has slashes, ``human/counts``.
        numbers: which of an example's outputs, a number for each axis.

    Returns:
        A target, a function of the model's outputs.

    Raises:
        ValueError: when called, if there is no such head, or no such number in it.
    """

    def target(outputs: Any) -> Array:
        y = picked(outputs, _as_path(head))
        if numbers and (
            len(numbers) != y.ndim - 1 or not all(-n <= i < n for i, n in zip(numbers, y.shape[1:], strict=True))
        ):
            raise ValueError(f"the head {head!r} has the shape {y.shape}, in which there is no output {numbers}.")
        return y[(slice(None), *numbers)]

    return target


def held(target: Any) -> Held:
    """Any target for all examples as `jaxlift.Held`, so that targets of all kinds can be put together.

    >>> held(1).weights(jnp.array([[5.0, 6.0]]))
    Array([[0., 1.]], dtype=float32)

    Args:
        target: what the functions of this module make, a function of the outputs, None, an int or a tuple of ints.

    Returns:
        The target, held. Where it was a function of the outputs, its value has the weight 1.

    Raises:
        TypeError, ValueError: for other targets.
    """
    if isinstance(target, Held):
        return target
    if callable(target):
        return Held(lambda y: jax.tree.map(jnp.ones_like, y), target)
    target = checked_target(target)
    if not (target is None or isinstance(target, int | tuple)):
        raise ValueError(
            f"expected a target for all examples, got {described(target)}: write weighted(...) or named(...)."
        )
    of_each = jax.vmap(lambda y: weights_of(y, target, normalize=False))
    is_positional = isinstance(target, tuple) and len(target) > 1  # of one axis, it may be of classes
    return Held(of_each, lambda outputs, *_: picked(outputs, None), positional=is_positional)


def picked(outputs: Any, head: Head, usual: str | None = None) -> Array:
    """The output that a head names, an array, or the error that says which there are.

    Args:
        outputs: of a model.
        head: as for all targets. None is the `usual` one, if there is a head of this name, or the only one.
        usual: what the head is called in most models.
    """
    if head is None and any(str(name) == usual for name, _ in _inside(outputs)):
        head = usual
    for key in () if head is None else head if isinstance(head, tuple) else (head,):
        inside = _inside(outputs)
        found = [child for i, (name, child) in enumerate(inside) if str(key) in (str(name), str(i))]
        if not found:
            raise ValueError(f"the model's outputs have no head {key!r}: {_listed(outputs)}.")
        outputs = found[0]
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1:
        raise ValueError(f"which of the model's outputs is explained? Say head=: {_listed(outputs)}.")
    return jnp.asarray(leaves[0])


def _inside(outputs: Any) -> list[tuple[Any, Any]]:
    """What a pytree holds at its first level, with the names there."""
    children, _ = jax.tree.flatten_with_path(outputs, is_leaf=lambda each: each is not outputs)

    def name_of(key: Any) -> Any:
        return next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind))

    return [(name_of(path[0]), child) for path, child in children if path]


def _listed(outputs: Any) -> str:
    inside = _inside(outputs)
    if not inside:
        return f"there is one array, of shape {jnp.shape(outputs)}, and no heads"
    return "there are " + ", ".join(f"{name!r} {jax.tree.map(jnp.shape, child)}" for name, child in inside)


def _as_path(text: str | None) -> Head:
    return None if text is None else tuple(text.split("/"))


def _together(parts: Sequence[Held], place: Callable[[int, Array], Array], names: tuple[str, ...]) -> Held:
    """Targets side by side, their weights as `place` makes them of each one's number and weights."""
    ends = np.cumsum([0, *(len(part.rows) for part in parts)])

    def own(rows: tuple[Any, ...], i: int) -> tuple[Any, ...]:
        return rows[ends[i] : ends[i + 1]]

    def weights(values: Any, *rows: Any) -> Any:
        return tuple(
            jax.tree.map(partial(place, i), part.weights(values[i], *own(rows, i))) for i, part in enumerate(parts)
        )

    def values(outputs: Any, *rows: Any) -> Any:
        return tuple(part.values(outputs, *own(rows, i)) for i, part in enumerate(parts))

    every = tuple(row for part in parts for row in part.rows)
    return Held(weights, values, every, names, any(part.positional for part in parts))


def _spreading(weights: Any, per_example: bool) -> tuple[Any, Callable[..., Array]]:
    """Weights as an array, and the function that gives a batch's outputs their own, of the outputs' shape."""
    weights = weights if isinstance(weights, Array) else np.asarray(weights)
    if is_known(weights) and not np.isfinite(np.asarray(weights)).all():
        raise ValueError("weights must be finite numbers, but some are NaN or infinite.")

    def spread(y: Array, *rows: Array) -> Array:
        own = jnp.asarray(rows[0] if per_example else weights[None])
        if own.shape[1:] != y.shape[1 : own.ndim]:
            raise ValueError(
                f"weights of shape {own.shape[1:]} don't fit the outputs of an example, of shape {y.shape[1:]}: they "
                "need its axes, or the first of them" + (", after that of the examples." if per_example else ".")
            )
        return jnp.broadcast_to(own.astype(y.dtype).reshape(*own.shape, *(1,) * (y.ndim - own.ndim)), y.shape)

    return weights, spread


def _columns(windows: Any) -> list[Any]:
    """Contigs, starts, ends and strands of windows."""

    windows = getattr(windows, "columns", windows)

    def column(name: str) -> Any:
        return windows.get(name) if isinstance(windows, Mapping) else getattr(windows, name, None)

    found = {name: column(name) for name in ("contig", "start", "end")}
    missing = [name for name, values in found.items() if values is None]
    if missing:
        raise ValueError(f"windows need the columns contig, start and end, but have no {', '.join(missing)}.")
    contigs = [str(contig) for contig in found["contig"]]
    strands = column("strand")
    columns = [contigs, np.asarray(found["start"]), np.asarray(found["end"])]
    columns.append(["+"] * len(contigs) if strands is None else [str(strand) for strand in strands])
    if len({len(each) for each in columns}) > 1:
        raise ValueError(f"the columns of windows have different lengths: {[len(each) for each in columns]}.")
    return columns


def _checked_interval(interval: Any) -> tuple[str, int, int]:
    try:
        contig, start, end = interval
        start, end = int(start), int(end)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an interval is (contig, start, end), got {interval!r}.") from error
    if not 0 <= start < end:
        raise ValueError(f"an interval ends after its start, which is 0 or more: got {interval!r}.")
    return str(contig), start, end
