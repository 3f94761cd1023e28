"""Repeat the DeepLIFT paper's experiment on simulated DNA (section 4.2, Figure 5), and go on from there.

A network learns whether a sequence holds both of two motifs, the first (GATA1), the second (TAL1). For the joint task a
motif counts only beside the other one. Six methods score the motifs; the table says which of them miss TAL1 where it
counts, how much noise there is, how far they are from Shapley values, what they cost, and what more references change.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from motifs import BACKGROUND, BOTH, LENGTH, MOTIFS, STRONG, TASKS, in_windows, log_odds, posterior, simulate
from timing import seconds

import jaxlift
from jaxlift.references import dinucleotide_shuffle

try:
    import optax
    from flax import nnx
    from genomics_figures import logos, scatter, summary
    from network_files import read, write
    from sklearn.metrics import roc_auc_score
    from training import optimizer_of
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error

BEST = "Rescale conv., RevealCancel dense"
METHODS: dict[str, Callable[..., Any]] = {
    "gradient x input": lambda model, **options: jaxlift.attribute(model, rule="gradient", **options),
    "guided backprop x input": lambda model, **options: jaxlift.attribute(model, rule="guided_backprop", **options),
    "integrated gradients": lambda model, **options: jaxlift.integrated_gradients(model, steps=10, **options),
    "Rescale": lambda model, **options: jaxlift.attribute(model, rule="rescale", **options),
    "RevealCancel": lambda model, **options: jaxlift.attribute(model, rule="revealcancel", **options),
    BEST: lambda model, **options: jaxlift.attribute(model, rule="genomics_default", **options),
}
EXPLAINED = """
negative     strong matches (log-odds above 7) with a score below 0, as a fraction
in noise     the same below the 95th percentile of windows that no motif reaches into
noise        root mean square score of bases outside of motifs, over that of bases in them
alone        median score of matches in sequences without GATA1, over that beside GATA1
off task     mean absolute score of matches for the GATA1 task, over that for the TAL1 task
to Shapley   norm of the difference from Shapley values over their norm; for themselves, their standard error
neg. found   of the bases with surely negative Shapley values, the fraction with negative scores
ms/example   for the joint task, 20 sequences at a time; on CPUs, XLA takes convolutions' gradients slowly in a loop,
             and integrated gradients are one"""
WITHOUT_REFERENCE = list(METHODS)[:2]
FREQUENCIES = jnp.broadcast_to(jnp.asarray(BACKGROUND, jnp.float32), (LENGTH, 4))


@dataclass(frozen=True)
class Sizes:
    """How much is trained and explained."""

    steps: int  # of training, with 64 new sequences each
    sequences: int  # that are explained by each method
    shapley: int  # sequences that are explained by Shapley values
    samples: int  # orders of positions drawn for those
    shuffled: int  # sequences that are compared with many references


FULL = Sizes(steps=3000, sequences=400, shapley=16, samples=40, shuffled=40)
QUICK = Sizes(steps=500, sequences=80, shapley=4, samples=2, shuffled=4)


class Network(nnx.Module):
    """The paper's: two convolutions of 50 filters of width 11, their mean, 50 dense units, `(N, 200, 4) -> (N, 3)`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(4, 50, (11,), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(50, 50, (11,), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(50, 50, rngs=rngs)
        self.logits = nnx.Linear(50, len(TASKS), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.conv2(nnx.relu(self.conv1(x)))).mean(1)
        return self.logits(nnx.relu(self.dense(h)))


def train(steps: int, saved: Path, again: bool) -> Network:
    """A network that has seen new sequences in each step; from a file, if it was trained before."""
    model = Network(nnx.Rngs(0))
    if saved.exists() and not again:
        read(saved, model)
        return model
    optimizer = optimizer_of(model, 3e-3, steps)

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, sequences: jax.Array, labels: jax.Array) -> None:
        def loss(model: Network) -> jax.Array:
            return optax.sigmoid_binary_cross_entropy(model(jax.nn.one_hot(sequences, 4)), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng, start = np.random.default_rng(0), time.perf_counter()
    for _ in range(steps):
        sequences, labels, _ = simulate(rng, 64)
        step(model, optimizer, jnp.asarray(sequences), jnp.asarray(labels))
    write(saved, model)
    print(f"trained on {64 * steps} sequences in {time.perf_counter() - start:.0f} s")
    return model


def in_chunks(fun: Callable[..., Any], *arrays: Any, size: int = 20) -> Any:
    """What a function makes of the rows of arrays, some at a time."""
    parts = [fun(*(a[i : i + size] for a in arrays)) for i in range(0, len(arrays[0]), size)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(jax.device_get, parts))


def explain(name: str, model: Network, **options: Any) -> Callable[..., Any]:
    """Compiled: `x, reference -> (contributions of positions (N, ..., 200), what is missing from their sum)`."""
    attr = METHODS[name](model, full=True, **options)

    @jax.jit
    def scores(x: jax.Array, reference: jax.Array = FREQUENCIES) -> Any:
        found = attr(x) if name in WITHOUT_REFERENCE else attr(x, reference=reference)
        return found.scores.sum(-1), found.delta

    return scores


def judge(scores: np.ndarray, sequences: np.ndarray, labels: np.ndarray, places: np.ndarray) -> dict[str, float]:
    """What Figure 5 shows of a method, as numbers. `scores`: `(N, 3, 200)`."""
    has_both, tal1_only = labels[:, 0], labels[:, 2] & ~labels[:, 1]
    strong = {motif: log_odds(sequences, motif) > STRONG for motif in MOTIFS}
    tal1, gata1 = in_windows(scores, "TAL1"), in_windows(scores, "GATA1")
    joint = tal1[has_both, BOTH]
    matches = joint[strong["TAL1"][has_both]]
    empty = joint[in_windows(places[has_both] > 0, "TAL1") == 0]
    on_motif = places[has_both] > 0
    return {
        "matches": len(matches),
        "negative": float((matches < 0).mean()),
        "in_noise": float((matches < np.quantile(empty, 0.95)).mean()),
        "negative_gata1": float((gata1[has_both, BOTH][strong["GATA1"][has_both]] < 0).mean()),
        "noise": float(
            np.sqrt((scores[has_both, BOTH][~on_motif] ** 2).mean() / (scores[has_both, BOTH][on_motif] ** 2).mean())
        ),
        "alone": float(np.median(tal1[tal1_only, BOTH][strong["TAL1"][tal1_only]]) / np.median(matches)),
        "off_task": float(np.abs(tal1[:, 1][strong["TAL1"]]).mean() / np.abs(tal1[:, 2][strong["TAL1"]]).mean()),
    }


def compare_with_shapley(
    scores: dict[str, np.ndarray], shapley: np.ndarray, error: np.ndarray
) -> dict[str, dict[str, float]]:
    """How far each method's joint scores `(N, 200)` are from Shapley values, and how far those are from exact ones."""

    def distance(a: np.ndarray) -> float:
        return float((np.linalg.norm(a, axis=1) / np.linalg.norm(shapley, axis=1)).mean())

    surely_negative = shapley < -3 * error
    found = {
        name: {
            "distance": distance(s - shapley),
            "correlation": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s, shapley, strict=True)])),
            "negative_found": float((s[surely_negative] < 0).mean()),
        }
        for name, s in scores.items()
    }
    return found | {"Shapley, sampled": {"distance": distance(error), "correlation": 1.0, "negative_found": 1.0}}


def many_references(model: Network, x: jax.Array, sequences: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """What the number of shuffled references changes in the joint scores of sequences with both motifs.

    Two independent sets of references say how much is chance: what they agree on is the sequence's.
    """
    keys = jax.random.split(jax.random.key(0), len(x))
    shuffles = jax.jit(jax.vmap(dinucleotide_shuffle, (0, 0, None)), static_argnums=2)(x, keys, 100)
    strong = log_odds(sequences, "TAL1") > STRONG
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in list(METHODS)[3:]:
        each, _ = in_chunks(explain(name, model, target=BOTH, average=False), x, shuffles, size=2)
        plain, _ = in_chunks(explain(name, model, target=BOTH), x)
        table[name] = {}
        for count in (1, 10, 50):
            one, other = each[:, :count].mean(1), each[:, 50 : 50 + count].mean(1)
            table[name][str(count)] = {
                "agreement": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])),
                "with_frequencies": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, plain, strict=True)])),
                "negative": float((in_windows(one, "TAL1")[strong] < 0).mean()),
            }
        table[name]["frequencies"] = {"negative": float((in_windows(plain, "TAL1")[strong] < 0).mean())}
    return table


def print_table(title: str, rows: dict[str, dict[str, float]], columns: dict[str, str]) -> None:
    print(f"\n{title}\n{'':34}" + "".join(f"{heading:>12}" for heading in columns.values()))
    for name, row in rows.items():
        print(f"{name:34}" + "".join(f"{row[key]:12.3g}" if key in row else f"{'':12}" for key in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/genomics"), help="the directory for what is made")
    parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it works")
    parser.add_argument("--retrain", action="store_true", help="don't take the network from an earlier run")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    options.output.mkdir(parents=True, exist_ok=True)

    model = train(sizes.steps, options.output / f"network-{sizes.steps}.npz", options.retrain)
    sequences, labels, places = simulate(np.random.default_rng(1), 2000)
    one_hot = np.eye(4, dtype=np.float32)[sequences]
    logits, ideal = in_chunks(nnx.jit(model), one_hot, size=100), posterior(sequences)
    auroc = {
        task: {"network": float(roc_auc_score(truth, a)), "possible": float(roc_auc_score(truth, b))}
        for task, truth, a, b in zip(TASKS, labels.T, logits.T, ideal.T, strict=True)
    }
    print_table("AUROC on 2000 new sequences", auroc, {"network": "network", "possible": "possible"})

    sequences, labels, places, x = (a[: sizes.sequences] for a in (sequences, labels, places, one_hot))
    scores, methods = {}, {}
    for name in METHODS:
        scores[name], delta = in_chunks(explain(name, model, target="all"), x)
        methods[name] = judge(scores[name], sequences, labels, places) | {
            "delta": float(np.abs(delta).max()),
            "milliseconds": 1e3 * seconds(explain(name, model, target=BOTH), x[:20]) / 20,
        }
    both = np.flatnonzero(labels[:, BOTH])
    few, many = both[: sizes.shapley], both[: sizes.shuffled]
    attr = jax.jit(
        jaxlift.shapley(model, target=BOTH, samples=sizes.samples, full=True, groups=np.arange(LENGTH)[:, None])
    )
    start = time.perf_counter()
    found = in_chunks(lambda x: attr(x, reference=FREQUENCIES), x[few], size=4)
    shapley, error = found.scores.sum(-1), found.standard_error.sum(-1)
    methods["Shapley, sampled"] = {"milliseconds": 1e3 * (time.perf_counter() - start) / len(few)}
    for name, row in compare_with_shapley({name: s[few, BOTH] for name, s in scores.items()}, shapley, error).items():
        methods[name] |= row
    print_table(
        f"TAL1 in the joint task, in sequences with both motifs ({methods[BEST]['matches']} strong matches)",
        methods,
        {
            "negative": "negative",
            "in_noise": "in noise",
            "noise": "noise",
            "alone": "alone",
            "off_task": "off task",
            "distance": "to Shapley",
            "correlation": "correlation",
            "negative_found": "neg. found",
            "milliseconds": "ms/example",
        },
    )
    print(EXPLAINED)
    references = many_references(model, jnp.asarray(x[many]), sequences[many])
    for name, rows in references.items():
        print_table(
            f"{name}, by the number of shuffled references",
            rows,
            {"negative": "negative", "agreement": "agreement", "with_frequencies": "with freq."},
        )

    def more(key: str, *names: str) -> bool:
        return all(methods[name][key] > methods[BEST][key] for name in names)

    gradient, guided, integrated, rescale, revealcancel, _ = METHODS
    least_found = min(METHODS, key=lambda name: methods[name]["negative_found"])
    findings = {
        f"{BEST} misses fewer of TAL1's strong matches than gradients and Rescale": more(
            "negative", gradient, integrated, rescale
        ),
        f"{guided} finds the fewest negative contributions": least_found == guided,
        f"{gradient} is noisier than {BEST}": more("noise", gradient),
        f"{integrated} is noisier than {BEST}": more("noise", integrated),
        f"{revealcancel} throughout is noisier than {BEST}": more("noise", revealcancel),
        f"{BEST} is the nearest to Shapley values": more("distance", *list(METHODS)[:-1]),
    }
    print("\nThe paper's findings" + (" (?: not here, but --quick is too little to tell)" if options.quick else ""))
    for finding, holds in findings.items():
        print(f"{'yes' if holds else '?' if options.quick else 'no':4}{finding}")
    results = {"auroc": auroc, "methods": methods, "references": references, "findings": findings}
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    explained = scores, sequences, labels, places
    for motif in MOTIFS:
        scatter(*explained, motif, [0, 1, 2], columns=6).savefig(options.output / f"{motif.lower()}.png", dpi=150)
    scatter(*explained, "TAL1", [BOTH], columns=3).savefig(options.output / "joint.png", dpi=130)
    summary(methods, references, METHODS).savefig(options.output / "summary.png", dpi=150)
    # Where Rescale misses TAL1 most, and a typical one.
    lowest = [
        in_windows(scores["Rescale"][i, BOTH], "TAL1")[log_odds(sequences[[i]], "TAL1")[0] > STRONG].min(initial=np.inf)
        for i in both
    ]
    for number, i in enumerate(both[np.argsort(lowest)[[0, len(both) // 2]]], start=1):
        rows = {name: x[i] * s[i, BOTH, :, None] for name, s in scores.items()}
        hypothetical = METHODS[BEST](model, target=BOTH, output="hypothetical")(x[[i]], reference=FREQUENCIES)[0]
        logos(rows | {"hypothetical, " + BEST: np.asarray(hypothetical)}, places[i]).savefig(
            options.output / f"logos-{number}.png", dpi=150
        )
    print(f"\npictures and results.json: {options.output}")


if __name__ == "__main__":
    main()
