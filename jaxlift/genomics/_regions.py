"""Regions of a genome: BED files of three columns or more, ENCODE's narrowPeak among them."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from jaxlift.scoring._examples import MalformedError, is_gzipped, reading
from jaxlift.scoring._places import place

NARROW_PEAK = 10  # columns, the last of which is the summit's offset from the start
STRANDS = ("+", "-", ".")


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of a genome, a value of each in each column. Positions count from 0, and ends are not included.

    >>> import jaxlift
    >>> jaxlift.genomics.Regions(["chr1", "chr1"], [100, 300], [200, 500]).centre
    array([150, 400])

    Attributes:
        contig: `(N,)` text, as the genome's file has it.
        start, end: `(N,)` int64.
        name: `(N,)` text; ``contig:start-end`` where a file has none.
        strand: `(N,)` text: ``"+"``, ``"-"`` or ``"."``, which is read as ``"+"``.
        summit: `(N,)` int64, the position of the peak's summit; -1 where it isn't known.
    """

    contig: np.ndarray
    start: np.ndarray
    end: np.ndarray
    name: np.ndarray = None  # pyright: ignore[reportAssignmentType], filled in below
    strand: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    summit: np.ndarray = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        n = len(self.contig)
        contig, start, end = self.contig, np.asarray(self.start, np.int64), np.asarray(self.end, np.int64)
        defaults = {
            "name": [f"{c}:{s}-{e}" for c, s, e in zip(contig, start, end, strict=True)] if self.name is None else (),
            "strand": ["."] * n,
            "summit": np.full(n, -1),
        }
        for column in fields(self):
            values = getattr(self, column.name)
            values = defaults[column.name] if values is None else values
            kind = np.int64 if column.name in ("start", "end", "summit") else np.dtypes.StringDType()
            values = np.asarray(values, kind)
            if values.shape != (n,):
                raise ValueError(f"{column.name} has shape {values.shape}, expected ({n},), as long as contig.")
            object.__setattr__(self, column.name, values)
        if not np.isin(self.strand, STRANDS).all():
            raise ValueError(f"strands must be '+', '-' or '.', got {sorted(set(self.strand) - set(STRANDS))}.")
        bad = np.flatnonzero((self.start < 0) | (self.end <= self.start))
        if len(bad):
            i = bad[0]
            raise ValueError(f"region {i}, {self.contig[i]}:{self.start[i]}-{self.end[i]}: expected 0 <= start < end.")

    def __len__(self) -> int:
        return len(self.contig)

    def __getitem__(self, which: np.ndarray | slice) -> Regions:
        """Those of a mask, of numbers or of a slice."""
        return Regions(*(getattr(self, column.name)[which] for column in fields(self)))

    @property
    def centre(self) -> np.ndarray:
        """The summit, or the middle where there is none."""
        return np.where(self.summit >= 0, self.summit, (self.start + self.end) // 2)

    @property
    def checksum(self) -> str:
        """Of all columns."""
        columns = [getattr(self, column.name).tolist() for column in fields(self)]
        return hashlib.sha256(repr(columns).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write them as narrowPeak, with the summits. Scores and signals are not known: 0 and -1."""
        with path.open("w") as file:
            rows = zip(self.contig, self.start, self.end, self.name, self.strand, self.summit, strict=True)
            for contig, start, end, name, strand, summit in rows:
                offset = summit - start if summit >= 0 else -1
                print(contig, start, end, name, 0, strand, -1, -1, -1, offset, sep="\t", file=file)


def read_regions(path: str | Path) -> Regions:
    """Read a BED file, plain or gzipped: of three columns (contig, start, end) to narrowPeak's ten.

    Columns four and six are the name and the strand. Column ten, the offset of the summit, counts where there are ten
    and no more: -1 says that there is none, as in ENCODE's files. Comments, ``track`` and ``browser`` lines are passed
    over.

    >>> import jaxlift, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "peaks.narrowPeak")
    >>> _ = path.write_text("chr1\\t100\\t300\\tpeak1\\t0\\t.\\t5.0\\t-1\\t-1\\t40\\n")
    >>> regions = jaxlift.genomics.read_regions(path)
    >>> str(regions.name[0]), int(regions.summit[0])
    ('peak1', 140)

    Args:
        path: of the file.

    Returns:
        The `Regions`, in the file's order.

    Raises:
        ValueError: if a line is none of a BED file, with its number and what it has; or there are no regions.
        OSError: if the file can't be read.
    """
    path = place(path)
    rows: list[tuple[str, int, int, str, str, int]] = []
    with (
        reading(path, "BED file"),
        path.open("rb") as raw,
        gzip.open(raw) if is_gzipped(raw) else raw as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig") as file,  # pyright: ignore[reportArgumentType]
    ):
        for number, line in enumerate(file, 1):
            if line.startswith("#") or line.split()[:1] in ([], ["track"], ["browser"]):
                continue
            rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        raise MalformedError(f"{path}: there are no regions, expected lines of contig, start and end.")
    return Regions(*map(np.array, zip(*rows, strict=True)))


def _row(line: str, place: str) -> tuple[str, int, int, str, str, int]:
    """One line of a BED file."""
    columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    try:
        contig, start, end = columns[0], int(columns[1]), int(columns[2])
        offset = int(columns[9]) if len(columns) == NARROW_PEAK else -1
    except (IndexError, ValueError):
        is_header = len(columns) > 2 and not any(re.search(r"\d", column) for column in columns[1:3])
        names = " If these are the columns' names, remove the line, or begin it with '#'." if is_header else ""
        raise MalformedError(
            f"{place}: expected contig, start and end, two whole numbers, with tabs between them (and of a narrowPeak "
            f"file the summit's offset in column 10), got {line.strip()[:60]!r}.{names}"
        ) from None
    if not 0 <= start < end or end >= 2**63:
        too_large = f", less than 2^63 = {2**63}" if end >= 2**63 else ""
        raise MalformedError(f"{place}: expected 0 <= start < end{too_large}, got {start} and {end}.")
    if offset >= end - start:
        raise MalformedError(f"{place}: the summit, {offset} from the start, lies outside of {start}-{end}.")
    name = columns[3] if len(columns) > 3 and columns[3] not in ("", ".") else f"{contig}:{start}-{end}"
    strand = columns[5] if len(columns) > 5 else "."
    if strand not in STRANDS:
        raise MalformedError(f"{place}: expected a strand '+', '-' or '.' in column 6, got {strand!r}.")
    return contig, start, end, name, strand, start + offset if offset >= 0 else -1
