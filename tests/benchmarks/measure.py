"""Runs the competitors side by side."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from .networks import NETWORKS
from .protocol import ROOT, THREADS, FailedError, Process

PEERS = ("captum", "shap", "tangermeme")
ON_JAX = (
    "rescale",
    "revealcancel",
    "rescale_batches",
    "revealcancel_batches",
    "gradient",
    "bare",
    "floor",
    "exact_floor",
    "revealcancel_floor",
)
REQUIREMENTS = ("torch==2.13.0", "captum==0.9.0", "shap==0.51.0", "tangermeme==1.6.0")
ENVIRONMENT = Path(__file__).parent / ".peers-venv"
COMPLETE = 1e-3  # of the largest difference of outputs; float32 leaves 1e-5


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: how often it is each competitor's turn, after a first one that isn't counted.
        budget: seconds for these rounds in one cell of the table. After that no round begins, but one is always made.
        limit: seconds that one competitor may take for one call, or to trace and compile.
        gigabytes: how large one competitor may grow.
    """

    rounds: int
    budget: float
    limit: float
    gigabytes: float


def peers_python() -> tuple[Path | None, str]:
    """The Python of the peers' environment, or None, and the reason."""
    return python_of(ENVIRONMENT, REQUIREMENTS, "import captum.attr, shap, tangermeme.deep_lift_shap")


def python_of(folder: Path, requirements: Sequence[str], code: str) -> tuple[Path | None, str]:
    """The Python of an environment that runs some code, with what must be installed for it, which is made if there is
    none; or None, and the reason.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for command in ([], [python, "-m", "pip", "install", "--quiet", *requirements]):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True) if command else None
        if done and done.returncode:
            return None, (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        tried = subprocess.run([python, "-c", code], stderr=subprocess.PIPE, text=True)
        if tried.returncode == 0:
            return python, ""
    return None, (tried.stderr.strip().splitlines() or [f"`{code}` fails"])[-1]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    packages = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": model,
        "cores": THREADS,
        "load": load,
        "python": platform.python_version(),
        "packages": packages | dict(requirement.split("==") for requirement in REQUIREMENTS),
    }


def cell(name: str, n: int, r: int, peers: Path | None, reason: str, settings: Settings) -> dict[str, Any]:
    """One network at one size, by every competitor."""
    results: dict[str, dict[str, Any]] = {}
    processes: dict[str, Process] = {}
    for competitor in (*ON_JAX, *PEERS):
        results[competitor] = {"state": "nothing to compare with", "seconds": []}
        if competitor in PEERS and peers is None:
            results[competitor]["state"] = f"not installed: {reason}"
        else:
            python, module = (sys.executable, "competitors") if competitor in ON_JAX else (peers, "in_torch")
            command = [str(python), "-m", f"tests.benchmarks.{module}", competitor, name, str(n), str(r)]
            processes[competitor] = Process(command, settings.limit, settings.gigabytes)

    def ask(competitor: str, do: str, **more: Any) -> dict[str, Any]:
        """The answer; or none, and the competitor is out."""
        try:
            return processes[competitor].ask(do, **more)
        except FailedError as error:
            results[competitor]["state"] = str(error)
            del processes[competitor]
            return {}

    try:
        for competitor in list(processes):
            results[competitor] |= ask(competitor, "prepare")
        for competitor in list(processes):
            results[competitor]["first_seconds"] = ask(competitor, "call").get("seconds")
        start = time.monotonic()
        for _ in range(settings.rounds):
            for competitor in list(processes):
                if answer := ask(competitor, "call"):
                    results[competitor]["seconds"].append(answer["seconds"])
            if time.monotonic() - start > settings.budget:
                break
        with tempfile.TemporaryDirectory() as folder:
            for competitor in list(processes):
                results[competitor] |= ask(competitor, "finish", path=f"{folder}/{competitor}.npz")
            arrays = {competitor: dict(np.load(f"{folder}/{competitor}.npz")) for competitor in processes}
    finally:
        for process in processes.values():
            process.end()
    for result in results.values():
        if seconds := result["seconds"]:
            result["median"] = median(seconds)
            low, _, high = quartiles(seconds)
            result["spread"] = (high - low) / result["median"]
    judge(results, arrays)
    return {"network": name, "n": n, "r": r, "pool": NETWORKS[name].pool, "competitors": results}


def quartiles(seconds: list[float]) -> list[float]:
    """Those of turns' times, the median in the middle."""
    return quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3


def judge(results: dict[str, dict[str, Any]], arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """Compare what competitors returned with jaxlift's Rescale, and with the difference of outputs."""
    if "rescale" not in arrays:
        return
    own = arrays["rescale"]
    for competitor, found in arrays.items():
        result, scores = results[competitor], found["contributions"]
        result["outputs_differ"] = relative(found["y"] - own["y"], own["y"])
        result["difference"] = relative(scores - own["contributions"], own["contributions"])
        change = (found["y"][:, None] - found["y_ref"]).mean(1)
        result["incompleteness"] = relative(scores.reshape(len(scores), -1).sum(1) - change, change)
        result["state"] = "right"
        if competitor in ("bare", "gradient"):
            result["state"] = "no DeepLIFT"
        elif result["outputs_differ"] > 1e-5:
            result["state"] = "another network"
        elif not result["incompleteness"] <= COMPLETE:
            result["state"] = "incomplete"
        elif result["difference"] > COMPLETE and not competitor.startswith("revealcancel"):
            result["state"] = "complete, by another rule"


def relative(error: np.ndarray, scale: np.ndarray) -> float:
    return float(np.abs(error).max() / np.abs(scale).max())


def compiling(names: Sequence[str], rounds: int, depth: int) -> dict[str, Any]:
    """What `compiling.py` measures, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.compiling", str(rounds), str(depth), *names]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
