"""Scores of a table's row as bars, in order of size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxlift.plot._shared import NEGATIVE, POSITIVE, finite, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = 1e-4  # of the sum of magnitudes, that a sum may miss before it is drawn


def bars(
    scores: ArrayLike,
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    values: ArrayLike | None = None,
    most: int = 10,
    label: str = "contribution",
) -> Axes:
    """Draw the scores of the features of a table's row, those of the largest magnitude first.

    >>> axes = bars([1.0, -2.0, 0.5], names=["age", "weight", "height"])
    >>> [tick.get_text() for tick in axes.get_yticklabels()]
    ['weight', 'age', 'height']

    Args:
        scores: `(F,)`.
        ax: where to draw; a new figure's, if left out.
        names: of the features; "feature 0" and so on, if left out.
        values: the row itself, `(F,)` numbers or strings, which are written beside the names.
        most: how many bars there are at most. The last one is for the sum of the features that have none.
        label: the horizontal axis's.

    Returns:
        The axes, with a bar (a `Rectangle`) and a text for each row, from top to bottom.

    Raises:
        ValueError: if the scores aren't finite numbers of shape `(F,)`, there isn't one name or value for each, or no
            bar is allowed.
    """
    labels, amounts = ranked(scores, names, values, most)
    axes = new_axes(ax, _size(len(labels)))
    draw_bars(axes, labels, np.zeros(len(amounts)), amounts, label)
    axes.axvline(0, color="black", linewidth=0.8)
    return axes


def waterfall(
    scores: ArrayLike,
    output_reference: ArrayLike,
    *,
    output: ArrayLike | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    values: ArrayLike | None = None,
    most: int = 10,
    label: str = "output",
) -> Axes:
    """Draw how contributions lead from the reference's output to the input's, those of the largest magnitude first.

    >>> axes = waterfall([1.0, -2.0, 0.5], 4.0)
    >>> [round(float(bar.get_x() + bar.get_width()), 2) for bar in axes.patches]
    [2.0, 3.0, 3.5]

    Args:
        scores: contributions, `(F,)`.
        output_reference: the reference's output, a number: `output_reference` of an attribution with `full=True`.
        output: the input's output, a number. If contributions don't lead there, a grey bar shows what is missing. If it
            is left out, the picture ends at the sum, and says so.
        ax: where to draw; a new figure's, if left out.
        names: of the features, as are `values` and `most`, as in `bars`.
        label: the horizontal axis's.

    Returns:
        The axes, with a bar (a `Rectangle`) for each row, from top to bottom.

    Raises:
        ValueError: as `bars` does; also if an output isn't one finite number.
    """
    labels, amounts = ranked(scores, names, values, most)
    start = _number("output_reference", output_reference)
    if output is not None:
        missing = _number("output", output) - start - amounts.sum()
        if abs(missing) > MISSING * np.abs(amounts).sum():
            labels, amounts = [*labels, "missing from the sum"], np.append(amounts, missing)
    ends = start + np.cumsum(amounts)
    axes = new_axes(ax, _size(len(labels) + 1))
    draw_bars(axes, labels, ends - amounts, amounts, label)
    if labels[-1:] == ["missing from the sum"]:
        axes.patches[-1].set_facecolor("0.6")
    for row, end in enumerate(ends[:-1]):
        axes.plot((end, end), (row - 0.35, row + 1.35), color="0.5", linewidth=0.6)
    axes.axvline(start, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(ends[-1], color="black", linewidth=0.8)
    # The ends are named in the first and the last line, on the side where there is room.
    axes.set_ylim(len(labels) + 0.2, -1.2)
    middle = (min(start, *ends) + max(start, *ends)) / 2
    for at, row, text in (
        (start, -0.85, f"reference: {start:.4g}"),
        (ends[-1], len(labels) - 0.15, f"{'input' if output is not None else 'sum'}: {ends[-1]:.4g}"),
    ):
        side = -1 if at > middle else 1
        _beside(axes, text, at, row, side)
    return axes


def ranked(
    scores: ArrayLike, names: Sequence[str] | None, values: ArrayLike | None, most: int, order: np.ndarray | None = None
) -> tuple[list[str], np.ndarray]:
    """What the bars are called, and what they show, in descending order of magnitude or another."""
    amounts = finite("scores", scores)
    if amounts.ndim != 1 or not amounts.size:
        raise ValueError(f"expected scores of features (F,) of one example, got shape {amounts.shape}.")
    if most < 1:
        raise ValueError(f"most={most!r}: expected one bar or more.")
    labels = [f"feature {number}" for number in range(len(amounts))] if names is None else [*map(str, names)]
    if len(labels) != len(amounts):
        raise ValueError(f"expected a name for each of {len(amounts)} features, got {len(labels)} names.")
    if values is not None:
        row = np.asarray(values)
        if row.shape != amounts.shape:
            raise ValueError(f"expected values of shape {amounts.shape} as the scores have, got {row.shape}.")
        labels = [
            f"{name} = {value:.4g}" if isinstance(value, (int, float)) else f"{name} = {value}"
            for name, value in zip(labels, row.tolist(), strict=True)
        ]
    order = np.argsort(-np.abs(amounts), kind="stable") if order is None else order
    if len(order) <= most:
        return [labels[place] for place in order], amounts[order]
    first, rest = order[: most - 1], order[most - 1 :]
    return [*(labels[place] for place in first), f"{len(rest)} others"], np.append(amounts[first], amounts[rest].sum())


def _size(rows: int) -> tuple[float, float]:
    return 6, 0.9 + 0.32 * rows


def _number(name: str, value: ArrayLike) -> float:
    found = finite(name, value)
    if found.size != 1:
        raise ValueError(f"expected {name} as one number, got shape {found.shape}: draw one example and output.")
    return float(found.reshape(()))


def draw_bars(axes: Axes, labels: list[str], starts: np.ndarray, amounts: np.ndarray, label: str) -> None:
    rows = np.arange(len(labels))
    axes.barh(rows, amounts, left=starts, height=0.7, color=np.where(amounts < 0, NEGATIVE, POSITIVE).tolist())
    for row, (start, amount) in enumerate(zip(starts, amounts, strict=True)):
        _beside(axes, f"{amount:+.3g}", start + amount, row, -1 if amount < 0 else 1)
    axes.set_yticks(rows, labels, fontsize="small")
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.use_sticky_edges = False
    axes.margins(x=0.2)  # for the numbers beside the bars
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(label, fontsize="small")


def _beside(axes: Axes, text: str, at: float, row: float, side: int) -> None:
    axes.annotate(
        text, (at, row), (3 * side, 0), textcoords="offset points", va="center", ha="left" if side > 0 else "right",
        fontsize="small",
    )  # fmt: skip
