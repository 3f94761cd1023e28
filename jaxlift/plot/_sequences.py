"""Scores of a sequence as letters. Positions count from 0, and spans are half-open, as in BED files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxlift.plot._shared import OWN, SHARED, WIDTH, finite, inches, new_axes
from jaxlift.scoring._extra import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"A": "#2e8b57", "C": "#2b5fa8", "G": "#e0a100", "T": "#c0392b", "U": "#c0392b"}
LEGIBLE = 250  # letters side by side in a figure
VISIBLE = 0.01  # of the picture's limits: letters less high are left out
BINS = 2000  # as many as a figure has pixels, about
SPAN, PLACE = "#6a4c93", "#d9822b"  # what the caller marks; the strongest places

Span = tuple[int, int, str]


def observed(scores: ArrayLike, one_hot: ArrayLike, *, output: str = "contributions") -> np.ndarray:
    """The scores of a sequence, on the letters that are there.

    Contributions `m_b (x_b - r_b)` are not zero at the letters `b` that are not there, unless the reference `r` is: a
    shuffled reference has another letter there, and `x_b - r_b` is -1. All of them belong to the position, whose score
    is their sum; so the sum over the sequence, which is the difference of the outputs, stays what it is.

    A hypothetical score is what the letter `c` would contribute if it were there, `h_c = m_c - sum_b m_b r_b`. For the
    letter that is there it is `sum_b m_b (x_b - r_b)`, since `x` is one-hot: the same number, also in the mean over
    several references. This is chrombpnet's `projected_shap`, and the attribution that tangermeme and bpnet-lite give
    unless asked for hypothetical ones.

    >>> one_hot = np.array([[0, 1, 0, 0]])
    >>> observed([[0.0, 2.0, 0.0, -0.5]], one_hot)
    array([[0. , 1.5, 0. , 0. ]])
    >>> observed([[0.5, 1.5, -1.0, 0.0]], one_hot, output="hypothetical")
    array([[ 0. ,  1.5, -0. ,  0. ]])

    Args:
        scores: `(..., L, C)`.
        one_hot: the sequence, of the same shape; zeros where there is no letter. Such a position has no letter to be
            drawn at, so a score that it has is left out.
        output: what the scores are: ``"contributions"``, ``"hypothetical"`` or ``"multipliers"``, as in `attribute`.

    Returns:
        `(..., L, C)`: the score of the letter that is there, and zeros elsewhere.

    Raises:
        ValueError: if the shapes differ, `one_hot` has other values than 0 and one 1 in a row, or there is no such
            `output`.
    """
    scores, one_hot = np.asarray(scores), np.asarray(one_hot)
    if scores.shape != one_hot.shape or scores.ndim < 2:
        raise ValueError(
            f"expected scores and one_hot of one shape (..., L, C), got {scores.shape} and {one_hot.shape}."
        )
    if not (np.isin(one_hot, (0, 1)).all() and (one_hot.sum(-1) <= 1).all()):
        raise ValueError("one_hot must have a single 1, or zeros alone, along its last axis: give the sequence itself.")
    if output == "contributions":
        return one_hot * scores.sum(-1, keepdims=True)
    if output in ("hypothetical", "multipliers"):
        return one_hot * scores
    raise ValueError(f"output={output!r}: expected 'contributions', 'hypothetical' or 'multipliers'.")


def logo(
    scores: ArrayLike,
    *,
    ax: Axes | None = None,
    letters: str = "ACGT",
    start: int = 0,
    strand: str = "+",
    contig: str = "",
    spans: Sequence[Span] = (),
    colours: Mapping[str, str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw scores as letters as high as they are.

    Positive ones stand on the axis and negative ones hang from it upside down; of several at one position the smallest
    is nearest to the axis. Letters that are less high than 1% of the limits are left out. The horizontal axis has the
    genome's positions. A sequence of the strand "-" is drawn as the model reads it, so they fall from left to right.

    >>> axes = logo([[0.5, 0, 0, 0], [0, 0, -1, 2]], start=100, spans=[(101, 102, "variant")])
    >>> len(axes.collections[0].get_paths())
    3

    Args:
        scores: `(L, C)`; for the letters that are there alone, what `observed` returns.
        ax: where to draw; a new figure's, if left out.
        letters: what the channels stand for.
        start: the least of the positions, from 0.
        strand: "-" if the sequence is the reverse complement of the positions `start` to `start + L`.
        contig: the chromosome, for the axis.
        spans: start, end and label (which may be empty) of what is marked, such as motifs and variants, in the axis's
            positions.
        colours: of letters, instead of `COLOURS`; others are black.
        limits: lowest and highest score of the vertical axis; those of these scores, if left out.

    Returns:
        The axes, which have one `PathCollection` with a path for each letter.

    Raises:
        ValueError: if the scores aren't finite numbers of shape `(L, C)` with a letter for each channel, a span is
            empty, or there is no such strand.
    """
    scores = _checked("scores", scores, letters)
    _check_place(strand, spans)
    low, high = limits or _limits(scores)
    axes = new_axes(ax, (WIDTH, 2.5))
    positions, step = _positions(start, len(scores), strand)
    palette = COLOURS | dict(colours or {})
    paths, fill = [], []
    bottoms = _bottoms(scores)
    least = VISIBLE * max(abs(low), abs(high))
    for channel, letter in enumerate(letters):
        vertices, path = _glyph(letter)
        for row in np.flatnonzero(np.abs(scores[:, channel]) >= least):
            if scores[row, channel]:
                scale, corner = (step, scores[row, channel]), (positions[row], bottoms[row, channel])
                paths.append(type(path)(vertices * scale + corner, path.codes))
                fill.append(palette.get(letter, palette.get(letter.upper(), "black")))
    collection = extra("matplotlib.collections").PathCollection(paths, facecolors=fill, linewidths=0)
    collection.set_in_layout(False)  # it is inside of the axes, and to measure it takes longer than to draw it
    axes.add_collection(collection, autolim=False)
    _finish(axes, positions, step, contig, strand, (low, high))
    _mark(axes, spans)
    return axes


def tracks(
    scores: Mapping[str, ArrayLike],
    *,
    letters: str = "ACGT",
    start: int = 0,
    strand: str = "+",
    contig: str = "",
    spans: Sequence[Span] = (),
    colours: Mapping[str, str] | None = None,
    windows: int = 4,
    width: int = 30,
    title: str = "",
    shared: bool = True,
) -> Figure:
    """A figure of scores of one place, such as those of several targets, of two alleles, or by several methods.

    On the left it says whether they share a scale, on which they compare in size too, or have each its own.

    Up to 250 letters are drawn side by side. Of more there is the outline of all, and below it are the letters of the
    windows where the absolute scores, of all tracks as they are drawn and weighted towards the window's middle, sum to
    the most.

    >>> rng = np.random.default_rng(0)
    >>> figure = tracks({"one": rng.normal(size=(300, 4)), "other": rng.normal(size=(300, 4))}, windows=3)
    >>> len(figure.axes)  # two outlines and three windows of each
    8

    Args:
        scores: names, and scores `(L, C)` of one shape. A single one needs no name: `{"": scores}`.
        letters: as in `logo`, as are `start`, `strand`, `contig`, `spans` and `colours`.
        windows: how many there are at most. They don't overlap.
        width: of each, in letters.
        title: above all.
        shared: whether all have one scale.

    Returns:
        The figure, to be saved with `figure.savefig(path)`.

    Raises:
        ValueError: as `logo` does; also if there are no scores, their shapes differ, or there is no window.
    """
    rows = {name: _checked(f"scores[{name!r}]", row, letters) for name, row in scores.items()}
    shapes = {row.shape for row in rows.values()}
    if len(shapes) != 1:
        raise ValueError(f"expected scores of one shape (L, {len(letters)}) for all tracks, got {sorted(shapes)}.")
    _check_place(strand, spans)
    if windows < 1 or width < 1:
        raise ValueError(f"expected one window or more, of a letter or more: got windows={windows}, width={width}.")
    count = len(next(iter(rows.values())))
    limits = {name: _limits(row) for name, row in rows.items()}
    if shared:
        lows, highs = zip(*limits.values(), strict=True)
        limits = dict.fromkeys(rows, (min(lows), max(highs)))
    options: dict[str, Any] = {"letters": letters, "contig": contig, "strand": strand, "colours": colours}
    unnamed = [(first, end, "") for first, end, _ in spans]  # labels are above the first track alone
    figure = extra("matplotlib.figure").Figure(layout="constrained")
    figure.suptitle(title, fontsize="medium")
    if len(rows) > 1:
        figure.supylabel(SHARED if shared else OWN, fontsize="small")
    positions, step = _positions(start, count, strand)
    if count <= LEGIBLE:
        figure.set_size_inches(WIDTH, 0.9 + 1.6 * len(rows))
        grid = figure.add_gridspec(len(rows), 1)
        for line, (name, row) in enumerate(rows.items()):
            marks = unnamed if line else spans
            axes = figure.add_subplot(grid[line, 0])
            logo(row, ax=axes, start=start, spans=marks, limits=limits[name], **options)
            _in_grid(axes, name, line == 0, line == len(rows) - 1)
        return figure
    width = min(width, count)
    scales = {name: 1 if shared else high - low for name, (low, high) in limits.items()}
    begins = _strongest(sum(np.abs(row).sum(1) / scales[name] for name, row in rows.items()), windows, width)
    leasts = [int(positions[begin : begin + width].min()) for begin in begins]
    places = [(least, least + width, str(number)) for number, least in enumerate(leasts, 1)]
    figure.set_size_inches(WIDTH, 1.4 + 2.5 * len(rows))
    grid = figure.add_gridspec(2 * len(rows), len(places), height_ratios=[1.0] * len(rows) + [1.5] * len(rows))
    for line, (name, row) in enumerate(rows.items()):
        first, last = line == 0, line == len(rows) - 1
        axes = figure.add_subplot(grid[line, :])
        _outline(axes, row, positions, step)
        _finish(axes, positions, step, contig, strand, limits[name])
        _mark(axes, spans if first else unnamed, places if first else [(*place[:2], "") for place in places])
        _in_grid(axes, name, first, last)
        for column, (begin, place) in enumerate(zip(begins, places, strict=True)):
            axes = figure.add_subplot(grid[len(rows) + line, column])
            logo(row[begin : begin + width], ax=axes, start=place[0], limits=limits[name], **options)
            _mark(axes, spans if first else unnamed, [place] if first else [])
            axes.set_xlabel("")
            _in_grid(axes, name if column == 0 else "", first, last)
            axes.tick_params(labelleft=column == 0)
    return figure


def signal(scores: ArrayLike, *, ax: Axes | None = None, start: int = 0) -> Axes:
    """Draw the outline of scores in the features' order, such as those of a signal or of many features.

    >>> signal([1.0, -2.0, 0.5]).get_xlabel()
    'feature'

    Args:
        scores: `(F,)`.
        ax: where to draw; a new figure's, if left out.
        start: the number of the first feature.

    Returns:
        The axes.

    Raises:
        ValueError: if the scores aren't finite numbers of such a shape.
    """
    values = finite("scores", scores)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"expected scores of features (F,) of one example, got shape {values.shape}.")
    axes = new_axes(ax, (WIDTH, 2.5))
    positions, step = _positions(start, len(values), "+")
    _outline(axes, values[:, None], positions, step)
    _finish(axes, positions, step, "", "+", _limits(values[:, None]))
    axes.set_xlabel("feature")
    return axes


def _checked(name: str, scores: ArrayLike, letters: str) -> np.ndarray:
    values = finite(name, scores)
    if values.ndim != 2 or values.shape[1] != len(letters) or not values.size:
        raise ValueError(
            f"letters={letters!r} need scores of shape (L, {len(letters)}), got {values.shape} as {name}; channels "
            "come last, and a batch's sequences are drawn one by one."
        )
    return values


def _check_place(strand: str, spans: Sequence[Span]) -> None:
    if strand not in ("+", "-", "."):
        raise ValueError(f"strand={strand!r}: expected '+', '-' or '.'.")
    for span in spans:
        if len(span) != 3 or not span[0] < span[1]:
            raise ValueError(f"a span is (start, end, label) with start < end, half-open, got {span!r}.")


def _positions(start: int, count: int, strand: str) -> tuple[np.ndarray, int]:
    """Those of a sequence in its own order, and from each to the next."""
    positions = start + np.arange(count)
    return (positions[::-1], -1) if strand == "-" else (positions, 1)


def _limits(scores: np.ndarray) -> tuple[float, float]:
    """How deep and how high letters reach."""
    low, high = np.minimum(scores, 0).sum(1).min(), np.maximum(scores, 0).sum(1).max()
    return (float(low), float(high)) if low < high else (0.0, 1.0)


def _bottoms(scores: np.ndarray) -> np.ndarray:
    """Where each letter begins, as seen from the axis: where the smaller ones of its sign at its position end."""
    order = np.argsort(np.abs(scores), axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    signed = np.where(ranked > 0, np.maximum(ranked, 0).cumsum(1), np.minimum(ranked, 0).cumsum(1)) - ranked
    bottoms = np.empty_like(scores)
    np.put_along_axis(bottoms, order, signed, 1)
    return bottoms


@functools.cache
def _glyph(letter: str) -> tuple[np.ndarray, Any]:
    """A letter's vertices, from 0 to 1 upwards and about 0 sideways, and the path that they are of."""
    if letter.isspace():
        raise ValueError(f"letters: {letter!r} has no shape that can be drawn.")
    font = extra("matplotlib.font_manager").FontProperties(family="DejaVu Sans", weight="bold")  # comes with matplotlib
    text = extra("matplotlib.textpath").TextPath((0, 0), letter, size=1, prop=font)
    box = text.get_extents()
    width = 0.94 * min(1.0, box.width / 0.6)  # all are as wide, but for an I, which would be a block
    corner, size = np.array([box.x0, box.y0]), np.array([box.width, box.height])
    path = extra("matplotlib.path").Path(((text.vertices - corner) / size - (0.5, 0)) * (width, 1), text.codes)
    return path.vertices, path


def _strongest(strength: Any, count: int, width: int) -> list[int]:
    """Where the windows begin that have the most, in order."""
    sums = np.convolve(strength, np.hanning(width + 2)[1:-1], "valid")
    places: list[int] = []
    while len(places) < count and np.isfinite(sums).any():
        place = int(np.nanargmax(sums))
        if places and sums[place] <= 0:
            break
        places.append(place)
        sums[max(place - width + 1, 0) : place + width] = np.nan
    return sorted(places)


def _outline(axes: Axes, scores: np.ndarray, positions: np.ndarray, step: int) -> None:
    """How deep and high scores reach at each position, or in each of as many bins as can be seen."""
    edges = np.unique(np.linspace(0, len(scores), min(len(scores), BINS) + 1).astype(int))
    low = np.minimum.reduceat(np.minimum(scores, 0).sum(1), edges[:-1])
    high = np.maximum.reduceat(np.maximum(scores, 0).sum(1), edges[:-1])
    x = np.repeat(positions[0] + step * (edges - 0.5), 2)[1:-1]
    area = axes.fill_between(x, np.repeat(low, 2), np.repeat(high, 2), color="#444444", linewidth=0)
    area.set_in_layout(False)


def _finish(
    axes: Axes, positions: np.ndarray, step: int, contig: str, strand: str, limits: tuple[float, float]
) -> None:
    ticker = extra("matplotlib.ticker")
    room = 0.03 * (limits[1] - limits[0])
    axes.set_xlim(positions[0] - step / 2, positions[-1] + step / 2)
    axes.set_ylim(limits[0] - room, limits[1] + room)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    ticks = max(2, int(inches(axes) / 1.5))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(ticks, integer=True, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    named = f"{contig}, positions from 0" if contig else "position"
    axes.set_xlabel(f"{named}, strand -" if strand == "-" else named, fontsize="small")


def _in_grid(axes: Axes, name: str, first: bool, last: bool) -> None:
    """What an axes in a figure of several shows of its own."""
    axes.set_ylabel(name, fontsize="small")
    if not last:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)


def _mark(axes: Axes, spans: Sequence[Span], places: Sequence[Span] = ()) -> None:
    """Shade spans, and put a bar with the label above each that has one, in as many lanes as keep them apart."""
    first, last = sorted(axes.get_xlim())
    character = (last - first) / (inches(axes) * 72 / 5)  # of a label, 5 points wide, in positions
    lanes: list[list[tuple[float, float]]] = []
    for colour, (start, end, label) in [*((PLACE, place) for place in places), *((SPAN, span) for span in spans)]:
        left, right = max(start - 0.5, first), min(end - 0.5, last)
        if left >= right:
            continue
        if right - left < last - first:
            axes.axvspan(left, right, color=colour, alpha=0.18, linewidth=0.5, zorder=0)
        if not label:
            continue
        middle = (left + right) / 2
        half = max(right - left, (len(label) + 1) * character) / 2
        a, b = middle - half, middle + half
        free = (n for n, lane in enumerate(lanes) if all(d <= a or b <= c for c, d in lane))
        number = next(free, len(lanes))
        if number == len(lanes):
            lanes.append([])
        lanes[number].append((a, b))
        short = max(right - left, character) / 2  # a bar that can be seen
        _label(axes, (middle - short, middle + short), label, colour, 3 + 13 * number)


def _label(axes: Axes, ends: tuple[float, float], label: str, colour: str, height: int) -> None:
    """A bar and a label, so many points above the axes."""
    bar, text = (
        axes.get_xaxis_transform()
        + extra("matplotlib.transforms").ScaledTranslation(0, points / 72, axes.figure.dpi_scale_trans)
        for points in (height, height + 2)
    )
    axes.plot(ends, (1, 1), transform=bar, color=colour, linewidth=2.5, solid_capstyle="butt", clip_on=False)
    axes.text(sum(ends) / 2, 1, label, transform=text, color=colour, fontsize=8, ha="center", va="bottom")
