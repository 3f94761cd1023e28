"""The store: a Zarr group on disk, of which every finished chunk is valid whatever happens next.

Zarr v3 through zarr-python, because those who read the result have it already: xarray reads with it, it is pure Python,
and it replaces files in one step (since 3.1.3), which is what resuming needs of it.

A chunk's scores are written first and its ``status`` last. So a chunk whose status is there is finished, and there are
no other books to keep.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift.scoring._examples import Status, opened_zarr, reading_zarr
from jaxlift.scoring._extra import extra
from jaxlift.scoring._letters import one_hot_of

FORMAT = 2
ROWS = 2**16  # in a chunk of a column


class StoreError(Exception):
    """The store can't be used for this run. `exit_code` is what the command ends with."""

    exit_code = 2


class BusyError(StoreError):
    """Another run works on the store."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextlib.contextmanager
def lock(path: Path, shared: bool = False) -> Iterator[None]:
    """Keep other runs off a store. The lock ends with the process, however it ends.

    Args:
        path: of the store; the lock is a file beside it, since Zarr takes no notice of files that aren't its own only
            outside of its group.
        shared: for the other processes of a run whose first process has called `share`.
    """
    import fcntl

    name = path.with_name(f".{path.name}.lock")
    with name.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise BusyError(f"another run works on {path}: wait for it to end, or stop it.") from None
        _held[path] = file
        try:
            yield
        finally:
            del _held[path]


_held: dict[Path, Any] = {}


def share(path: Path) -> None:
    """Let the other processes of this run in, and still no other run: one of them is enough to keep those off."""
    import fcntl

    try:
        fcntl.flock(_held[path], fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        raise BusyError(f"another run has just begun to work on {path}.") from None


class Store:
    """Arrays with one row for each example, in chunks that are written whole.

    Attributes:
        path: the directory.
        settings: what made the scores. A run with other settings may not add to them.
        chunk: how many examples a chunk has.
    """

    def __init__(self, path: Path, mode: str = "r+") -> None:
        zarr = extra("zarr")
        self.path, self.group = path, opened_zarr(path, mode)
        if not isinstance(self.group, zarr.Group):
            raise StoreError(f"{path} is a Zarr array, not a store of scores, as `jaxlift score` makes it.")
        meta = self.group.attrs.get("jaxlift")
        if meta is None:
            raise StoreError(f"{path} is a Zarr group, but not a store of scores, as `jaxlift score` makes it.")
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise StoreError(f"{path} is not a store of this version of jaxlift: expected format {FORMAT}.")
        with reading_zarr(path):
            present = set(self.group.array_keys())
        self._check(meta, present)
        self.settings: dict[str, Any] = meta["settings"]
        self.chunk: int = meta["chunk"]
        with zarr.config.set({"array.write_empty_chunks": True}):  # else each is searched for what is not empty
            self.arrays: dict[str, Any] = {name: self.group[name] for name in meta["arrays"]}
        self.targets: tuple[str, ...] = tuple(meta.get("targets", ()))

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Where the examples come from: names, places in a genome and whatever else their source says of each."""
        names = self.group.attrs["jaxlift"].get("columns", ())
        with reading_zarr(self.path):
            return {name: self.group[name][...] for name in names}  # pyright: ignore[reportReturnType]

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
        rows = array[start:stop] if target is None else array[start:stop, self.targets.index(target)]
        if rows.ndim != 3:
            raise ValueError(f"{self.path} has scores of shape {array.shape}, and not of sequences (N, L, 4).")
        scores = np.moveaxis(rows, self.letters_axis, -1)
        status = self.arrays["status"][start:stop]
        return np.where((status == Status.SCORED)[:, None, None], scores, np.nan)

    def one_hot(self, start: int, stop: int) -> np.ndarray:
        """The sequences, `(n, L, 4)` int8 in the order ACGT, zeros where there is no letter."""
        if "sequence" not in self.arrays:
            raise ValueError(
                f"{self.path} has no sequences: its examples were not one-hot along their channel axis, "
                f"{self.letters_axis}."
            )
        return one_hot_of(self.arrays["sequence"][start:stop]).astype(np.int8)

    def _check(self, meta: dict[str, Any], present: set[str]) -> None:
        """Raise the error that says what of a store's metadata can't be read."""
        match meta:
            case {"settings": {"attribution": {"output": str(output)}, "examples": {}, "batch_size": int()}}:
                pass
            case _:
                raise StoreError(f"{self.path}: the metadata are damaged: there are no settings of the run.")
        match meta:
            case {"chunk": int(chunk), "arrays": [*names], "runs": [*runs]} if chunk > 0:
                wanted = {output, "delta", "status", *map(str, names)}
                missing = sorted(name for name in wanted if name not in names or name not in present)
                if missing:
                    raise StoreError(f"{self.path} is damaged: it has no array {', '.join(missing)}.")
                if not all(isinstance(run, dict) for run in runs):
                    raise StoreError(f"{self.path}: the metadata are damaged: a run is no record of one.")
            case _:
                raise StoreError(f"{self.path}: the metadata are damaged: expected chunk, arrays and runs.")

    @classmethod
    def create(
        cls,
        path: Path,
        settings: dict[str, Any],
        arrays: Mapping[str, tuple[tuple[int, ...], Any]],
        count: int | None,
        chunk: int,
        reference: np.ndarray | None,
        columns: Mapping[str, np.ndarray] | None = None,
        dimensions: Mapping[str, tuple[str, ...]] | None = None,
        targets: tuple[str, ...] = (),
    ) -> Store:
        """Make an empty store. It appears complete, and only then a store that is there already goes.

        Args:
            path: where.
            settings: what can be written as JSON.
            arrays: name, shape of one row, and dtype; ``status`` comes by itself.
            count: how many rows; None if that isn't known yet.
            chunk: how many of them make a chunk.
            reference: of all examples, if they have one.
            columns: where the examples come from, a value of each in each column.
            dimensions: names of the axes of a row, where they have some.
            targets: names of the outputs that are explained, if they are several.
        """
        zarr = extra("zarr")
        draft = path.with_name(f".{path.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        group = zarr.open_group(draft, mode="w-", zarr_format=3)
        # Scores are zeros, which this level finds, and digits, in which no level finds anything.
        codec = zarr.codecs.ZstdCodec(level=-1)
        for name, (shape, dtype) in {**arrays, "status": ((), np.uint8)}.items():
            group.create_array(
                name,
                shape=(count or 0, *shape),
                chunks=(chunk, *(max(size, 1) for size in shape)),
                dtype=dtype,
                compressors=codec,
                fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
                dimension_names=(
                    "example",
                    *(dimensions or {}).get(name, (f"{name}_{axis}" for axis in range(1, len(shape) + 1))),
                ),
            )
        columns = dict(columns or {})
        for name, values in (columns | ({"target": np.array(targets)} if targets else {})).items():
            values = values.astype(np.dtypes.StringDType()) if values.dtype.kind in "UT" else values
            array = group.create_array(
                name,
                shape=values.shape,
                chunks=(max(1, min(len(values), ROWS)),),
                dtype=values.dtype,
                compressors=codec,
                dimension_names=["target" if name == "target" else "example"],
            )
            array[:] = values
        if reference is not None:
            names = [f"reference_{axis}" for axis in range(reference.ndim)]
            group.create_array("reference", data=reference, compressors=codec, dimension_names=names)
        meta = {
            "format": FORMAT,
            "settings": settings,
            "chunk": chunk,
            "arrays": [*arrays, "status"],
            "columns": [*columns],
            "targets": [*targets],
            "runs": [],
        }
        group.attrs["jaxlift"] = meta
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if exists(path):
            path.rename(old)
        draft.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        return cls(path)

    def note(self, run: dict[str, Any] | None = None, **ended: Any) -> None:
        """Add a run to the record of runs, or to the last one how it ended."""
        meta = dict(self.group.attrs["jaxlift"])
        meta["runs"] = [*meta["runs"], run] if run else [*meta["runs"][:-1], {**meta["runs"][-1], **ended}]
        self.group.attrs["jaxlift"] = meta

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What ran, when and how."""
        return self.group.attrs["jaxlift"]["runs"]

    @property
    def reference(self) -> np.ndarray | None:
        """The reference of all examples, if they have one."""
        return self.group["reference"][...] if "reference" in self.group else None

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.arrays["status"].shape[0]

    def finished(self) -> set[int]:
        """The numbers of the chunks that need no more work."""
        status = self.arrays["status"][...]
        return {c for c in range(-(-len(status) // self.chunk)) if status[c * self.chunk : (c + 1) * self.chunk].all()}

    def write(self, chunk: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write a chunk, a row for each of its examples. It is finished when this returns, and not there before."""
        start = chunk * self.chunk
        stop = start + len(rows["status"])
        if stop > self.count:  # of a stream; twice as much each time, for the metadata are rewritten
            self.resize(max(stop, 2 * self.count))
        for name in (*(name for name in rows if name != "status"), "status"):
            self.arrays[name][start:stop] = rows[name]

    def resize(self, count: int) -> None:
        """Set the number of examples."""
        for array in self.arrays.values():
            if array.shape[0] != count:
                array.resize((count, *array.shape[1:]))

    def clean(self) -> None:
        """Remove what a killed run had half written."""
        for left in self.path.rglob("*.partial"):
            left.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Whether there is a store already. What else may be there is not to be lost."""
    if path.exists() and not (path / "zarr.json").exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path} is there, and is not a store of scores: choose another path.")
    return (path / "zarr.json").exists()


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two settings, each with its name and both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = dict.fromkeys([*stored, *wanted])
        found = [differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key) for key in names]
        return [line for lines in found for line in lines]
    if stored == wanted:
        return []
    return [f"{name}: the store has {json.dumps(stored)}, this run {json.dumps(wanted)}"]
