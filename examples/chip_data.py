"""A simulated genome, and the reads of a ChIP-like experiment on it.

The genome is a Markov chain with the dinucleotides of the human genome, so CpG is rare, and three motifs are planted in
it. A site is bound by how well its bases fit the motif, whether it was planted or came by chance. Its reads pile up
upstream of it on its own strand and downstream on the other one, in a shape of each motif's own. And motifs cooperate:
GATA1 has more reads where TAL1 is near.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from motifs import BASES, MOTIFS
from scipy.ndimage import find_objects, label, maximum_filter1d, uniform_filter1d
from scipy.stats import poisson

# How often one base follows another in the human genome, in percent, rounded so that both strands agree.
DINUCLEOTIDES = np.array([[9.8, 5.0, 7.0, 7.7], [7.3, 5.2, 1.0, 7.0], [5.9, 4.3, 5.2, 5.0], [6.6, 5.9, 7.3, 9.8]])
FREQUENCIES = DINUCLEOTIDES.sum(1) / DINUCLEOTIDES.sum()
# The consensus ACCGGAAGT of the largest class of ETS factors (Wei et al., EMBO J. 29:2147, 2010).
ETS = np.where(np.eye(4)[[BASES.index(base) for base in "ACCGGAAGT"]], 0.94, 0.02)


@dataclass(frozen=True)
class Factor:
    """What binds to a motif, and how its reads lie."""

    motif: np.ndarray  # (width, 4) probabilities
    half: float  # the log-odds at which it is bound half of the time
    reads: float  # from a site that is always bound, on each strand
    upstream: float  # the reads' mean distance on the site's strand
    downstream: float  # and on the other one
    spread: float  # their standard deviation


FACTORS = {
    "GATA1": Factor(MOTIFS["GATA1"], half=7.5, reads=60, upstream=8, downstream=8, spread=3),
    "TAL1": Factor(MOTIFS["TAL1"], half=8.0, reads=25, upstream=30, downstream=18, spread=8),
    "ETS": Factor(ETS, half=8.5, reads=80, upstream=14, downstream=24, spread=5),
}
NEAR, STRONGER = 40, 3.0  # within so many bases, TAL1 makes GATA1's reads so many times as many
NOISE = 0.02  # reads at each base of each strand, from anywhere
SLOT = 600  # bases for each planted group of sites
REACH = 80  # bases around a site that its reads may lie in
# After an E-box, GATA follows at a distance of nine bases where both factors bind together (Wadman et al., EMBO J.
# 16:3145, 1997); the E-box ends 5 bases before TAL1's motif does, and GATA begins 3 bases into its own.
TOGETHER = len(MOTIFS["TAL1"]) + 9 - 5 - 3
WINDOW = 75  # bases over which reads are counted to call peaks


@dataclass(frozen=True)
class Site:
    """A planted instance of a motif."""

    contig: str
    start: int
    end: int
    strand: str
    factor: str


@dataclass(frozen=True)
class Peak:
    """A line of a narrowPeak file: where there are more reads than by chance."""

    contig: str
    start: int
    end: int
    summit: int
    signal: float  # reads around the summit, over what is expected there
    log10_p: float


@dataclass(frozen=True)
class Contig:
    """A piece of the genome of `length` bases."""

    bases: np.ndarray  # (length,), numbers of A, C, G and T
    rates: np.ndarray  # (length, 2), reads that are expected on each strand
    reads: np.ndarray  # (length, 2), and those that there are


def background(rng: np.random.Generator, length: int) -> np.ndarray:
    """Bases by number, each drawn by the one before it."""
    steps = (DINUCLEOTIDES / DINUCLEOTIDES.sum(1, keepdims=True)).cumsum(1)
    # What each draw makes of each base that may come before: then only a look-up is left to be done in order.
    following = (rng.random((length, 1, 1)) > steps[:, :3]).sum(-1).tolist()
    base, bases = 0, []
    for after in following:
        base = after[base]
        bases.append(base)
    return np.array(bases, np.uint8)


def plant(rng: np.random.Generator, name: str, bases: np.ndarray) -> list[Site]:
    """Write groups of motifs into a contig: one in each slot, a third GATA1, a third ETS, a third TAL1 with GATA1."""
    sites = []
    for slot in range(0, len(bases) - SLOT + 1, SLOT):
        start = slot + int(rng.integers(SLOT // 3, 2 * SLOT // 3))
        apart = TOGETHER if rng.random() < 0.5 else int(rng.integers(TOGETHER, NEAR))
        groups = [[("GATA1", 0)], [("ETS", 0)], [("TAL1", 0), ("GATA1", apart)]]
        forward = rng.random() < 0.5
        for factor, offset in groups[rng.integers(3)]:
            motif = FACTORS[factor].motif
            instance = (rng.random((len(motif), 1)) > motif.cumsum(1)[:, :3]).sum(1)
            at = start + offset if forward else start - offset - len(motif)
            bases[at : at + len(motif)] = instance if forward else 3 - instance[::-1]
            sites.append(Site(name, at, at + len(motif), "+" if forward else "-", factor))
    return sites


def bound(bases: np.ndarray, factor: Factor) -> np.ndarray:
    """`(2, length)`: how much of the time the sites around each base are bound, by the strand of the motif."""
    width = len(factor.motif)
    windows = np.lib.stride_tricks.sliding_window_view(bases, width)
    odds = np.log(factor.motif / FREQUENCIES)
    both = np.stack([scores[np.arange(width), windows].sum(-1) for scores in (odds, odds[::-1, ::-1])])
    occupied = 1 / (1 + np.exp(factor.half - both))
    # A motif's middle is the same base on both strands.
    before, after = width // 2, width - 1 - width // 2
    return np.stack([np.pad(occupied[0], (before, after)), np.pad(occupied[1], (after, before))])


def expected(bases: np.ndarray) -> np.ndarray:
    """`(length, 2)`: the reads that are expected at each base of each strand."""
    occupied = {name: bound(bases, factor) for name, factor in FACTORS.items()}
    near = maximum_filter1d(occupied["TAL1"].max(0), 2 * NEAR + 1)
    occupied["GATA1"] = occupied["GATA1"] * (1 + (STRONGER - 1) * near)
    rates = np.full((2, len(bases)), NOISE)
    distances = np.arange(-REACH, REACH + 1)
    for name, factor in FACTORS.items():
        shapes = [np.exp(-(((distances - c) / factor.spread) ** 2) / 2) for c in (-factor.upstream, factor.downstream)]
        for strand in (0, 1):
            # A motif on the other strand is the mirror image: both the strands and the distances change places.
            own, other = shapes if strand == 0 else [shape[::-1] for shape in shapes]
            rates[strand] += factor.reads * np.convolve(occupied[name][strand], own / own.sum(), "same")
            rates[1 - strand] += factor.reads * np.convolve(occupied[name][strand], other / other.sum(), "same")
    return rates.T


def simulate(seed: int, contigs: int, length: int) -> tuple[dict[str, Contig], list[Site]]:
    """A genome with its reads, and what was planted in it."""
    rng = np.random.default_rng(seed)
    genome, planted = {}, []
    for name in (f"chr{number}" for number in range(1, contigs + 1)):
        bases = background(rng, length)
        planted += plant(rng, name, bases)
        rates = expected(bases)
        genome[name] = Contig(bases, rates, rng.poisson(rates))
    return genome, planted


def call_peaks(genome: dict[str, Contig], at_most: float, margin: int) -> list[Peak]:
    """Where there are more reads around than would come by chance with a probability of `at_most`.

    What comes by chance is a Poisson number with the genome's median as its mean. The summit is where most reads are;
    peaks with one so near to an end of a contig as `margin` are left out.
    """
    around = {
        name: uniform_filter1d(WINDOW * contig.reads.sum(1, dtype=float), WINDOW) for name, contig in genome.items()
    }
    mean = max(float(np.median(np.concatenate(list(around.values())))), 1.0)
    peaks = []
    for name, counts in around.items():
        counts = counts.round()
        labelled: Any = label(maximum_filter1d(counts, WINDOW) > poisson.isf(at_most, mean))
        for (region,) in find_objects(labelled[0]):
            summit = region.start + int(counts[region].argmax())
            if not margin <= summit <= len(counts) - margin:
                continue
            most = float(counts[summit])
            # The tail from `most` on is at most a geometric series of its first term, which doesn't underflow.
            log_p = float(poisson.logpmf(most, mean) - np.log1p(-mean / (most + 1)))
            peaks.append(Peak(name, region.start, region.stop, summit, most / mean, -log_p / np.log(10)))
    return peaks


def write_genome(genome: dict[str, Contig], fasta: Path, sizes: Path) -> None:
    """Write a FASTA file, and the table of the contigs' lengths that tools ask for."""
    letters = np.frombuffer(BASES.encode(), np.uint8)
    with fasta.open("w") as file:
        for name, contig in genome.items():
            text = letters[contig.bases].tobytes().decode()
            file.write(f">{name}\n" + "".join(f"{text[i : i + 60]}\n" for i in range(0, len(text), 60)))
    sizes.write_text("".join(f"{name}\t{len(contig.bases)}\n" for name, contig in genome.items()))


def write_peaks(peaks: list[Peak], path: Path) -> None:
    """Write a narrowPeak file: the summit is counted from the start."""
    path.write_text(
        "".join(
            f"{p.contig}\t{p.start}\t{p.end}\tpeak-{number}\t{min(int(10 * p.log10_p), 1000)}\t.\t{p.signal:.3f}\t"
            f"{p.log10_p:.3f}\t-1\t{p.summit - p.start}\n"
            for number, p in enumerate(peaks, start=1)
        )
    )


def write_variants(genome: dict[str, Contig], planted: list[Site], path: Path, beside: int = 50) -> None:
    """Write variants as VCF: for each planted site one that spoils it, and one of a base beside it.

    The first turns the base that the motif is surest of into the one that it likes least. A name says which site it is
    of, and whether it is in there.
    """
    sites = {name: np.zeros(len(contig.bases), bool) for name, contig in genome.items()}
    for site in planted:
        sites[site.contig][site.start : site.end] = True
    lines = ["##fileformat=VCFv4.2", *(f"##contig=<ID={name},length={len(c.bases)}>" for name, c in genome.items())]
    lines.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    for number, site in enumerate(planted):
        motif = FACTORS[site.factor].motif if site.strand == "+" else FACTORS[site.factor].motif[::-1, ::-1]
        bases, column = genome[site.contig].bases, int(motif.max(1).argmax())
        changes = {"in": (site.start + column, int(motif[column].argmin()))}
        if site.end + beside < len(bases) and not sites[site.contig][site.end + beside]:
            changes["beside"] = site.end + beside, (int(bases[site.end + beside]) + 1) % 4
        for place, (at, other) in changes.items():
            if bases[at] != other:
                name = f"{site.factor}_{number}_{place}"
                lines.append(f"{site.contig}\t{at + 1}\t{name}\t{BASES[bases[at]]}\t{BASES[other]}\t.\t.\t.")
    path.write_text("\n".join(lines) + "\n")
