"""Files that appear complete or not at all, and their names."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxlift.scoring._places import is_url, place, reaching, resolved

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a user's share of it, or what a file may have


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name on this machine to write a file under, which gets its own name when it is complete, or goes to its URL.

    An error of writing it has the file's own name, and not that one.
    """
    if is_url(path):
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder, path.name)
            yield draft
            files: Any = path
            with reaching(path):
                files.fs.put_file(str(draft), files.path)
            return
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # others may write the same file at the same time
    try:
        with naming(draft):
            yield draft
        draft.replace(path)
    except OSError as error:
        if error.filename in (draft, str(draft)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is there
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file that is written in the error of a full disk, which has no name where a file is open already."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def beside(store: Path, ending: str) -> Path:
    """The path of a file that goes with a store: ``peaks.kept.bed`` with ``peaks.zarr``, ``fold.1.kept.bed`` with
    ``fold.1``.
    """
    return store.with_name(store.name.removesuffix(".zarr") + ending)


def check_not_read(path: Path, read: Iterable[str | Path]) -> None:
    """Raise the error for a file that is to be written and that the run reads."""
    if any(str(resolved(path)) == str(resolved(place(each))) for each in read):
        raise ValueError(f"{path} would be written over, and this run reads it: choose another path.")
