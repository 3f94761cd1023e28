"""The work of a run on its store: what is finished is looked at, and the rest is read, computed and written."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxlift._arguments import some_of
from jaxlift.scoring._device import Program
from jaxlift.scoring._examples import Examples, Records, Status, checksums
from jaxlift.scoring._letters import letters_of
from jaxlift.scoring._progress import Display, Progress
from jaxlift.scoring._shards import Shard
from jaxlift.scoring._store import Store, StoreError
from jaxlift.scoring._summary import Summary, Tally

LISTED = 100  # bad examples at most that are spoken of while a run goes on
AHEAD = 2  # steps that are read before they are needed, and chunks that wait to be written


@dataclass
class Step:
    """What all devices compute at once: batches, of which the last may not be full.

    Attributes:
        x, numbers, given, aims: what the program takes.
        batches: of each the number of its first example, the examples, and checksums of what they are scored from.
    """

    x: np.ndarray
    numbers: np.ndarray
    given: np.ndarray | None
    aims: Any
    batches: list[tuple[int, Records, np.ndarray]]


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

    def __init__(self, program: Program, store: Store, source: Examples, shard: Shard, display: Display) -> None:
        self.program, self.store, self.source, self.shard = program, store, source, shard
        self.names = [name for name in store.arrays if name not in ("status", "input", "sequence")]
        self.finished = {chunk for chunk in store.finished() if shard.owns(chunk)}
        self.is_stream = source.count is None
        if self.is_stream:  # which may have grown
            self.finished -= {chunk for chunk in self.finished if (chunk + 1) * store.chunk > store.count}
        self.open: dict[int, Chunk] = {}
        self.writing: deque[Future[None]] = deque()
        self.computed, self.seconds, self.tally, self.said = 0, 0.0, Tally(), 0
        self.progress = Progress(display, None if self.is_stream else sum(map(self.size, self.chunks())))

    def chunks(self) -> Iterable[int]:
        """The numbers of this shard's chunks."""
        index, count = self.shard.index, self.shard.count
        if self.is_stream:
            return itertools.count(index, count)
        return range(index, -(-(self.source.count or 0) // self.store.chunk), count)

    def stop(self, chunk: int) -> int:
        """The number after the last example of a chunk, as far as it is known."""
        end = (chunk + 1) * self.store.chunk
        return end if self.source.count is None else min(end, self.source.count)

    def size(self, chunk: int) -> int:
        """How many examples a chunk has, as far as it is known."""
        return self.stop(chunk) - chunk * self.store.chunk

    def batches(self, chunk: int) -> Iterator[tuple[int, int]]:
        """First and last of each batch of a chunk."""
        stop = self.stop(chunk)
        for start in range(chunk * self.store.chunk, stop, self.program.batch):
            yield start, min(start + self.program.batch, stop)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, as far as it is known."""
        return not self.is_stream and self.finished.issuperset(self.chunks())

    def check(self) -> None:
        """Look whether finished chunks are what was written, and were made of what is there now.

        Damaged ones are scored again. So are those with an example that was bad and can be used now.
        """
        self.store.check_kept()
        if self.finished:
            self.progress.say(f"going on with {self.store.path}: {_chunks(self.finished)} finished")
        damaged = []
        for chunk in sorted(self.finished):
            rows = self.store.valid(chunk)
            if rows is None:
                damaged.append(chunk)
                self.finished.discard(chunk)
                continue
            if not self.is_stream:  # of which each chunk is compared when it comes
                self.compare(chunk, rows)
            if chunk in self.finished:
                self.tally.add(chunk * self.store.chunk, rows["status"], rows["delta"])
        if damaged:
            self.progress.say(f"{_chunks(damaged)} damaged, and scored again: {some_of(damaged, 20)}")
        self.progress.begin(sum(map(self.size, self.finished)))

    def compare(self, chunk: int, rows: Mapping[str, np.ndarray]) -> None:
        """Raise the error for examples of a finished chunk that are not what they were when they were scored.

        A chunk with an example that was bad, and is another now, is finished no longer; but for one of a stream, which
        has passed by.
        """
        begin, changed = chunk * self.store.chunk, []
        for start, stop in self.batches(chunk):
            records, _, sums = self.read(start, stop)
            at = slice(start - begin, start - begin + len(sums))
            is_other = sums != rows["input"][at]
            was_usable = np.isin(rows["status"][at], (Status.SCORED, Status.SCORES_NOT_FINITE))
            changed += [
                (start + int(i), records.messages.get(start + int(i))) for i in np.flatnonzero(is_other & was_usable)
            ]
            if (is_other & ~was_usable).any() and not self.is_stream:
                self.finished.discard(chunk)
        if changed:
            why = next((f" ({message})" for _, message in changed if message), "")
            raise StoreError(
                f"{self.source.source} has changed since {self.store.path} was begun. Examples that are scored, or "
                f"their references, are others now: {some_of([number for number, _ in changed], 20)}{why}. Put back "
                "what was there, choose another path, or begin anew with overwrite=True."
            )

    def work(self) -> Iterator[int | list[tuple[int, int]]]:
        """What to do, in order: so many batches as there are devices, or a finished chunk of a stream to pass by."""
        step: list[tuple[int, int]] = []
        for chunk in self.chunks():
            if chunk not in self.finished:
                for batch in self.batches(chunk):
                    step.append(batch)
                    if len(step) == self.program.mesh.size:
                        yield step
                        step = []
            elif self.is_stream:
                if step:
                    yield step
                    step = []
                yield chunk
        if step:
            yield step

    def all(self) -> None:
        """Do all that is left to do."""
        with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
            computing: deque[tuple[Step, Any]] = deque()
            began = None
            try:
                for step in _ahead(reader, self.load, self.work()):
                    if step is None:
                        continue
                    if not step.batches:
                        break
                    if began is None:
                        self.program.ready()
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

    def read(self, start: int, stop: int) -> tuple[Records, np.ndarray | None, np.ndarray]:
        """Some examples, their references where these are made on the host, and checksums of both."""
        records = self.source.read(start, stop)
        values, of_records = records.values, self.program.reference.of_records
        references = None if of_records is None or not len(values) else of_records(records, start)
        return records, references, checksums(values, *([] if references is None else [references]))

    def load(self, work: int | list[tuple[int, int]]) -> Step | None:
        """Read the examples of a step, and their references. Rows that hold no example are zeros."""
        if isinstance(work, int):
            self.compare(work, self.store.read(work))
            return None
        program, n = self.program, self.program.batch
        like_x, like_numbers, like_given, like_aims = program.inputs(n)
        x, numbers = np.zeros(like_x.shape, like_x.dtype), np.zeros(like_numbers.shape, like_numbers.dtype)
        given = (
            None if like_given is None or program.constant is not None else np.zeros(like_given.shape, like_given.dtype)
        )
        aims = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), like_aims)
        step = Step(x, numbers, given, aims, [])
        for k, (start, stop) in enumerate(work):
            records, references, sums = self.read(start, stop)
            count = len(records.values)
            if not count:
                break
            at = slice(k * n, k * n + count)
            if given is not None:
                given[at] = references
            x[at], numbers[at] = records.values, self.source.keys(start, start + count)
            for to, rows in zip(*map(jax.tree.leaves, (aims, program.aims)), strict=True):
                to[at] = rows[start : start + count]
            x[at][records.status != Status.SCORED] = 0
            step.batches.append((start, records, sums))
        return step

    def collect(self, step: Step, results: Sequence[Any], writer: ThreadPoolExecutor) -> None:
        """Wait for a step's results, and put them where they belong."""
        arrays = [np.asarray(result) for result in results]
        largest = 0.0
        for k, (start, records, sums) in enumerate(step.batches):
            count = len(records.values)
            at = slice(k * self.program.batch, k * self.program.batch + count)
            rows = self.place(start, count)
            for name, array in zip(self.names, arrays, strict=True):
                rows[name][:] = array[at]
            rows["input"][:] = sums
            self.mark(rows, records, start)
            if "sequence" in rows:
                rows["sequence"][:] = letters_of(np.moveaxis(records.values, self.store.letters_axis, -1))
            good = records.status == Status.SCORED
            if good.any():
                largest = max(largest, float(np.abs(rows["delta"][good]).max()))
            self.fill(start, count, writer)
            self.computed += count
        self.progress.update(sum(len(records.values) for _, records, _ in step.batches), largest)

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
            self.said += 1
            if self.said <= LISTED:
                self.progress.say(f"example {number}: {message}")
            elif self.said == LISTED + 1:
                self.progress.say(f"more than {LISTED} examples are bad: `jaxlift info --bad` lists them all")

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
        if chunk.filled == self.size(number):
            self.write(number, writer)

    def write(self, number: int, writer: ThreadPoolExecutor) -> None:
        chunk = self.open.pop(number)
        rows = {name: array[: chunk.filled] for name, array in chunk.rows.items()}
        self.tally.add(number * self.store.chunk, rows["status"], rows["delta"])
        self.writing.append(writer.submit(self.store.write, number, rows))
        while len(self.writing) > AHEAD or (self.writing and self.writing[0].done()):
            self.writing.popleft().result()

    def finish(self, writer: ThreadPoolExecutor) -> None:
        """Write what is left, the end of a stream, and wait until all is written."""
        self.wait()
        if self.is_stream:
            count = self.source.position  # pyright: ignore[reportAttributeAccessIssue]
            if any((chunk + 1) * self.store.chunk > count for chunk in self.finished):
                raise StoreError(
                    f"{self.source.source} ended after {count} examples, and more than that are scored already."
                )
            self.store.resize(count)  # before the last chunk is finished, whose rows count
        for number in sorted(self.open):
            self.write(number, writer)
        self.wait()

    def wait(self) -> None:
        """Wait until what is being written is."""
        while self.writing:
            self.writing.popleft().result()

    def kept(self) -> str:
        """How many examples are stored, of how many, and what is to be done again, for people."""
        try:
            finished = {chunk for chunk in self.store.finished() if self.shard.owns(chunk)}
        except Exception:  # what can't be read can't be counted
            return ""
        count, total = sum(map(self.size, finished)), self.progress.total
        of_total = "" if total is None else f" of {total}"
        return f", {count}{of_total} examples; a chunk ({self.store.chunk} examples) that wasn't finished is done again"

    def summary(self) -> Summary:
        """What this shard's chunks have."""
        return self.tally.summary(self.store.path, self.computed, self.seconds)


def _chunks(numbers: Collection[int]) -> str:
    return f"{len(numbers)} chunk{' is' if len(numbers) == 1 else 's are'}"


def _ahead(pool: ThreadPoolExecutor, load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What `load` makes of each item, some of it before it is asked for."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(load, item))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
