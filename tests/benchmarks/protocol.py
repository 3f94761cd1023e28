"""Every competitor runs in a process of its own, and answers commands: one JSON object a line, both ways.

So calls can be interleaved, peak memory is each competitor's own, and what takes too long or too much is ended alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).parent.parent.parent
TURN = 0.1  # seconds
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Competitor(Protocol):
    """What a process does."""

    def prepare(self) -> dict[str, Any]:
        """Do what is done once. Returns what it cost."""
        ...

    def call(self) -> Any:
        """One call, finished. Returns its contributions."""
        ...

    def outputs(self) -> tuple[Any, Any]:
        """What the network makes of inputs and of references."""
        ...


class FailedError(Exception):
    """A competitor had no result; says why."""


def serve(competitor: Competitor) -> None:
    """Answer commands until there are no more.

    - ``prepare``: what `prepare` returns.
    - ``call``: the seconds that a call took, the median of as many as `TURN` has room for. (The first, after others'
      turns, finds cold caches and threads asleep.)
    - ``finish``: peak resident memory, and in the file `path` the last results.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    before, contributions = resident(), None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer: dict[str, Any] = {}
            match command["do"]:
                case "prepare":
                    answer = competitor.prepare()
                    before = resident()
                case "call":
                    seconds: list[float] = []
                    while sum(seconds) < TURN:
                        start = time.perf_counter()
                        contributions = competitor.call()
                        seconds.append(time.perf_counter() - start)
                    answer["seconds"] = median(seconds)
                case "finish":
                    kilobytes = 1 if sys.platform == "darwin" else 1024
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
                    answer = {"resident_before": before, "resident_peak": max(peak, before)}
                    y, y_ref = competitor.outputs()
                    np.savez(command["path"], contributions=contributions, y=y, y_ref=y_ref)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def resident() -> int:
    """Bytes of this process that are in memory, or, where the system doesn't tell, that were at most."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Process:
    """A competitor's process, from outside.

    Args:
        command: starts it.
        seconds, gigabytes: how long an answer may take, and how large the process may grow.
    """

    def __init__(self, command: Sequence[str], seconds: float, gigabytes: float) -> None:
        self.seconds, self.gigabytes = seconds, gigabytes
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        environment = os.environ | {
            "OMP_WAIT_POLICY": "passive",  # threads that wait must not slow the others
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # nor processes take the accelerator's memory from one another
            # The sum needs true float32 products, which GPUs and TPUs make only if told to.
            "JAX_DEFAULT_MATMUL_PRECISION": os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "highest"),
        }
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            FailedError: if there is none.
        """
        assert self.process.stdin
        assert self.process.stdout
        start = time.monotonic()
        try:
            print(json.dumps({"do": do} | more), file=self.process.stdin, flush=True)
            while not select.select([self.process.stdout], [], [], 0.1)[0]:
                if time.monotonic() - start > self.seconds:
                    raise self._end(f"over {self.seconds:.0f} s")
                if self._resident() > self.gigabytes * 1e9:
                    raise self._end(f"over {self.gigabytes:.1f} GB")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:] or [f"ended with code {self.process.returncode}"]
            raise self._end(last[0][:200])
        answer = json.loads(line)
        if "error" in answer:
            raise self._end(answer["error"])
        return answer

    def _resident(self) -> int:
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * resource.getpagesize()

    def _end(self, reason: str) -> FailedError:
        self.end()
        return FailedError(reason)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            assert stream
            with contextlib.suppress(BrokenPipeError):  # what was written to a process that had ended
                stream.close()
