"""Windows of a genome as examples: read where they are needed, by their places."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np

from jaxlift._arguments import check_count, some_of
from jaxlift.genomics._regions import Regions, read_regions
from jaxlift.scoring._examples import Encoding, Examples, MalformedError, is_gzipped, keys_of, reading
from jaxlift.scoring._extra import extra
from jaxlift.scoring._files import appearing, beside, check_not_read
from jaxlift.scoring._letters import BASES, Ambiguous, Unknown, reverse_complement
from jaxlift.scoring._places import local

ASSEMBLY = "Is the genome the right assembly, or is its file cut short?"
IN_BED = {"contig": "column 1", "name": "column 4", "strand": "column 6"}
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
        else:
            self._check_text()
        self._check_folder()
        with reading(self.path, "FASTA file that can be indexed (compress it with bgzip, not with gzip)"):
            self.file: Any = pyfaidx.Fasta(str(self.path), as_raw=True, sequence_always_upper=True)
            self.lengths: Mapping[str, int] = {name: len(self.file[name]) for name in self.file.keys()}  # noqa: SIM118
        self.close = self.file.close
        if self.path.suffix not in (".gz", ".bgz"):
            self._check_index()

    def _check_text(self) -> None:
        """Raise the error for a compressed file whose name doesn't say so, by which pyfaidx goes."""
        with self.path.open("rb") as file:
            if is_gzipped(file):
                raise MalformedError(
                    f"{self.path} is gzipped, and its name doesn't say so: unpack it, or compress it with bgzip and "
                    f"name it {self.path.name}.gz."
                )

    def _check_folder(self) -> None:
        """Raise the error for an index that is to be made, in a folder where nothing can be written."""
        index = self.path.with_name(f"{self.path.name}.fai")
        is_there = index.exists()
        if is_there and index.stat().st_mtime >= self.path.stat().st_mtime:
            return
        if not os.access(index if is_there else index.parent, os.W_OK):
            what = (
                "is older than the file, and can't be written anew" if is_there else "is missing, and can't be written"
            )
            raise PermissionError(
                f"the index {index} {what} there: run `samtools faidx {self.path}` as one who can write there, or copy "
                f"or link {self.path.name} to a folder where you can write."
            )

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
    `jaxlift.score` says so. It writes the others to ``STORE.kept.bed`` (narrowPeak). Of regions that end beyond their
    contig, mostly of another assembly, a warning says how many there are. ``windows[:4]`` is the first four.

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
        is_beyond = (length >= 0) & (given.end > length)
        self.is_beyond = is_beyond[~kept]
        self.turned = (self.regions.strand == "-") & stranded
        self.count = len(self.regions)
        origin = "" if isinstance(regions, Regions) else f" at {regions}"
        self.source = f"{genome}{origin}"
        if not self.count:
            raise ValueError(f"{self.source}: no region has a window within its contig. {self._why_left_out()}")
        if is_beyond.any():
            warnings.warn(
                f"{is_beyond.sum()} of {_count(len(given), 'region')} end beyond their contig, such as "
                f"{given.name[is_beyond.argmax()]}. {ASSEMBLY}",
                stacklevel=2,
            )

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

    def column(self, name: str) -> str:
        what = f"the {name}s" if name in IN_BED else "the windows' places"
        bed = self.reads[1:]
        return f"{what} in {IN_BED.get(name, 'columns 2, 3 and 10')} of {bed[0]}" if bed else f"{what} of the regions"

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

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> Windows: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | Windows:
        """A window as an array, or the windows of a slice."""
        if isinstance(number, slice):
            some = copy.copy(self)
            some.__dict__.pop("columns", None)
            some.regions, some.start, some.turned = self.regions[number], self.start[number], self.turned[number]
            some.count, some.left_out = len(some.regions), self.left_out[:0]
            some.is_missing, some.is_beyond = self.is_missing[:0], self.is_beyond[:0]
            return some
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no window {number}: there are {len(self)}.")
        return self.row(number % len(self))

    def accompany(self, store: Path) -> list[str]:
        """Write the regions that are kept beside the store, and say which are left out."""
        path = beside(store, ".kept.bed")
        check_not_read(path, self.reads)
        with appearing(path) as draft:
            self.regions.write(draft)
        others = "The other one is" if self.count == 1 else f"The {self.count} others are"
        return [f"{self._why_left_out()} {others} in {path}."] if len(self.left_out) else []

    def _why_left_out(self) -> str:
        """How many regions have no window, and why."""
        total = _count((self.count or 0) + len(self.left_out), "region")
        beyond = self.left_out.name[self.is_beyond]
        outside = self.left_out.name[~self.is_beyond & ~self.is_missing]
        missing = [*dict.fromkeys(map(str, self.left_out.contig[self.is_missing]))]
        reasons = (
            (len(beyond), f"they end beyond their contig: {some_of(beyond)}. {ASSEMBLY}"),
            (len(outside), f"a window of {self.width} leaves the contig: {some_of(outside)}."),
            (
                int(self.is_missing.sum()),
                f"the genome has no contig {some_of(missing)}; it has {some_of([*self.genome.lengths])}.",
            ),
        )
        return " ".join(f"{count} of {total} left out, because {why}" for count, why in reasons if count)


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
