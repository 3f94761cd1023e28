"""What `jaxlift.score` adds to a loop over the compiled attribution: `python -m tests.benchmarks --scoring`.

The loop reads the same examples in the same batches from the same file, and lets go of what it computes. So its time is
the floor: what is above it is for checksums, writing, and having it on the disk.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .networks import NETWORKS, data

ROOT = Path(__file__).parents[2]
EXAMPLES = {"bpnet": 64, "mnist_cnn": 16384}
SHARDS = (1, 2, 4)


def explained(name: str) -> Any:
    """The attribution of a network: what loop and `score` have in common."""
    import jax

    import jaxlift

    from . import in_jax
    from .networks import weights_of

    weights = jax.tree.map(jax.numpy.asarray, weights_of(name))
    return jaxlift.attribute(lambda x: getattr(in_jax, name)(weights, x))


def paired(name: str, rounds: int) -> dict[str, Any]:
    """Loop and `score` in turn, in this process: examples a second of each, without compiling."""
    import jax
    import zarr

    import jaxlift

    attr, rates = explained(name), {"loop": [], "score": []}
    for turn in range(rounds):
        summary = jaxlift.score(attr, "x.npy", reference="zeros", out=f"{turn}.zarr", progress="none")
        rates["score"].append(summary.computed / summary.seconds)
        settings = zarr.open_group(f"{turn}.zarr", mode="r").attrs["jaxlift"]["settings"]
        rates["loop"].append(loop(jax.jit(attr.with_options(full=True)), settings["batch_size"], settings["in_turn"]))
    return rates | {"ratio": median(s / f for s, f in zip(rates["score"], rates["loop"], strict=True))}


def loop(attr: Any, batch: int, in_turn: bool) -> float:
    """Examples a second of a loop over the compiled attribution."""
    x = np.load("x.npy", mmap_mode="r")
    reference = np.zeros(x.shape[1:], np.float32)
    step = 1 if in_turn else batch
    compiled = attr.lower(x[:step], reference=reference).compile()
    began = time.monotonic()
    for start in range(0, len(x), step):
        for array in compiled(np.array(x[start : start + step]), reference=reference):
            np.asarray(array)
    return len(x) / (time.monotonic() - began)


def shard(name: str, index: int, count: int) -> dict[str, Any]:
    """One shard, as a process of its own: its rate, and how long it took to the end of its first batch."""
    import jaxlift
    from jaxlift.scoring._run import Run

    began, first = time.monotonic(), []
    collect = Run.collect

    def collected(self: Run, *arguments: Any) -> None:
        collect(self, *arguments)
        first.append(time.monotonic())

    Run.collect = collected
    summary = jaxlift.score(
        explained(name), "x.npy", reference="zeros", out=f"of-{count}.zarr", shard=(index, count), progress="none"
    )
    return {
        "rate": (summary.computed or 0) / summary.seconds if summary.seconds else 0.0,
        "first": first[0] - began if first else None,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def measured(rounds: int) -> dict[str, Any]:
    """All figures, each network's in processes of their own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    found: dict[str, Any] = {}
    for name, count in EXAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            some = data(name, 64, 1)[0]
            np.save(Path(folder, "x.npy"), some[np.arange(count) % len(some)])

            def started(*arguments: Any, folder: str = folder) -> subprocess.Popen[str]:
                command = [sys.executable, "-m", __name__, *map(str, arguments)]
                return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)

            found[name] = answer(started("paired", name, rounds))
            found[name]["shards"] = {}
            for shards in SHARDS:
                processes = [started("shard", name, index, shards) for index in range(shards)]
                answers = [answer(process) for process in processes]
                found[name]["shards"][shards] = {
                    "rate": sum(each["rate"] for each in answers),
                    "first": max(each["first"] or 0.0 for each in answers),
                    "gigabytes": max(each["gigabytes"] for each in answers),
                }
    return found


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process printed in its last line."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with code {process.returncode}")
    return json.loads(out.splitlines()[-1])


def shown(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for name, of in results.items():
        loop_rate, rate = (median(of[each]) for each in ("loop", "score"))
        lines.append(
            f"{name} {NETWORKS[name].shape}: score {rate:.4g}/s, loop {loop_rate:.4g}/s, ratio {of['ratio']:.3f}"
        )
        lines += [
            f"  {shards} shards: {each['rate']:.4g}/s together, first example after {each['first']:.1f} s, "
            f"{each['gigabytes']:.2f} GB each"
            for shards, each in of["shards"].items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    do, network, *numbers = sys.argv[1:]
    print(json.dumps({"paired": paired, "shard": shard}[do](network, *map(int, numbers))))
