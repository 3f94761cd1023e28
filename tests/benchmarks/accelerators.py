"""What compilers make of attributions for devices that this machine doesn't have: `python -m tests.benchmarks
--accelerators tpu gpu`. In an environment with the compiler, `python -m tests.benchmarks.accelerators tpu NETWORK...
--sizes 8x20` prints the figures of one target, a JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from .measure import python_of
from .networks import NETWORKS, data, size, weights_of
from .protocol import ROOT

EXTRAS = {"tpu": "jax[tpu]", "gpu": "jax[cuda12]"}  # 300 MB and 5.5 GB
PLUGINS = {"tpu": "libtpu", "gpu": "jax_cuda12_plugin"}
DESCRIBED = {"tpu": "TPU v5e", "gpu": "NVIDIA H100"}
SIZES = ((160, 1), (8, 20), (128, 1), (128, 2))
PROGRAMS = ("gradient", "exact_floor", "rescale", "rescale_own_precision", "revealcancel_floor", "revealcancel")
NAMES = ("target", "network", "size", "program")
Row = dict[str, Any]
HERE = Path(__file__).parent


def python_for(target: str) -> tuple[Path | None, str]:
    """The Python of an environment with the target's compiler and this JAX, or None, and the reason."""
    wanted = [f"{EXTRAS[target]}=={version('jax')}", "numpy", "rich"]
    code = f"import jax, {PLUGINS[target]}, rich; assert jax.__version__ == {version('jax')!r}, jax.__version__"
    return python_of(HERE / f".{target}-venv", wanted, code)


def measured(targets: Sequence[str], names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """The figures of each program, or why a target has none, from processes in the targets' environments."""
    for target in targets:
        python, reason = python_for(target)
        if python is None:
            yield {"target": target, "state": f"not installed: {reason}"}
            continue
        texts = [f"{n}x{r}" for n, r in sizes]
        command = [python, "-m", "tests.benchmarks.accelerators", target, *names, "--sizes", *texts]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            yield from map(json.loads, process.stdout)
        if process.returncode:
            yield {"target": target, "state": f"ended with code {process.returncode}"}


def table(rows: Sequence[Row]) -> Table:
    """Traffic, kernels, copies, memory and compilation, beside those of jax.grad on N R rows."""
    shown = Table(title="By the compilers, without a device", title_justify="left")
    titles = ("", "program", "GB", "x jax.grad", "kernels", "copies", "temp MB", "trace s", "compile s", "x jax.grad")
    for title in titles:
        shown.add_column(title, justify="left" if title in ("", "program") else "right")
    gradients = {(row["target"], row["network"], row["size"]): row for row in rows if row.get("program") == "gradient"}
    for row in rows:
        if "state" in row:
            shown.add_row(DESCRIBED[row["target"]], row["state"])
            continue
        own = gradients[row["target"], row["network"], row["size"]]
        spent, of_own = (each["trace_seconds"] + each["compile_seconds"] for each in (row, own))
        shown.add_row(
            f"{DESCRIBED[row['target']]}, {row['network']}, {row['size']}",
            row["program"],
            f"{row['bytes'] / 1e9:.4f}",
            f"{row['bytes'] / own['bytes']:.2f}",
            f"{row['kernels']}",
            f"{row['copies']}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{row['trace_seconds']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{spent / of_own:.2f}",
        )
    return shown


def programs(name: str, n: int, r: int) -> dict[str, Callable[..., Any]]:
    """The functions that are compared, of weights, inputs and references."""
    import jax
    import jax.numpy as jnp

    import jaxlift

    from . import by_hand, in_jax

    model = in_jax.MODELS[name]

    def gradient(w: Any, x: Any, refs: Any) -> Any:
        return jax.grad(lambda rows: model(w, rows).sum())(jnp.repeat(x, r, 0) if r > 1 else x)

    def attribution(**options: Any) -> Callable[..., Any]:
        attr = jaxlift.attribute(model, argnums=1, pairing="shared" if r > 1 else None, **options)
        return lambda w, x, refs: attr(w, x, reference=refs if r > 1 else refs[0])

    own = {
        "gradient": gradient,
        "rescale": attribution(),
        "rescale_own_precision": attribution(precision=None),
        "revealcancel": attribution(rule="revealcancel"),
    }
    found = own | {floor: by_hand.attribution(rule, name) for floor, rule in by_hand.FLOORS.items()}
    return {program: found[program] for program in PROGRAMS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerators", description=__doc__)
    parser.add_argument("target", choices=EXTRAS)
    parser.add_argument("networks", nargs="+", choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--sizes", nargs="+", type=size, required=True, metavar="NxR")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    options = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    from .described import compiled

    for name in options.networks:
        for n, r in options.sizes:
            args = (weights_of(name), *data(name, n, r))
            for program, fun in programs(name, n, r).items():
                if program not in options.programs:
                    continue
                # Products by hand and of jax.grad are as exact as jaxlift's, but for one that shows what that costs.
                exact = "highest" if program != "rescale_own_precision" else "default"
                with jax.default_matmul_precision(exact):
                    figures = compiled(fun, *args, target=options.target).figures()
                row = {"target": options.target, "network": name, "size": f"{n}x{r}", "program": program}
                print(json.dumps(row | figures), flush=True)


if __name__ == "__main__":
    main()
