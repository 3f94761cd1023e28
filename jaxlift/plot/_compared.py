"""Methods side by side, and the curves by which they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxlift.metrics import area
from jaxlift.plot._images import colour_bar, image, limit_of, picture, pixels
from jaxlift.plot._shared import OWN, SHARED, finite, new_axes
from jaxlift.plot._tables import draw_bars, ranked
from jaxlift.scoring._extra import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def side_by_side(
    scores: Mapping[str, ArrayLike],
    *,
    x: ArrayLike | None = None,
    overlaid: bool = False,
    shared: bool = True,
    percentile: float = 100,
    names: Sequence[str] | None = None,
    most: int = 10,
    columns: int = 5,
    label: str = "contribution",
    figure: Figure | None = None,
) -> Figure:
    """A figure of the scores of one example by several methods, each under its name.

    Scores of an image are pixels, those of a table's row bars. The figure says below whether they have one scale, on
    which methods compare in size too, or each its own, on which they compare in shape alone. (Sequences are for
    `tracks`.)

    >>> rng = np.random.default_rng(0)
    >>> figure = side_by_side({"rescale": rng.normal(size=(8, 8)), "gradient": rng.normal(size=(8, 8))}, shared=False)
    >>> figure.get_supxlabel()
    'each on a scale of its own'

    Args:
        scores: methods' names, and their scores of an image `(H, W)` or `(H, W, C)`, or of features `(F,)`.
        x: the image that was explained, `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, which comes first.
        overlaid: draw the scores on `x` instead, as `image` does with `on`.
        shared: whether all have one scale. Features are in one order in any case, by the sum of their magnitudes.
        percentile: of magnitudes, where colours end, as in `image`; of all methods together if the scale is shared.
        names: of features, as is `most`, as in `bars`.
        columns: how many there are in a line, at most.
        label: of the colour bars, or of the horizontal axis.
        figure: where to draw, such as one of another size; a new one, if left out.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no scores, they aren't finite numbers of such shapes, or features differ in number.
    """
    _check_named("scores", scores)
    if not scores or columns < 1:
        raise ValueError(f"expected scores of one method or more, and columns >= 1: got {len(scores)}, {columns}.")
    rows = {name: finite(f"scores[{name!r}]", values) for name, values in scores.items()}
    dimensions = {values.ndim for values in rows.values()}
    of_features = dimensions == {1}
    if 1 in dimensions and (not of_features or len({values.shape for values in rows.values()}) > 1):
        shapes = {name: values.shape for name, values in rows.items()}
        raise ValueError(f"expected scores of images alone, or of as many features by each method, got {shapes}.")
    if of_features and x is not None:
        raise ValueError("x is an image below or beside the scores of one: name features, and their values, by names=.")
    if overlaid and x is None:
        raise ValueError("overlaid=True needs x, the image that was explained.")
    count = len(rows) + (x is not None and not overlaid)
    columns = min(columns, count)
    lines = -(-count // columns)
    if figure is None:
        titled = 1 + max(name.count("\n") for name in rows)  # in lines
        height = 0.7 + 0.26 * min(most, len(next(iter(rows.values())))) if of_features else 2.1
        width = (3.2 if of_features else 2.1 if shared else 3) * columns + 0.8
        figure = extra("matplotlib.figure").Figure((width, (height + 0.2 * titled) * lines + 0.4), layout="constrained")
    assert figure is not None
    panels = figure.subplots(lines, columns, squeeze=False, sharex=of_features and shared, sharey=of_features).flat
    panels = [*panels]
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes, name in zip(panels[count - len(rows) :], rows, strict=False):
        axes.set_title(name, fontsize="medium")
    if count > len(rows):
        assert x is not None
        picture(x, panels[0])
        panels[0].set_title("input", fontsize="medium")
    drawn = panels[count - len(rows) : count]
    if of_features:
        _side_by_side_bars(drawn, [*rows.values()], names, most, label)
    else:
        _side_by_side_images(drawn, rows, x if overlaid else None, shared, percentile, label)
        for axes in panels[:count]:
            axes.set(xticks=[], yticks=[])
    figure.supxlabel(SHARED if shared else OWN, fontsize="small")
    return figure


def _check_named(name: str, of_methods: Any) -> None:
    if not isinstance(of_methods, Mapping) or not all(isinstance(each, str) for each in of_methods):
        raise TypeError(f"{name} must be a dictionary with a name for each method, such as {{'rescale': array}}.")


def _side_by_side_bars(
    panels: list[Axes], rows: list[np.ndarray], names: Sequence[str] | None, most: int, label: str
) -> None:
    order = np.argsort(-sum(np.abs(values) for values in rows), kind="stable")
    for axes, values in zip(panels, rows, strict=True):
        labels, amounts = ranked(values, names, None, most, order)
        draw_bars(axes, labels, np.zeros(len(amounts)), amounts, label)
        axes.axvline(0, color="black", linewidth=0.8)


def _side_by_side_images(
    panels: list[Axes], rows: dict[str, np.ndarray], on: ArrayLike | None, shared: bool, percentile: float, label: str
) -> None:
    limit = limit_of([pixels(f"scores[{name!r}]", values) for name, values in rows.items()], percentile)
    for axes, values in zip(panels, rows.values(), strict=True):
        image(
            values, ax=axes, on=on, percentile=percentile, limit=limit if shared else None, bar=not shared, label=label
        )
    if shared:
        colour_bar([axes.get_images()[-1] for axes in panels], panels, label, percentile)


def curves(
    outputs: Mapping[str, ArrayLike],
    kind: Literal["deletion", "insertion"],
    *,
    ax: Axes | None = None,
    label: str = "output",
) -> Axes:
    """Draw curves of `jaxlift.metrics.deletion` or `insertion`, such as those of several methods.

    Of several examples, the line is their mean, and the band around it the mean's standard error. The legend has the
    area under each line, as `jaxlift.metrics.area` gives it.

    >>> axes = curves({"rescale": [[7.0, 3.0, 1.0, 0.0], [5.0, 1.0, 1.0, 0.0]]}, "deletion")
    >>> axes.get_legend().get_texts()[0].get_text()
    'rescale: area 2'

    Args:
        outputs: methods' names, and what the metric returned: `(N, steps + 1)`, or `(steps + 1,)` of one example.
        kind: which metric it was, "deletion" or "insertion".
        ax: where to draw; a new figure's, if left out.
        label: the vertical axis's.

    Returns:
        The axes, with a line for each method.

    Raises:
        ValueError: if there is no curve, they aren't finite numbers of such a shape (the metrics of examples whose
            scores are NaN are NaN), or there is no such kind.
    """
    doings = {"deletion": "replaced", "insertion": "put in"}
    if kind not in doings:
        raise ValueError(f"kind={kind!r}: expected 'deletion' or 'insertion'.")
    _check_named("outputs", outputs)
    if not outputs:
        raise ValueError("expected curves of one method or more, got none.")
    rows = {name: finite(f"outputs[{name!r}]", values) for name, values in outputs.items()}
    for name, values in rows.items():
        if values.ndim not in (1, 2) or values.shape[-1] < 2 or not values.size:
            raise ValueError(f"expected outputs[{name!r}] of shape (N, steps + 1) or (steps + 1,), got {values.shape}.")
    axes = new_axes(ax, (5, 3.5))
    for name, values in rows.items():
        each = np.atleast_2d(values)
        mean, share = each.mean(0), np.linspace(0, 1, each.shape[1])
        (line,) = axes.plot(share, mean, label=f"{name}: area {float(area(mean)):.3g}".removeprefix(": "))
        if len(each) > 1:
            error = each.std(0, ddof=1) / np.sqrt(len(each))
            axes.fill_between(share, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    sizes = {len(np.atleast_2d(values)) for values in rows.values()}
    of_many = "" if sizes == {1} else f"\n(mean of {' or '.join(map(str, sorted(sizes)))} examples, ± standard error)"
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"fraction of the features {doings[kind]}, highest scores first", fontsize="small")
    axes.set_ylabel(label + of_many, fontsize="small")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", frameon=False)
    return axes
