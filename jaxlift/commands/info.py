"""``jaxlift info``: what is in a store, and how it was made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jaxlift.commands._parser import FINISHED, opened_store, shown
from jaxlift.scoring._run import summarize


def add(commands: Any) -> None:
    """Add the command to those of ``jaxlift``."""
    parser = commands.add_parser("info", help="what is in a store, and how it was made")
    parser.add_argument("store", type=Path)
    parser.add_argument("--bad", action="store_true", help="only list the examples without scores, and why")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(do=_info, parser=parser)


def _info(given: argparse.Namespace) -> int:
    store, summary = opened_store(given.store), summarize(given.store)
    if given.json:
        described = {
            "examples": summary.examples,
            "scored": summary.scored,
            "largest_delta": summary.largest_delta,
            "bad": {str(number): status.name.lower() for number, status in summary.bad.items()},
            "settings": store.settings,
            "runs": store.runs,
        }
        print(json.dumps(described, indent=2))
        return FINISHED
    if given.bad:
        for number, status in summary.bad.items():
            print(number, status.name.lower())
        return FINISHED
    print(shown(summary))
    for name, array in store.arrays.items():
        print(f"  {shown(name):17} {array.dtype!s:8} {array.shape}, {array.chunks[0]} examples in a chunk")
    for name, value in store.settings.items():
        text = (
            value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        )
        print(shown(f"{name.replace('_', ' ')}: {text}"))
    for run in store.runs:
        ended = f"to {run['ended']}" if "ended" in run else "not finished"
        started, host, processes, devices = (run.get(name) for name in ("started", "host", "processes", "devices"))
        command = " ".join(map(str, run.get("command", ())))
        print(shown(f"run: {started} {ended}, {host}, {processes} x {devices} devices: {command}"))
    return FINISHED
