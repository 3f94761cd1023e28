"""A store's scores in the files that motif finders, hit callers and genome browsers read.

The formats are those of TF-MoDISco (``modisco motifs``), Fi-NeMo (``finemo extract-regions-*``) and ChromBPNet (its H5
file of scores, and its rule for windows that overlap in a bigWig file). All rows are in the genome's direction, because
these tools find a row's position in the genome by counting from the start of its window.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from jaxlift._arguments import some_of
from jaxlift.genomics._regions import Regions
from jaxlift.genomics._windows import Genome
from jaxlift.scoring._examples import Status
from jaxlift.scoring._extra import extra
from jaxlift.scoring._files import appearing, check_not_read, naming
from jaxlift.scoring._places import is_url, place, resolved
from jaxlift.scoring._store import Store

Dtype = Literal["float16", "float32"]
Take = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]  # one-hot rows, scores and their product, each (n, 4, L)
Run = tuple[str, int, np.ndarray]  # a contig, a position, and the value of each base from there on
Write = Callable[[str, int, np.ndarray], Any]  # a run
LONG = 2**16  # bases: runs that touch are joined until they have so many


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        files: their paths.
        written: how many examples they have.
        left_out: how many examples have no scores, by what is the matter with them (a name of `Status`).
        dtype: of the scores in H5 and npz files; None if there are none.
    """

    files: tuple[Path, ...]
    written: int
    left_out: Mapping[str, int]
    dtype: Dtype | None

    def __str__(self) -> str:
        scores = f", scores as {self.dtype}" if self.dtype else ""
        return "\n".join([f"{self.written} examples written{scores}", *map(str, self.files)])


def export(
    store: Store | str | Path,
    *,
    h5: str | Path | None = None,
    npz: str | Path | None = None,
    bigwig: str | Path | None = None,
    bedgraph: str | Path | None = None,
    narrowpeak: str | Path | None = None,
    chrom_sizes: Mapping[str, int] | str | Path | None = None,
    target: str | None = None,
    dtype: Dtype | None = None,
) -> Exported:
    """Write a store's scores in the formats of other tools, as many at once as you like.

    Only examples with scores are written, in the store's order: row `i` of the H5 file, of both npz files and of the
    narrowPeak file is the same example. Where the store knows where in a genome its examples are, all rows are in the
    genome's direction: an example of strand "-" is reversed, and its letters complemented. Files that are there are
    replaced, each once it is complete. For bigWig and bedGraph a temporary file beside the first one takes 4 bytes for
    each base of each window.

    >>> import pathlib, tempfile
    >>> import jax.numpy as jnp, jaxlift
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "peaks.fa").write_text(">a\\nACGTAC\\n>b\\nGGATCC\\n")
    >>> attr = jaxlift.attribute(lambda x: jnp.tanh(x[:, :, 1].sum(1)), output="hypothetical")
    >>> _ = jaxlift.score(attr, folder / "peaks.fa", out=folder / "s.zarr", reference="zeros", progress="none")
    >>> exported = export(folder / "s.zarr", npz=folder / "scores")
    >>> exported.written, [file.name for file in exported.files]
    (2, ['scores.ohe.npz', 'scores.hyp.npz'])
    >>> np.load(exported.files[1])["arr_0"].shape
    (2, 4, 6)

    Args:
        store: what `jaxlift.score` made, or its path.
        h5: a file with ``raw/seq`` (one-hot, int8), ``shap/seq`` (hypothetical scores) and ``projected_shap/seq``
            (their product), each `(N, 4, L)`, letters ACGT: ChromBPNet's format, for ``modisco motifs -i`` and ``finemo
            extract-regions-chrombpnet-h5``.
        npz: what two files' names begin with, ``NPZ.ohe.npz`` (one-hot, int8) and ``NPZ.hyp.npz`` (hypothetical
            scores), each with one array ``arr_0`` of shape `(N, 4, L)`: for ``modisco motifs -s -a`` and ``finemo
            extract-regions-modisco-fmt -s -a``.
        bigwig: a bigWig file with a value for each base of the windows: the sum of the contributions over the letters,
            or of hypothetical scores that of the letter that is there. Where windows overlap, a base has the value of
            the window whose summit is nearest (without summits, whose centre), of two as near that of the one that
            begins later. So two windows around their summits meet halfway between these, as in ChromBPNet.
        bedgraph: a file with the same values as text, gzipped if its name ends with ``.gz``. Equal neighbours share a
            line. Contigs come in the order of `chrom_sizes`, or else of their names.
        narrowpeak: a narrowPeak file of the windows, their names, strands and summits, for ``finemo ... -p``, which
            takes rows to be centred on their summits, as those of `jaxlift.genomics.Windows` are.
        chrom_sizes: the contigs' lengths, which a bigWig file needs: a mapping, a file of names and lengths (such as
            UCSC's ``hg38.chrom.sizes``, or a ``.fai``), or the genome's FASTA file.
        target: which of several outputs that were explained.
        dtype: of the scores in H5 and npz files. If left out, float16, as in ChromBPNet, if it can hold each example's
            largest score in size and to 11 bits, that is if this is 0 or between 2^-14 and 65504; else float32.

    Returns:
        The files, how many examples they have, and how many were left out and why.

    Raises:
        ValueError: if there is nothing to write; if the store doesn't have what a file needs: hypothetical scores and
            sequences (H5, npz), contributions or hypothetical scores (bigWig, bedGraph), places in a genome (all
            but H5 and npz); if a window is outside of the contigs of `chrom_sizes`; if `dtype` is float16 and can't
            hold the scores.
        FileNotFoundError: if there is no such store, `chrom_sizes`, or folder for a file.
    """
    if isinstance(store, str | Path):
        if not place(store).exists():
            raise FileNotFoundError(f"there is no store {store}.")
        store = Store(place(store), mode="r")
    pair = () if npz is None else (place(f"{npz}.ohe.npz"), place(f"{npz}.hyp.npz"))
    files = tuple(place(path) for path in (h5, *pair, bigwig, bedgraph, narrowpeak) if path is not None)
    _check_files(files, [chrom_sizes] if isinstance(chrom_sizes, str | Path) else [])
    if narrowpeak is not None and str(narrowpeak).endswith(".gz"):
        raise ValueError(f"{narrowpeak}: a narrowPeak file is written as plain text, which Fi-NeMo needs: omit .gz.")
    status = store.status
    kept = status == Status.SCORED
    if not kept.any():
        raise ValueError(f"{store.path}: none of its {len(kept)} examples has scores, so there is nothing to write.")
    has_rows, has_track = h5 is not None or npz is not None, bigwig is not None or bedgraph is not None
    _check_scores(store, has_rows, has_track)
    if bigwig is not None and chrom_sizes is None:
        raise ValueError(
            "a bigWig file needs the contigs' lengths: give chrom_sizes=, such as hg38.chrom.sizes, or the genome's "
            "FASTA file."
        )

    chosen: Dtype | None = None
    with contextlib.ExitStack() as stack:

        def opened(path: str | Path, made: Callable[..., Any], *about: Any) -> Any:
            draft = stack.enter_context(appearing(place(path)))
            write = stack.enter_context(made(draft, *about))
            # The disk is full for the file that is being written, of several that are open.
            return naming(draft)(write)

        takers: list[Take] = []
        if has_track or narrowpeak is not None:
            regions = _regions(store, kept)
            if narrowpeak is not None:
                replace(regions, summit=regions.centre).write(stack.enter_context(appearing(place(narrowpeak))))
            if has_track:
                lengths = {} if chrom_sizes is None else _lengths(chrom_sizes)
                named = f"chrom_sizes={chrom_sizes}" if isinstance(chrom_sizes, str | Path) else "chrom_sizes"
                order = _order(regions, lengths, named)
                writers: list[Write] = []
                if bigwig is not None:
                    writers.append(opened(bigwig, _bigwig, lengths))
                if bedgraph is not None:
                    writers.append(opened(bedgraph, _bedgraph, str(bedgraph).endswith(".gz")))
                folder = None if is_url(files[0]) else files[0].parent
                takers.append(stack.enter_context(_track(regions, order, writers, folder)))
        if has_rows:
            chosen = _chosen(store, kept, target, dtype)
            shape = (int(kept.sum()), 4, store.arrays["sequence"].shape[1])
            if h5 is not None:
                takers.append(opened(h5, _h5, shape, chosen))
            for part, path in enumerate(pair):
                takers.append(opened(path, _npz, shape, (np.int8, chosen)[part], part))
        for batch in _batches(store, kept, target) if takers else ():
            for take in takers:
                take(*batch)
    bad, counts = np.unique(status[~kept], return_counts=True)
    left_out = {Status(number).name.lower(): int(n) for number, n in zip(bad.tolist(), counts, strict=True)}
    return Exported(files, int(kept.sum()), left_out, chosen)


def _check_files(files: Sequence[Path], read: Iterable[str | Path]) -> None:
    if not files:
        raise ValueError("there is nothing to write: name a file for h5, npz, bigwig, bedgraph or narrowpeak.")
    places = [str(resolved(path)) for path in files]
    for path in files:
        if places.count(str(resolved(path))) > 1:
            raise ValueError(f"{path} is to be two files: give each another name.")
        check_not_read(path, read)
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected the name of a file to write.")
        if not is_url(path) and not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}.")


def _check_scores(store: Store, has_rows: bool, has_track: bool) -> None:
    """Raise the error that says which scores a file needs that the store doesn't have."""
    output = store.output
    again = "score again with `--output hypothetical`, in Python attribute(..., output='hypothetical')."
    if has_rows and output != "hypothetical":
        raise ValueError(f"H5 and npz files need hypothetical scores, and {store.path} has {output}: {again}")
    if has_track and output == "multipliers":
        raise ValueError(f"a track needs contributions or hypothetical scores, and {store.path} has {output}: {again}")
    if "sequence" not in store.arrays and (has_rows or (has_track and output == "hypothetical")):
        raise ValueError(
            f"{store.path} has no sequences: they are kept of examples that are one-hot DNA, from a FASTA file or from "
            "regions of a genome. Score those."
        )


def _lengths(sizes: Mapping[str, int] | str | Path) -> dict[str, int]:
    """How long each contig is, in the order that they have there."""
    if isinstance(sizes, Mapping):
        return {str(contig): int(length) for contig, length in sizes.items()}
    path = place(sizes)
    if Path(path.name.removesuffix(".gz").removesuffix(".bgz")).suffix in (".fa", ".fasta", ".fna"):
        genome = Genome(path)
        genome.close()
        return dict(genome.lengths)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    lengths: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match line.split():
            case []:
                continue
            case [contig, length, *_] if length.isdecimal() and contig not in lengths:
                lengths[contig] = int(length)
            case _:
                raise ValueError(
                    f"{path}, line {number}: expected a contig's name, which no line has before, and its length, got "
                    f"{line[:40]!r}."
                )
    if not lengths:
        raise ValueError(f"{path} is empty: expected a line for each contig, with its name and length.")
    return lengths


def _regions(store: Store, kept: np.ndarray) -> Regions:
    """The windows of the examples that are written."""
    columns = {column.name: store.columns.get(column.name) for column in fields(Regions)}
    missing = [name for name in ("contig", "start", "end") if columns[name] is None]
    if missing:
        raise ValueError(
            f"{store.path} doesn't say where in a genome its examples are (it has no columns {', '.join(missing)}), "
            "which bigWig, bedGraph and narrowPeak need: score a genome with `--regions`, in Python Windows(...)."
        )
    if "explained" in store.columns:
        raise ValueError(
            f"{store.path} has both alleles of each variant, at the same place, and a track has one value there: read "
            "their scores from the store."
        )
    regions = Regions(**{name: column[kept] for name, column in columns.items() if column is not None})
    width = store.arrays[store.output].shape[-3 - store.letters_axis]
    wrong = np.flatnonzero(regions.end - regions.start != width)
    if len(wrong):
        place = f"{regions.contig[wrong[0]]}:{regions.start[wrong[0]]}-{regions.end[wrong[0]]}"
        raise ValueError(
            f"{store.path} has {width} scores of each example, but places such as {place}: expected windows."
        )
    return regions


def _order(regions: Regions, lengths: Mapping[str, int], named: str) -> np.ndarray:
    """The windows' order in a track: by contig, then by start, and by their numbers where both are the same.

    Args:
        regions: of the windows.
        lengths: of the contigs; of none if they aren't given.
        named: what `lengths` are called in errors.
    """
    present = regions.contig.tolist()
    contigs = [*lengths] or sorted({*present})
    ranks = {contig: rank for rank, contig in enumerate(contigs)}
    unknown = sorted({*present} - ranks.keys())
    if unknown:
        raise ValueError(f"{named} has no {some_of(unknown)}, where the store has windows; it has {some_of(contigs)}.")
    if lengths:
        outside = np.flatnonzero(regions.end > np.array([lengths[contig] for contig in present]))
        if len(outside):
            i = outside[0]
            raise ValueError(
                f"{present[i]} has {lengths[present[i]]} bases in {named}, and the store a window there of "
                f"{regions.start[i]}-{regions.end[i]} ({len(outside)} end too late): give the lengths of the genome "
                "that was scored."
            )
    return np.lexsort((regions.start, np.array([ranks[contig] for contig in present])))


def _spans(store: Store, kept: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """First and last of a chunk's examples, and which of them are written; chunks of which none is are left out."""
    for start in range(0, len(kept), store.chunk):
        rows = kept[start : start + store.chunk]
        if rows.any():
            yield start, start + len(rows), rows


def _chosen(store: Store, kept: np.ndarray, target: str | None, asked: Dtype | None) -> Dtype:
    """The dtype of the scores in H5 and npz files. Reading them once more for it is little beside compressing them."""
    if asked not in (None, "float16", "float32"):
        raise ValueError(f"dtype={asked!r}: expected 'float16' or 'float32'.")
    if asked == "float32":
        return asked
    low, high = float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max)
    for start, stop, rows in _spans(store, kept):
        largest = np.abs(store.scored(start, stop, target)[rows].astype(np.float32)).max((1, 2))
        fits = (largest == 0) | ((largest >= low) & (largest <= high))
        if fits.all():
            continue
        if asked is None:
            return "float32"
        worst = int(fits.argmin())
        raise ValueError(
            f"float16 can't hold the scores of example {start + np.flatnonzero(rows)[worst]}, of which the largest is "
            f"{largest[worst]:.3g} in size (expected {low:.2g} to {high:.0f}): use dtype='float32'."
        )
    return "float16"


def _batches(store: Store, kept: np.ndarray, target: str | None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each chunk one-hot rows (n, 4, L), scores and their product. Contributions stand for all three."""
    strand = store.columns["strand"] if {"contig", "strand"} <= store.columns.keys() else np.full(len(kept), ".")
    for start, stop, rows in _spans(store, kept):
        scores = store.scored(start, stop, target)[rows].astype(np.float32)
        is_reverse = strand[start:stop][rows] == "-"
        scores[is_reverse] = scores[is_reverse, ::-1, ::-1]  # the letters are ACGT, so backwards is the complement
        scores = scores.transpose(0, 2, 1)
        if store.output != "hypothetical":
            yield scores, scores, scores
            continue
        one_hot = store.one_hot(start, stop)[rows]
        one_hot[is_reverse] = one_hot[is_reverse, ::-1, ::-1]
        one_hot = one_hot.transpose(0, 2, 1)
        yield one_hot, scores, one_hot * scores


class _Patient(io.RawIOBase):
    """A file for HDF5, which ends the process where it can't write: what the disk has no room for waits in memory.

    Attributes:
        error: the first one of writing. Whoever writes has to look, and to stop soon.
    """

    def __init__(self, path: Path) -> None:
        self.file, self.waiting = path.open("w+b", buffering=0), list[tuple[int, bytes]]()
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def write(self, data: Any) -> int:
        data, start, written = memoryview(data).cast("B"), self.tell(), 0
        try:
            while self.error is None and written < len(data):
                written += self.file.write(data[written:])
        except OSError as error:
            self.error = error
        if written < len(data):
            self.waiting.append((start + written, bytes(data[written:])))
            self.seek(start + len(data))
        return len(data)

    def readinto(self, buffer: Any) -> int:
        view, start = memoryview(buffer).cast("B"), self.tell()
        read = self.file.readinto(view)
        for at, data in self.waiting:
            begin, end = max(at, start), min(at + len(data), start + len(view))
            if begin < end:
                view[begin - start : end - start] = data[begin - at : end - at]
                read = max(read, end - start)
        return read

    def close(self) -> None:
        self.file.close()
        super().close()


@contextlib.contextmanager
def _h5(path: Path, shape: tuple[int, int, int], dtype: Dtype) -> Iterator[Take]:
    with contextlib.closing(_Patient(path)) as disk:
        with extra("h5py").File(disk, "w") as file:
            kinds, at = {"raw/seq": "int8", "shap/seq": dtype, "projected_shap/seq": dtype}, 0
            # A chunk that is not full yet waits in HDF5's cache, which has 1 MiB: else it is compressed many times.
            chunks = (min(shape[0], max(1, 2**17 // (shape[1] * shape[2]))), *shape[1:])
            arrays = [
                file.create_dataset(name, shape, kind, chunks=chunks, compression="gzip", shuffle=True)
                for name, kind in kinds.items()
            ]

            def take(*batch: np.ndarray) -> None:
                nonlocal at
                for array, values in zip(arrays, batch, strict=True):
                    array[at : at + len(values)] = values.astype(array.dtype)
                    disk.check()
                at += len(batch[0])

            yield take
        disk.check()


@contextlib.contextmanager
def _npz(path: Path, shape: tuple[int, int, int], dtype: Any, part: int) -> Iterator[Take]:
    """One array, as np.savez_compressed writes it, but a few rows at a time: that of this number of what is taken."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        description = np.lib.format.dtype_to_descr(np.dtype(dtype))
        np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})
        yield lambda *batch: file.write(batch[part].astype(dtype).tobytes())


@contextlib.contextmanager
def _track(regions: Regions, order: np.ndarray, writers: Sequence[Write], folder: Path | None) -> Iterator[Take]:
    """Take the scores of all windows, then write them along the genome.

    Windows come into a track in another order than they have in a store's chunks, so their sums wait in a file.
    """
    named = naming(Path(folder or tempfile.gettempdir()))
    with tempfile.TemporaryFile(dir=folder) as sums:
        yield named(lambda one_hot, scores, projected: sums.write(projected.sum(1).tobytes()))
        named(sums.flush)()
        values = np.memmap(sums, np.float32, "r").reshape(len(regions), -1)
        for run in _joined(_pieces(regions, order, values)):
            for write in writers:
                write(*run)


def _pieces(regions: Regions, order: np.ndarray, values: np.ndarray) -> Iterator[Run]:
    """Each base of the windows once, with the value that the window with the nearest summit has for it.

    Windows come by their starts and have the same width, so nothing before a window's start can change any more when
    it comes, and what may still change is not wider than a window.

    Args:
        regions: of the windows.
        order: by contig and start.
        values: of each window, for its bases in the genome's direction.
    """
    contigs, starts, centres, width = regions.contig.tolist(), regions.start.tolist(), regions.centre, values.shape[1]
    contig, begin, held, distances = "", 0, values[0, :0], np.array([], int)
    for i in order.tolist():
        start = starts[i]
        # Twice the distance between a summit, which lies before a base, and the middle of a base.
        own = np.abs(2 * (np.arange(start, start + width) - centres[i]) + 1)
        done = start - begin if contigs[i] == contig else len(held)
        if len(held[:done]):
            yield contig, begin, held[:done]
        held, distances = held[done:], distances[done:]
        shared = len(held)
        held = np.append(np.where(own[:shared] <= distances, values[i, :shared], held), values[i, shared:])
        distances = np.append(np.minimum(own[:shared], distances), own[shared:])
        contig, begin = contigs[i], start
    yield contig, begin, held


def _joined(pieces: Iterable[Run]) -> Iterator[Run]:
    """Runs of pieces that touch, so that many short ones don't each become a block of a file."""
    run: list[np.ndarray] = []
    contig, begin, end = "", 0, 0
    for name, start, values in pieces:
        if run and (name, start) == (contig, end) and end - begin < LONG:
            run.append(values)
        else:
            if run:
                yield contig, begin, np.concatenate(run)
            contig, begin, run = name, start, [values]
        end = start + len(values)
    if run:
        yield contig, begin, np.concatenate(run)


@contextlib.contextmanager
def _bigwig(path: Path, lengths: Mapping[str, int]) -> Iterator[Write]:
    message = "the bigWig file could not be written to its end: is the disk full?"
    cut_short = OSError(errno.ENOSPC, message, str(path))
    path.touch()  # pyBigWig doesn't say what is the matter where this fails
    file = extra("pyBigWig").open(str(path), "w")
    try:
        too_long = [contig for contig, length in lengths.items() if not 0 < length < 2**32]
        if too_long:
            raise ValueError(
                f"a bigWig file has contigs of 1 to {2**32 - 1} bases, which {some_of(too_long)} don't have."
            )
        file.addHeader(list(lengths.items()))

        def write(contig: str, start: int, values: np.ndarray) -> None:
            try:
                file.addEntries(contig, start, values=values, span=1, step=1)
            except SystemError as error:  # it failed, and doesn't say why
                raise cut_short from error

        yield write
    finally:
        file.close()
    with path.open("rb") as written:  # it ends as it begins, unless a disk was full, which pyBigWig passes over
        first = written.read(4)
        written.seek(-4, io.SEEK_END)
        if written.read() != first:
            raise cut_short


@contextlib.contextmanager
def _bedgraph(path: Path, is_gzipped: bool) -> Iterator[Write]:
    with _text(path, is_gzipped) as file:

        def write(contig: str, start: int, values: np.ndarray) -> None:
            first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))  # of bases with equal values
            ends = np.append(first[1:], len(values)) + start
            rows = zip((first + start).tolist(), ends.tolist(), values[first], strict=True)
            file.writelines(f"{contig}\t{begin}\t{end}\t{value!s}\n" for begin, end, value in rows)

        yield write


@contextlib.contextmanager
def _text(path: Path, is_gzipped: bool) -> Iterator[TextIO]:
    """A text file, gzipped if it will be called so; the name that it has now isn't written into it."""
    with path.open("wb") as raw, contextlib.ExitStack() as stack:
        binary = stack.enter_context(gzip.GzipFile("", "wb", 4, raw)) if is_gzipped else raw
        yield stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline=""))
