"""What pictures of all kinds have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxlift._explainer import Attribution
from jaxlift.scoring._extra import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIVERGING = "RdBu_r"  # matplotlib's name of the map of signed scores
NEGATIVE, POSITIVE = "#2166ac", "#b2182b"  # colours of that map
SHARED, OWN = "one scale for all", "each on a scale of its own"  # what a figure of several says
WIDTH = 12  # of a wide figure, in inches


def finite(name: str, scores: ArrayLike) -> np.ndarray:
    """Scores as float64, or the error that says which of them can't be drawn."""
    if isinstance(scores, Attribution):
        raise TypeError(f"{name} must be an array, but are a whole Attribution: draw the .scores of one example.")
    values = np.asarray(scores)
    if np.iscomplexobj(values):
        raise ValueError(f"{name} must be real, but have dtype {values.dtype}: draw their real part or magnitude.")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))
        raise ValueError(f"{name} must be finite: {len(bad)} of {values.size} are not, the first at {bad[0].tolist()}.")
    return values


def checked_limit(limit: float) -> float:
    """Where colours end, or the error for what can't be that."""
    if not 0 < limit < np.inf:
        raise ValueError(f"limit={limit!r}: expected a positive number, for colours from -limit to limit.")
    return float(limit)


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The caller's axes, or those of a new figure of this size."""
    return ax if ax is not None else extra("matplotlib.figure").Figure(size, layout="constrained").add_subplot()


def inches(axes: Axes) -> float:
    """How wide it is, about: the layout comes later."""
    return axes.bbox.width / axes.figure.dpi
