"""Files that appear complete or not at all, and their names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which gets its own when it is complete."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def beside(store: Path, ending: str) -> Path:
    """The path of a file that goes with a store: ``peaks.kept.bed`` with ``peaks.zarr``, ``fold.1.kept.bed`` with
    ``fold.1``.
    """
    return store.with_name(store.name.removesuffix(".zarr") + ending)


def check_not_read(path: Path, read: Iterable[str | Path]) -> None:
    """Raise the error for a file that is to be written and that the run reads."""
    if any(path.resolve() == Path(each).resolve() for each in read):
        raise ValueError(f"{path} would be written over, and this run reads it: choose another path.")
