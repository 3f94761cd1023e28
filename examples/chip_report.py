"""Which of the planted motifs are among those that TF-MoDISco made of the scores, and a picture of all of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from chip_data import FACTORS, FREQUENCIES, Contig, Peak, Site
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxlift import plot

FOUND = 0.85  # the similarity from which on a motif was found
LEAST = 0.25  # of a pattern's largest contribution, which a base in a match has at least: else it lies beside the motif
AROUND = 70  # bases on each side of the summit that the picture shows
FLANK = 8  # and on each side of a motif


@dataclass(frozen=True)
class Pattern:
    """A motif that TF-MoDISco has found."""

    name: str
    contributions: np.ndarray  # (width, 4), the mean of its instances
    seqlets: int  # how many those are


@dataclass(frozen=True)
class Match:
    """Where a planted motif is most like a pattern."""

    pattern: Pattern
    similarity: float
    start: int  # in the pattern, or its reverse complement
    reverse: bool


def read_patterns(path: Path) -> list[Pattern]:
    """Those of a file that `modisco motifs` wrote, with positive contributions, most instances first."""
    with h5py.File(path) as file:
        groups: Any = file.get("pos_patterns", {})
        found = [
            Pattern(name, group["contrib_scores"][:], int(group["seqlets/n_seqlets"][0]))
            for name, group in groups.items()
        ]
    return sorted(found, key=lambda pattern: -pattern.seqlets)


def projected(path: Path, row: int) -> np.ndarray:
    """The contributions `(L, 4)` of one example, at the bases that are there, in a file that `jaxlift export` wrote."""
    with h5py.File(path) as file:
        scores: Any = file["projected_shap/seq"]
        return scores[row].T.astype(float)


def heights(motif: np.ndarray) -> np.ndarray:
    """Letters `(width, 4)` as high as their share of the bits by which a position differs from the background."""
    return motif * (motif * np.log2(motif / FREQUENCIES)).sum(1, keepdims=True)


def compare(motif: np.ndarray, pattern: Pattern) -> Match:
    """The pattern's contributions and the motif's heights correlate the most at this place, on this strand."""
    width, wanted = len(motif), heights(motif).ravel()
    least = LEAST * np.abs(pattern.contributions).max()
    room = np.pad(pattern.contributions, ((width // 2, width // 2), (0, 0)))  # the motif may reach out of it
    matches = [
        Match(pattern, float(np.corrcoef(wanted, window.ravel())[0, 1]), start - width // 2, reverse)
        for reverse, part in ((False, room), (True, room[::-1, ::-1]))
        for start, window in enumerate(np.lib.stride_tricks.sliding_window_view(part, (width, 4))[:, 0])
        if np.abs(window).max() >= least
    ]
    return max(matches, key=lambda match: match.similarity)


def find_planted(patterns: list[Pattern]) -> dict[str, list[Match]]:
    """Each planted motif's matches with all patterns, the most similar first."""
    return {
        name: sorted((compare(factor.motif, pattern) for pattern in patterns), key=lambda match: -match.similarity)
        for name, factor in FACTORS.items()
    }


def aligned(match: Match, width: int) -> np.ndarray:
    """`(width + 16, 4)`: the pattern as the planted motif lies in it, with what is on both sides."""
    pattern = match.pattern.contributions
    pattern = pattern[::-1, ::-1] if match.reverse else pattern
    room = width + FLANK  # the motif may reach out of the pattern
    return np.pad(pattern, ((room, room), (0, 0)))[match.start + width : match.start + 2 * (width + FLANK)]


def picture(
    peak: Peak,
    contig: Contig,
    sites: list[Site],
    scores: dict[str, np.ndarray],
    predicted: np.ndarray,
    found: dict[str, dict[str, list[Match]]],
) -> Figure:
    """One peak's scores by target `(L, 4)`, its reads and those predicted `(200, 2)`, and the motifs of all peaks."""
    rows = [1.0] * len(scores) + [1.3] + [0.8] * len(FACTORS) * bool(found)
    figure = Figure((12, 0.8 + 1.4 * sum(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), 1 + len(scores), height_ratios=rows)
    first, last = peak.summit - AROUND, peak.summit + AROUND
    inside = [site for site in sites if site.contig == peak.contig and first <= site.start and site.end <= last]
    for row, (target, values) in enumerate(scores.items()):
        spans = [(site.start, site.end, "" if row else f"{site.factor}, strand {site.strand}") for site in inside]
        part = values[len(values) // 2 - AROUND :][: 2 * AROUND]
        axis = plot.logo(part, ax=figure.add_subplot(grid[row, :]), start=first, spans=spans)
        axis.set_ylabel(f"contribution\nto {target}", fontsize=9)
        axis.set_xlabel("")
        axis.tick_params(labelsize=8, labelbottom=False)
    draw_reads(figure.add_subplot(grid[len(scores), :]), peak, contig.reads, predicted)
    for row, (factor, motif) in enumerate((name, factor.motif) for name, factor in FACTORS.items() if found):
        columns = {f"{factor}, as planted": np.pad(heights(motif), ((FLANK, FLANK), (0, 0)))}
        for target, matches in found.items():
            for match in matches[factor][:1]:
                if match.similarity >= FOUND:
                    columns[f"by {target}: similarity {match.similarity:.2f}"] = aligned(match, len(motif))
                else:
                    columns[f"by {target}: not found"] = np.zeros((1, 4))
        for column, (title, values) in enumerate(columns.items()):
            axis = plot.logo(values, ax=figure.add_subplot(grid[len(scores) + 1 + row, column]))
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    return figure


def draw_reads(axis: Axes, peak: Peak, reads: np.ndarray, predicted: np.ndarray) -> None:
    """The reads around a summit, those of the strand - below the axis, and how many the network expects `(200, 2)`."""
    positions = np.arange(peak.summit - AROUND, peak.summit + AROUND)
    predicted = predicted[len(predicted) // 2 - AROUND :][: 2 * AROUND]
    for strand, (sign, name) in enumerate([(1, "+"), (-1, "-")]):
        axis.bar(positions, sign * reads[positions, strand], width=1, color="0.75", label="_" if strand else "reads")
        label = f"predicted, strand {name}"
        axis.plot(positions, sign * predicted[:, strand], color=f"C{strand}", linewidth=1.2, label=label)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xlim(positions[0] - 0.5, positions[-1] + 0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axis.tick_params(labelsize=8)
    axis.set_ylabel("reads", fontsize=9)
    axis.set_xlabel(f"{peak.contig}, which the network hasn't seen, positions from 0", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="upper right")
