"""What a store has after a run, for people and in numbers."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlift._arguments import some_of
from jaxlift.scoring._examples import Status
from jaxlift.scoring._store import Store


@dataclass(frozen=True)
class Summary:
    """What a store has after a run; of a shard, what that has.

    Attributes:
        path: the store.
        examples: how many there are.
        scored: how many have scores.
        bad: the others by number, and what is the matter with each, of `Status`.
        computed: how many examples this run computed; None if there was no run.
        seconds: how long that took, without compiling.
        largest_delta: the largest convergence delta, in size.
        largest_at: the example that has it; None if there is none.
        reference: what they are compared with, in words; None if there was no run, or no reference.
        notes: what is to be said of where the examples come from, such as of regions that were left out.
        shard: which one, ``"I/N"``, if the run was one of several.
        is_finished: whether the whole store is.
    """

    path: Path
    examples: int
    scored: int
    bad: Mapping[int, Status]
    computed: int | None
    seconds: float
    largest_delta: float
    largest_at: int | None
    reference: str | None = None
    notes: tuple[str, ...] = ()
    shard: str | None = None
    is_finished: bool = True

    @property
    def numbers(self) -> dict[str, Any]:
        """What metadata have of it."""
        largest = self.largest_delta if np.isfinite(self.largest_delta) else None  # which JSON doesn't have
        return {"scored": self.scored, "bad": len(self.bad), "largest_delta": largest}

    def __str__(self) -> str:
        by_run = "" if self.computed is None else f", {self.computed} by this run"
        by_run += f", {self.computed / self.seconds:.4g}/s" if self.computed and self.seconds else ""
        of_shard = "" if self.shard is None else f"shard {self.shard}: "
        lines = [f"{of_shard}{self.scored} of {self.examples} examples scored{by_run}"]
        if self.reference is not None:
            lines.append(f"compared with the reference {self.reference}")
        if self.largest_at is not None:
            lines.append(f"largest convergence delta {self.largest_delta:.2g}, of example {self.largest_at}")
        for status in dict.fromkeys(self.bad.values()):
            numbers = [number for number, other in self.bad.items() if other == status]
            lines.append(f"{len(numbers)} {status.name.lower().replace('_', ' ')}: {some_of(numbers, 20)}")
        others = "" if self.is_finished else ", which is not finished: `jaxlift info` says what lacks"
        return "\n".join([*lines, *self.notes, f"result in {self.path}{others}"])


class Tally:
    """Counts what chunks have, in any order."""

    def __init__(self) -> None:
        self.examples, self.scored, self.bad = 0, 0, dict[int, Status]()
        self.largest, self.at = 0.0, None

    def add(self, start: int, status: np.ndarray, delta: np.ndarray) -> None:
        """Some consecutive examples, of which `start` is the first."""
        self.examples += len(status)
        self.scored += int((status == Status.SCORED).sum())
        self.bad |= {start + int(i): Status(status[i]) for i in np.flatnonzero(status != Status.SCORED)}
        size = np.abs(delta.astype(np.float64)).reshape(len(status), -1)
        if np.isfinite(size).any() and (self.at is None or np.nanmax(size) > self.largest):
            self.largest, self.at = float(np.nanmax(size)), start + int(np.nanargmax(size)) // size.shape[1]

    def summary(self, path: Path, computed: int | None = None, seconds: float = 0.0) -> Summary:
        bad = dict(sorted(self.bad.items()))
        return Summary(path, self.examples, self.scored, bad, computed, seconds, self.largest, self.at)


def summarize(store: Store) -> Summary:
    """What a store has."""
    tally, step = Tally(), store.chunk * max(1, 2**16 // store.chunk)  # many chunks at once, for each takes a moment
    for start in range(0, store.count, step):
        tally.add(start, *(store.rows(name, start, start + step) for name in ("status", "delta")))
    return replace(tally.summary(store.path), is_finished=store.is_finished)


def seal(store: Store, summary: Summary) -> None:
    """Write into a finished store that it is, and what it has."""
    store.seal({"ended": now(), "examples": summary.examples} | summary.numbers)


def now() -> str:
    """The time, as metadata have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
