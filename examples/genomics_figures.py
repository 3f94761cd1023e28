"""The pictures of the genomics example."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from motifs import BASES, MOTIFS, STRONG, TASKS, in_windows, log_odds

from jaxlift import plot

GROUPS = {"neither motif": "0.45", "GATA1 only": "#2e8b57", "TAL1 only": "#2c6fbb", "both motifs": "#c0392b"}


def scatter(
    scores: dict[str, np.ndarray],
    sequences: np.ndarray,
    labels: np.ndarray,
    places: np.ndarray,
    motif: str,
    tasks: list[int],
    columns: int,
) -> Figure:
    """Figure 5: the scores of the five best matches in each sequence, by how good a match each is.

    Windows that an instance reaches into, of this motif or another, aren't matches and have that instance's score.
    """
    windows = np.lib.stride_tricks.sliding_window_view(places, len(MOTIFS[motif]), axis=1)
    in_the_way = (windows != windows[..., :1]).any(-1) | ~np.isin(windows[..., 0], (0, 1 + list(MOTIFS).index(motif)))
    odds = np.where(in_the_way, -np.inf, log_odds(sequences, motif))
    best = np.argsort(-odds, axis=1)[:, :5]
    best_odds, group = np.take_along_axis(odds, best, 1), labels[:, 1] + 2 * labels[:, 2]
    rows = len(tasks) * len(scores) // columns
    figure = Figure((2.3 * columns, 0.5 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    panels = [(task, name) for task in tasks for name in scores]
    for number, (axis, (task, name)) in enumerate(zip(axes.flat, panels, strict=True)):
        of_best = np.take_along_axis(in_windows(scores[name][:, task], motif), best, 1)
        for k, (label, colour) in enumerate(GROUPS.items()):
            points = best_odds[group == k], of_best[group == k]
            axis.scatter(*points, s=4, color=colour, label=f"sequence with {label}", linewidths=0, alpha=0.6)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.axvline(STRONG, color="0.6", linewidth=0.6, linestyle=":")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.locator_params(axis="y", nbins=5)
        if number < len(scores):
            axis.set_title(name.replace(", ", ",\n"), fontsize=9)
        if number % columns == 0:
            axis.set_ylabel(f"task: {TASKS[task]}\nscore of the match", fontsize=9)
        if number >= len(panels) - columns:
            axis.set_xlabel(f"log-odds of {motif} match", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=4 if columns > 3 else 2,
        fontsize=9,
        markerscale=4,
        frameon=False,
    )
    return figure


def logos(rows: dict[str, np.ndarray], place: np.ndarray) -> Figure:
    """Scores `(200, 4)` of one sequence as logos, from its first motif to its last, with the motifs marked."""
    on_motif = np.flatnonzero(place)
    window = slice(max(on_motif[0] - 5, 0), on_motif[-1] + 6)
    starts = np.flatnonzero(np.diff(place, prepend=0) * (place > 0))
    named = [(start - window.start, list(MOTIFS)[place[start] - 1]) for start in starts.tolist()]
    return plot.tracks(
        {name.replace(" x ", "\nx ").replace(", ", ",\n"): values[window] for name, values in rows.items()},
        letters=BASES,
        spans=[(first, first + len(MOTIFS[motif]), motif) for first, motif in named],
        title="contributions of the bases to the logit of the joint task",
        shared=False,
    )


def summary(
    methods: dict[str, dict[str, float]], references: dict[str, dict[str, dict[str, float]]], names: Iterable[str]
) -> Figure:
    """What the methods cost and how far they are from Shapley values; how far sets of references agree."""
    figure = Figure((10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {name: f"C{k}" for k, name in enumerate(names)}
    for name, colour in colours.items():
        left.scatter(methods[name]["milliseconds"], methods[name]["distance"], color=colour, s=45, label=name, zorder=2)
    left.axhline(
        methods["Shapley, sampled"]["distance"],
        color="0.4",
        linestyle=":",
        linewidth=1,
        label="error of sampled Shapley values",
    )
    left.set(
        xscale="log",
        ylim=(0, None),
        xlabel="ms per example",
        ylabel="distance to Shapley values\n(relative, joint task)",
    )
    # The first curves are the widest, so that those that lie on them hide none.
    for (name, by_count), width in zip(references.items(), np.linspace(6, 1.5, len(references)), strict=True):
        counts = [count for count in by_count if count.isdigit()]
        agreements = [by_count[c]["agreement"] for c in counts]
        right.plot([int(c) for c in counts], agreements, "o-", color=colours[name], lw=width, ms=3 + width, alpha=0.7)
    right.set(
        xscale="log",
        xlabel="shuffled references in each of two sets",
        ylabel="correlation of the scores\nby one set and the other",
    )
    right.set_xticks([1, 10, 50], ["1", "10", "50"])
    right.minorticks_off()
    # Few ticks, for methods cost nearly the same or very different amounts.
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure
