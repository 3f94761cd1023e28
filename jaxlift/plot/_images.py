"""Scores as pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxlift.plot._shared import DIVERGING, checked_limit, finite, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def image(
    scores: ArrayLike,
    *,
    ax: Axes | None = None,
    on: ArrayLike | None = None,
    percentile: float = 100,
    limit: float | None = None,
    bar: bool = True,
    label: str = "contribution",
) -> Axes:
    """Draw scores as pixels, red where they are positive and blue where they are negative.

    >>> image(np.eye(3)).get_images()[0].get_clim()
    (-1.0, 1.0)

    Args:
        scores: `(H, W)`, or `(H, W, C)` with up to 4 channels, which are summed.
        ax: where to draw; a new figure's, if left out.
        on: the input, `(H, W)`, `(H, W, 1)` or `(H, W, 3)` in any range. It is drawn in grey below the scores, which
            are the more opaque the larger they are.
        percentile: colours end at this percentile of the scores' magnitudes, so that a few large ones don't make the
            others pale. The colour bar's label says so where anything lies beyond.
        limit: where colours end instead, as for several pictures on one scale.
        bar: whether to draw a colour bar.
        label: the colour bar's.

    Returns:
        The axes. The scores are the last of its images.

    Raises:
        ValueError: if the scores aren't finite numbers of such a shape, the input has another height or width, or
            there is no such percentile or limit.
    """
    drawn = pixels("scores", scores)
    end = limit_of([drawn], percentile, limit)
    axes = new_axes(ax, (5, 4.5))
    alpha = None
    if on is not None:
        axes.imshow(_grey(on, drawn.shape), cmap="gray")
        alpha = np.minimum(np.abs(drawn) / end, 1)
    shown = axes.imshow(drawn, cmap=DIVERGING, vmin=-end, vmax=end, alpha=alpha)
    if bar:
        colour_bar([shown], [axes], label, percentile if limit is None else None)
    return axes


def picture(x: ArrayLike, axes: Axes) -> None:
    """Draw the input as it is: with three channels in colour, else in grey."""
    values = finite("x", x)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)) or not values.size:
        raise ValueError(f"expected an input (H, W), (H, W, 1) or (H, W, 3), got shape {values.shape}.")
    values = values[..., 0] if values.shape[2:] == (1,) else values
    axes.imshow((values - values.min()) / (np.ptp(values) or 1), cmap="gray")


def pixels(name: str, scores: ArrayLike) -> np.ndarray:
    """Scores of an image `(H, W)`, or the error that says why there are none."""
    values = finite(name, scores)
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] <= 4)) or not values.size:
        raise ValueError(
            f"expected {name} of an image (H, W) or (H, W, C), with C up to 4, got shape {values.shape}; channels come "
            "last, and a batch's images are drawn one by one."
        )
    return values if values.ndim == 2 else values.sum(2)


def limit_of(images: list[np.ndarray], percentile: float, limit: float | None = None) -> float:
    """Where colours end."""
    if limit is not None:
        return checked_limit(limit)
    if not 1 < percentile <= 100:
        raise ValueError(
            f"percentile={percentile!r}: expected one above 1 and up to 100, such as 99; 100 clips nothing."
        )
    magnitudes = np.abs(np.concatenate([values.ravel() for values in images]))
    # Where most of an image is zero, so may be the percentile; then nothing is clipped.
    return float(np.percentile(magnitudes, percentile)) or float(magnitudes.max()) or 1.0


def colour_bar(shown: list[AxesImage], axes: list[Axes], label: str, percentile: float | None, **options: Any) -> None:
    """One for images on the same scale. It says what is beyond its ends."""
    end = shown[0].get_clim()[1]
    below, above = (any((sign * np.asarray(each.get_array()) > end).any() for each in shown) for sign in (-1, 1))
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    if below or above:
        of = "" if percentile is None else f"\n(percentile {percentile:g} of magnitudes)"
        label = f"{label}, clipped at ±{end:.3g}{of}"
    bar = axes[0].figure.colorbar(shown[0], ax=axes, extend=extend, **options)
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize=8)


def _grey(x: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    values = finite("on", x)
    if values.shape not in (shape, (*shape, 1), (*shape, 3)):
        raise ValueError(
            f"expected on=, the input, of shape {shape}, {(*shape, 1)} or {(*shape, 3)} as the scores have, got "
            f"{values.shape}. Bring a coarser map to the input's size first: jaxlift.resized(map, (height, width))."
        )
    return values if values.ndim == 2 else values.mean(2)
