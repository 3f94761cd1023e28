"""How far a run is: a bar on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal, TextIO

from jaxlift.scoring._extra import extra

Display = Literal["auto", "bar", "lines", "none"]
INTERVAL = 10.0  # seconds from line to line


class Progress:
    """Counts examples, and shows rate, time left and the largest convergence delta so far."""

    def __init__(self, display: Display, total: int | None, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        if display == "auto":
            display = "bar" if self.out.isatty() else "lines"
        self.display, self.total, self.done = display, total, 0
        self.bar: Any = None
        self.largest = 0.0

    def begin(self, done: int) -> None:
        """Count from here on; so many examples are done already."""
        self.done = self.began_with = done
        self.began = self.shown = time.monotonic()
        if self.display == "bar" and done != self.total:
            self.bar = extra("tqdm").tqdm(
                total=self.total, initial=done, unit=" examples", file=self.out, dynamic_ncols=True, smoothing=0.1
            )

    def update(self, count: int, delta: float) -> None:
        """So many more examples are scored."""
        self.done += count
        self.largest = max(self.largest, delta)
        if self.bar is not None:
            self.bar.set_postfix_str(f"delta {self.largest:.1e}", refresh=False)
            self.bar.update(count)
        elif self.display == "lines" and time.monotonic() - self.shown >= INTERVAL:
            self.shown = time.monotonic()
            rate = (self.done - self.began_with) / (self.shown - self.began)
            of_total, left = "", ""
            if self.total is not None:
                of_total = f" of {self.total} ({self.done / self.total:.1%})"
                left = f", {duration((self.total - self.done) / rate)} left" if rate else ""
            self.say(f"{self.done}{of_total} examples, {rate:.4g}/s{left}, delta {self.largest:.1e}")

    def say(self, line: str) -> None:
        """A line for people, unless they want quiet."""
        if self.bar is not None:
            self.bar.write(line, file=self.out)
        elif self.display != "none":
            print(f"jaxlift: {line}", file=self.out, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
