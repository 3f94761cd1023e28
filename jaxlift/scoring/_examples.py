"""Where examples come from. Each source gives them by number, a few at a time, and says which are bad."""

from __future__ import annotations

import enum
import gzip
import hashlib
import zipfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift.scoring._extra import extra

BASES = "ACGT"


class Status(enum.IntEnum):
    """What became of an example; the numbers in a store's array ``status``."""

    UNFINISHED = 0
    SCORED = 1
    NOT_FINITE = 2  # the example has a NaN or an infinity
    UNREADABLE = 3  # reading it failed
    MALFORMED = 4  # it has another shape than the first, or is not numbers, or has letters that are no bases
    NO_REFERENCE = 5  # the function that makes its reference failed, or made one of another shape or not finite
    SCORES_NOT_FINITE = 6  # the model's outputs or the scores have a NaN or an infinity


@dataclass
class Records:
    """Some consecutive examples.

    Attributes:
        values: `(n, *shape)`; zeros where an example is bad.
        status: `(n,)`, of `Status`.
        messages: what is wrong with the bad ones, by their number.
    """

    values: np.ndarray
    status: np.ndarray
    messages: dict[int, str] = field(default_factory=dict)


class MalformedError(ValueError):
    """A record that can be read but isn't an example."""


class Examples:
    """Examples by number. Subclasses give `row`, and `rows` where many at once are faster.

    Attributes:
        shape: of one example.
        dtype: that they are given in.
        count: how many, or None for a stream, whose end shows when it comes.
        source: where they are from, for people.
        letters: what the channels stand for, if it is known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    count: int | None
    source: str
    letters: str | None = None

    def close(self) -> None:
        """Close the file, if it was opened here."""

    def row(self, number: int) -> Any:
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = [as_example(self.row(number), self.shape, self.dtype) for number in range(start, stop)]
        return np.array(rows, self.dtype).reshape(stop - start, *self.shape)

    def read(self, start: int, stop: int) -> Records:
        """The examples from `start` to `stop`, or to the end. A bad one is marked, and does not spoil the others."""
        stop = stop if self.count is None else min(stop, self.count)
        try:
            values = np.asarray(self.rows(start, stop))
            records = Records(values, np.full(len(values), Status.SCORED, np.uint8))
        except Exception:  # whatever it is, it shows again at the example that is to blame
            values = np.zeros((stop - start, *self.shape), self.dtype)
            records = Records(values, np.full(len(values), Status.SCORED, np.uint8))
            for number in range(start, stop):
                self._read_one(number, records, number - start)
        if np.issubdtype(self.dtype, np.inexact) and len(records.values):
            finite = np.isfinite(records.values.reshape(len(records.values), -1)).all(1)
            for i in np.flatnonzero(~finite):
                records.status[i] = Status.NOT_FINITE
                records.messages[start + int(i)] = "the example has a NaN or an infinity"
        return records

    def _read_one(self, number: int, records: Records, at: int) -> None:
        try:
            records.values[at] = as_example(self.row(number), self.shape, self.dtype)
        except Exception as error:
            records.status[at] = Status.MALFORMED if isinstance(error, MalformedError) else Status.UNREADABLE
            records.messages[number] = f"{type(error).__name__}: {error}"

    def first(self) -> np.ndarray:
        """The first good example."""
        for number in range(self.count or 0):
            records = self.read(number, number + 1)
            if records.status[0] == Status.SCORED:
                return records.values[0]
        raise ValueError(f"{self.source}: there is no example that can be used.")

    def digest(self) -> str:
        """A checksum of the number of examples and of 16 of them, to know the data set again."""
        digest = hashlib.sha256(repr((self.shape, self.dtype.str, self.count)).encode())
        for number in sorted({round(i * ((self.count or 1) - 1) / 15) for i in range(16)}):
            digest.update(np.ascontiguousarray(self.read(number, number + 1).values).tobytes())
        return digest.hexdigest()


def as_example(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A record as an array, if it has the shape and the kind of the others."""
    try:
        value = np.asarray(value)
        value = value if value.dtype == dtype else value.astype(dtype, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise MalformedError(f"expected an array of {dtype}, got {type(value).__name__}: {error}") from error
    if value.shape != shape:
        raise MalformedError(f"expected an example of shape {shape}, got {value.shape}")
    return value


class ArrayExamples(Examples):
    """Anything with the axes of an array that can be sliced: NumPy, memory maps, Zarr, HDF5, JAX."""

    def __init__(self, values: Any, source: str) -> None:
        if not values.shape:
            raise ValueError(f"{source}: expected an array of examples (N, ...), got a scalar.")
        self.values, self.source = values, source
        self.count, *shape = values.shape
        self.shape, self.dtype = tuple(shape), numeric(values.dtype, source)

    def row(self, number: int) -> Any:
        return self.values[number]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.values[start:stop])


class NpyExamples(ArrayExamples):
    """The array of an ``.npy`` file, which is mapped anew for each read: what was read before takes no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(np.load(path, mmap_mode="r"), str(path))

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[start:stop])


class SequenceExamples(Examples):
    """A list of arrays, a Grain data source: anything with `len` and items by number."""

    def __init__(self, items: Any, source: str) -> None:
        self.items, self.source, self.count = items, source, len(items)
        failure: Exception | None = None
        for number in range(self.count):
            try:
                first = np.asarray(items[number])
                self.shape, self.dtype = first.shape, numeric(first.dtype, source)
                return
            except Exception as error:
                failure = error
        raise ValueError(f"{source}: none of {self.count} examples can be read.") from failure

    def row(self, number: int) -> Any:
        return self.items[number]


class StreamExamples(Examples):
    """An iterable, read once from its beginning to its end. Where it ends is known when it comes."""

    def __init__(self, items: Iterable[Any], source: str) -> None:
        self.items, self.source, self.count, self.position = iter(items), source, None, 0
        try:
            self.head = np.asarray(next(self.items))
        except StopIteration:
            raise ValueError(f"{source}: there are no examples.") from None
        self.shape, self.dtype = self.head.shape, numeric(self.head.dtype, source)

    def read(self, start: int, stop: int) -> Records:
        self.take(start - self.position)
        self.pending = self.take(stop - start)
        self.pending_start = start
        return super().read(start, start + len(self.pending))

    def take(self, count: int) -> list[Any]:
        taken = []
        while len(taken) < count:
            if self.position == 0:
                item = self.head
            else:
                try:
                    item = next(self.items)
                except StopIteration:
                    break
            self.position += 1
            taken.append(item)
        return taken

    def row(self, number: int) -> Any:
        return self.pending[number - self.pending_start]

    def first(self) -> np.ndarray:
        return self.head

    def digest(self) -> str:
        """Of the first example: the others have not come yet."""
        identity = repr((self.shape, self.dtype.str)).encode()
        return hashlib.sha256(identity + np.ascontiguousarray(self.head).tobytes()).hexdigest()


class NpzExamples(Examples):
    """One array of an ``.npz``, which is read as a stream: it may be compressed, and is never held as a whole."""

    def __init__(self, path: Path, key: str | None) -> None:
        with zipfile.ZipFile(path) as archive:
            key = only_key([name.removesuffix(".npy") for name in archive.namelist()], key, path)
            self.file = archive.open(f"{key}.npy")  # which can be read when the archive is closed
        self.close = self.file.close
        version = np.lib.format.read_magic(self.file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        (self.count, *shape), fortran, dtype = header(self.file)
        self.source = f"{path}:{key}"
        if fortran:
            raise ValueError(f"{self.source} is stored in Fortran's order: save np.ascontiguousarray(array).")
        self.shape, self.dtype, self.begin = tuple(shape), numeric(dtype, self.source), self.file.tell()

    def rows(self, start: int, stop: int) -> np.ndarray:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        self.file.seek(self.begin + start * size)
        data = self.file.read((stop - start) * size)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape)

    def row(self, number: int) -> Any:
        return self.rows(number, number + 1)[0]


class FastaExamples(Examples):
    """Sequences of a FASTA file, plain or gzipped, one-hot `(L, 4)` in the order ACGT.

    Lower case (soft-masked) counts as upper case, and U as T. N is a row of zeros. Other letters, and sequences of
    another length than the first, are malformed.
    """

    letters = BASES

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.file: Any = (gzip.open if path.suffix == ".gz" else open)(path, "rb")  # for as long as the run
        self.close = self.file.close
        self.offsets = array("q")  # of the lines after each header
        offset = 0
        for line in self.file:
            offset += len(line)
            if line.startswith(b">"):
                self.offsets.append(offset)
        self.count = len(self.offsets)
        if not self.count:
            self.close()
            raise ValueError(f"{path}: there is no sequence, no line that begins with '>'.")
        self.shape, self.dtype = (len(self._sequence(0)), 4), np.dtype(np.float32)

    def _sequence(self, number: int) -> bytes:
        self.file.seek(self.offsets[number])
        lines = []
        for line in self.file:
            if line.startswith(b">"):
                break
            lines.append(line.strip())
        return b"".join(lines)

    def row(self, number: int) -> Any:
        sequence = np.frombuffer(self._sequence(number), np.uint8)
        codes = _CODES[sequence]
        if (codes > len(BASES)).any():
            place = int((codes > len(BASES)).argmax())
            raise MalformedError(f"letter {chr(sequence[place])!r} at position {place + 1} is none of ACGTUN")
        return _ONE_HOT[codes]


_CODES = np.full(256, 255, np.uint8)
for _code, _names in enumerate(["Aa", "Cc", "Gg", "TtUu", "Nn"]):
    _CODES[list(_names.encode())] = _code
_ONE_HOT = np.eye(5, 4, dtype=np.float32)


def numeric(dtype: Any, source: str) -> np.dtype:
    """The dtype, if it is one of real numbers. (bfloat16 and its like are of kind V, and are numbers too.)"""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf" and (dtype.kind != "V" or dtype.fields or dtype.name.startswith("void")):
        raise TypeError(f"{source}: expected examples of numbers, got dtype {dtype}.")
    return dtype


def only_key(names: Iterable[str], key: str | None, path: Path) -> str:
    """The array that is meant, among those of a file."""
    names = sorted(names)
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = "say which array" if key is None else f"there is no array {key!r}"
        raise ValueError(f"{path}: {asked}: write {path}:NAME, with one of {', '.join(names) or 'none'}.")
    return key


def open_array(text: str | Path) -> Examples:
    """The array in a file: ``path``, or ``path:name`` where the file has several."""
    path, key = Path(text), None
    if not path.exists():
        before, colon, after = str(text).rpartition(":")
        path, key = (Path(before), after) if colon else (path, None)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {text}.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    match [suffix for suffix in suffixes if suffix != ".gz"][-1:]:
        case [".npy"]:
            return NpyExamples(path)
        case [".npz"]:
            return NpzExamples(path, key)
        case [".h5" | ".hdf5" | ".hdf"]:
            return _hdf5(path, key)
        case [".fa" | ".fasta" | ".fna"]:
            return FastaExamples(path)
    if path.is_dir():
        return _zarr(path, key)
    raise ValueError(f"{path}: expected .npy, .npz, .h5, .hdf5, .fa, .fasta, .fna (or .gz of these three), or Zarr.")


def _hdf5(path: Path, key: str | None) -> Examples:
    h5py = extra("h5py")
    file, names = h5py.File(path, "r"), []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    key = only_key(names, key.strip("/") if key else None, path)
    examples = ArrayExamples(file[key], f"{path}:{key}")
    examples.close = file.close
    return examples


def _zarr(path: Path, key: str | None) -> Examples:
    zarr = extra("zarr")
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        key = only_key([name for name, _ in node.arrays()], key, path) if key is None or "/" not in key else key
        return ArrayExamples(node[key], f"{path}:{key}")
    return ArrayExamples(node, str(path))


def open_examples(examples: Any) -> Examples:
    """Examples from whatever a user has them in."""
    if isinstance(examples, Examples):
        return examples
    if isinstance(examples, str | Path):
        return open_array(examples)
    source = f"{type(examples).__module__}.{type(examples).__qualname__}"
    if hasattr(examples, "shape") and hasattr(examples, "dtype"):
        return ArrayExamples(examples, source)
    if hasattr(examples, "__len__") and hasattr(examples, "__getitem__"):
        return SequenceExamples(examples, source)
    if isinstance(examples, Iterable | Iterator):
        return StreamExamples(examples, source)
    raise TypeError(f"examples must be arrays, an iterable of arrays, or the path of a file, got {source}.")
