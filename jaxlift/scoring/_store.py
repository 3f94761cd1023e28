"""The store: a Zarr group, of which every finished chunk is valid whatever happens next.

Zarr v3 through zarr-python, because those who read the result have it already: xarray reads with it, it is pure Python,
it replaces files in one step (since 3.1.3), and it writes to object stores as it writes to disks.

Who scores a chunk writes its rows of all arrays, and when they are on the disk, its row of the array ``checksum``. A
chunk is finished if that row is there, and valid if it fits what the arrays have. There are no other books, and no two
processes of a run write the same file: that is why they need no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift.scoring._examples import DamagedError, Status, opened_zarr, reading_zarr
from jaxlift.scoring._extra import extra
from jaxlift.scoring._letters import one_hot_of
from jaxlift.scoring._places import UnreachableError, create, is_url, reaching, replace, sync

FORMAT = 3
ROWS = 2**16  # in a chunk of a column
AN_HOUR = 3600.0
FLAT = {"name": "default", "separator": "."}  # a file for each chunk, and no folders for it


class StoreError(Exception):
    """The store can't be used for this run. `exit_code` is what the command ends with."""

    exit_code = 2


class BusyError(StoreError):
    """Another run works on the store."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Store:
    """Arrays with one row for each example, in chunks that are written whole.

    Attributes:
        path: the folder, or a URL.
        settings: what made the scores. A run with other settings may not add to them.
        chunk: how many examples a chunk has.
        targets: names of the outputs that are explained, if they are several.
    """

    def __init__(self, path: Path, mode: str = "r+") -> None:
        zarr = extra("zarr")
        self.path, self.mode = path, mode
        self.group = opened_zarr(path, mode, None if is_url(path) else _synced_store()(path))
        if not isinstance(self.group, zarr.Group):
            raise StoreError(f"{path} is a Zarr array, not a store of scores, as `jaxlift score` makes it.")
        self.meta: dict[str, Any] = _checked(self.group.attrs.get("jaxlift"), path)
        self.settings: dict[str, Any] = self.meta["settings"]
        self.chunk: int = self.meta["chunk"]
        self.targets: tuple[str, ...] = tuple(self.meta["targets"])

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """The arrays with a row for each example."""
        return {name: self._rows_of(name, 1, of["row"], of["dtype"]) for name, of in self.meta["arrays"].items()}

    @functools.cached_property
    def checksum(self) -> Any:
        """The array with a row for each chunk that is finished, a checksum of its rows of each array."""
        return self._rows_of("checksum", self.chunk, [len(self.meta["arrays"])], "uint32")

    def _rows_of(self, name: str, examples: int, row: list[int], dtype: str) -> Any:
        """An array with a row for so many examples each, or the error for one that is not as it was made."""
        array, count = self._array(name), self.meta["count"]
        wanted = ["?" if count is None else -(-count // examples), *row]
        of_chunk = self.chunk // examples
        shape, chunks, its_dtype = (getattr(array, each, None) for each in ("shape", "chunks", "dtype"))
        fits = shape and chunks and [*shape[1:]] == row and wanted[0] in ("?", shape[0]) and chunks[0] == of_chunk
        if not fits or its_dtype != dtype:
            raise StoreError(
                f"{self.path} is damaged: expected {name} to be {dtype} of shape ({', '.join(map(str, wanted))}) in "
                f"chunks of {of_chunk}, got {its_dtype} of shape {shape} in chunks of {chunks and chunks[0]}. Put the "
                "store back from a copy, or score anew."
            )
        return array

    def _array(self, name: str) -> Any:
        # Without this, each chunk is searched for what is not empty.
        with extra("zarr").config.set({"array.write_empty_chunks": True}), reading_zarr(self.path):
            try:
                return self.group[name]
            except KeyError:
                pass
        if self.is_complete:
            raise StoreError(f"{self.path} is damaged: it has no array {name}.")
        raise StoreError(f"{self.path} is still being made, or that was cut off: `jaxlift score` makes the rest.")

    @property
    def is_complete(self) -> bool:
        """Whether all arrays were made; ``checksum`` is the last."""
        return "checksum" in self.group

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Where the examples come from: names, places in a genome and whatever else their source says of each."""
        return {name: self._kept(name) for name in self.meta["columns"]}

    @functools.cached_property
    def reference(self) -> np.ndarray | None:
        """The reference of all examples, if they have one."""
        return self._kept("reference") if "reference" in self.meta["kept"] and self.is_complete else None

    def check_kept(self) -> None:
        """Raise the error for columns or a reference that are not what was written when the store was made."""
        for name in self.meta["kept"]:
            self._kept(name)

    def _kept(self, name: str) -> np.ndarray:
        """What was written when the store was made, if it is still what it was."""
        array = self._array(name)
        with reading_zarr(self.path):
            values = array[...]
        if checksum_of(values) != self.meta["kept"][name]:
            raise StoreError(
                f"{self.path}: the array {name} was changed or damaged after the store was made. Put the store back "
                "from a copy, or score anew."
            )
        return values

    @property
    def output(self) -> str:
        """The name of the array of scores."""
        return self.settings["attribution"]["output"]

    @property
    def letters_axis(self) -> int:
        """The axis of the one-hot letters in an example, counted from the end."""
        axis = self.settings["attribution"].get("channel_axis")
        return -1 if axis is None else axis % 2 - 2

    def scored(self, start: int, stop: int, target: str | None = None) -> np.ndarray:
        """The scores of sequences, `(n, L, 4)`: the letters last, whatever the channel axis. Unscored ones are NaN.

        Args:
            start, stop: the numbers of the examples.
            target: which of several outputs.
        """
        array = self.arrays[self.output]
        if target is None and self.targets:
            raise ValueError(f"{self.path} has scores of several outputs: say target={' or '.join(self.targets)}.")
        if target is not None and target not in self.targets:
            names = ", ".join(self.targets) or "none: it has scores of one output"
            raise ValueError(f"{self.path} has no target {target!r}; it has {names}.")
        rows = self.rows(self.output, start, stop)
        rows = rows if target is None else rows[:, self.targets.index(target)]
        if rows.ndim != 3:
            raise ValueError(f"{self.path} has scores of shape {array.shape}, and not of sequences (N, L, 4).")
        scores = np.moveaxis(rows, self.letters_axis, -1)
        status = self.rows("status", start, stop)
        return np.where((status == Status.SCORED)[:, None, None], scores, np.nan)

    def one_hot(self, start: int, stop: int) -> np.ndarray:
        """The sequences, `(n, L, 4)` int8 in the order ACGT, zeros where there is no letter."""
        if "sequence" not in self.arrays:
            raise ValueError(
                f"{self.path} has no sequences: its examples were not one-hot along their channel axis, "
                f"{self.letters_axis}."
            )
        return one_hot_of(self.rows("sequence", start, stop)).astype(np.int8)

    @classmethod
    def create(
        cls,
        path: Path,
        settings: dict[str, Any],
        arrays: Mapping[str, tuple[tuple[int, ...], Any]],
        count: int | None,
        chunk: int,
        kept: Mapping[str, np.ndarray],
        columns: Iterable[str] = (),
        dimensions: Mapping[str, tuple[str, ...]] | None = None,
        targets: tuple[str, ...] = (),
    ) -> Store:
        """The store at a path, and if there is none, a new one. Of several who make it at the same time, one does.

        Args:
            path: where.
            settings: what can be written as JSON.
            arrays: name, shape of one row, and dtype; ``status`` and ``input`` come by themselves.
            count: how many rows; None if that isn't known yet.
            chunk: how many of them make a chunk.
            kept: what is written once: the columns, and the reference of all examples, if they have one.
            columns: those of `kept` that have a value for each example.
            dimensions: names of the axes of a row, where they have some.
            targets: names of the outputs that are explained, if they are several.
        """
        specified = {
            name: {
                "row": list(shape),
                "dtype": np.dtype(dtype).name,
                "axes": (dimensions or {}).get(name) or [f"{name}_{axis}" for axis in range(1, len(shape) + 1)],
            }
            for name, (shape, dtype) in {**arrays, "input": ((), np.uint32), "status": ((), np.uint8)}.items()
        }
        meta = {
            "format": FORMAT,
            "id": uuid.uuid4().hex,
            "settings": settings,
            "chunk": chunk,
            "count": count,
            "arrays": specified,
            "kept": {name: checksum_of(values) for name, values in kept.items()},
            "columns": [*columns],
            "targets": [*targets],
        }
        root = {"zarr_format": 3, "node_type": "group", "attributes": {"jaxlift": meta}}
        if not is_url(path):
            path.mkdir(parents=True, exist_ok=True)
        create(path / "zarr.json", json.dumps(root, indent=2).encode())
        return cls(path)

    def complete(self, kept: Mapping[str, np.ndarray]) -> None:
        """Make what isn't there yet of a store's arrays. Whoever comes may do so: all would write the same.

        Args:
            kept: as for `create`.
        """
        if not self.is_complete:
            self._make_arrays(kept)
        sync([self.path])  # where the array that is the last may be as new as this run

    def _make_arrays(self, kept: Mapping[str, np.ndarray]) -> None:
        # Scores are zeros, which this level finds, and digits, in which no level finds anything.
        codec = extra("zarr").codecs.ZstdCodec(level=-1, checksum=True)
        count = self.meta["count"] or 0
        for name, values in kept.items():
            values = _storable(values)
            if checksum_of(values) != self.meta["kept"].get(name):
                raise StoreError(
                    f"{self.path}: another process is making the store, and has another {name} than this one. Run it "
                    "again when the store is whole."
                )
            axes = ["target"] if name == "target" else ["example"] if name in self.meta["columns"] else None
            chunks = (max(1, min(len(values), ROWS)),) if axes else values.shape
            axes = axes or [f"{name}_{axis}" for axis in range(values.ndim)]
            self._make(name, values.shape, chunks, values.dtype, codec, axes)[...] = values
        for name, of in self.meta["arrays"].items():
            row = tuple(of["row"])
            chunks = (self.chunk, *(max(size, 1) for size in row))
            self._make(name, (count, *row), chunks, of["dtype"], codec, ["example", *of["axes"]])
        with contextlib.suppress(extra("zarr").errors.ContainsGroupError):  # of a process that was faster
            self.group.create_group("runs")  # now, so that who reads a store that has `checksum` finds it whole
        width = len(self.meta["arrays"])
        if not is_url(self.path):
            with contextlib.suppress(PermissionError):  # of folders further up, which are older
                # Other processes may be making the same, and their drafts come and go.
                made = [path for path in self.path.rglob("*") if path.suffix != ".partial"]
                sync([*made, self.path, *self.path.parents])
        self._make("checksum", (-(-count // self.chunk), width), (1, width), np.uint32, None, ["chunk", "array"])

    def _make(self, name: str, shape: Any, chunks: Any, dtype: Any, codec: Any, axes: list[str]) -> Any:
        zarr = extra("zarr")
        try:
            return self.group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                compressors=codec,
                fill_value=np.nan if np.dtype(dtype).kind == "f" else "" if np.dtype(dtype).kind == "T" else 0,
                dimension_names=axes,
                chunk_key_encoding=FLAT,
            )
        except zarr.errors.ContainsArrayError:  # another process was faster
            return self.group[name]

    def note(self, run: Mapping[str, Any]) -> None:
        """Write down a run, by its ``name``. Each has a group of its own, so that none waits for another."""
        self.group.require_group(f"runs/{run['name']}").attrs.put({"jaxlift": dict(run)})

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What ran, when and how, in the order of time."""
        records, folder = [], self.path / "runs"
        with reaching(self.path):
            runs = [*folder.iterdir()] if folder.is_dir() else []
        for run in runs:
            with contextlib.suppress(OSError, ValueError, KeyError):  # one that can't be read is no loss
                records.append(json.loads((run / "zarr.json").read_bytes())["attributes"]["jaxlift"])
        records = [record for record in records if isinstance(record, dict)]
        return sorted(records, key=lambda record: str(record.get("started")))

    @property
    def sealed(self) -> dict[str, Any] | None:
        """When all was finished, and what then was in the store; None until then."""
        return self.group.attrs.get("finished")

    def seal(self, summary: Mapping[str, Any]) -> None:
        """Say in the metadata that all chunks are finished. Of several who say so, the last word stays."""
        if not self._is_there():
            raise self._gone()
        self.group.attrs["finished"] = dict(summary)

    def clean(self) -> None:
        """Remove what runs that were killed had half written; others may be at work, and need theirs."""
        if not is_url(self.path):
            drafts = self.path.parent.glob(f".{self.path.name}.{'[0-9a-f]' * 32}")
            for left in (*drafts, *self.path.rglob("*.partial")):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > AN_HOUR:
                        left.unlink()

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.arrays["status"].shape[0]

    @property
    def chunks(self) -> range:
        """The numbers of all chunks."""
        return range(-(-self.count // self.chunk))

    @property
    def status(self) -> np.ndarray:
        """What became of each example, of `Status`; unfinished where its chunk is, whatever that has already."""
        return self.rows("status", 0, self.count)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """What an array has of some examples, and its fill value where a chunk is unfinished, which may be torn."""
        array, finished = self.arrays[name], self.finished()
        stop = min(stop, self.count)
        chunks = range(start // self.chunk, -(-stop // self.chunk))
        first, last = chunks.start * self.chunk, min(chunks.stop * self.chunk, self.count)  # whole chunks
        if finished.issuperset(chunks):
            try:
                values = array[first:last]
            except UnreachableError:
                raise
            except Exception:  # a chunk can't be read, and the one that it is says so
                values = np.concatenate([self._read(name, chunk) for chunk in chunks])
        else:
            values = np.full((max(last - first, 0), *array.shape[1:]), array.fill_value, array.dtype)
            for chunk in finished.intersection(chunks):
                rows = self._read(name, chunk)
                values[chunk * self.chunk - first :][: len(rows)] = rows
        at = [*self.arrays].index(name)
        for chunk in finished.intersection(chunks):
            rows = values[chunk * self.chunk - first :][: self.chunk]
            if self._sums[chunk, at] != _sum_of(rows):
                raise self._damaged(name, chunk)
        return values[start - first : stop - first]

    def _read(self, name: str, chunk: int) -> np.ndarray:
        """A chunk of an array, or the error that says that it can't be read."""
        try:
            return self.arrays[name][chunk * self.chunk : (chunk + 1) * self.chunk]
        except UnreachableError:
            raise
        except Exception as error:  # whatever a codec or a file system finds
            raise self._damaged(name, chunk) from error

    def _damaged(self, name: str, chunk: int) -> DamagedError:
        start = chunk * self.chunk
        return DamagedError(
            f"{self.path}: chunk {chunk} of {name}, of the examples {start} to "
            f"{min(start + self.chunk, self.count) - 1}, is damaged. The same `jaxlift score` command scores it again; "
            "`jaxlift verify` says whether others are."
        )

    def finished(self) -> set[int]:
        """The numbers of the chunks that were written whole; to a reader, when it first asked."""
        return self._seen if self.mode == "r" else self._finished()

    @functools.cached_property
    def _seen(self) -> set[int]:
        return self._finished()

    def _finished(self) -> set[int]:
        try:
            rows = self.checksum[...]
        except UnreachableError:  # which says nothing of what is there
            raise
        except Exception:  # one of them is damaged, or cut short
            rows = np.stack([self._checksum(chunk) for chunk in range(self.checksum.shape[0])])
        self._sums = rows
        return {int(chunk) for chunk in np.flatnonzero(rows.any(1))}

    def _checksum(self, chunk: int) -> np.ndarray:
        """A chunk's row of ``checksum``; zeros where there is none that can be read."""
        try:
            return self.checksum[chunk]
        except UnreachableError:
            raise
        except Exception:
            return np.zeros(self.checksum.shape[1], np.uint32)

    @property
    def is_ended(self) -> bool:
        """Whether it is known how many examples there are: of a stream, when a run has come to its end."""
        return self.meta["count"] is not None or self.sealed is not None

    @property
    def is_finished(self) -> bool:
        """Whether all chunks are."""
        return len(self.finished()) == len(self.chunks)

    def valid(self, chunk: int) -> dict[str, np.ndarray] | None:
        """What a chunk has, if it is what was written."""
        try:
            rows = self.read(chunk)
        except UnreachableError:
            raise
        except Exception:  # whatever a codec or a file system finds: this chunk can't be read
            return None
        return rows if (self._checksums(rows) == self._checksum(chunk)).all() else None

    def read(self, chunk: int) -> dict[str, np.ndarray]:
        """A chunk, a row for each of its examples."""
        at = slice(chunk * self.chunk, (chunk + 1) * self.chunk)
        return {name: array[at] for name, array in self.arrays.items()}

    def _checksums(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.array([_sum_of(rows[name]) for name in self.arrays], np.uint32)

    def write(self, chunk: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write a chunk, a row for each of its examples. It is finished when this returns, and not there before.

        Raises:
            StoreError: if the store went, or gave way to another, while a run worked on it.
        """
        if not self._is_there():
            raise self._gone()
        arrays = {**self.arrays, "checksum": self.checksum}
        keys = {name: a.metadata.encode_chunk_key((chunk, *[0] * (a.ndim - 1))) for name, a in arrays.items()}
        files = [self.path / name / key for name, key in keys.items()]
        try:
            self._put(chunk, rows, files[:-1])
            is_there = self._is_there()
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk doesn't say which
            raise
        if not is_there:
            if not (self.path / "zarr.json").exists():  # what was written since it went is nobody's
                for file in files:
                    file.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # if others are in it
                        file.parent.rmdir()
            raise self._gone()

    def _gone(self) -> StoreError:
        return StoreError(f"{self.path} was removed or replaced while this run worked on it.")

    def _put(self, chunk: int, rows: Mapping[str, np.ndarray], files: list[Path]) -> None:
        start = chunk * self.chunk
        stop = start + len(rows["status"])
        if stop > self.count:  # of a stream; twice as much each time, for the metadata are rewritten
            self.resize(max(stop, 2 * self.count))
        if self._checksum(chunk).any():  # what is about to be replaced is finished no longer
            if self.sealed is not None:
                del self.group.attrs["finished"]
            self.checksum[chunk] = 0

        def put(name: str) -> None:
            self.arrays[name][start:stop] = rows[name]

        # At a URL each write takes its time, most of which is waiting.
        list((_together().map if is_url(self.path) else map)(put, self.arrays))
        sync([*files, *(file.parent for file in files)])
        self.checksum[chunk] = self._checksums(rows)

    def _is_there(self) -> bool:
        """Whether this is still the store at its path."""
        try:
            with reaching(self.path):
                root = json.loads((self.path / "zarr.json").read_bytes())
            return root["attributes"]["jaxlift"]["id"] == self.meta["id"]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return False

    def resize(self, count: int) -> None:
        """Set the number of examples."""
        if not self._is_there():
            raise self._gone()
        for array in self.arrays.values():
            if array.shape[0] != count:
                array.resize((count, *array.shape[1:]))
        chunks, width = -(-count // self.chunk), self.checksum.shape[1]
        if self.checksum.shape[0] != chunks:
            self.checksum.resize((chunks, width))


@functools.cache
def _together() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "put")


@functools.cache
def _synced_store() -> Any:
    """Zarr's store of files, where what says that others are there is on the disk before it has its name."""

    class SyncedStore(extra("zarr").storage.LocalStore):  # pyright: ignore[reportGeneralTypeIssues]
        async def set(self, key: str, value: Any) -> None:
            if not key.endswith("zarr.json") and not key.startswith("checksum/"):
                await super().set(key, value)
                return
            file = self.root / key
            file.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(replace, file, value.to_bytes())

        async def set_if_not_exists(self, key: str, value: Any) -> None:
            if not await self.exists(key):  # else another process has made the same
                await self.set(key, value)

    return SyncedStore


def _checked(meta: Any, path: Path) -> dict[str, Any]:
    """The metadata, or the error that says what of them can't be read."""
    if meta is None:
        raise StoreError(f"{path} is a Zarr group, but not a store of scores, as `jaxlift score` makes it.")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = json.dumps(meta.get("format")) if isinstance(meta, dict) else "none"
        raise StoreError(
            f"{path} was made by another version of jaxlift: expected a store of format {FORMAT}, got {found}. Choose "
            "another path, or remove it."
        )
    match meta:
        case {
            "settings": {
                "attribution": {"output": str(output)},
                "examples": {"sample": {}},
                "batch_size": int(batch),
                "in_turn": bool(),
            }
        } if batch > 0:
            pass
        case _:
            raise StoreError(f"{path}: the metadata are damaged: there are no settings of the run.")
    match meta:
        case {
            "id": str(),
            "chunk": int(chunk),
            "count": int() | None,
            "arrays": {"delta": {}, "status": {}, "input": {}} as arrays,
            "kept": {} as kept,
            "columns": [*columns],
            "targets": [*_],
        } if (
            chunk > 0
            and output in arrays
            and all(isinstance(name, str) and name in kept for name in columns)
            and all(map(_is_specified, arrays.values()))
        ):
            return meta
    raise StoreError(f"{path}: the metadata are damaged: there is no right description of the arrays.")


def _is_specified(array: Any) -> bool:
    match array:
        case {"row": [*row], "dtype": str(), "axes": [*axes]}:
            return len(row) == len(axes) and all(isinstance(size, int) for size in row)
    return False


def _storable(values: np.ndarray) -> np.ndarray:
    """Values in a dtype that Zarr has: text of variable length."""
    return values.astype(np.dtypes.StringDType()) if values.dtype.kind in "UT" else values


def _sum_of(rows: np.ndarray) -> int:
    """The checksum of a chunk of an array; 0 stands for none."""
    return max(checksum_of(rows), 1)


def checksum_of(values: np.ndarray) -> int:
    """Of what is in an array, with its shape: CRC-32."""
    values, shape = _storable(values), repr(values.shape).encode()
    if values.dtype.kind == "T":
        return zlib.crc32("\0".join(values.tolist()).encode(), zlib.crc32(shape))
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, zlib.crc32(shape))


def exists(path: Path) -> bool:
    """Whether there is a store already. What else may be there is not to be lost."""
    with reaching(path):
        if (path / "zarr.json").exists():
            return True
        is_other = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_other:
        raise StoreError(f"{path} is there, and is not a store of scores: choose another path.")
    return False


def remove(path: Path) -> None:
    """Remove a store."""
    if is_url(path):
        files: Any = path
        with reaching(path):
            files.fs.rm(files.path, recursive=True)
    else:
        shutil.rmtree(path)


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two settings, each with its name and both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = dict.fromkeys([*stored, *wanted])
        found = [differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key) for key in names]
        return [line for lines in found for line in lines]
    if stored == wanted:
        return []
    return [f"{name}: the store has {json.dumps(stored)}, this run {json.dumps(wanted)}"]
