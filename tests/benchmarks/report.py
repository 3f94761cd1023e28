"""The table, the targets and the plot of a run's results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .measure import ON_JAX, PEERS, quartiles
from .networks import NETWORKS

TITLES = {
    "rescale": "jaxlift, Rescale",
    "revealcancel": "jaxlift, RevealCancel",
    "rescale_batches": "Rescale in batches",
    "revealcancel_batches": "RevealCancel in batches",
    "gradient": "jax.grad, N R rows",
    "bare": "N + R forward, N R backward",
    "floor": "Rescale by hand, plain quotients",
    "exact_floor": "Rescale by hand, exact secants",
    "revealcancel_floor": "RevealCancel by hand",
    "captum": "Captum",
    "shap": "SHAP",
    "tangermeme": "tangermeme",
}
NAMES = {"bpnet": "BPNet", "lstm": "LSTM", "mnist_cnn": "CNN for MNIST", "max_pooling": "max-pooling"}
RIGHT = ("right", "complete, by another rule")


def right_peers(competitors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: competitors[name]
        for name in PEERS
        if competitors[name]["state"] in RIGHT and "median" in competitors[name]
    }


def targets(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each target at each place: the ratio, its bound, and whether it is met (None where nothing can be compared)."""

    def target(what: str, where: str, value: float | None, bound: float, at_least: bool = False) -> dict[str, Any]:
        met = None if value is None else value >= bound if at_least else value <= bound
        return {
            "target": what,
            "where": where,
            "value": value,
            "bound": ("≥ " if at_least else "≤ ") + f"{bound:g}",
            "met": met,
        }

    for cell in results["cells"]:
        name, n, r, by = cell["network"], cell["n"], cell["r"], cell["competitors"]
        where = f"{name} {n} x {r}"
        own, parts, bare, floor = (by[each] for each in ("rescale", "revealcancel", "bare", "floor"))
        exact, parts_floor = by["exact_floor"], by["revealcancel_floor"]
        batches, parts_batches = by["rescale_batches"], by["revealcancel_batches"]
        needed = (own, parts, batches, parts_batches, bare, floor, exact, parts_floor)
        if not all("median" in each for each in needed):
            yield {"target": "a result", "where": where, "value": None, "bound": "", "met": False}
            continue
        peers = right_peers(by)
        fastest = min((peer["median"] for peer in peers.values()), default=None)
        leanest = min((added(peer) for peer in peers.values()), default=None)
        times = 3 if r == 1 or cell["pool"] else 6 if name == "bpnet" and (n, r) == (8, 20) else 4
        for how, one, by_parts in (("", own, parts), (", in batches", batches, parts_batches)):
            yield target(
                f"times faster than the fastest right peer{how}",
                where,
                fastest and fastest / one["median"],
                times,
                True,
            )
            yield target(f"time, of the floor's{how}", where, one["median"] / floor["median"], 1.15)
            yield target(f"time, of the exact floor's{how}", where, one["median"] / exact["median"], 1.15)
            yield target(f"RevealCancel's time, of Rescale's{how}", where, by_parts["median"] / one["median"], 3.3)
            yield target(
                f"RevealCancel's time, of its floor's{how}", where, by_parts["median"] / parts_floor["median"], 1.15
            )
            temporary = leanest and one["temporary_bytes"] / leanest
            yield target(f"temporary memory, of the leanest right peer's{how}", where, temporary, 1 / 3)
        yield target("RevealCancel's time, of Rescale's, by hand", where, parts_floor["median"] / exact["median"], 3.3)
        yield target("matrix FLOPs, of the floor's", where, own["matrix_flops"] / bare["matrix_flops"], 1)
        yield target(
            "matrix FLOPs of RevealCancel", where, parts["matrix_flops"] / bare["revealcancel_matrix_flops"], 1
        )
        if name == "bpnet":
            yield target("FLOPs, of the floor's", where, own["flops"] / floor["flops"], 1.05)
            yield target("FLOPs of RevealCancel", where, parts["flops"] / bare["revealcancel_flops"], 1.15)
    for row in results.get("compile", ()):
        for kind in ("rescale", "revealcancel", "floor", "exact_floor", "revealcancel_floor"):
            spent = [row[each]["trace_seconds"] + row[each]["compile_seconds"] for each in (kind, "gradient")]
            what = f"trace and compile, {TITLES[kind]}, of jax.grad's"
            yield target(what, row["network"], spent[0] / spent[1], 2.5)
    for row in results.get("growth", ()):
        small, large = (row["temporary_bytes"][r] for r in ("10", "100"))
        yield target("temporary memory at R = 100, of R = 10, 5 at a time", row["network"], large / small, 1.2)


def added(result: dict[str, Any]) -> int:
    """By how much calls raise the peak of resident memory."""
    return result["resident_peak"] - result["resident_before"]


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    for cell in results["cells"]:
        console.print(_cell_table(cell))
    for row in results.get("compile", ()):
        console.print(_compile_table(row))
    table = Table(title="Targets", title_justify="left")
    for title in ("target", "where", "value", "bound", ""):
        table.add_column(title)
    for each in results["targets"]:
        value = "-" if each["value"] is None else f"{each['value']:.2f}"
        table.add_row(
            each["target"], each["where"], value, each["bound"], {True: "met", False: "MISSED", None: "-"}[each["met"]]
        )
    console.print(table)


def _cell_table(cell: dict[str, Any]) -> Table:
    table = Table(title=f"{cell['network']}, {cell['n']} x {cell['r']}", title_justify="left")
    titles = (
        "",
        "ms",
        "spread",
        "x Rescale",
        "GFLOP",
        "matrix",
        "temp MB",
        "added MB",
        "trace s",
        "compile s",
        "difference",
        "sum off",
        "",
    )
    for title in titles:
        table.add_column(title, justify="left" if not title else "right")
    own = cell["competitors"]["rescale"].get("median")
    for name in (*ON_JAX, *PEERS):
        result = cell["competitors"][name]
        scaled = {
            "ms": (result.get("median"), 1e-3, ".2f"),
            "spread": (result.get("spread"), 1, ".0%"),
            "x": (result.get("median") and own and result["median"] / own, 1, ".2f"),
            "flops": (result.get("flops"), 1e9, ".3f"),
            "matrix": (result.get("matrix_flops"), 1e9, ".3f"),
            "temporary": (result.get("temporary_bytes"), 1e6, ".1f"),
            "added": (added(result) if "resident_peak" in result else None, 1e6, ".0f"),
            "trace": (result.get("trace_seconds"), 1, ".2f"),
            "compile": (result.get("compile_seconds"), 1, ".2f"),
            "difference": (result.get("difference"), 1, ".0e"),
            "sum": (result.get("incompleteness"), 1, ".0e"),
        }
        cells = ["" if value is None else format(value / unit, style) for value, unit, style in scaled.values()]
        table.add_row(TITLES[name], *cells, result["state"])
    return table


def _compile_table(row: dict[str, Any]) -> Table:
    table = Table(title=f"Tracing and compiling: {row['network']}", title_justify="left")
    for title in ("", "trace s", "compile s", "x jax.grad", "equations"):
        table.add_column(title, justify="left" if not title else "right")
    spent = {kind: row[kind]["trace_seconds"] + row[kind]["compile_seconds"] for kind in row if kind != "network"}
    for kind, total in spent.items():
        own = row[kind]
        table.add_row(
            TITLES[kind],
            f"{own['trace_seconds']:.3f}",
            f"{own['compile_seconds']:.3f}",
            f"{total / spent['gradient']:.2f}",
            f"{own['equations']:.0f}",
        )
    return table


def markdown(results: dict[str, Any]) -> str:
    """The small table of the README: seconds of jaxlift, and how many times those the others take."""
    others = ("revealcancel", "gradient", "exact_floor", "revealcancel_floor", *PEERS)
    titles = ["network, N x R", TITLES["rescale"], *(TITLES[name] for name in others), "device"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for cell in results["cells"]:
        by = cell["competitors"]
        own = by["rescale"]
        if "median" not in own:
            continue
        times = [
            f"{by[name]['median'] / own['median']:.2f}"
            if by[name]["state"] in (*RIGHT, "no DeepLIFT") and "median" in by[name]
            else by[name]["state"]
            for name in others
        ]
        row = [f"{cell['network']}, {cell['n']} x {cell['r']}", f"{own['median']:.3g} s", *times, own["device"]]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(results: dict[str, Any], network: str, path: Path) -> None:
    """Time against the number of references, log-log; bars are from the first quartile of turns to the third."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name in ("rescale", "revealcancel", *PEERS):
        points = sorted(
            (cell["r"], quartiles(cell["competitors"][name]["seconds"]))
            for cell in results["cells"]
            if cell["network"] == network and cell["competitors"][name].get("seconds")
        )
        if points:
            low, middle, high = np.transpose([seconds for _, seconds in points])
            states = {cell["competitors"][name]["state"] for cell in results["cells"]}
            label = TITLES[name] + (" (incomplete)" if "incomplete" in states else "")
            bars = (middle - low, high - middle)
            axes.errorbar([r for r, _ in points], middle, bars, marker="o", markersize=4, capsize=3, label=label)
    shape = " x ".join(map(str, NETWORKS[network].shape))
    axes.set(xscale="log", yscale="log", xlabel="references of each example", ylabel="seconds for 8 examples")
    axes.set_title(
        f"{NAMES.get(network, network)}, inputs of {shape}: median and quartiles of turns", fontsize="medium"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(which="major", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
