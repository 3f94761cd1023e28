"""``jaxlift verify`` and ``jaxlift finish``: whether a store has all that was written, and that it is whole."""

from __future__ import annotations

import argparse
from typing import Any

from jaxlift._arguments import some_of
from jaxlift.commands._parser import FAILED, FINISHED, STORE, opened_store, shown, where
from jaxlift.commands.info import lacking, said_of
from jaxlift.scoring._summary import seal, summarize

EXIT_CODES = """\
exit codes:
    0  all chunks are finished, and as they were written
    1  some are not; the same `jaxlift score` command computes them
    2  this is no store, or what was written when it was made is damaged
   74  it can't be read
"""


def add(commands: Any) -> None:
    """Add the commands to those of ``jaxlift``."""
    for name, do, what, more in (
        (
            "verify",
            _verify,
            "read a whole store, and compare it with its checksums",
            "Nothing is changed. Chunks that are damaged or lack are named; `jaxlift score` computes them.",
        ),
        (
            "finish",
            _finish,
            "say in a store that all shards are finished, if they are",
            "The last run says so by itself, unless several ended at the same moment. Else it says what lacks.",
        ),
    ):
        description = f"{what[0].upper()}{what[1:]}. {more}"
        parser = commands.add_parser(name, help=what, description=description, epilog=EXIT_CODES)
        parser.add_argument("store", type=where, help=STORE)
        parser.set_defaults(do=do, parser=parser)


def _verify(given: argparse.Namespace) -> int:
    store = opened_store(given.store)
    store.check_kept()
    finished, missing = sorted(store.finished()), lacking(store)
    damaged = [chunk for chunk in finished if store.valid(chunk) is None]
    if damaged:
        verb = "is" if len(damaged) == 1 else "are"
        print(f"{len(damaged)} of {len(finished)} finished chunks {verb} damaged: {some_of(damaged, 20)}")
        print(f"a chunk has {store.chunk} examples. The same `jaxlift score` command scores them again.")
    else:
        print(f"{len(finished)} chunk{' is as it was' if len(finished) == 1 else 's are as they were'} written")
    for line in said_of(store, missing):
        print(shown(line))
    return FAILED if damaged or missing or not store.is_ended else FINISHED


def _finish(given: argparse.Namespace) -> int:
    store = opened_store(given.store, "r+")
    missing, summary = lacking(store), summarize(store)
    if not missing and store.is_ended and not store.sealed:
        seal(store, summary)
    print(shown(summary))
    for line in said_of(store, missing):
        print(shown(line))
    return FAILED if missing or not store.is_ended else FINISHED
