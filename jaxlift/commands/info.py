"""``jaxlift info``: what is in a store, what it lacks, and how it was made."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import Counter
from typing import Any

from jaxlift._arguments import some_of
from jaxlift.commands._parser import FINISHED, STORE, opened_store, shown, where
from jaxlift.scoring._shards import Shard, read_shard
from jaxlift.scoring._store import Store
from jaxlift.scoring._summary import summarize


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser(
        "info",
        help="what is in a store, what it lacks, and how it was made",
        description="Print what is in a store: how many examples are scored, which lack or are bad, its arrays, the "
        "settings that the scores depend on, and the runs that made them. Nothing is changed.",
    )
    parser.add_argument("store", type=where, help=STORE)
    parser.add_argument("--bad", action="store_true", help="only list the examples without scores, and why")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(do=_info, parser=parser)


def _info(given: argparse.Namespace) -> int:
    store = opened_store(given.store)
    summary, runs, missing = summarize(store), store.runs, lacking(store)
    if given.json:
        described = {
            "examples": summary.examples,
            "scored": summary.scored,
            "largest_delta": summary.largest_delta,
            "bad": {str(number): status.name.lower() for number, status in summary.bad.items()},
            "chunks": {"size": store.chunk, "count": len(store.chunks), "missing": missing},
            "finished": store.sealed,
            "settings": store.settings,
            "runs": runs,
        }
        print(json.dumps(described, indent=2))
        return FINISHED
    if given.bad:
        for number, status in summary.bad.items():
            print(number, status.name.lower())
        return FINISHED
    print(shown(summary))
    for line in said_of(store, missing):
        print(shown(line))
    for name, array in store.arrays.items():
        print(f"  {shown(name):17} {array.dtype!s:8} {array.shape}, {array.chunks[0]} examples in a chunk")
    for name, value in store.settings.items():
        text = (
            value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        )
        print(shown(f"{name.replace('_', ' ')}: {text}"))
    for run in runs:
        ended = f"to {run['ended']}" if "ended" in run else "not finished"
        started, host, shard, devices = (run.get(name) for name in ("started", "host", "shard", "devices"))
        command = run.get("command", "")
        command = " ".join(map(str, command)) if isinstance(command, list) else command
        print(shown(f"run: {started} {ended}, {host}, shard {shard}, {devices} devices: {command}"))
    return FINISHED


def lacking(store: Store) -> list[int]:
    """The numbers of the chunks that are not finished."""
    finished = store.finished()
    return [chunk for chunk in store.chunks if chunk not in finished]


def said_of(store: Store, missing: list[int]) -> list[str]:
    """Which chunks lack, and whose they are, by the number of shards that the last run had."""
    if not missing and not store.is_ended:
        return ["the examples came one after the other, and no run has come to their end"]
    if not missing:
        return [] if store.sealed else ["all chunks are finished, and `jaxlift finish` says so in the store"]
    verb = "is" if len(missing) == 1 else "are"
    lines = [f"{len(missing)} of {len(store.chunks)} chunks {verb} not finished: {some_of(missing, 20)}"]
    shards = [str(run.get("shard")) for run in store.runs]
    last = Shard()
    with contextlib.suppress(ValueError):  # of a record that was edited
        last = read_shard(shards[-1], {}) if shards else last
    if last.count > 1:
        of_each = Counter(chunk % last.count for chunk in missing)
        whose = [f"{Shard(index, last.count)} lacks {count}" for index, count in sorted(of_each.items())]
        lines.append(f"of the last run's shards, {some_of(whose, 20)}")
    return lines
