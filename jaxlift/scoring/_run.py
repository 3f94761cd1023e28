"""`score`: a whole data set, read, computed and written at the same time, to a store that survives its run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import inspect
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlift._arguments import some_of
from jaxlift._explainer import Explainer
from jaxlift._memory import as_bytes
from jaxlift.scoring import _identity
from jaxlift.scoring._device import CHUNK, Program, default_budget
from jaxlift.scoring._examples import Encoding, Examples, Records, Status, channels, letters_axis, open_examples
from jaxlift.scoring._extra import extra
from jaxlift.scoring._letters import letters_of
from jaxlift.scoring._progress import Display, Progress
from jaxlift.scoring._reference import Given, Reference, read_reference
from jaxlift.scoring._store import Store, StoreError, differences, exists, lock, share

BATCHES = 16  # at most so many in a chunk
KEPT = "What is finished is valid,"
AHEAD = 2  # steps that are read before they are needed, and chunks that wait to be written


@dataclass(frozen=True)
class Summary:
    """What a store has after a run.

    Attributes:
        path: the store.
        examples: how many there are.
        scored: how many have scores.
        bad: the others by number, and what is the matter with each, of `Status`.
        computed: how many examples this run computed; None if there was no run.
        seconds: how long that took, without compiling.
        largest_delta: the largest convergence delta, in size.
        largest_at: the example that has it; None if there is none.
        notes: what is to be said of where the examples come from, such as of regions that were left out.
    """

    path: Path
    examples: int
    scored: int
    bad: Mapping[int, Status]
    computed: int | None
    seconds: float
    largest_delta: float
    largest_at: int | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        by_run = "" if self.computed is None else f", {self.computed} by this run"
        by_run += f", {self.computed / self.seconds:.4g}/s" if self.computed and self.seconds else ""
        lines = [f"{self.scored} of {self.examples} examples scored{by_run}"]
        if self.largest_at is not None:
            lines.append(f"largest convergence delta {self.largest_delta:.2g}, of example {self.largest_at}")
        for status in dict.fromkeys(self.bad.values()):
            numbers = [number for number, other in self.bad.items() if other == status]
            lines.append(f"{len(numbers)} {status.name.lower().replace('_', ' ')}: {some_of(numbers, 20)}")
        return "\n".join([*lines, *self.notes, f"result in {self.path}"])


def score(
    attr: Callable[..., Any],
    examples: Any,
    *,
    out: str | Path,
    reference: Given = None,
    shuffles: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | str | None = None,
    devices: Sequence[Any] | None = None,
    overwrite: bool = False,
    progress: Display = "auto",
    command: Sequence[str] | None = None,
) -> Summary:
    """Score a whole data set, and lose nothing: examples of any number in, a Zarr store of their scores out.

    >>> import jax, jax.numpy as jnp, jaxlift, numpy as np, tempfile, zarr
    >>> weights = jnp.array([[1.0, -1.0], [2.0, 0.5], [-3.0, 1.0]])
    >>> attr = jaxlift.attribute(lambda x: jax.nn.relu(x @ weights), target=0)
    >>> x = np.array([[1.0, 1.0, 0.0], [2.0, 0.5, 0.25]], np.float32)
    >>> out = f"{tempfile.mkdtemp()}/scores.zarr"
    >>> jaxlift.score(attr, x, reference="zeros", out=out, progress="none").scored
    2
    >>> zarr.open(out)["contributions"][:]
    array([[ 1.  ,  2.  , -0.  ],
           [ 2.  ,  1.  , -0.75]], dtype=float32)

    Interrupt or kill it when you like: the same call goes on where it stopped, and comes to the same bits. It computes
    on all local devices; in a program of several processes (`jax.distributed`) each computes and writes its own chunks.

    Args:
        attr: what `attribute` or a method like it returns, compiled or not. Its argument is one array. Its target may
            have a row for each example: an output's number, weights `(N, ...)`, or the rows of a `Held`.
        examples: `(N, ...)`, an array, or what can be sliced like one (Zarr, HDF5); a sequence of arrays, such as a
            Grain data source; an iterable of arrays; or the path of an ``.npy``, ``.npz``, HDF5, Zarr or FASTA file,
            with ``:name`` after it where the file has several arrays. Numbers that aren't floating-point are made so.
            Records of a FASTA file are one-hot along the `channel_axis` that `attr` was given: `(L, 4)` as it comes.
        out: the store's path, on a file system that all processes share.
        reference: ``"zeros"``; ``"uniform"``, the same share of each letter; frequencies of the letters, such as
            ``[0.3, 0.2, 0.2, 0.3]``; ``"mean"`` of all examples; ``"frequencies"`` of the channels in all examples;
            ``"dinucleotide_shuffle"`` or ``"mononucleotide_shuffle"``; an array, or the path of one, read by its rank
            as by `attr`, `(N, R, ...)` for several references of each example; `jaxlift.genomics.MatchedRegions`; or a
            function of one example (NumPy, on the host) that returns one reference or several. Or None, for a rule that
            needs none. Frequencies and shuffles are along the `channel_axis` of `attr`. Where there are as many
            references as examples, `attr` has to say how they pair.
        shuffles, seed: how many shuffles each example is compared with, and what they are drawn from. An example's
            shuffles depend on the seed and on its place in the genome, its name in a FASTA file, or else its number,
            and on nothing else.
        batch_size: how many examples a device computes at once. Left out, as many as fit in `memory`.
        memory: bytes that the program may take on each device, or text such as ``"4GB"``. Left out, most of what an
            accelerator has, or 2 GiB of a host.
        devices: of this process; all of them, if left out.
        overwrite: whether to begin anew where there is a store already, which goes when the new one is there.
        progress: ``"bar"``, ``"lines"``, ``"none"``, or ``"auto"``: a bar on a terminal, else lines.
        command: what to write into the metadata as the command of this run, `sys.argv` if left out.

    Returns:
        a `Summary`. The store has the arrays ``contributions`` (or what `attr` returns), ``delta``, ``output`` and
        ``output_reference``, which are NaN where an example is bad, ``status`` (`Status`, by number), ``reference``, if
        all examples share it, and ``sequence``, ASCII letters, where examples are one-hot `(L, 4)`. Windows of a genome
        have the columns ``contig``, ``start``, ``end``, ``strand``, ``name`` and ``summit``, records of a FASTA file
        their ``name``. Several targets (`Held` with names) are an axis after the first, ``target``. How they were made
        is in the group's attributes.

    Raises:
        StoreError: if the store was made with other settings, each of which is named, or another run works on it.
        ValueError, TypeError: if arguments don't fit each other. Nothing has been written then.
        Exception: what the model, the disk or an iterable raises. What was finished is kept, and is valid.
    """
    extra("zarr")  # before anything is written
    path = Path(out).resolve()  # of a link, what it leads to is locked and replaced
    explainer = explained(attr)
    encoding = Encoding(channel_axis=explainer.options.last_channel_axis)
    source = open_examples(examples, encoding)
    devices = jax.local_devices() if devices is None else list(devices)
    team = Team()
    if source.count is None and team.count > 1:
        raise ValueError(f"{source.source} has no length: several processes share examples by number. Give a sequence.")
    if source.count == 0:
        raise ValueError(f"{source.source}: there are no examples.")
    if explainer.options.output == "hypothetical":
        channels(source, explainer.options.last_channel_axis, "hypothetical scores")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")

    notes: list[str] = []
    with contextlib.ExitStack() as held:
        if source is not examples:
            held.callback(source.close)

        def prepare(is_first: bool) -> tuple[Program, Store]:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not read_only:
                held.enter_context(lock(path, shared=not is_first))
            store = Store(path, "r" if read_only else "r+") if exists(path) else None
            if store is not None and overwrite and is_first:  # it goes when there is another in its place
                if any(_lies_in(given, path) for given in (examples, reference)):
                    raise StoreError(
                        f"{path} has what this run reads: choose another path, or leave out overwrite=True."
                    )
                store = None
            paired = explainer.options.pairing == "paired"
            kept = None if store is None else store.reference
            compared = read_reference(
                reference,
                source,
                paired=paired,
                shared=explainer.options.pairing == "shared",
                shuffles=shuffles,
                seed=seed,
                stored=kept,
                encoding=encoding,
            )
            held.callback(compared.close)
            program = Program(explainer, source, compared, devices)
            settings = {
                "model": program.model.description,
                "attribution": _identity.of_options(explainer.described_options),
                "reference": compared.description,
                "examples": {
                    "shape": list(source.shape),
                    "dtype": source.dtype.name,
                    "count": source.count,
                    "checksum": source.digest(),
                    "letters": source.letters,
                },
                "environment": _identity.environment(devices[0]),
            }
            if store is None:
                program.compile(batch_size) if batch_size else program.fit(
                    default_budget(devices[0]) if memory is None else as_bytes(memory)
                )
                settings |= {"batch_size": program.batch, "in_turn": program.in_turn}
                notes.extend(source.accompany(path))
                return program, _new_store(path, settings, program, compared)
            batch, in_turn = store.settings["batch_size"], store.settings.get("in_turn", False)
            changed = differences(store.settings, settings | {"batch_size": batch_size or batch, "in_turn": in_turn})
            if changed:
                raise StoreError(
                    "\n  ".join([f"{path} was made with other settings:", *changed])
                    + "\nGo on with the same settings, choose another path, or begin anew with overwrite=True."
                )
            program.batch, program.in_turn = batch, in_turn
            if is_first and not read_only:
                notes.extend(source.accompany(path))
            if is_first and not read_only:
                store.clean()
            return program, store

        # Nobody else writes there either, so that no lock is needed to find that all is finished.
        read_only = path.exists() and not os.access(path, os.W_OK)
        program, store = team.first_then_others(prepare, lambda: None if read_only else share(path))
        if read_only:
            if len(store.finished()) < -(-store.count // store.chunk):
                raise PermissionError(errno.EROFS, "can't be written to, and is not finished", str(path))
            return summarize(path, computed=0)
        if team.index == 0:
            store.note(
                {
                    "started": _now(),
                    "command": list(sys.argv if command is None else command),
                    "examples": source.source,
                    "processes": team.count,
                    "devices": len(devices),
                    **_identity.machine(),
                }
            )
        run = Run(program, store, source, team, progress)
        try:
            run.all()
        except BaseException as error:
            error.add_note(f"{KEPT} in {path}. The same call or command goes on from there.")
            raise
        finally:
            run.progress.close()
        team.wait("scored")
        summary = replace(summarize(path, computed=run.computed, seconds=run.seconds), notes=tuple(notes))
        if team.index == 0:
            store.note(
                ended=_now(), scored=summary.scored, bad=len(summary.bad), largest_delta=_json(summary.largest_delta)
            )
        team.wait("noted")
    return summary


def summarize(path: Path, computed: int | None = None, seconds: float = 0.0) -> Summary:
    """What a store has."""
    store = Store(path, mode="r")
    status = store.arrays["status"][...]
    bad = {int(i): Status(status[i]) for i in np.flatnonzero(status != Status.SCORED)}
    largest, at = 0.0, None
    step = max(1, store.chunk)
    for start in range(0, len(status), step):
        delta = np.abs(store.arrays["delta"][start : start + step].astype(np.float64)).reshape(-1)
        if np.isfinite(delta).any() and (at is None or np.nanmax(delta) > largest):
            per_example = len(delta) // len(status[start : start + step])
            largest, at = float(np.nanmax(delta)), start + int(np.nanargmax(delta)) // per_example
    return Summary(path, len(status), int((status == Status.SCORED).sum()), bad, computed, seconds, largest, at)


def is_explained(attr: Any) -> bool:
    """Whether this is what `attribute` or a method with its signature returns, compiled or not."""
    return isinstance(inspect.unwrap(attr), Explainer)


def explained(attr: Callable[..., Any]) -> Explainer:
    """What `attribute` or a method with its signature returned, compiled or not."""
    found: Any = inspect.unwrap(attr)
    if not isinstance(found, Explainer):
        raise TypeError(
            f"expected what jaxlift.attribute returns, got {_identity.name_of(attr)}: write "
            "jaxlift.score(jaxlift.attribute(model, target=...), ...)."
        )
    if found.options.argnums not in (0, (0,)) or found.options.batch_argnums:
        raise ValueError("score takes models of one array: give the others with a lambda or functools.partial.")
    if found.method.gives == "map":
        raise ValueError("score takes methods whose scores sum to something.")
    return found


class Team:
    """The processes of a run, which share a file system and nothing else but what JAX gives them."""

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()

    def first_then_others(self, prepare: Callable[[bool], Any], between: Callable[[], None]) -> Any:
        """Let the first process prepare, and then the others; if it fails, all fail."""
        if self.count == 1:
            return prepare(True)
        from jax.experimental import multihost_utils

        prepared, error = None, None
        if self.index == 0:
            try:
                prepared = prepare(True)
                between()
            except BaseException as raised:
                error = raised
        is_ready = multihost_utils.broadcast_one_to_all(np.int32(error is None))
        if error is not None:
            raise error
        if not is_ready:
            raise StoreError("the first process can't prepare the store; its own message says why.")
        return prepared if self.index == 0 else prepare(False)

    def wait(self, name: str) -> None:
        """Wait for all processes to come here."""
        if self.count > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


@dataclass
class Step:
    """What all devices compute at once: consecutive batches, of which the last may not be full."""

    x: np.ndarray
    numbers: np.ndarray
    given: np.ndarray | None
    aims: Any
    batches: list[tuple[int, Records]]


@dataclass
class Chunk:
    """A chunk of the store while it fills."""

    rows: dict[str, np.ndarray]
    filled: int = 0


class Run:
    """One run's work on its store: three stages, of which reading and writing have a thread each.

    Attributes:
        computed: how many examples are computed so far.
        seconds: how long `all` took.
    """

    def __init__(self, program: Program, store: Store, source: Examples, team: Team, display: Display) -> None:
        self.program, self.store, self.source, self.team = program, store, source, team
        self.finished = store.finished()
        self.names = [name for name in store.arrays if name not in ("status", "sequence")]
        self.open: dict[int, Chunk] = {}
        self.writing: deque[Future[None]] = deque()
        self.computed, self.seconds = 0, 0.0
        total = done = None
        if source.count is not None:
            sizes = {c: self.stop(c) - c * store.chunk for c in self.chunks() if c % team.count == team.index}
            total, done = sum(sizes.values()), sum(size for c, size in sizes.items() if c in self.finished)
        self.progress = Progress(display, total, done or 0)
        if self.finished:
            self.progress.say(f"going on with {store.path}: {len(self.finished)} chunks are finished")

    def chunks(self) -> Iterable[int]:
        return itertools.count() if self.source.count is None else range(-(-self.source.count // self.store.chunk))

    def stop(self, chunk: int) -> int:
        """The number after the last example of a chunk, as far as it is known."""
        end = (chunk + 1) * self.store.chunk
        return end if self.source.count is None else min(end, self.source.count)

    def batches(self) -> Iterator[tuple[int, int]]:
        """First and last of each batch that is this process's to compute."""
        for chunk in self.chunks():
            if chunk not in self.finished and chunk % self.team.count == self.team.index:
                stop = self.stop(chunk)
                for start in range(chunk * self.store.chunk, stop, self.program.batch):
                    yield start, min(start + self.program.batch, stop)

    def all(self) -> None:
        """Do all that is left to do."""
        batches = self.batches()
        steps = iter(lambda: list(itertools.islice(batches, self.program.mesh.size)), [])
        with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
            computing: deque[tuple[Step, Any]] = deque()
            began = None
            try:
                for step in _ahead(reader, self.load, steps):
                    if not step.batches:
                        break
                    if began is None:
                        if not hasattr(self.program, "compiled"):
                            self.program.compile(self.program.batch, self.program.in_turn)
                        began = time.monotonic()
                    computing.append((step, self.program(step.x, step.numbers, step.given, step.aims)))
                    if len(computing) > 1:
                        self.collect(*computing.popleft(), writer)
                while computing:
                    self.collect(*computing.popleft(), writer)
                self.finish(writer)
                self.seconds = 0.0 if began is None else time.monotonic() - began
            except BaseException:
                with contextlib.suppress(Exception):  # whatever comes now, it is the first that counts
                    while computing:
                        self.collect(*computing.popleft(), writer)
                raise
            finally:
                reader.shutdown(wait=True, cancel_futures=True)

    def load(self, batches: list[tuple[int, int]]) -> Step:
        """Read the examples of a step, and their references. Rows that hold no example are zeros."""
        program, n = self.program, self.program.batch
        like_x, like_numbers, like_given, like_aims = program.inputs(n)
        x, numbers = np.zeros(like_x.shape, like_x.dtype), np.zeros(like_numbers.shape, like_numbers.dtype)
        given = (
            None if like_given is None or program.constant is not None else np.zeros(like_given.shape, like_given.dtype)
        )
        aims = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), like_aims)
        step = Step(x, numbers, given, aims, [])
        for k, (start, stop) in enumerate(batches):
            records = self.source.read(start, stop)
            count = len(records.values)
            if not count:
                break
            at = slice(k * n, k * n + count)
            references = program.reference.of_records(records, start) if program.reference.of_records else None
            if given is not None:
                given[at] = references
            x[at], numbers[at] = records.values, self.source.keys(start, start + count)
            for to, rows in zip(*map(jax.tree.leaves, (aims, program.aims)), strict=True):
                to[at] = rows[start : start + count]
            x[at][records.status != Status.SCORED] = 0
            step.batches.append((start, records))
        return step

    def collect(self, step: Step, results: Sequence[Any], writer: ThreadPoolExecutor) -> None:
        """Wait for a step's results, and put them where they belong."""
        arrays = [np.asarray(result) for result in results]
        largest = 0.0
        for k, (start, records) in enumerate(step.batches):
            count = len(records.values)
            at = slice(k * self.program.batch, k * self.program.batch + count)
            rows = self.place(start, count)
            for name, array in zip(self.names, arrays, strict=True):
                rows[name][:] = array[at]
            self.mark(rows, records, start)
            if "sequence" in rows:
                rows["sequence"][:] = letters_of(np.moveaxis(records.values, self.store.letters_axis, -1))
            good = records.status == Status.SCORED
            if good.any():
                largest = max(largest, float(np.abs(rows["delta"][good]).max()))
            self.fill(start, count, writer)
            self.computed += count
        self.progress.update(sum(len(records.values) for _, records in step.batches), largest)

    def mark(self, rows: dict[str, np.ndarray], records: Records, start: int) -> None:
        """Make the scores of bad examples NaN, and examples bad whose scores are not finite."""
        scores = [rows[name] for name in self.names]
        finite = np.logical_and.reduce([np.isfinite(array.reshape(len(array), -1)).all(1) for array in scores])
        for i in np.flatnonzero(~finite & (records.status == Status.SCORED)):
            records.status[i] = Status.SCORES_NOT_FINITE
            records.messages[start + int(i)] = "the scores or the model's outputs have a NaN or an infinity"
        for array in scores:
            array[records.status != Status.SCORED] = np.nan
        rows["status"][:] = records.status
        for number, message in records.messages.items():
            self.progress.say(f"example {number}: {message}")

    def place(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Where the scores of a batch belong, in its chunk."""
        size = self.store.chunk
        number = start // size
        if number not in self.open:
            rows = {name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in self.store.arrays.items()}
            self.open[number] = Chunk(rows)
        at = slice(start % size, start % size + count)
        return {name: array[at] for name, array in self.open[number].rows.items()}

    def fill(self, start: int, count: int, writer: ThreadPoolExecutor) -> None:
        """Count a batch to its chunk, and write that when it is full."""
        number = start // self.store.chunk
        chunk = self.open[number]
        chunk.filled += count
        if chunk.filled == self.stop(number) - number * self.store.chunk:
            self.write(number, writer)

    def write(self, number: int, writer: ThreadPoolExecutor) -> None:
        chunk = self.open.pop(number)
        rows = {name: array[: chunk.filled] for name, array in chunk.rows.items()}
        self.writing.append(writer.submit(self.store.write, number, rows))
        while len(self.writing) > AHEAD or (self.writing and self.writing[0].done()):
            self.writing.popleft().result()

    def finish(self, writer: ThreadPoolExecutor) -> None:
        """Write what is left, the end of a stream, and wait until all is written."""
        for number in sorted(self.open):
            self.write(number, writer)
        while self.writing:
            self.writing.popleft().result()
        if self.source.count is None:
            count = self.source.position  # pyright: ignore[reportAttributeAccessIssue]
            if any(chunk * self.store.chunk >= count for chunk in self.finished):
                raise StoreError(
                    f"{self.source.source} ended after {count} examples, and more than that are scored already."
                )
            self.store.resize(count)


def _ahead(pool: ThreadPoolExecutor, load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What `load` makes of each item, some of it before it is asked for."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(load, item))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _new_store(path: Path, settings: dict[str, Any], program: Program, reference: Reference) -> Store:
    examples, output = program.examples, settings["attribution"]["output"]
    scores, delta, y, y_ref = program.rows
    arrays = {output: scores, "delta": delta, "output": y, "output_reference": y_ref}
    dimensions: dict[str, tuple[str, ...]] = {}
    targets = program.targets if delta[0] == (len(program.targets),) else ()  # not where references have an axis too
    of_targets = ("target",) if targets else ()
    if targets:
        dimensions |= dict.fromkeys(["delta", "output", "output_reference"], of_targets)
    axis = letters_axis(examples, program.attr.options.last_channel_axis)
    if axis is not None:
        arrays["sequence"] = (examples.shape[-3 - axis],), np.dtype(np.uint8)
        axes = ("position", "letter") if axis == -1 else ("letter", "position")
        dimensions |= {"sequence": ("position",)}
        if len(scores[0]) == len(examples.shape) + len(of_targets):
            dimensions |= {output: (*of_targets, *axes)}
    return Store.create(
        path,
        settings,
        arrays,
        examples.count,
        chunk=program.batch * max(1, min(BATCHES, CHUNK // (program.batch * program.row_bytes))),
        reference=reference.constant,
        columns=examples.columns,
        dimensions=dimensions,
        targets=targets,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _lies_in(given: Any, path: Path) -> bool:
    """Whether examples or references that a user gave are in a folder, as far as it can be told."""
    if not isinstance(given, str | Path):
        given = getattr(getattr(given, "store", None), "root", None)  # of a Zarr array
    text = str(given)
    return given is not None and any(
        Path(part).resolve().is_relative_to(path) for part in (text, text.rpartition(":")[0]) if part
    )


def _json(number: float) -> float | None:
    return number if np.isfinite(number) else None
