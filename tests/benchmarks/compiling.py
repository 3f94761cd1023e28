"""How long tracing and compiling take, beside `jax.grad` of the same function: `python -m tests.benchmarks.compiling
ROUNDS LAYERS NETWORK...`. Prints JSON.

One process measures both, in turn, on functions that JAX has not seen before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxlift

from . import by_hand, in_jax
from .competitors import COMPETITORS, Attribution, attribution, stages
from .networks import NETWORKS, data, weights_of

N, R = 4, 10
KINDS = ("gradient", "rescale", "revealcancel", *by_hand.FLOORS)
WIDTH = 16
IN_BLOCK = 4
BUDGET = 120  # seconds for the rounds of one network; one round is always made


def layers(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(WIDTH, WIDTH)) / 4, rng.normal(size=WIDTH)) for _ in range(count)]


def long(w: Any, x: Array) -> Array:
    """Layers of five equations: a product, a bias with its broadcast, an activation and a residual."""
    for kernel, bias in w:
        x = x + jnp.tanh(x @ kernel + bias)
    return x.sum(1)


@jax.jit
def block(layer: Any, x: Array) -> Array:
    kernel, bias = layer
    for _ in range(IN_BLOCK):
        x = x + jnp.tanh(x @ kernel + bias)
    return x


def repeated(w: Any, x: Array) -> Array:
    """As many layers, in blocks of four that are one jitted function."""
    for layer in w:
        x = block(layer, x)
    return x.sum(1)


def repeated_by_hand(times: int, rule: by_hand.Rule, w: Any, x: Array, r: Array) -> Array:
    """Either by hand. (What repeats is written out: there is nothing in it that JAX could find again.)"""
    blocks = [by_hand.residual(rule.activated(by_hand.dense(layer), "tanh")) for layer in w for _ in range(times)]
    return by_hand.contributions([*blocks, by_hand.SUM], x, r)


def normalised(w: Any, x: Array) -> Array:
    """Blocks of a transformer's kind: each adds to the stream what two products and a GELU make of it, normalised."""
    for up, down in w:
        x = x + in_jax.dense(in_jax.ACTIVATIONS["gelu"](in_jax.dense(in_jax.layer_norm(x), up)), down)
    return x.mean((1, 2))


def normalised_by_hand(rule: by_hand.Rule, w: Any, x: Array, r: Array) -> Array:
    """The same by hand."""

    def block(up: Any, down: Any) -> by_hand.Layer:
        activated = rule.activated(by_hand.dense(up), "gelu")
        return by_hand.residual(by_hand.chain([by_hand.layer_norm, activated, by_hand.dense(down).layer]))

    mean = by_hand.linear(lambda h: h.mean((1, 2))[:, None])
    return by_hand.contributions([*(block(*layer) for layer in w), mean], x, r)


def cases(depth: int, names: list[str]) -> dict[str, tuple[dict[str, Attribution], tuple[Any, ...]]]:
    """The functions that are compared, and their arguments."""
    found = {
        name: ({kind: COMPETITORS[kind](name) for kind in KINDS}, (weights_of(name), *data(name, N, R)))
        for name in names
    }
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N + R, WIDTH))
    for name, fun, floor, count in (
        (f"{5 * depth} equations", long, partial(repeated_by_hand, 1), depth),
        (f"block called {depth // IN_BLOCK} times", repeated, partial(repeated_by_hand, IN_BLOCK), depth // IN_BLOCK),
    ):
        found[name] = ({kind: made(kind, fun, floor) for kind in KINDS}, (layers(count), rows[:N], rows[N:]))
    blocks, rows = max(1, depth // 16), rng.normal(size=(N + R, 16, 32))
    w = [
        [(rng.normal(size=(a, b)) / a**0.5, rng.normal(size=b) / 10) for a, b in ((32, 64), (64, 32))]
        for _ in range(blocks)
    ]
    functions = {kind: made(kind, normalised, normalised_by_hand) for kind in KINDS}
    return found | {f"{blocks} blocks of a transformer": (functions, (w, rows[:N], rows[N:]))}


def made(kind: str, fun: Callable[[Any, Array], Array], floor: Callable[..., Array]) -> Attribution:
    """An attribution of a function. `floor` is the one by hand: it takes a rule, and then what the others do."""
    if kind == "gradient":
        return lambda w, x, r: jax.grad(lambda rows: fun(w, rows).sum())(jnp.repeat(x, len(r), 0))
    if kind in by_hand.FLOORS:
        return partial(floor, by_hand.FLOORS[kind])
    attr = jaxlift.attribute(fun, argnums=1, rule=kind, pairing="shared")
    return lambda w, x, r: attr(w, x, reference=r)


def measured(rounds: int, depth: int, names: list[str]) -> list[dict[str, Any]]:
    results = []
    for name, (functions, args) in cases(depth, names).items():
        args = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), args)
        costs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in functions}
        start = time.monotonic()
        for _ in range(rounds):
            for kind, fun in functions.items():
                costs[kind].append(stages(fun, *args)[1])
            if time.monotonic() - start > BUDGET:
                break
        results.append(
            {"network": name}
            | {kind: {key: median(each[key] for each in own) for key in own[0]} for kind, own in costs.items()}
        )
    return results


def growth(names: list[str]) -> list[dict[str, Any]]:
    """Temporary bytes of Rescale with R = 10 and with R = 100, five references at a time: a loop in both programs."""
    results = []
    for name in names:
        sizes = {}
        for r in (10, 100):
            args = jax.tree.map(jnp.asarray, (weights_of(name), *data(name, N, r)))
            sizes[str(r)] = stages(attribution("rescale", name, reference_batch_size=5), *args)[1]["temporary_bytes"]
        results.append({"network": name, "temporary_bytes": sizes})
    return results


if __name__ == "__main__":
    rounds, depth, *chosen = sys.argv[1:]
    assert set(chosen) <= set(NETWORKS)
    assert set(in_jax.MODELS) == set(NETWORKS)
    print(json.dumps({"compile": measured(int(rounds), int(depth), chosen), "growth": growth(chosen)}))
