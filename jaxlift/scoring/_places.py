"""Where files and stores are: a path on this machine, or a URL such as ``s3://bucket/scores.zarr``."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxlift.scoring._extra import extra

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
PIECE = 2**22  # bytes of a file that are fetched at once
LIVE = {"use_listings_cache": False}  # a listing that is remembered hides what other processes do
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
}


class UnreachableError(OSError):
    """What a URL names can't be had now, or not by this user. That says nothing of what is there."""


def is_url(text: Any) -> bool:
    """Whether text or a place is a URL, rather than a path on this machine."""
    return not isinstance(text, Path) and bool(_URL.match(str(text)))


def place(text: Any) -> Path:
    """A path of this machine, or a `upath.UPath` of a URL, which has the same methods and is no `Path` to Python."""
    if is_url(text):
        path = extra("upath").UPath(text, **LIVE)
        with reaching(path):
            _ = path.fs  # for which a library may be missing
        return path
    path = Path(text)
    if re.match(r"(s3|gs|gcs|az|abfs|https?|memory):/[^/]", str(path)):
        raise ValueError(f"{path} was a URL before it became a path, which has one slash for two: give it as text.")
    return path


def local(text: Any, why: str) -> Path:
    """A path of this machine, or the error for a URL."""
    if is_url(text):
        raise ValueError(f"{text} must be a file of this machine, since {why}: copy it here first.")
    return place(text)


def resolved(path: Path) -> Path:
    """Of a link, what it leads to: that is what is locked and replaced. A URL is what it is."""
    return path if is_url(path) else path.resolve()


@contextlib.contextmanager
def reaching(path: Any) -> Iterator[None]:
    """Name the URL in what a library says of it: such errors have many types, and seldom a name in them."""
    try:
        yield
    except Exception as error:
        if not is_url(path) or isinstance(error, UnreachableError | ModuleNotFoundError):
            raise
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, ImportError):
            raise ModuleNotFoundError(f"{path}: {error}: pip install 'jaxlift[cloud]'") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"there is no {path} ({said}).") from error
        todo = ""
        if isinstance(error, PermissionError) or "redentials" in said:
            todo = f" with these credentials: {CREDENTIALS.get(str(path).partition(':')[0], 'give others')}"
        raise UnreachableError(f"{path} can't be reached{todo} ({said}).") from error


class FarFile(io.RawIOBase):
    """What a URL names, to be read from any position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reaching(path):
            # By default it reads 50 MB ahead, and again after each jump, of which HDF5 makes many.
            self.file: Any = path.open("rb", block_size=PIECE, cache_type="blockcache")  # pyright: ignore

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        with reaching(self.path):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def far_store(path: Path, mode: str) -> Any:
    """Zarr's store of what is below a URL."""
    return _far_store().from_url(str(path), LIVE, read_only=mode == "r")


@functools.cache
def _far_store() -> Any:
    class FarStore(extra("zarr").storage.FsspecStore):  # pyright: ignore[reportGeneralTypeIssues]
        def url(self, key: str) -> str:
            return f"{self.fs.unstrip_protocol(self.path)}/{key}"

        async def get(self, key: str, *args: Any, **options: Any) -> Any:
            with reaching(self.url(key)):
                return await super().get(key, *args, **options)

        async def set(self, key: str, *args: Any, **options: Any) -> None:
            with reaching(self.url(key)):
                await super().set(key, *args, **options)

        async def exists(self, key: str) -> bool:
            with reaching(self.url(key)):
                return await super().exists(key)

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            with reaching(self.url(prefix)):
                async for name in super().list_dir(prefix):
                    yield name

    return FarStore


def create(path: Path, data: bytes) -> bool:
    """Make a file that isn't there yet, whole; whether it was made. Of several who try, one succeeds."""
    if is_url(path):
        files: Any = path
        with reaching(path):
            try:
                files.fs.pipe_file(files.path, data, mode="create")
            except OSError:
                # Not all servers say in the same way that it is there. And a request that is sent again, since its
                # answer was lost, finds what it has made itself.
                if not path.exists():
                    raise
                return path.read_bytes() == data
        return True
    # Beside the folder: with another file in it, a folder that is to become a store would count as something else.
    draft = path.parent.with_name(f".{path.parent.name}.{uuid.uuid4().hex}")
    try:
        draft.write_bytes(data)
        sync([draft])
        try:
            path.hardlink_to(draft)  # which never replaces what another has made
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
                raise
            with contextlib.suppress(FileExistsError), path.open("xb") as file:  # no links, or path is a mount
                file.write(data)
                os.fsync(file.fileno())
                sync([path.parent])
                return True
            return False
        sync([path.parent])
        return True
    finally:
        draft.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write a file of this machine that a power cut leaves as it was or as it shall be, and nothing between."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        draft.write_bytes(data)
        sync([draft])
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync([path.parent])


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders of this machine on the disk when this returns. What a URL names is there once written."""
    here = [path for path in paths if not is_url(path)]
    if here:
        list(_syncing().map(_sync, here))


@functools.cache
def _syncing() -> ThreadPoolExecutor:
    """A file system writes its journal once for all who wait for it at the same time."""
    return ThreadPoolExecutor(16, "sync")


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
