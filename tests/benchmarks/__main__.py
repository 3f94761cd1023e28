"""Measure jaxlift beside other implementations of DeepLIFT: `python -m tests.benchmarks`.

Prints a table for each network and size, and the targets; writes all figures as JSON. Needs `pip install -e
'.[benchmarks]'`. The peers are installed by the script, in an environment of their own (several gigabytes where PyTorch
brings its CUDA libraries).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rich.console import Console

from . import accelerators, genomics, measure, report, scoring
from .networks import NETWORKS, QUICK_SIZES, SIZES, size

CURVE = (1, 3, 10, 30, 100)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="NxR", help="default: 256x1 32x20 8x20 4x100")
    parser.add_argument("--quick", action="store_true", help="small sizes, few turns")
    parser.add_argument("--no-peers", action="store_true", help="JAX only")
    parser.add_argument("--compile", action="store_true", help="also tracing and compiling beside jax.grad")
    parser.add_argument("--only-compile", action="store_true", help="nothing but that")
    parser.add_argument(
        "--accelerators",
        nargs="+",
        choices=accelerators.EXTRAS,
        metavar="TARGET",
        help="nothing but what compilers for these, tpu or gpu, make of it, without a device; they are installed in "
        "environments of their own (0.3 and 5.5 GB)",
    )
    parser.add_argument(
        "--genomics",
        type=int,
        nargs="?",
        const=64,
        metavar="REGIONS",
        help="nothing but scores of so many regions, from a genome to a file, beside bpnet-lite's [64]",
    )
    parser.add_argument(
        "--scoring",
        action="store_true",
        help="nothing but what `jaxlift.score` adds to a loop over the compiled attribution, alone and in shards",
    )
    parser.add_argument("--python", type=Path, help="that has bpnet-lite, for --genomics; else it is installed")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="time against references, 8 examples of --networks")
    parser.add_argument("--rounds", type=int, help="turns of each competitor")
    parser.add_argument("--limit", type=float, help="seconds that one call may take")
    parser.add_argument("--gigabytes", type=float, help="memory that one competitor may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), metavar="JSON")
    options = parser.parse_args()

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    settings = measure.Settings(
        rounds=options.rounds or (3 if options.quick else 9),
        budget=5 if options.quick else 120,
        limit=options.limit or 180,
        gigabytes=options.gigabytes or memory / 2,
    )
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    console = Console(width=None if Console().is_terminal else 200)
    results: dict = {"machine": measure.machine(), "settings": vars(settings), "cells": []}
    if options.accelerators:
        found = accelerators.measured(options.accelerators, options.networks, options.sizes or accelerators.SIZES)
        for row in found:
            console.print(" ".join(str(row.get(key, "")) for key in accelerators.NAMES), style="dim")
            results.setdefault("accelerators", []).append(row)
            options.out.write_text(json.dumps(results, indent=1))
        console.print(accelerators.table(results["accelerators"]))
        return
    if options.genomics:
        results["genomics"] = genomics.measured(options.genomics, options.rounds or 3, options.python)
        options.out.write_text(json.dumps(results, indent=1))
        print(genomics.shown(results["genomics"]))
        return
    if options.scoring:
        results["scoring"] = scoring.measured(options.rounds or 3)
        options.out.write_text(json.dumps(results, indent=1))
        print(scoring.shown(results["scoring"]))
        return
    if not options.only_compile:
        python, reason = (None, "--no-peers") if options.no_peers else measure.peers_python()
        if options.plot:
            sizes = [(8, r) for r in CURVE]
        for name in options.networks:
            for n, r in sizes:
                console.print(f"{name}, {n} x {r}", style="dim")
                results["cells"].append(measure.cell(name, n, r, python, reason, settings))
                options.out.write_text(json.dumps(results, indent=1))
    if options.compile or options.only_compile:
        results |= measure.compiling(options.networks, *((1, 8) if options.quick else (5, 200)))
    results["targets"] = list(report.targets(results))
    options.out.write_text(json.dumps(results, indent=1))
    report.show(results, console)
    print(report.markdown(results))
    if options.plot:
        report.plot(results, options.networks[0], options.plot)


main()
