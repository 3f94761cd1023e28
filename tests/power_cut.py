"""What a disk may hold after a power cut, from what a program asked of it: seen through strace, or as a file system.

POSIX promises little. What was written to a file is on the disk once the file is synced, and a name (made, replaced or
removed) once its folder is. Until then each may be there after a cut or not, whatever came first. `Disk` keeps what is
on the disk apart from what isn't yet, and `after` chooses among the states that a cut may leave, as ALICE does (Pillai
et al., All File Systems Are Not Created Equal, OSDI 2014). Real file systems promise more, each something else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Union

Tree = dict[str, Union["Tree", bytes]]  # folders and files by name
SECTOR = 512  # a write of more may come apart


class Op(NamedTuple):
    """One thing that a program did: `kind` is one of the cases of `Disk.do`. Paths are from the root of the disk.

    Attributes:
        number: the place in the order of ends. What a sync makes safe must have ended before the sync began, `since`.
    """

    number: int
    kind: str
    path: str
    other: str = ""
    at: int | None = 0
    data: bytes = b""
    since: int = 0


class Cut(NamedTuple):
    """How a power cut goes.

    Attributes:
        names: which of the names that are not synced are right: none, all, the "first" (as a journal keeps them), or
            "some", each by a toss of a coin.
        data: the share of unsynced sectors that are on the disk.
        lost: what is in the place of the others: "nothing" (the file is short, if no later one is there), "zeros" or
            "garbage".
    """

    names: str
    data: float
    lost: str = "nothing"


CUTS = {
    "nothing unsynced is left": Cut("none", 0),
    "names without what they name": Cut("all", 0),
    "names and sizes without data": Cut("all", 0, "zeros"),
    "names and some data": Cut("all", 0.7),
    "names and garbage": Cut("all", 0.5, "garbage"),
    "names in order, some data": Cut("first", 0.5),
    "some names, all data": Cut("some", 1),
    "some of each": Cut("some", 0.5, "zeros"),
    "all of it": Cut("all", 1),
}


@dataclass(eq=False)
class Node:
    """A file or a folder: as programs see it, as it is on the disk, and the numbered changes between the two.

    A change of a folder is names and what they name from then on, or None; one of a file is data and their place, or a
    new size.
    """

    live: dict[str, Node] | bytearray
    disk: dict[str, Node] | bytearray
    pending: list[tuple[int, dict[str, Node | None] | tuple[int, bytes] | int]] = field(default_factory=list)

    @classmethod
    def of(cls, tree: Tree | bytes) -> Node:
        if isinstance(tree, dict):
            entries = {name: cls.of(below) for name, below in tree.items()}
            return cls(entries, dict(entries))
        return cls(bytearray(tree), bytearray(tree))

    def change(self, number: int, change: dict[str, Node | None] | tuple[int, bytes] | int) -> None:
        _apply(self.live, change)
        self.pending.append((number, change))

    def sync(self, since: int) -> None:
        for number, change in self.pending:
            if number < since:
                _apply(self.disk, change)
        self.pending = [(number, change) for number, change in self.pending if number >= since]


def _apply(content, change) -> None:
    if isinstance(content, dict):
        for name, node in change.items():
            content.pop(name, None)
            if node is not None:
                content[name] = node  # the last is the newest
    elif isinstance(change, int):
        del content[change:]
        content.extend(bytes(change - len(content)))
    else:
        start, data = change
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + len(data)] = data


class Disk:
    """Files in memory, of which what isn't synced may be lost."""

    def __init__(self, tree: Tree | None = None) -> None:
        self.root = Node.of(tree or {})

    def find(self, path: str) -> Node:
        node = self.root
        for name in path.split("/"):
            if name not in ("", "."):
                if not isinstance(node.live, dict):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                if name not in node.live:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                node = node.live[name]
        return node

    def do(self, op: Op) -> None:
        number, (above, _, name) = op.number, op.path.rpartition("/")
        folder = functools.partial(self.find, above)
        match op.kind:
            case "create":
                if name not in folder().live:
                    folder().change(number, {name: Node(bytearray(), bytearray())})
            case "mkdir":
                folder().change(number, {name: Node({}, {})})
            case "remove":
                folder().change(number, {name: None})
            case "link" | "rename":
                node, (to, _, new) = self.find(op.path), op.other.rpartition("/")
                gone: dict[str, Node | None] = {name: None} if op.kind == "rename" else {}
                if to == above:
                    folder().change(number, gone | {new: node})
                else:  # two folders, each of which is synced by itself
                    self.find(to).change(number, {new: node})
                    if gone:
                        folder().change(number, gone)
            case "size":
                self.find(op.path).change(number, op.at)
            case "write":
                node = self.find(op.path)
                at = len(node.live) if op.at is None else op.at
                for k in range(0, len(op.data), SECTOR):
                    node.change(number, (at + k, op.data[k : k + SECTOR]))
            case "sync":
                self.find(op.path).sync(op.since)
            case _:
                raise ValueError(op)

    def after(self, cut: Cut, dice: random.Random) -> Tree:
        """What a power cut at this moment may leave. `Disk` of it is the disk when the power is back."""
        seen: dict[int, Tree | bytes] = {}
        numbers = sorted({number for node in self.nodes() for number, _ in node.pending})
        last = dice.choice([-1, *numbers])
        stays = {
            "none": lambda number: False,
            "all": lambda number: True,
            "first": lambda number: number <= last,
            "some": lambda number: dice.random() < 0.5,
        }[cut.names]

        def left(node: Node) -> Tree | bytes:
            if id(node) not in seen:  # a file may have two names
                content = node.disk.copy()
                for number, change in node.pending:
                    if isinstance(content, dict):
                        if stays(number):
                            _apply(content, change)
                    elif dice.random() < cut.data:
                        _apply(content, change)
                    elif isinstance(change, tuple) and cut.lost != "nothing":
                        start, data = change
                        size = len(data)
                        _apply(content, (start, dice.randbytes(size) if cut.lost == "garbage" else bytes(size)))
                is_file = not isinstance(content, dict)
                seen[id(node)] = bytes(content) if is_file else {name: left(node) for name, node in content.items()}
            return seen[id(node)]

        return left(self.root)

    def nodes(self) -> Iterator[Node]:
        """Each that programs see."""
        todo = [self.root]
        while todo:
            node = todo.pop()
            yield node
            if isinstance(node.live, dict):
                todo += node.live.values()


def lay(tree: Tree, folder: Path) -> None:
    """Write it into a folder."""
    folder.mkdir(exist_ok=True)
    for name, below in tree.items():
        if isinstance(below, dict):
            lay(below, folder / name)
        else:
            (folder / name).write_bytes(below)


# Seen through strace

CALLS = "openat,open,creat,write,pwrite64,ftruncate,truncate,lseek,mkdir,mkdirat,rename,renameat,renameat2,link,linkat"
CALLS += ",unlink,unlinkat,rmdir,fsync,fdatasync"
# What would change files too, and no program here does; `ops_of` refuses them.
OTHERS = "writev,pwritev,pwritev2,copy_file_range,sendfile,fallocate,syncfs,sync_file_range,symlink,symlinkat"
LARGEST = 2**26


def strace(log: Path | str) -> list[str]:
    """The beginning of a command that writes down what the rest of it does."""
    options = f"-f -qq -y -xx --seccomp-bpf -s {LARGEST} -e signal=none -e trace={CALLS},{OTHERS}"
    return ["strace", *options.split(), "-o", str(log)]


def ops_of(log: Path, root: Path) -> list[Op]:
    """What a program did below a folder, as strace has it: in the order in which it ended."""
    ops: list[Op] = []
    begun: dict[str, tuple[str, int]] = {}  # what each thread is at, and how much had ended when it began
    positions: dict[str, int | None] = {}  # in open files, where writing goes on; None is at the end, -1 unknown

    def below(path: str) -> str | None:
        return os.path.relpath(path, root) if (path + "/").startswith(f"{root}/") else None

    def add(kind: str, path: str, **more) -> None:
        ops.append(Op(len(ops), kind, path, **more))

    with log.open() as lines:
        for line in lines:
            thread, rest = line.rstrip("\n").split(None, 1)
            since = len(ops)
            if rest.endswith("<unfinished ...>"):
                begun[thread] = rest.removesuffix(" <unfinished ...>"), since
                continue
            if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
                beginning, since = begun.pop(thread)
                rest = beginning + rest[resumed.end() :]
            found = re.match(r"(\w+)\((.*)\)\s+= (\d+)", rest)
            if not found:  # it failed, or is the end of a process
                continue
            call, arguments, result = found[1], found[2].split(", "), int(found[3])
            at, paths = "", []  # a path may come after the folder that it starts from
            for argument in arguments[:4]:
                text = re.fullmatch(r'(?:AT_FDCWD|\d+)<((?:\\x..)*)>|"((?:\\x..)*)"', argument)
                if text and text[1] is not None:
                    at = _text(text[1]).decode(errors="surrogateescape")
                elif text and call not in ("write", "pwrite64"):
                    paths.append(os.path.join(at, _text(text[2]).decode(errors="surrogateescape")))
            inside = [below(path) for path in paths or [at]]
            if inside[0] is None and inside[-1] is None:
                continue
            if None in inside or call in OTHERS.split(","):
                raise NotImplementedError(line[:1000])
            path, descriptor = inside[0], arguments[0]
            match call:
                case "open" | "openat" | "creat":
                    flags = "O_CREAT|O_TRUNC|O_WRONLY" if call == "creat" else arguments[1 + (call == "openat")]
                    if "O_TMPFILE" in flags:
                        raise NotImplementedError(line[:1000])
                    opened = re.search(r"= (\d+<.*>)", rest)[1]
                    positions[opened] = None if "O_APPEND" in flags else -1 if "O_RDWR" in flags else 0
                    if "O_CREAT" in flags:
                        add("create", path)
                    if "O_TRUNC" in flags:
                        add("size", path, at=0)
                case "lseek":
                    positions[descriptor] = result
                case "write":
                    position = positions[descriptor]
                    if position == -1:
                        raise NotImplementedError(f"a write at an unknown place: {line[:1000]}")
                    add("write", path, at=position, data=_data(arguments[1], result))
                    positions[descriptor] = None if position is None else position + result
                case "pwrite64":
                    add("write", path, at=int(arguments[3]), data=_data(arguments[1], result))
                case "truncate" | "ftruncate":
                    add("size", path, at=int(arguments[1]))
                case "mkdir" | "mkdirat":
                    add("mkdir", path)
                case "rename" | "renameat" | "renameat2" | "link" | "linkat":
                    add(call[: 6 if call.startswith("rename") else 4], path, other=inside[1])
                case "unlink" | "unlinkat" | "rmdir":
                    add("remove", path)
                case "fsync" | "fdatasync":
                    add("sync", path, since=since)
    return ops


def _text(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _data(argument: str, size: int) -> bytes:
    if argument.endswith("..."):
        raise NotImplementedError(f"a write of more than {LARGEST} bytes")
    return _text(argument[1:-1])[:size]


# As a file system


class Power:
    """A file system on a `Disk`, until the power goes.

    Attributes:
        disk: what is on it.
        ops: what was done so far.
        last: how many things it still does; then all fails, as nothing was done, and `off` is set.
    """

    use_ns = True

    def __init__(self, tree: Tree | None = None, last: int | None = None) -> None:
        self.disk, self.ops, self.last, self.off = Disk(tree), [], last, threading.Event()

    def _do(self, kind: str, path: str, **more) -> int:
        if self.last is not None and len(self.ops) >= self.last:
            self.off.set()
        if self.off.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        op = Op(len(self.ops), kind, path.strip("/"), since=len(self.ops), **more)
        self.disk.do(op)
        self.ops.append(op)
        return 0

    def getattr(self, path, fh=None):
        node = self.disk.find(path)
        is_folder = isinstance(node.live, dict)
        mode, size = (stat.S_IFDIR | 0o755, 0) if is_folder else (stat.S_IFREG | 0o644, len(node.live))
        return {"st_mode": mode, "st_size": size, "st_nlink": 1, "st_uid": os.getuid(), "st_gid": os.getgid()}

    def readdir(self, path, fh):
        return [".", "..", *self.disk.find(path).live]

    def open(self, path, flags):
        self.disk.find(path)
        return 0

    def read(self, path, size, offset, fh):
        return bytes(self.disk.find(path).live[offset : offset + size])

    def create(self, path, mode, fi=None):
        return self._do("create", path)

    def write(self, path, data, offset, fh):
        self._do("write", path, at=offset, data=data)
        return len(data)

    def truncate(self, path, length, fh=None):
        return self._do("size", path, at=length)

    def mkdir(self, path, mode):
        return self._do("mkdir", path)

    def unlink(self, path):
        return self._do("remove", path)

    def rmdir(self, path):
        if self.disk.find(path).live:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        return self._do("remove", path)

    def rename(self, old, new):
        return self._do("rename", old, other=new.strip("/"))

    def link(self, target, source):
        return self._do("link", source, other=target.strip("/"))

    def fsync(self, path, datasync, fh):
        return self._do("sync", path)

    fsyncdir = fsync

    def utimens(self, path, times=None):
        return 0

    def chmod(self, path, mode):
        return 0


@contextlib.contextmanager
def mounted(power: Power, folder: Path) -> Iterator[None]:
    """Mount it. Only other processes may use the folder: this one answers them."""
    import mfusepy

    if os.geteuid():
        raise PermissionError("only root may mount")
    # A kernel that remembers names would not ask, and a disk after a cut is another one.
    options = {"foreground": True, "nothreads": True, "attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}

    def serve() -> None:
        with contextlib.suppress(RuntimeError):  # it can't be mounted
            mfusepy.FUSE(power, str(folder), **options)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    while not os.path.ismount(folder):
        if not server.is_alive():
            raise OSError(f"can't mount a file system at {folder}")
        time.sleep(0.01)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        server.join(60)
