"""Windows of a genome as examples: read where they are needed, by their places."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxlift._arguments import check_count, some_of
from jaxlift.genomics._regions import Regions, read_regions
from jaxlift.scoring._examples import Encoding, Examples, MalformedError, keys_of, reading
from jaxlift.scoring._extra import extra
from jaxlift.scoring._files import appearing, beside, check_not_read
from jaxlift.scoring._letters import BASES, Ambiguous, Unknown, reverse_complement
from jaxlift.scoring._places import local

HEADER = 4096  # bytes of a contig's description, at most, in which its name is looked for


class Genome:
    """The contigs of an indexed FASTA file, by `pyfaidx`, which makes the index (``.fai``) where there is none.

    Args:
        path: of the file, plain or bgzipped.

    Attributes:
        lengths: of the contigs, by name.
    """

    def __init__(self, path: str | Path) -> None:
        pyfaidx = extra("pyfaidx")
        self.path = local(path, "windows of it are read in any order")
        if not self.path.exists():
            raise FileNotFoundError(f"there is no file {self.path}.")
        if self.path.suffix in (".gz", ".bgz"):
            extra("Bio")  # which pyfaidx reads bgzipped files with
        with reading(self.path, "FASTA file that can be indexed (compress it with bgzip, not with gzip)"):
            self.file: Any = pyfaidx.Fasta(str(self.path), as_raw=True, sequence_always_upper=True)
            self.lengths: Mapping[str, int] = {name: len(self.file[name]) for name in self.file.keys()}  # noqa: SIM118
        self.close = self.file.close
        if self.path.suffix not in (".gz", ".bgz"):
            self._check_index()

    def _check_index(self) -> None:
        """Raise the error for an index of another file, which pyfaidx takes for this one's if it is not older."""
        size, end = self.path.stat().st_size, 0
        with self.path.open("rb") as file:
            for name, entry in self.file.faidx.index.items():
                begin = max(0, entry.offset - len(name) - HEADER)
                file.seek(begin)
                header = file.read(entry.offset - begin).rstrip(b"\r\n").rpartition(b"\n")[2]
                lines, rest = divmod(entry.rlen, entry.lenc or 1)
                end = max(end, entry.offset + lines * entry.lenb + rest)
                if b"".join(header.split()[:1]) != b">" + name.encode() and len(header) < len(name) + HEADER - 1:
                    self._refuse_index(f"there is no {name} where it says")
            file.seek(min(end, size))
            if size < end - len("\r\n") or file.read(HEADER).strip():
                self._refuse_index("the file ends elsewhere")

    def _refuse_index(self, why: str) -> NoReturn:
        self.close()
        raise MalformedError(f"{self.path}.fai is the index of another file ({why}): delete it, and run this again.")

    def letters(self, contig: str, start: int, end: int) -> np.ndarray:
        """ASCII letters `(end - start,)` uint8, upper case, of a part that lies within the contig."""
        text: str = self.file.faidx.fetch(contig, start + 1, end)
        return np.frombuffer(str(text).encode(), np.uint8)


class Windows(Examples):
    """One-hot windows of a genome, centred on regions: examples for `jaxlift.score` and for anything that indexes.

    >>> import jaxlift, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "genome.fa")
    >>> _ = path.write_text(">chr1\\nACGTNACGTA\\n")
    >>> windows = jaxlift.genomics.Windows(path, jaxlift.genomics.Regions(["chr1", "chr1"], [3, 8], [5, 10]), width=4)
    >>> windows[0].tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    >>> len(windows), [str(name) for name in windows.left_out.name]
    (1, ['chr1:8-10'])

    A window has `width` positions, `width // 2` of them before the region's summit, or before its middle where it has
    none. One that would leave its contig, or whose contig the genome lacks, is left out: `left_out` has its region, and
    `jaxlift.score` says so. It writes the others to ``STORE.kept.bed`` (narrowPeak).

    Args:
        genome: the path of a FASTA file, which is indexed if it isn't yet.
        regions: `Regions`, or the path of a BED file (see `read_regions`).
        width: how many positions the model takes; left out, as many as all regions have.
        stranded: whether regions on strand ``"-"`` are read as their reverse complement.
        channel_axis: -1 for examples `(width, 4)`, -2 for `(4, width)`.
        unknown: N as ``"zeros"``, or as ``"quarters"`` of each base.
        ambiguous: IUPAC's letters for one of several bases (R for A or G) as ``"unknown"``, as equal ``"shares"`` of
            those, or ``"refuse"``: the example is malformed then.

    Attributes:
        regions: those whose windows lie within the genome, in their order.
        left_out: the others.

    Raises:
        ValueError: if no region has a window in the genome, or an argument has no such value.
        ModuleNotFoundError: if pyfaidx is not installed: ``pip install 'jaxlift[genomics]'``.
    """

    letters = BASES

    def __init__(
        self,
        genome: str | Path,
        regions: Regions | str | Path,
        width: int | None = None,
        *,
        stranded: bool = True,
        channel_axis: int = -1,
        unknown: Unknown = "zeros",
        ambiguous: Ambiguous = "unknown",
    ) -> None:
        given = regions if isinstance(regions, Regions) else read_regions(regions)
        self.width = width = _width(given) if width is None else width
        check_count("width", width)
        self.encoding = Encoding(unknown, ambiguous, channel_axis)
        self.shape, self.dtype = self.encoding.shape(width), np.dtype(np.float32)
        self.reads = [genome, *([] if isinstance(regions, Regions) else [regions])]
        self.genome = Genome(genome)
        self.close = self.genome.close
        start = given.centre - width // 2
        length = np.array([self.genome.lengths.get(contig, -1) for contig in given.contig])
        kept = (start >= 0) & (start + width <= length)
        self.regions, self.left_out, self.start = given[kept], given[~kept], start[kept]
        self.is_missing = length[~kept] < 0
        self.turned = (self.regions.strand == "-") & stranded
        self.count = len(self.regions)
        origin = "" if isinstance(regions, Regions) else f" at {regions}"
        self.source = f"{genome}{origin}"
        if not self.count:
            raise ValueError(f"{self.source}: no region has a window within its contig. {self._why_left_out()}")

    @property
    def hint(self) -> str:
        return f"Windows have {self.width} positions: give the width that the model takes. " + (
            "With channel_axis=-2 (--layout N4L) they are (4, L)."
            if self.encoding.channel_axis == -1
            else "With channel_axis=-1 (--layout NL4) they are (L, 4)."
        )

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The regions' names and strands, the windows' places, and the summits."""
        regions = self.regions
        strand = np.where(self.turned, "-", np.where(regions.strand == "-", "+", regions.strand))
        return {
            "name": regions.name,
            "contig": regions.contig,
            "start": self.start,
            "end": self.start + self.width,
            "strand": strand.astype(np.dtypes.StringDType()),
            "summit": regions.centre,
        }

    def keys(self, start: int, stop: int) -> np.ndarray:
        """Of the windows' places, so that neither the order of the regions nor other regions matter."""
        columns = zip(*(self.columns[name][start:stop] for name in ("contig", "start", "end", "strand")), strict=True)
        return keys_of(f"{contig}:{begin}-{end}({strand})" for contig, begin, end, strand in columns)

    def row(self, number: int) -> np.ndarray:
        return self.encoding(self.letters_of(number))

    def rows(self, start: int, stop: int) -> np.ndarray:
        letters = np.empty((max(stop - start, 0), self.width), np.uint8)
        for i in range(start, stop):
            letters[i - start] = self.letters_of(i)
        return self.encoding(letters)

    def letters_of(self, number: int) -> np.ndarray:
        """ASCII letters `(width,)` uint8 of one window, in the direction in which the model reads it."""
        start = int(self.start[number])
        letters = self.genome.letters(self.regions.contig[number], start, start + self.width)
        return reverse_complement(letters) if self.turned[number] else letters

    def __len__(self) -> int:
        return self.count or 0

    def __getitem__(self, number: int) -> np.ndarray:
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no window {number}: there are {len(self)}.")
        return self.row(number % len(self))

    def accompany(self, store: Path) -> list[str]:
        """Write the regions that are kept beside the store, and say which are left out."""
        path = beside(store, ".kept.bed")
        check_not_read(path, self.reads)
        with appearing(path) as draft:
            self.regions.write(draft)
        return [f"{self._why_left_out()} The {self.count} others are in {path}."] if len(self.left_out) else []

    def _why_left_out(self) -> str:
        """How many regions have no window, and why."""
        said = []
        outside = self.left_out.name[~self.is_missing]
        if len(outside):
            said.append(
                f"{_count(len(outside), 'region')} left out, because a window of {self.width} leaves the contig: "
                f"{some_of(outside)}."
            )
        missing = Counter(map(str, self.left_out.contig[self.is_missing]))
        if missing:
            said.append(
                f"{_count(sum(missing.values()), 'region')} left out, because the genome has no contig "
                f"{some_of([*missing])}; it has {some_of([*self.genome.lengths])}."
            )
        return " ".join(said)


def _width(regions: Regions) -> int:
    """How many positions all regions have."""
    widths = np.unique(regions.end - regions.start)
    if len(widths) > 1:
        raise ValueError(
            f"regions have {widths[0]} to {widths[-1]} positions: say how many the model takes, with width=."
        )
    return int(widths[0])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
