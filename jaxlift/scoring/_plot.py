"""Pictures of one example's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxlift.scoring._extra import extra

LEGIBLE = 250  # letters side by side
COLOURS = {"A": "#2e8b57", "C": "#2b5fa8", "G": "#e0a100", "T": "#c0392b"}


def plot(
    scores: np.ndarray, path: Path, *, title: str, letters: str | None = None, positions: tuple[int, int] | None = None
) -> None:
    """Draw scores as what they are of: a sequence as letters, an image as pixels, a row of a table as bars.

    Args:
        scores: of one example.
        path: of the picture; the suffix says its format.
        title: above it.
        letters: what the channels of a sequence `(L, C)` stand for.
        positions: first and last of the positions that are shown.
    """
    figures = extra("matplotlib.figure")
    start, stop = positions or (0, len(scores))
    if letters is not None and (scores.ndim != 2 or scores.shape[1] != len(letters)):
        raise ValueError(f"letters={letters!r} need scores of shape (L, {len(letters)}), got {scores.shape}.")
    if not 0 <= start < stop <= len(scores):
        raise ValueError(f"positions {start}:{stop} are not within the example's 0:{len(scores)}.")
    scores = scores[start:stop]
    wide = letters is not None or scores.ndim == 1
    figure = figures.Figure((12, 2.5) if wide else (5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    if letters is not None and len(scores) <= LEGIBLE:
        _logo(axes, scores, start, letters)
    elif wide:
        axes.bar(np.arange(start, stop), scores.reshape(len(scores), -1).sum(1), width=1.0)
    elif scores.ndim == 2 or (scores.ndim == 3 and scores.shape[2] <= 4):
        image = scores if scores.ndim == 2 else scores.sum(2)
        limit = float(np.abs(image).max()) or 1.0
        shown = axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        figure.colorbar(shown, ax=axes)
    else:
        raise ValueError(
            f"there is no picture for scores of shape {scores.shape}: expected (F,), (H, W), (H, W, C), (L, C)."
        )
    if wide:
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_xlim(start - 0.5, stop - 0.5)
        axes.set_xlabel("position" if letters else "feature")
    figure.savefig(path, dpi=150)


def _logo(axes: Any, scores: np.ndarray, start: int, letters: str) -> None:
    """Letters as high as their scores, positive ones above the axis, and small ones nearest to it."""
    heights = extra("pandas").DataFrame(scores, columns=list(letters), index=range(start, start + len(scores)))
    colours = {letter: COLOURS.get(letter.upper(), "black") for letter in letters}
    extra("logomaker").Logo(heights, ax=axes, color_scheme=colours)
