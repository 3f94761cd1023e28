"""Where examples come from. Each source gives them by number, a few at a time, and says which are bad."""

from __future__ import annotations

import contextlib
import enum
import gzip
import io
import itertools
import json
import math
import os
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift._arguments import check_option
from jaxlift.scoring._extra import extra
from jaxlift.scoring._letters import BASES, IS_AMBIGUOUS, IS_LETTER, Ambiguous, Unknown, one_hot_of
from jaxlift.scoring._places import FarFile, UnreachableError, far_store, is_url, place, reaching


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


class DamagedError(OSError):
    """A file that is not whole, so that reading it fails."""


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Say which file it is that a library fails to read; what the operating system has to say is said already."""
    try:
        yield
    except (MalformedError, DamagedError, UnreachableError, ModuleNotFoundError):
        raise
    except Exception as error:
        if is_url(path):  # where what fails has many names, and seldom that of the file
            raise DamagedError(f"{path} can't be reached, is damaged, or no {kind} ({_named(error)}).") from error
        if isinstance(error, OSError) and error.errno:
            raise
        raise DamagedError(f"{path} is damaged, cut short, or no {kind} ({_named(error)}).") from error


def _named(error: Exception) -> str:
    """What went wrong in a library; some of its errors have a name alone."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Examples:
    """Examples by number. Subclasses give `row`, and `rows` where many at once are faster.

    Attributes:
        shape: of one example.
        dtype: that they are given in.
        count: how many, or None for a stream, whose end shows when it comes.
        source: where they are from, for people.
        letters: what the channels stand for, if it is known.
        reads: the files that they come from, which the run must not remove.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    count: int | None
    source: str
    letters: str | None = None
    reads: Sequence[str | Path] = ()

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Where the examples come from: what a store keeps of each, `(N,)` of text or whole numbers, by name."""
        return {}

    def column(self, name: str) -> str:
        """What a column has, and where that stands, for people."""
        return f"the values of {name}"

    def keys(self, start: int, stop: int) -> np.ndarray:
        """What random draws for each example depend on, `(n,)` uint32: its number, if it has no name or place."""
        return np.arange(start, stop, dtype=np.uint32)

    def accompany(self, store: Path) -> list[str]:
        """Write what belongs beside a new store, and return what is to be said of it."""
        return []

    @property
    def hint(self) -> str:
        """Why examples have the shape that they have, for whoever expected another."""
        return f"The first axis of {(self.count, *self.shape)} counts examples: a single one is x[None]."

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
        except (DamagedError, UnreachableError):  # all of the file is to blame, or the way there, and no example
            raise
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
        except UnreachableError:
            raise
        except Exception as error:
            records.status[at] = Status.MALFORMED if isinstance(error, MalformedError) else Status.UNREADABLE
            records.messages[number] = str(error) if isinstance(error, MalformedError) else _named(error)

    def first(self) -> np.ndarray:
        """The first good example."""
        for number in range(self.count or 0):
            records = self.read(number, number + 1)
            if records.status[0] == Status.SCORED:
                return records.values[0]
        raise ValueError(f"{self.source}: there is no example that can be used.")

    def sample(self) -> dict[str, int | None]:
        """Checksums of 16 examples by number, to know the data set again; None of those that are bad."""
        found = {}
        for number in sorted({round(i * ((self.count or 1) - 1) / 15) for i in range(16)}):
            records = self.read(number, number + 1)
            is_good = records.status[0] == Status.SCORED
            found[str(number)] = int(checksums(records.values)[0]) if is_good else None
        return found


def checksums(*arrays: np.ndarray) -> np.ndarray:
    """What is in each row of arrays `(n, ...)`, one after the other: CRC-32, `(n,)` uint32."""
    flat = [np.ascontiguousarray(a).reshape(len(a), math.prod(a.shape[1:])).view(np.uint8) for a in arrays]
    sums = np.zeros(len(flat[0]), np.uint32)
    for number in range(len(sums)):
        checksum = 0
        for rows in flat:
            checksum = zlib.crc32(rows[number], checksum)
        sums[number] = checksum
    return sums


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
        self.values, self.source = values, source
        self.count, *shape = _with_numbers(values.shape, source)
        self.shape, self.dtype = tuple(shape), numeric(values.dtype, source)

    def row(self, number: int) -> Any:
        return self.values[number]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.values[start:stop])


class FileExamples(Examples):
    """An array in NumPy's format, read from a file by its rows: on this machine, compressed, or far away.

    It is never held as a whole, and not mapped either: what is read of a map of a file that another process makes
    shorter is a signal, SIGBUS, which ends this process without a word, where a read says how far the file goes.

    Args:
        file: what to read from.
        source: its name, for errors.
        size: how many bytes it has.
        close: what closes it.
        is_near: whether any piece of it is as quick to read as the next: not where it is compressed or far away. Then
            an array in Fortran's order, whose examples are scattered, is read too.
    """

    def __init__(self, file: Any, source: str, size: int, close: Callable[[], None], is_near: bool = False) -> None:
        self.file, self.source, self.close = file, source, close
        try:
            (self.count, *shape), self.is_fortran, dtype = npy_header(file, source, size)
            if self.is_fortran and not is_near:
                raise ValueError(f"{source} is stored in Fortran's order: save np.ascontiguousarray(array).")
            self.shape, self.dtype, self.begin = tuple(shape), numeric(dtype, source), file.tell()
        except BaseException:
            close()
            raise

    def rows(self, start: int, stop: int) -> np.ndarray:
        count, size = stop - start, math.prod(self.shape)
        # In Fortran's order the number of the example changes fastest: a piece for each number that an example has.
        firsts = [start + i * (self.count or 0) for i in range(size)] if self.is_fortran else [start * size]
        data = bytearray()
        with reading(self.source, "array that np.save wrote"):
            for first in firsts:
                self.file.seek(self.begin + first * self.dtype.itemsize)
                data += self.file.read(count * size // len(firsts) * self.dtype.itemsize)
            if len(data) < count * size * self.dtype.itemsize:
                raise EOFError(f"it ends within examples {start} to {stop - 1}")
        values = np.frombuffer(data, self.dtype)
        return values.reshape(*self.shape[::-1], count).T if self.is_fortran else values.reshape(count, *self.shape)

    def row(self, number: int) -> Any:
        return self.rows(number, number + 1)[0]


class SequenceExamples(Examples):
    """A list of arrays, a Grain data source: anything with `len` and items by number."""

    def __init__(self, items: Any, source: str) -> None:
        self.items, self.source, self.count = items, source, len(items)
        failure: Exception | None = None
        for number in range(self.count):
            try:
                self.shape, self.dtype = _like_first(items[number], source)
                return
            except _TupleError:
                raise
            except Exception as error:
                failure = failure or error
        raise ValueError(f"{source}: none of {self.count} examples can be read; the first: {failure}") from failure

    def row(self, number: int) -> Any:
        return self.items[number]


class StreamExamples(Examples):
    """An iterable, read once from its beginning to its end. Where it ends is known when it comes."""

    def __init__(self, items: Iterable[Any], source: str) -> None:
        self.items, self.source, self.count, self.position = iter(items), source, None, 0
        try:
            head = next(self.items)
        except StopIteration:
            raise ValueError(f"{source}: there are no examples.") from None
        self.shape, self.dtype = _like_first(head, source)
        self.head = np.asarray(head)

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

    def sample(self) -> dict[str, int | None]:
        """Of the first example: the others have not come yet."""
        return {"0": int(checksums(self.head[None])[0])}


@dataclass(frozen=True)
class Encoding:
    """How letters become numbers.

    Attributes:
        unknown: N as zeros, or as 1/4 of each base.
        ambiguous: letters for one of several bases (R for A or G) as N, as equal shares of those, or refused.
        channel_axis: -1 for examples `(L, 4)`, -2 for `(4, L)`.
    """

    unknown: Unknown = "zeros"
    ambiguous: Ambiguous = "unknown"
    channel_axis: int = -1

    def __post_init__(self) -> None:
        check_option("unknown", self.unknown, Unknown)
        check_option("ambiguous", self.ambiguous, Ambiguous)

    def __call__(self, letters: np.ndarray) -> np.ndarray:
        """Letters `(..., L)` as `(..., L, 4)`, or with the channels where they belong."""
        refused = (~IS_LETTER | (IS_AMBIGUOUS if self.ambiguous == "refuse" else False))[letters]
        if refused.any():
            at = tuple(np.argwhere(refused)[0])
            raise MalformedError(f"letter {chr(letters[at])!r} at position {at[-1] + 1} is none of {self.accepted}")
        one_hot = one_hot_of(letters, self.unknown, self.ambiguous)
        return one_hot if self.channel_axis % 2 else one_hot.swapaxes(-1, -2)

    @property
    def accepted(self) -> str:
        """The letters that have a meaning."""
        return "ACGTUN" if self.ambiguous == "refuse" else "ACGTUN and IUPAC's letters for several bases"

    def shape(self, length: int) -> tuple[int, int]:
        """Of an example of so many letters."""
        if self.channel_axis not in (-2, -1, 0, 1):
            raise ValueError(f"channel_axis={self.channel_axis}: sequences (L, 4) have axes -2 to 1.")
        return (length, len(BASES)) if self.channel_axis % 2 else (len(BASES), length)


PLAIN = Encoding()


def keys_of(names: Iterable[str]) -> np.ndarray:
    """A number for each name, `(n,)` uint32, which is the same in every file and every run."""
    return np.array([zlib.crc32(name.encode()) for name in names], np.uint32)


class FastaExamples(Examples):
    """Sequences of a FASTA file, plain or gzipped, one-hot in the order ACGT.

    Lower case (soft-masked) counts as upper case, and U as T. Sequences of another length than most are malformed.
    """

    letters = BASES

    @property
    def hint(self) -> str:
        axis = "" if self.encoding.channel_axis != -1 else " With channel_axis=-2 they are (4, L)."
        return (
            f"Records are one-hot in the order ACGT, and most have {self.length} letters: expected as many as the "
            f"model takes.{axis}"
        )

    def __init__(self, path: Path, encoding: Encoding = PLAIN) -> None:
        self.source, self.encoding = str(path), encoding
        self.file, self.close = _opened(path)  # for as long as the run
        if is_gzipped(self.file):
            self.file = gzip.GzipFile(mode="rb", fileobj=self.file)
        self.offsets = array("q")  # of the lines after each header
        self.names: list[str] = []
        try:
            with reading(path, "FASTA file"):
                lengths = self._index()
            self.count = len(self.offsets)
            # The length that most records have, so that a first one that is cut short doesn't spoil all others.
            [(self.length, times)] = lengths.most_common(1)
            self.expected = f"expected {self.length} as most have"
            if times == 1:
                self.expected = (
                    f"expected {self.length} as the first has: no two records have the same length. For windows of a "
                    "genome give --regions BED --width L, in Python Windows(...)"
                )
            self.shape, self.dtype = encoding.shape(self.length), np.dtype(np.float32)
            some = self.read(0, 16)
            if len(some.messages) == len(some.values):
                raise MalformedError(f"{path}: expected DNA or RNA, but in its first record: {some.messages[0]}.")
        except BaseException:
            self.close()
            raise

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The names of the records: the first word of each header."""
        return {"name": np.array(self.names, np.dtypes.StringDType())}

    def keys(self, start: int, stop: int) -> np.ndarray:
        """Of the records' names, so that neither order nor other records matter."""
        return keys_of(self.names[start:stop])

    def _index(self) -> Counter[int]:
        """Find the records. How many have which length; of equal numbers the first comes first."""
        lengths: Counter[int] = Counter()
        offset, length = 0, 0
        for line_number, line in enumerate(self.file, 1):
            offset += len(line)
            text = line.removeprefix(_BYTE_ORDER_MARK).rstrip() if line_number == 1 else line.rstrip()
            if b"\r" in text:
                raise MalformedError(
                    f"{self.source}, line {line_number}: lines end with CR alone, as on old Macs: write it with LF, as "
                    "`tr '\\r' '\\n'` does."
                )
            if text.startswith(b">"):
                if self.offsets:
                    lengths[length] += 1
                self.offsets.append(offset)
                self.names.append(next(iter(text[1:].split()), b"").decode(errors="replace"))
                length = 0
            elif self.offsets:
                length += len(line.strip())
            elif text:
                raise MalformedError(
                    f"{self.source}, line {line_number}: expected a FASTA record, which begins with '>', got "
                    f"{text[:20].decode('latin1')!r}."
                )
        if not self.offsets:
            raise MalformedError(f"{self.source}: there is no sequence, no line that begins with '>'.")
        lengths[length] += 1
        if not any(lengths):
            raise MalformedError(f"{self.source}: the sequences have no letters.")
        return lengths

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
        encoded = self.encoding(sequence)
        if len(sequence) != self.length:
            raise MalformedError(f"the record has {len(sequence)} letters, {self.expected}")
        return encoded


def is_gzipped(file: Any) -> bool:
    """Whether what a file has is gzipped, whatever its name says."""
    if hasattr(file, "peek"):  # as a file of this machine has, which may be a pipe
        magic = file.peek(2)[:2]
    else:
        magic = file.read(2)
        file.seek(0)
    return magic == b"\x1f\x8b"


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def channels(examples: Examples, axis: int, what: str) -> int:
    """The axis of the channels, counted from the end; or the error that says that `what` can't be had along it.

    Along it numbers must be at least 0 and sum to 1 at most, as one-hot ones do, and frequencies.
    """
    rank = len(examples.shape)
    if not -rank <= axis < rank:
        raise ValueError(
            f"channel_axis={axis} is not an axis of examples of shape {examples.shape}: expected {-rank} to {rank - 1}."
        )
    axis = axis % rank - rank
    if examples.count is None:
        some = examples.first()[None]
    else:
        records = examples.read(0, 16)
        some = records.values[records.status == Status.SCORED]
    possible = [a for a in range(-rank, 0) if (some >= 0).all() and (some.sum(a) <= 1.001).all()]
    if axis not in possible:
        other = (
            f"they can be along another: channel_axis={possible[-1]}" if possible else "they are along no other either"
        )
        raise ValueError(
            f"{what} need examples that are one-hot along their channel axis, and those of {examples.source}, of shape "
            f"{examples.shape}, are not along axis {axis}; {other}."
        )
    return axis


def letters_axis(examples: Examples, axis: int) -> int | None:
    """The axis of the letters of one-hot DNA, counted from the end, or None where examples are something else."""
    if len(examples.shape) != 2 or axis not in (-2, -1, 0, 1) or examples.shape[axis] != len(BASES):
        return None
    if examples.letters is None:
        some = examples.first()[None] if examples.count is None else examples.read(0, 16).values
        if not np.isin(some, (0, 1)).all() or (some.sum(axis if axis < 0 else axis + 1) > 1).any():
            return None
    return axis % 2 - 2


def numeric(dtype: Any, source: str) -> np.dtype:
    """The dtype, if it is one of real numbers. (bfloat16 and its like are of kind V, and are numbers too.)"""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf" and (dtype.kind != "V" or dtype.fields or dtype.name.startswith("void")):
        raise TypeError(f"{source}: expected examples of numbers, got dtype {dtype}.")
    return dtype


def only_key(names: Iterable[str], key: str | None, path: Path) -> str:
    """The array that is meant, among those of a file."""
    names = sorted(names)
    if not names:
        raise ValueError(f"{path} has no arrays.")
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = "say which array" if key is None else f"there is no array {key!r}"
        raise ValueError(f"{path}: {asked}: write {path}:NAME, with one of {', '.join(names)}.")
    return key


def npy_header(file: Any, source: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and dtype of an array of examples in NumPy's format.

    What is pickled stays so. An array that a file of this size can't hold is refused.
    """
    with reading(source, "array that np.save wrote"):
        magic = file.read(np.lib.format.MAGIC_LEN)
        if not magic:
            raise DamagedError(f"{source} is empty: expected an array, as np.save writes it.")
        if not magic.startswith(np.lib.format.MAGIC_PREFIX):
            raise MalformedError(
                f"{source} is not an array in NumPy's format, whatever its name says: it begins with {magic!r}. Write "
                "it with np.save."
            )
        version = tuple(magic[-2:])
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"no array has the shape {shape}")
    if dtype.hasobject:
        raise MalformedError(
            f"{source} has pickled Python objects (dtype object), which jaxlift never loads, since that runs code from "
            "the file: save one array of numbers, such as np.stack(examples)."
        )
    wanted = file.tell() + math.prod(shape) * dtype.itemsize
    if size < wanted:
        raise DamagedError(
            f"{source} is cut short: an array of {dtype} of shape {shape} takes {wanted} bytes, and the file has "
            f"{size}. Copy or save it again."
        )
    return _with_numbers(shape, source), fortran, dtype


def _with_numbers(shape: tuple[int, ...], source: str) -> tuple[int, ...]:
    """The shape of an array of examples, or the error for a scalar, and for examples that have no numbers."""
    if not shape:
        raise MalformedError(f"{source}: expected an array of examples (N, ...), got a scalar.")
    if 0 in shape[1:]:
        raise MalformedError(f"{source}: expected examples with numbers in them, got an array of shape {shape}.")
    return shape


def open_array(text: str | Path, encoding: Encoding = PLAIN) -> Examples:
    """The array in a file: ``path``, or ``path:name`` where the file has several. A path may be a URL.

    Args:
        text: the path, with the name.
        encoding: of the letters of a FASTA file; arrays are as they are.
    """
    path, key = _located(text)
    examples = _array_in(path, key, encoding)
    examples.reads = [path]
    return examples


def _array_in(path: Path, key: str | None, encoding: Encoding) -> Examples:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    with reaching(path):
        is_folder = path.is_dir()
    match [suffix for suffix in suffixes if suffix != ".gz"][-1:]:
        case _ if is_folder:
            return _zarr(path, key)
        case [".npz"]:
            return _npz(path, key)
        case [".h5" | ".hdf5" | ".hdf"]:
            return _hdf5(path, key)
        case [".npy"]:
            file, close = _opened(_without_key(path, key))
            return FileExamples(file, str(path), path.stat().st_size, close, is_near=not is_url(path))
        case [".fa" | ".fasta" | ".fna"]:
            return FastaExamples(_without_key(path, key), encoding)
    raise ValueError(f"{path}: expected .npy, .npz, .h5, .hdf5, .fa, .fasta, .fna (or .gz of these three), or Zarr.")


def is_path(given: Any) -> bool:
    """Whether something names a file: text, or a path of this machine or elsewhere (`upath.UPath`)."""
    return isinstance(given, str) or hasattr(given, "suffixes")


def _located(text: str | Path) -> tuple[Path, str | None]:
    """The file or folder that is meant, and the name of an array in it."""
    before, _, after = str(text).rpartition(":")
    named = [(text, None), (before, after)] if before and not after.startswith("//") else [(text, None)]
    with reaching(text):
        found = next(((place(path), key) for path, key in named if place(path).exists()), None)
    if found is None:
        raise FileNotFoundError(f"there is no file {text}.")
    path, _ = found
    if not is_url(path) and not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is a pipe or a device: examples are read by number, from a file.")
    return found


def _without_key(path: Path, key: str | None) -> Path:
    if key is not None:
        raise ValueError(f"{path} has one array, and no names: write {path} without {f':{key}'!r}.")
    return path


def _opened(path: Path) -> tuple[Any, Callable[[], None]]:
    """A file to read from, and what closes it. One far away is fetched in pieces, ahead of what is read."""
    file: Any = io.BufferedReader(FarFile(path), 2**20) if is_url(path) else path.open("rb")
    return file, file.close


def _npz(path: Path, key: str | None) -> Examples:
    kind = "file that np.savez wrote"
    file, close = _opened(path)
    with contextlib.ExitStack() as failed:
        failed.callback(close)
        with reading(path, kind):
            archive = zipfile.ZipFile(file)  # which can be forgotten: its members read from the file
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        key = only_key({*names}, key, path)
        if names.count(key) > 1:
            raise DamagedError(f"{path} has {names.count(key)} arrays of the name {key}: save it again.")
        with reading(path, kind):
            member = archive.open(f"{key}.npy")
        failed.pop_all()
    return FileExamples(member, f"{path}:{key}", archive.getinfo(f"{key}.npy").file_size, close)


def _hdf5(path: Path, key: str | None) -> Examples:
    h5py = extra("h5py")
    opened, close = _opened(path) if is_url(path) else (path, lambda: None)
    with contextlib.ExitStack() as failed:
        failed.callback(close)
        names: list[str] = []
        with reading(path, "HDF5 file"):
            file = failed.enter_context(h5py.File(opened, "r"))
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        key = key.strip("/") if key else None
        if not names or (key is not None and key not in names):
            _check_links(file, key, path)
        key = only_key(names, key, path)
        _check_within(file[key], path)
        examples = ArrayExamples(file[key], f"{path}:{key}")
        examples.close = failed.pop_all().close
    return examples


def _check_links(group: Any, key: str | None, path: Path) -> None:
    """Raise the error for arrays of an HDF5 file that are links, which aren't followed."""
    h5py = extra("h5py")
    for name in group if key is None else itertools.accumulate(key.split("/"), "{}/{}".format):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise MalformedError(
                f"{path}:{name} is a link to another file, {link.filename}:{link.path}, and jaxlift reads no file that "
                "isn't named: name that one."
            )
        if isinstance(link, h5py.SoftLink):
            raise MalformedError(f"{path}:{name} is a link to {link.path}: write the name of the array itself.")


def _check_within(dataset: Any, path: Path) -> None:
    """Raise the error for an array of an HDF5 file whose numbers lie in others, or nowhere."""
    source = f"{path}:{dataset.name.strip('/')}"
    parts, seen = [dataset], {dataset.name}
    while parts:
        part = parts.pop()
        made_of = part.virtual_sources() if part.is_virtual else []
        elsewhere = [name for name, *_ in part.external or ()] + [s.file_name for s in made_of if s.file_name != "."]
        if elsewhere:
            raise MalformedError(
                f"{source} has its numbers in another file, {elsewhere[0]}, and jaxlift reads no file that isn't "
                "named: copy them into one, with h5py, or name that one."
            )
        for name in {each.dset_name for each in made_of} - seen:
            if not isinstance(part.file.get(name), type(dataset)):
                raise DamagedError(f"{source} is made of {name}, which the file doesn't have.")
            seen.add(name)
            parts.append(part.file[name])


def _zarr(path: Path, key: str | None) -> Examples:
    zarr = extra("zarr")
    node = opened_zarr(path)
    if isinstance(node, zarr.Group):
        with reading_zarr(path):
            names = [name for name, member in node.members(max_depth=None) if isinstance(member, zarr.Array)]
        key = only_key(names, key.strip("/") if key else None, path)
        _check_no_links(path, path / key)
        return ArrayExamples(node[key], f"{path}:{key}")
    _check_no_links(path, _without_key(path, key))
    return ArrayExamples(node, str(path))


def _check_no_links(store: Path, folder: Path) -> None:
    """Raise the error for an array whose files lie somewhere else than in its store."""
    if is_url(store):
        return
    for path in itertools.chain([folder], _links(folder)):
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(store)):
            raise MalformedError(
                f"{path} leads out of {store}, to {target}, and jaxlift reads no file that isn't named: copy "
                "the store with what it links to, as `cp -rL` does."
            )


def _links(folder: Path) -> Iterator[Path]:
    """The links in a folder and in those below. (Each file's kind comes with its name, so that many cost little.)"""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(Path(entry.path))


def opened_zarr(path: Path, mode: Any = "r", store: Any = None) -> Any:
    """The array or group in a folder, or below a URL; through this store of Zarr's, if one is given."""
    zarr = extra("zarr")
    with reaching(path):
        is_there = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    if not is_there:
        raise MalformedError(f"{path} is not a Zarr store: it has no zarr.json.")
    with reading_zarr(path):
        where: Any = store or (far_store(path, mode) if is_url(path) else path)
        node = zarr.open(where, mode=mode)
        # What is consolidated is a copy of the metadata, which may be older.
        return zarr.open_group(where, mode=mode, use_consolidated=False) if isinstance(node, zarr.Group) else node


@contextlib.contextmanager
def reading_zarr(path: Path) -> Iterator[None]:
    """Say which of a store's files of metadata can't be read."""
    try:
        yield
    except (ModuleNotFoundError, UnreachableError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not is_url(path):
            raise
        for name in () if is_url(path) else ("zarr.json", ".zgroup", ".zarray", ".zattrs"):
            for file in sorted(path.rglob(name)):
                with reading(file, "JSON"):
                    json.loads(file.read_bytes())
        raise DamagedError(f"{path}: the Zarr store is damaged ({_named(error)}).") from error


class _TupleError(TypeError):
    """An example that is several things."""


def _like_first(item: Any, source: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that all examples have, from the first."""
    if isinstance(item, tuple | Mapping):
        kind = f"{type(item).__name__} of {len(item)}"
        raise _TupleError(
            f"{source}: expected each example to be an array, got a {kind}. Of pairs (x, y), give the x alone: "
            "[x for x, y in pairs]."
        )
    first = np.asarray(item)
    return first.shape, numeric(first.dtype, source)


def open_examples(examples: Any, encoding: Encoding = PLAIN) -> Examples:
    """Examples from whatever a user has them in; those of a FASTA file in this encoding."""
    if isinstance(examples, Examples):
        return examples
    if is_path(examples):
        return open_array(examples, encoding)
    source = f"{type(examples).__module__}.{type(examples).__qualname__}"
    if hasattr(examples, "shape") and hasattr(examples, "dtype"):
        return ArrayExamples(examples, source)
    if hasattr(examples, "__len__") and hasattr(examples, "__getitem__"):
        return SequenceExamples(examples, source)
    if isinstance(examples, Iterable | Iterator):
        return StreamExamples(examples, source)
    raise TypeError(f"examples must be arrays, an iterable of arrays, or the path of a file, got {source}.")
