"""How near methods come to Shapley values, and what they cost: small networks of many kinds, in a table and a picture.

The truth is enumerated where there are 16 players at most. Elsewhere it is drawn, and its own standard error stands
beside it: no distance below that means anything. A distance is `|scores - truth| / |truth|` over the players, the
median over examples; a cost is processor time, in gradients of the same network on the same batch.

Sampling is shown at several budgets. Kernel SHAP is that of the package shap if it is installed; its cost is counted as
that of the model's evaluations alone, in one batch, which is less than it takes.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from compared import save
from matplotlib.figure import Figure
from shapley_networks import FETCHED, GAMES, Game

import jaxlift

MOMENTS, MOMENTS_MORE = "shapley_moments, 3 nodes, 1 probe", "shapley_moments, 5 nodes, 8 probes"
INTEGRATED = "integrated gradients, 10 steps"
RULES = {
    "gradient x difference": "gradient",
    "DeepLIFT Rescale": "rescale",
    "DeepLIFT RevealCancel": "revealcancel",
    "local Shapley rule": "local_shapley",
}
BLOCKS = "shapley_blocks, two halves"
ORDERS_OF_BLOCKS, KEYS = (1, 2, 4, 8, 16), 8  # a distance is the mean over so many keys
ORDERS, KERNEL = "permutation sampling", "Kernel SHAP"
# Colours that are told apart with any kind of colour vision (Okabe and Ito), and markers.
STYLES: dict[str, dict[str, Any]] = {
    "gradient x difference": {"color": "0.55", "marker": "X"},
    "DeepLIFT Rescale": {"color": "#e69f00", "marker": "s"},
    "DeepLIFT RevealCancel": {"color": "#d55e00", "marker": "D"},
    "local Shapley rule": {"color": "#009e73", "marker": "^"},
    INTEGRATED: {"color": "#56b4e9", "marker": "v"},
    MOMENTS: {"color": "#0072b2", "marker": "o", "ms": 9},
    MOMENTS_MORE: {"color": "#0072b2", "marker": "o", "ms": 9, "mfc": "white", "mew": 1.5},
    BLOCKS: {"color": "#e69f00", "marker": "s", "ms": 4.5, "mfc": "white", "ls": "-"},
    ORDERS: {"color": "black", "marker": ".", "ls": "-"},
    KERNEL: {"color": "#cc79a7", "marker": ".", "ls": "--"},
}
TITLES = {
    "digits CNN": "digits: convolutions, GELU, max-pooling\n64 pixels",
    "DNA CNN": "DNA: convolutions, ReLU, max-pooling\n64 positions",
    "GRU": "digits: a GRU over rows\n16 half rows",
    "attention": "digits: attention, layer normalisation\n16 patches",
    "diabetes": "diabetes: dense layers, SiLU\n10 features",
    "cancer": "breast cancer: gates, layer normalisation\n10 groups of features",
    "ReLU MLP": "random weights: dense layers, ReLU\n12 features",
    "tanh MLP": "random weights: dense layers, tanh\n12 features",
    "MiniLM": "MiniLM: similarity of two sentences\nwords",
    "SpliceAI": "SpliceAI: an acceptor\n8 times 5 bases",
}
QUICK = ["diabetes", "ReLU MLP"]
LEAST, LONG = 0.2, 20.0  # seconds that are measured


def seconds(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """The processor's time for a call, which doesn't count what other programs do: the least of five measurements.

    A measurement is of many short calls; there are fewer of long ones.
    """

    def measure(calls: int) -> float:
        start = time.process_time()
        for _ in range(calls):
            jax.block_until_ready(fun(*args, **kwargs))
        return (time.process_time() - start) / calls

    measure(1)  # which compiles
    calls = 1 + int(LEAST / max(measure(1), 1e-4))
    times: list[float] = []
    while len(times) < 5 and calls * sum(times) < LONG:
        times.append(measure(calls))
    return min(times)


def methods(game: Game) -> dict[str, Callable[..., Any]]:
    """All of one cost: functions as from `jaxlift.attribute`."""
    moments = partial(jaxlift.shapley_moments, game.fun, groups=game.groups)
    return {name: jaxlift.attribute(game.fun, rule=rule) for name, rule in RULES.items()} | {
        INTEGRATED: jaxlift.integrated_gradients(game.fun, steps=10),
        MOMENTS: moments(),
        MOMENTS_MORE: moments(nodes=5, probes=8),
    }


def in_halves(game: Game, true: np.ndarray, x: Any, one: float) -> list[list[float]]:
    """The cost in gradients, of which one takes so long, and the distance, for each number of orders of two halves."""

    def attr(x: Any, key: Any, orders: int) -> Any:
        halves = jaxlift.shapley_blocks(game.fun, groups=game.groups, samples=orders, key=key)
        return halves(x, reference=game.reference)

    points = []
    for orders in ORDERS_OF_BLOCKS:
        compiled = jax.jit(partial(attr, orders=orders))
        keys = jax.random.split(jax.random.key(3), KEYS)
        far = [distance(of_players(game, compiled(game.x, key)), true) for key in keys]
        points.append([seconds(compiled, x, keys[0]) / one, float(np.mean(far))])
    return points


def of_players(game: Game, scores: Any) -> np.ndarray:
    """The contributions of players `(N, n)`, from those of elements."""
    scores = np.asarray(scores, np.float64).reshape(len(scores), -1)
    return np.stack([np.bincount(game.groups.ravel(), row) for row in scores])


def truth(game: Game, orders: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Shapley values of players, and their standard error."""
    attr = jaxlift.shapley(
        game.fun, groups=game.groups, samples=orders, chunk=game.rows, key=jax.random.key(1), full=True
    )
    compiled = jax.jit(attr)
    found = [compiled(game.x[i : i + 1], reference=game.reference) for i in range(len(game.x))]
    scores = np.concatenate([of_players(game, each.scores) for each in found])
    if orders is None:
        return scores, np.zeros_like(scores)
    return scores, np.concatenate([of_players(game, each.standard_error) for each in found])


def distance(scores: np.ndarray, true: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(scores - true, axis=1) / np.linalg.norm(true, axis=1)))


def kernel_shap(game: Game, samples: int) -> np.ndarray:
    """By the package shap, each player present or not."""
    import shap  # pyright: ignore[reportMissingImports] (it needn't be there)

    compiled = jax.jit(game.fun)

    def explain(x: np.ndarray) -> np.ndarray:
        def values(present: np.ndarray) -> np.ndarray:
            taken = present[:, game.groups.ravel()].reshape(-1, *game.groups.shape) > 0
            rows = np.where(taken, x, game.reference)
            batches = range(0, len(rows), game.rows)
            padded = [np.resize(rows[i : i + game.rows], (game.rows, *rows.shape[1:])) for i in batches]  # one shape
            return np.concatenate([compiled(batch) for batch in padded])[: len(rows)]

        explainer = shap.KernelExplainer(values, np.zeros((1, game.players)), seed=0)
        return explainer.shap_values(np.ones((1, game.players)), nsamples=samples, l1_reg=False, silent=True)[0]

    return np.stack([explain(x) for x in game.x])


def measured(game: Game, orders: int | None, most: int) -> dict[str, Any]:
    """The distance and the cost of each method, at each budget where it has one."""
    true, error = truth(game, orders)
    x = jnp.asarray(np.resize(game.x, (game.rows, *game.x.shape[1:])))
    gradient = jax.jit(jax.grad(lambda x: game.fun(x).sum()))
    one = seconds(gradient, x)
    change = np.asarray(game.fun(jnp.asarray(game.x)) - game.fun(jnp.asarray(game.reference[None])))

    rows: dict[str, list[list[float]]] = {}
    worst = 0.0
    for name, attr in methods(game).items():
        compiled = jax.jit(attr)
        scores = of_players(game, compiled(game.x, reference=game.reference))
        if name not in ("gradient x difference", INTEGRATED):  # which needn't sum to the difference
            worst = max(worst, float(np.max(np.abs(scores.sum(1) - change) / np.abs(scores).sum(1))))
        one = min(one, seconds(gradient, x))
        rows[name] = [[seconds(compiled, x, reference=game.reference) / one, distance(scores, true)]]

    rows[BLOCKS] = in_halves(game, true, x, one)

    # Sampling, from the cost of the cheaper moments on: a forward pass costs what one does in this batch.
    forward = seconds(jax.jit(game.fun), x) / one
    rows[ORDERS], counts = [], [2]
    while 4 * counts[-1] * 2 * (game.players - 1) <= most:
        counts.append(4 * counts[-1])
    for count in counts:
        attr = jaxlift.shapley(game.fun, groups=game.groups, samples=count, chunk=game.rows, key=jax.random.key(2))
        scores = of_players(game, jax.jit(attr)(game.x, reference=game.reference))
        rows[ORDERS].append([forward * count * 2 * (game.players - 1), distance(scores, true)])
    if importlib.util.find_spec("shap") is not None:
        passes = [count * 2 * (game.players - 1) for count in counts]
        rows[KERNEL] = [[forward * n, distance(kernel_shap(game, n), true)] for n in passes if n < 2**game.players - 1]
    return {
        "about": game.about,
        "players": game.players,
        "examples": len(game.x),
        "standard error": distance(true + error, true),
        "sum": worst,
        "forward": forward,
        "methods": {name: points for name, points in rows.items() if points},
    }


def at_equal_time(points: list[list[float]], cost: float) -> float | None:
    """The distance at the last budget that costs no more; None if the least budget does."""
    within = [distance for of, distance in points if of <= cost]
    return within[-1] if within else None


def table(numbers: dict[str, Any]) -> str:
    """In Markdown: distance, and in brackets the cost in gradients."""
    lines = ["| method | " + " | ".join(numbers) + " |", "|---" * (len(numbers) + 1) + "|"]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    row("players, examples", [f"{n['players']}, {n['examples']}" for n in numbers.values()])
    row("*standard error of the truth*", [f"*{n['standard error']:.3f}*" for n in numbers.values()])
    for name in [*RULES, INTEGRATED, MOMENTS, MOMENTS_MORE]:
        points = [n["methods"][name][0] for n in numbers.values()]
        row(name, [f"{distance:.3f} ({cost:.1f})" for cost, distance in points])
    for i, orders in enumerate(ORDERS_OF_BLOCKS[::2]):
        points = [n["methods"][BLOCKS][2 * i] for n in numbers.values()]
        row(
            f"**{BLOCKS}, {orders} order{'s' if orders > 1 else ''}**",
            [f"{distance:.3f} ({cost:.1f})" for cost, distance in points],
        )
    row("half of the nearest rule or integrated gradients", [f"{target(n):.3f}" for n in numbers.values()])
    for name in (ORDERS, KERNEL):
        for other in (MOMENTS, MOMENTS_MORE):
            cells = []
            for n in numbers.values():
                found = at_equal_time(n["methods"].get(name, []), n["methods"][other][0][0])
                cells.append("" if found is None else f"{found:.3f}")
            if any(cells):
                row(f"{name}, in the time of {other}", cells)
    return "\n".join(lines)


def target(of: dict[str, Any]) -> float:
    """Half of the distance of the nearest rule or of integrated gradients."""
    return min(of["methods"][name][0][1] for name in (*RULES, INTEGRATED)) / 2


def picture(numbers: dict[str, Any]) -> Figure:
    """Distance against cost, a panel for each network."""
    columns = min(3, len(numbers))
    height = -(-len(numbers) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(3.2 * columns, 2.9 * height + 1.1), layout="constrained", squeeze=False
    )
    for axis, (name, of) in zip(axes.flat, numbers.items(), strict=False):
        if of["standard error"]:
            axis.axhspan(1e-3, of["standard error"], color="0.88", lw=0, label="standard error of the truth")
        half = "half as far as the nearest rule or integrated gradients"
        axis.axhline(target(of), color="0.4", lw=0.8, ls=":", label=half)
        for method, points in of["methods"].items():
            cost, far = np.transpose(points)
            axis.plot(cost, far, label=method, **{"ls": "none", "lw": 1.2, "ms": 6.5, **STYLES[method]})
        axis.set(xscale="log", yscale="log", ylim=(0.005, 4))
        axis.set_title(TITLES[name], fontsize=9)
        axis.set_xlabel("processor time, in gradients", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(lw=0.3, color="0.85")
    for axis in axes.flat[len(numbers) :]:
        axis.axis("off")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    listed = {"handles": list(handles.values()), "labels": list(handles), "frameon": False}
    if len(axes.flat) - len(numbers) >= 2:  # between two that would be empty
        axes.flat[-2].legend(**listed, loc="center", bbox_to_anchor=(1.1, 0.5), fontsize=9.5)
    else:
        figure.legend(**listed, loc="outside lower center", ncols=columns, fontsize=8.5)
    figure.supylabel("distance to Shapley values, relative", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/shapley.png"), help="where the picture goes")
    usual = [name for name in GAMES if name not in FETCHED]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=GAMES,
        default=usual,
        help=f"which networks; all but {' and '.join(FETCHED)} if left out",
    )
    parser.add_argument("--quick", action="store_true", help="two networks, less training, fewer examples")
    options = parser.parse_args()

    numbers = {}
    for name in QUICK if options.quick else options.only:
        game = GAMES[name](2 if options.quick else 4, 10 if options.quick else 40)
        numbers[name] = measured(game, game.orders, 600 if options.quick or name in FETCHED else 10_000)
        print(f"{name}: {game.about}")
        print(f"  largest error of the sums, relative to the sum of absolute contributions: {numbers[name]['sum']:.1e}")
        for method, points in numbers[name]["methods"].items():
            listed = ", ".join(f"{far:.3f} at {cost:.1f}" for cost, far in points)
            print(f"  {method:32} {listed}", flush=True)
        save(picture(numbers), numbers, options.output)  # as far as it came, if it is stopped
    print(table(numbers))
    if not all(of["sum"] <= 1e-4 for of in numbers.values()):
        raise SystemExit("contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
