"""From a genome to a file of hypothetical scores, beside bpnet-lite: `python -m tests.benchmarks --genomics`.

Both explain the log counts of the same BPNet, at the same regions, against 20 shuffles of each that keep dinucleotides.
jaxlift does so by its commands, `jaxlift score` and `jaxlift export`; bpnet-lite by the functions that its command
`bpnet attribute` calls. The command itself asks for a model that was pickled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .measure import python_of
from .protocol import ROOT, THREADS

REQUIREMENTS = ("torch==2.13.0", "tangermeme==1.6.0", "bpnet-lite==1.1.0")
ENVIRONMENT = Path(__file__).parent / ".genomics-venv"
GENOME, REGIONS, WEIGHTS = "genome.fa", "peaks.narrowPeak", "weights.npz"
SHUFFLES = 20
DEFAULT_BATCH = 64  # pairs at once, of `bpnet attribute`
BATCHES = (4, DEFAULT_BATCH)  # and those with which it is fastest on a processor
STEPS = ("importing", "compiling", "scoring", "exporting")


@dataclass(frozen=True)
class Size:
    """A BPNet's size: filters, dilated layers, and the positions of its input and of its profile."""

    filters: int
    layers: int
    width: int
    profile: int

    @property
    def trimming(self) -> int:
        """Positions on either side that the profile doesn't have."""
        return (self.width - self.profile) // 2


FULL = Size(64, 8, 2114, 1000)
SMALL = Size(8, 3, 200, 60)


def weights_of(size: Size, seed: int = 0) -> dict[str, np.ndarray]:
    """A network's weights, by the names that bpnet-lite's has for them; they keep the size of activations."""
    rng = np.random.default_rng(seed)
    shapes = {"iconv": (size.filters, 4, 21), "fconv": (2, size.filters, 75), "linear": (1, size.filters)}
    shapes |= {f"rconvs.{i}": (size.filters, size.filters, 3) for i in range(size.layers)}
    weights = {}
    for name, shape in shapes.items():
        scale = 0.5 if name.startswith("rconvs") else 1.0  # for these add to what comes in
        weights[f"{name}.weight"] = scale * rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * rng.normal(size=shape[0])
    return {name: value.astype(np.float32) for name, value in weights.items()}


def in_jax(weights: dict[str, np.ndarray], size: Size) -> Callable[[Any], dict[str, Any]]:
    """bpnet-lite's BPNet without controls: `(N, L, 4)` to a profile `(N, positions, strands)` and counts `(N, 1)`."""
    import jax
    from jax import lax

    def conv(h: Any, name: str, dilation: int = 1) -> Any:
        kernel, bias = weights[f"{name}.weight"].transpose(2, 1, 0), weights[f"{name}.bias"]
        dimensions = ("NWC", "WIO", "NWC")
        y = lax.conv_general_dilated(
            h, kernel.astype(h.dtype), (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=dimensions
        )
        return y + bias.astype(h.dtype)[None, None]

    def model(x: Any) -> dict[str, Any]:
        h = jax.nn.relu(conv(x, "iconv"))
        for i in range(size.layers):
            h = h + jax.nn.relu(conv(h, f"rconvs.{i}", 2 ** (i + 1)))
        start, end = size.trimming, size.width - size.trimming
        edge = 37  # half of the profile's kernel: the counts see as much as the profile
        mean = h[:, max(start - edge, 0) : end + edge].mean(1)
        counts = mean @ weights["linear.weight"].T.astype(h.dtype) + weights["linear.bias"].astype(h.dtype)[None]
        return {"profile": conv(h, "fconv")[:, start:end], "counts": counts}

    return model


def in_torch(weights: dict[str, np.ndarray], size: Size) -> Any:
    """bpnet-lite's own class, with these weights."""
    import torch
    from bpnetlite.bpnet import BPNet

    model = BPNet(size.filters, size.layers, n_control_tracks=0, trimming=size.trimming, verbose=False)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval()


def model() -> Callable[[Any], dict[str, Any]]:
    """What `jaxlift score tests.benchmarks.genomics:model` explains: weights in the directory that it is run in."""
    return in_jax(dict(np.load(WEIGHTS)), FULL)


def write_data(folder: Path, regions: int) -> None:
    """A random genome, regions in it, and weights."""
    rng = np.random.default_rng(1)
    apart = 3000  # more than a window
    bases = "".join(np.array(["A", "C", "G", "T"])[rng.choice(4, apart * (regions + 1), p=[0.3, 0.2, 0.2, 0.3])])
    lines = [bases[i : i + 60] for i in range(0, len(bases), 60)]
    (folder / GENOME).write_text("\n".join([">chr1", *lines, ""]))
    starts = [apart * (i + 1) - 100 for i in range(regions)]
    rows = [f"chr1\t{start}\t{start + 200}\tpeak{i}\t0\t.\t1\t-1\t-1\t100\n" for i, start in enumerate(starts)]
    (folder / REGIONS).write_text("".join(rows))
    np.savez(folder / WEIGHTS, **weights_of(FULL))  # pyright: ignore[reportArgumentType] (names are no options)


class Steps:
    """Seconds of the processor and of the clock that each step took, in this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.last = (0.0, time.perf_counter())  # the interpreter's own start counts to the first

    def ended(self, name: str) -> None:
        now = time.process_time(), time.perf_counter()
        before = self.seconds.get(name, [0.0, 0.0])
        self.seconds[name] = [total + end - start for total, end, start in zip(before, now, self.last, strict=True)]
        self.last = now


def own(*options: str) -> dict[str, list[float]]:
    """jaxlift's commands."""
    steps = Steps()
    from jaxlift.commands._main import main
    from jaxlift.scoring._device import Program

    compiled = Program.compile

    def timed(self: Program, *how: Any, **more: Any) -> None:
        steps.ended("scoring")
        compiled(self, *how, **more)
        steps.ended("compiling")

    Program.compile = timed
    steps.ended("importing")
    compared = ["--reference", "dinucleotide_shuffle", "--shuffles", str(SHUFFLES)]
    explained = ["--target", "counts", "--head", "counts", "--output", "hypothetical"]
    where = ["--regions", REGIONS, "--width", str(FULL.width), "--out", "scores.zarr", "--overwrite", "--quiet"]
    commands = [["score", f"{__name__}:model", GENOME, *where, *compared, *explained, *options]]
    commands.append(["export", "scores.zarr", "--h5", "scores.h5", "--dtype", "float32"])
    for command, step in zip(commands, ("scoring", "exporting"), strict=True):
        if main(command):
            raise RuntimeError(f"jaxlift {' '.join(command)} failed.")
        steps.ended(step)
    return steps.seconds


def peer(batch: str) -> dict[str, list[float]]:
    """What bpnet-lite's command does."""
    steps = Steps()
    import torch
    from bpnetlite.attribute import deep_lift_shap
    from bpnetlite.bpnet import CountWrapper
    from tangermeme.io import extract_loci

    torch.set_num_threads(THREADS)
    wrapped = CountWrapper(in_torch(dict(np.load(WEIGHTS)), FULL))
    steps.ended("importing")
    x = extract_loci(loci=REGIONS, sequences=GENOME, in_window=FULL.width).float()
    scores = deep_lift_shap(
        wrapped, x, hypothetical=True, n_shuffles=SHUFFLES, batch_size=int(batch), device="cpu", random_state=0
    )
    steps.ended("scoring")
    np.savez_compressed("peer.ohe.npz", x.numpy())
    np.savez_compressed("peer.attr.npz", scores.numpy())
    steps.ended("exporting")
    return steps.seconds


def measured(regions: int, rounds: int, python: Path | None = None, options: Sequence[str] = ()) -> dict[str, Any]:
    """Each in turn, in a process of its own.

    Args:
        regions: how many are explained.
        rounds: how often it is each one's turn.
        python: of an environment that has bpnet-lite; made if left out.
        options: of `jaxlift score`.
    """
    if python is None:
        python, reason = python_of(ENVIRONMENT, REQUIREMENTS, "import bpnetlite, tangermeme.deep_lift_shap")
        if python is None:
            return {"reason": reason}
    turns = {"jaxlift": [sys.executable, "own", *options]}
    turns |= {f"bpnet-lite, {size} pairs at once": [str(python), "peer", str(size)] for size in BATCHES}
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in turns}
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), regions)
        for _ in range(rounds):
            for name, (interpreter, *arguments) in turns.items():
                command = [interpreter, "-m", __name__, *arguments]
                done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    return {"reason": f"{name} ended with code {done.returncode}"}
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {"regions": regions, "shuffles": SHUFFLES, "seconds": found, "ratios": ratios(found)}


def ratios(found: dict[str, list[dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """How many times as long as jaxlift each peer takes: medians over rounds.

    "all" is from the start of the process to the file, "without" is less importing and compiling.
    """
    own = found["jaxlift"]

    def took(turn: dict[str, list[float]], which: int, steps: Sequence[str]) -> float:
        return sum(turn[step][which] for step in steps if step in turn)

    return {
        name: {
            f"{clock}, {what}": median(
                took(theirs, which, steps) / took(ours, which, steps) for theirs, ours in zip(turns, own, strict=True)
            )
            for which, clock in enumerate(("processor", "wall"))
            for what, steps in (("all", STEPS), ("without", STEPS[2:]))
        }
        for name, turns in found.items()
        if name != "jaxlift"
    }


def shown(results: dict[str, Any]) -> str:
    """The results as text."""
    if "reason" in results:
        return f"genomics: nothing measured: {results['reason']}"
    lines = [f"{results['regions']} regions, {results['shuffles']} shuffles of each: seconds of the processor (wall)"]
    for name, turns in results["seconds"].items():
        parts = [
            f"{step} {median(turn[step][0] for turn in turns):.1f} ({median(turn[step][1] for turn in turns):.1f})"
            for step in STEPS
            if all(step in turn for turn in turns)
        ]
        lines.append(f"  {name}: {', '.join(parts)}")
    for name, by in results["ratios"].items():
        lines.append(f"  {name}, times as long: " + ", ".join(f"{what} {value:.2f}" for what, value in by.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps({"own": own, "peer": peer}[sys.argv[1]](*sys.argv[2:])))
