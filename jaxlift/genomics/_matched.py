"""References from the genome itself: windows with as much GC as a region has."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlift._arguments import check_count
from jaxlift.genomics._regions import Regions, read_regions
from jaxlift.genomics._windows import Genome, Windows
from jaxlift.scoring._examples import Examples, Records, Status
from jaxlift.scoring._letters import IS_BASE
from jaxlift.scoring._reference import Reference

# How many letters are read at once, and how many windows there are to choose from, at most.
PIECE, MOST = 2**24, 2**21
# How many windows are drawn first for each that is wanted: some may be excluded.
DRAWN = 16
IS_GC = np.isin(np.arange(256), list(b"GCgc"))


class MatchedRegions:
    """Windows of a genome with the same share of G and C as a region, as its references.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "genome.fa")
    >>> _ = path.write_text(">chr1\\n" + "".join(np.random.default_rng(0).choice(list("ACGT"), 20_000)) + "\\n")
    >>> matched = MatchedRegions(path, 100, per_region=3, tolerance=0.02)
    >>> references = matched("chr1", 5000, 5100, "peak1")
    >>> references.shape
    (3, 100)
    >>> region = matched.genome.letters("chr1", 5000, 5100)
    >>> [bool(abs(gc_share(each) - gc_share(region)) <= 0.02) for each in references]
    [True, True, True]

    The windows to choose from lie side by side on all contigs, or further apart where there would be more than two
    million. They have no N or other letter for several bases. Which of those within the tolerance a region gets is
    drawn from the seed, its name and its place alone: not from its number, nor from other regions. (A window that is
    excluded is passed over, and the other draws stay as they are.)

    The genome is read once, when the first references are asked for, which for a human genome takes about a minute,
    and then 1 ms for each region. What is kept of it takes at most 40 MB.

    Args:
        genome: the path of a FASTA file, which is indexed if it isn't yet.
        width: how many letters a window has.
        per_region: how many windows each region gets, all different.
        tolerance: how far the share of G and C may be off.
        exclude: `Regions`, or the path of a BED file, that no window may overlap, such as all peaks. A region's own
            place is excluded for itself in any case.
        seed: what windows are drawn from.

    Raises:
        ValueError: if a number isn't one that makes sense.
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if pyfaidx is not installed: ``pip install 'jaxlift[genomics]'``.
    """

    def __init__(
        self,
        genome: str | Path,
        width: int,
        *,
        per_region: int = 20,
        tolerance: float = 0.02,
        exclude: Regions | str | Path | None = None,
        seed: int = 0,
    ) -> None:
        check_count("width", width)
        check_count("per_region", per_region)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance={tolerance} must be a share of the letters, 0 to 1.")
        self.genome, self.width, self.per_region = Genome(genome), width, per_region
        self.tolerance, self.seed = tolerance, seed
        self.close = self.genome.close
        self.exclude = read_regions(exclude) if isinstance(exclude, str | Path) else exclude

    def __call__(self, contig: str, start: int, end: int, name: str = "") -> np.ndarray:
        """The references of one region.

        Args:
            contig, start, end: its place, from 0, with the end not included.
            name: its name.

        Returns:
            ASCII letters A, C, G and T, `(per_region, width)` uint8.

        Raises:
            ValueError: if the region isn't in the genome or has no base, or if too few windows match.
        """
        places = self.places(contig, start, end, name)
        return np.stack([self.genome.letters(contig, start, start + self.width) for contig, start in places])

    def of_examples(self, examples: Examples) -> Reference:
        """What `jaxlift.score` compares windows of a genome with: their matched regions, in the same encoding.

        A window for which too few match has no reference, and is reported with the reason.

        Raises:
            ValueError: if the examples are no windows of a genome, or of another width.
        """
        if not isinstance(examples, Windows) or examples.width != self.width:
            raise ValueError(
                f"matched regions of {self.width} positions are references of jaxlift.genomics.Windows of that width, "
                f"got {examples.source} of shape {examples.shape}."
            )
        columns = [examples.columns[name] for name in ("contig", "start", "end", "name")]

        def of_records(records: Records, first: int) -> np.ndarray:
            made = np.zeros((len(records.values), self.per_region, *examples.shape), np.float32)
            for i in np.flatnonzero(records.status == Status.SCORED):
                try:
                    made[i] = examples.encoding(self(*(column[first + i] for column in columns)))
                except ValueError as error:
                    records.status[i] = Status.NO_REFERENCE
                    records.messages[first + int(i)] = str(error)
            return made

        description = {
            "name": "gc_matched",
            "contigs": hashlib.sha256(repr(sorted(self.genome.lengths.items())).encode()).hexdigest(),
            "regions": self.per_region,
            "tolerance": self.tolerance,
            "seed": self.seed,
            "exclude": None if self.exclude is None else self.exclude.checksum,
        }
        return Reference(description, None, self.per_region, of_records)

    def places(self, contig: str, start: int, end: int, name: str = "") -> list[tuple[str, int]]:
        """The contigs and the starts of the same, in the order in which they were drawn."""
        contig, start, end, name = str(contig), int(start), int(end), str(name)
        where = f"region {name or 'without a name'}, {contig}:{start}-{end}"
        length = self.genome.lengths.get(contig)
        if length is None or not 0 <= start < end <= length:
            has = "has no such contig" if length is None else f"has {length} positions there"
            raise ValueError(f"{where}: it doesn't lie within the genome, which {has}.")
        share = gc_share(self.genome.letters(contig, start, end))
        if np.isnan(share):
            raise ValueError(f"{where}: it has no A, C, G or T, and so no share of GC to match.")
        windows = self.windows
        # Shares are numbers of letters over a width: half a letter more, so that rounding doesn't matter.
        low, high = (self.width * (share + off) for off in (-self.tolerance, self.tolerance))
        first, last = np.searchsorted(windows.gc, [np.ceil(low - 1e-6), np.floor(high + 1e-6) + 1])
        random, own = _random(self.seed, name, contig, start, end), windows.names.index(contig)
        kept: np.ndarray = np.zeros(0, int)
        for most in (DRAWN * self.per_region, last - first):  # a few, and if too many of those are excluded, all
            drawn = first + random.choice(last - first, min(most, last - first), replace=False)
            begin = windows.start[drawn]
            is_own = (windows.contig[drawn] == own) & (begin < end) & (start < begin + self.width)
            kept = drawn[~is_own & ~windows.is_excluded[drawn]]
            if len(kept) >= self.per_region:
                return [(windows.names[windows.contig[i]], int(windows.start[i])) for i in kept[: self.per_region]]
        raise ValueError(
            f"{where}: its GC share is {share:.3f}, and of the genome's windows that aren't excluded {len(kept)} have "
            f"that within {self.tolerance}, fewer than the {self.per_region} that are wanted. Allow a larger "
            "tolerance, or want fewer."
        )

    @functools.cached_property
    def windows(self) -> _Windows:
        """All windows to choose from."""
        names = list(self.genome.lengths)
        step = max(self.width, sum(self.genome.lengths.values()) // MOST)
        found = [self._on_contig(name, step) for name in names]
        contig = np.repeat(np.arange(len(names), dtype=np.int32), [len(start) for start, *_ in found])
        start, gc, is_excluded = (np.concatenate([each[i] for each in found]) for i in range(3))
        order = np.argsort(gc, kind="stable")
        return _Windows(names, contig[order], start[order], gc[order], is_excluded[order])

    def _on_contig(self, name: str, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The starts of the windows on a contig, how many G and C each has, and whether it is excluded."""
        length, width = self.genome.lengths[name], self.width
        free = length - width + 1
        if free < 1:
            return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, bool)
        starts = np.arange(int(_random(self.seed, name).integers(min(step, free))), free, step)
        known, gc = np.zeros(len(starts), np.int32), np.zeros(len(starts), np.int32)
        count = max(1, PIECE // step)
        for i in range(0, len(starts), count):
            piece = starts[i : i + count]
            letters = self.genome.letters(name, int(piece[0]), min(int(piece[-1]) + step, length))
            letters = np.pad(letters, (0, len(piece) * step - len(letters))).reshape(len(piece), step)[:, :width]
            known[i : i + count], gc[i : i + count] = IS_BASE[letters].sum(1), IS_GC[letters].sum(1)
        is_whole = known == width
        starts, gc = starts[is_whole], gc[is_whole]
        return starts, gc, self._is_excluded(name, starts)

    def _is_excluded(self, contig: str, starts: np.ndarray) -> np.ndarray:
        """Which windows overlap a region that is excluded."""
        if self.exclude is None:
            return np.zeros(len(starts), bool)
        there = self.exclude[self.exclude.contig == contig]
        order = np.argsort(there.start)
        # Of the regions that begin before a window's end, the one that reaches furthest.
        furthest = np.maximum.accumulate(np.append(-1, there.end[order]))
        return furthest[np.searchsorted(there.start[order], starts + self.width)] > starts


class _Windows(NamedTuple):
    """Windows in ascending order of their GC: the number of the contig, the start, G and C, and whether excluded."""

    names: list[str]
    contig: np.ndarray
    start: np.ndarray
    gc: np.ndarray
    is_excluded: np.ndarray


def gc_share(letters: np.ndarray) -> float:
    """The share of G and C among the bases of ASCII letters; NaN where there is none."""
    known = int(IS_BASE[letters].sum())
    return int(IS_GC[letters].sum()) / known if known else float("nan")


def _random(*what: object) -> np.random.Generator:
    """A generator that depends on these numbers and texts alone. (NumPy may change what its generators draw.)"""
    return np.random.default_rng(np.frombuffer(hashlib.sha256(repr(what).encode()).digest(), np.uint64))
