"""How near the rules are to Shapley values on transformers and recurrent networks: `python tests/benchmarks/rules.py`.

Trains small networks on handwritten digits (a minute), explains their decisions under each rule, and prints a Markdown
table: how much the contributions cancel, their distance to sampled Shapley values `|c - s| / |s|`, and the correlation
with these; medians of the examples. Players are the embeddings of tokens. With `--minilm` also the trained sentence
transformer of `examples/transformer.py` (downloads 83 MB once). A script by itself: with another checkout first in
PYTHONPATH it measures that one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits

import jaxlift

WIDTH, HEADS, LAYERS, TOKENS = 32, 4, 2, 16
EXAMPLES, ORDERS, STEPS = 8, 64, 500
Weights = Any
Net = Callable[[Weights, Array], Array]  # of one example's embeddings


class Case(NamedTuple):
    """What is explained, of one example, and which elements of it are one player."""

    outputs: Callable[[Array, Any], Array]  # of the input, and of what else an example has
    x: Array
    others: Any
    references: dict[str, Array]
    players: np.ndarray


def matrix(key: Array, rows: int, columns: int) -> Array:
    return jax.random.normal(key, (rows, columns)) / rows**0.5


def affine(width: int = WIDTH) -> dict[str, Array]:
    return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}


def layer_norm(w: Weights, h: Array) -> Array:
    centred = h - h.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["shift"]


def rms_norm(w: Weights, h: Array) -> Array:
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6) * w["scale"]


def rope(t: Array) -> Array:
    a, b = jnp.split(t, 2, -1)
    angle = jnp.arange(len(t))[:, None, None] / 100.0 ** (jnp.arange(a.shape[-1]) / a.shape[-1])
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def attention(w: Weights, h: Array, groups: int = 1, rotate: Callable[[Array], Array] = lambda t: t) -> Array:
    """With as many queries to each key as there are in a group."""
    q = (h @ w["q"]).reshape(TOKENS, HEADS, -1)
    k, v = ((h @ w[name][:, : WIDTH // groups]).reshape(TOKENS, HEADS // groups, -1) for name in "kv")
    k, v = jnp.repeat(rotate(k), groups, 1), jnp.repeat(v, groups, 1)
    logits = jnp.einsum("qhd,khd->hqk", rotate(q), k) / q.shape[-1] ** 0.5
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v).reshape(TOKENS, WIDTH) @ w["o"]


def mlp(w: Weights, h: Array) -> Array:
    return jax.nn.gelu(h @ w["up"], approximate=False) @ w["down"]


def vit(w: Weights, h: Array) -> Array:
    """Normalised before each layer."""
    for b in w["blocks"]:
        h = h + attention(b, layer_norm(b["norm"], h))
        h = h + mlp(b, layer_norm(b["norm_of_mlp"], h))
    return layer_norm(w["norm"], h).mean(0) @ w["out"]


def stream(w: Weights, h: Array) -> Array:
    """Normalised after each layer, as in BERT."""
    h = layer_norm(w["norm"], h)
    for b in w["blocks"]:
        h = layer_norm(b["norm"], h + attention(b, h))
        h = layer_norm(b["norm_of_mlp"], h + mlp(b, h))
    return h[0]


def bert(w: Weights, h: Array) -> Array:
    return jnp.tanh(stream(w, h) @ w["pool"]) @ w["out"]


def bert_without_pooler(w: Weights, h: Array) -> Array:
    """A function that saturates, right after a normalisation."""
    return jnp.tanh(stream(w, h)) @ w["out"]


def gemma(w: Weights, h: Array) -> Array:
    """RMSNorm, rotary positions, shared keys, gated GELU."""
    for b in w["blocks"]:
        h = h + attention(b, rms_norm(b["norm"], h), 2, rope)
        u = rms_norm(b["norm_of_mlp"], h)
        h = h + (jax.nn.gelu(u @ b["gate"]) * (u @ b["up"])) @ b["down"]
    return rms_norm(w["norm"], h)[-1] @ w["out"]


def lstm(w: Weights, rows: Array) -> Array:
    """An LSTM over the rows of the image, with layer normalisation."""
    h = c = jnp.zeros(WIDTH)
    for row in rows:
        gates = layer_norm(w["norm_of_x"], row @ w["x"]) + layer_norm(w["norm_of_h"], h @ w["h"])
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(layer_norm(w["norm"], c))
    return h @ w["out"]


def weights(key: Array) -> Weights:
    """Of all networks; each takes what it needs."""
    sizes = {"q": 1, "k": 1, "v": 1, "o": 1, "up": 2, "gate": 2}

    def block(key: Array) -> Weights:
        keys = jax.random.split(key, len(sizes) + 1)
        made = {name: matrix(k, WIDTH, n * WIDTH) for k, (name, n) in zip(keys[1:], sizes.items(), strict=True)}
        return made | {"down": matrix(keys[0], 2 * WIDTH, WIDTH), "norm": affine(), "norm_of_mlp": affine()}

    k = jax.random.split(key, 6 + LAYERS)
    return {
        "embed": matrix(k[0], 4, WIDTH), "position": 0.3 * jax.random.normal(k[1], (TOKENS, WIDTH)),
        "pool": matrix(k[2], WIDTH, WIDTH), "out": matrix(k[3], WIDTH, 10), "norm": affine(),
        "x": matrix(k[4], 8, 4 * WIDTH), "h": matrix(k[5], WIDTH, 4 * WIDTH),
        "norm_of_x": affine(4 * WIDTH), "norm_of_h": affine(4 * WIDTH), "blocks": [block(key) for key in k[6:]],
    }  # fmt: skip


def embedded(w: Weights, image: Array) -> Array:
    """Patches of 2 x 2 as tokens."""
    return image.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(TOKENS, 4) @ w["embed"] + w["position"]


def on_digits(net: Net) -> Case:
    """The network, trained; what it says for the class that it chooses, compared with all."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images / 16, jnp.float32), jnp.asarray(digits.target)
    entering: Net = (lambda w, image: image) if net is lstm else embedded

    def loss(w: Weights, chosen: Array) -> Array:
        logits = jax.vmap(lambda image: net(w, entering(w, image)))(images[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, STEPS))

    @jax.jit
    def train(w: Weights) -> Weights:
        def step(state: Any, key: Array) -> Any:
            w, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(w, jax.random.randint(key, (64,), 0, 1500)), moments)
            return (optax.apply_updates(w, updates), moments), None

        return jax.lax.scan(step, (w, optimizer.init(w)), jax.random.split(jax.random.key(1), STEPS))[0][0]

    w = jax.device_get(train(weights(jax.random.key(0))))
    x, other = (jax.vmap(partial(entering, w))(images[k : k + EXAMPLES]) for k in (1500, 1600))
    chosen = jax.vmap(partial(net, w))(x).argmax(1)

    def margin(x: Array, label: Array) -> Array:
        logits = net(w, x)
        return logits[label] - logits.mean()

    rows, columns = x.shape[1:]
    players = np.arange(TOKENS).reshape(rows, -1).repeat(columns * rows // TOKENS, 1)
    return Case(margin, x, chosen, {"zeros": jnp.zeros_like(x), "another": other}, players)


def untrained() -> Case:
    """Random weights and embeddings, and each of their numbers a player: many terms of either sign in each sum."""
    w = weights(jax.random.key(0))
    x, other = 0.5 * jax.random.normal(jax.random.key(1), (2, EXAMPLES, TOKENS, WIDTH))

    def output(x: Array, _: Any) -> Array:
        return jnp.tanh(stream(w, x))[:8].sum()

    return Case(output, x, jnp.zeros(EXAMPLES), {"another": other}, np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH))


def minilm() -> list[Case]:
    """A case for each pair of sentences, whose similarity is explained by the words of the first."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    import transformer

    params, embedded = transformer.trained()

    def words(sentence: str) -> np.ndarray:
        return embedded(sentence)[1]

    def case(sentence: str, to: str, another: str) -> Case:
        x, other = words(sentence), transformer.encode(params, jnp.asarray(words(to)))
        marks = np.isin(np.arange(len(x)), [0, len(x) - 1])[:, None]  # of beginning and end
        inside = words(another)[1:-1]
        replaced = np.concatenate([x[:1], inside[np.arange(len(x) - 2) % len(inside)], x[-1:]])
        references = {"zeros": x * marks, "another": replaced}
        return Case(
            lambda words, other: transformer.encode(params, words) @ other, jnp.asarray(x)[None], other[None],
            {name: jnp.asarray(r)[None] for name, r in references.items()}, np.arange(len(x))[:, None],
        )  # fmt: skip

    pairs = transformer.PAIRS
    return [case(*pair, pairs[k - 1][0]) for k, pair in enumerate(pairs)]


def shapley(f: Callable[[Array], Array], x: Array, r: Array, players: np.ndarray, orders: int) -> tuple[Array, Array]:
    """Shapley values of orders drawn at random, each taken forwards and backwards, and their standard errors."""
    n = players.max() + 1

    def effects(rank: Array) -> Array:
        return jnp.diff(jax.vmap(lambda k: f(jnp.where(rank[players] < k, x, r)))(jnp.arange(n + 1)))[rank]

    def of_order(key: Array) -> Array:
        rank = jax.random.permutation(key, n)
        return (effects(rank) + effects(n - 1 - rank)) / 2

    drawn = jax.lax.map(of_order, jax.random.split(jax.random.key(7), orders))
    return drawn.mean(0), drawn.std(0, ddof=1) / orders**0.5


def integrated_gradients(f: Callable[[Array], Array], x: Array, r: Array) -> Array:
    at = (jnp.arange(50) + 0.5) / 50
    return jax.lax.map(lambda t: jax.grad(f)(r + t * (x - r)), at).mean(0) * (x - r)


def by_rule(rule: Any, f: Callable[[Array], Array], x: Array, r: Array) -> Array:
    return jaxlift.vjp(f, x, r, rule=rule)[1](jnp.ones(())) * (x - r)


def only_in(*primitives: str) -> jaxlift.Rule:
    """RevealCancel in functions that are made of certain primitives, Rescale elsewhere."""

    def chosen(place: jaxlift.Place) -> bool:
        f = place.function
        return f is not None and any(eqn.primitive.name in primitives for eqn in f.equations)

    return jaxlift.PerLayer(where=[(chosen, "revealcancel")])


METHODS = {"integrated gradients": integrated_gradients} | {
    rule: partial(by_rule, rule) for rule in ("rescale", "revealcancel")
}
ABLATION = {"only in GELUs": ("erf", "erfc"), "only in tanh": ("tanh",)}


def measured(cases: list[Case], reference: str, orders: int) -> dict[str, list[float]]:
    """Of each method, cancellation, distance and correlation; and the standard error's own size."""
    found: dict[str, list[Any]] = {}
    for case in cases:

        def mapped(method: Any, case: Case = case) -> Any:
            def of_pair(x: Array, other: Any, r: Array) -> Any:
                return method(lambda x: case.outputs(x, other), x, r)

            return jax.device_get(jax.jit(jax.vmap(of_pair))(case.x, case.others, case.references[reference]))

        truth, error = mapped(partial(shapley, players=case.players, orders=orders))
        size, difference = np.linalg.norm(truth, axis=1), np.abs(truth.sum(1))
        found.setdefault("standard error", []).extend((np.linalg.norm(error, axis=1) / size)[:, None])
        group = np.broadcast_to(case.players, case.x.shape[1:])
        for name, method in METHODS.items():
            c = mapped(method)
            own = np.stack([c[:, group == k].sum(1) for k in range(group.max() + 1)], 1)
            distance = np.linalg.norm(own - truth, axis=1) / size
            correlation = [np.corrcoef(*pair)[0, 1] for pair in zip(own, truth, strict=True)]
            cancellation = np.abs(c).sum((1, 2)) / difference
            found.setdefault(name, []).extend(zip(cancellation, distance, correlation, strict=True))
    return {name: np.median(np.array(each), axis=0).tolist() for name, each in found.items()}


NETS: dict[str, Net] = {
    "ViT": vit, "BERT": bert, "BERT, no pooler": bert_without_pooler, "Gemma": gemma, "LSTM": lstm,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETS, default=list(NETS), metavar="NAME")
    parser.add_argument("--minilm", action="store_true", help="also MiniLM")
    parser.add_argument("--ablation", action="store_true", help="only a network of random weights; more rules")
    options = parser.parse_args()
    if options.ablation:
        METHODS.update({f"revealcancel {name}": partial(by_rule, only_in(*own)) for name, own in ABLATION.items()})
    print(f"jaxlift of {Path(jaxlift.__file__).parent.parent}: cancellation, distance to Shapley, correlation with it")
    print("", "network", "reference", "standard error", *METHODS, "", sep=" | ", flush=True)
    print("|---" * (3 + len(METHODS)) + "|")
    makers: dict[str, Callable[[], list[Case]]] = {
        name: lambda name=name: [on_digits(NETS[name])] for name in options.networks
    }
    if options.minilm:
        makers["MiniLM"] = minilm
    if options.ablation:
        makers = {"untrained": lambda: [untrained()]}
    for name, make in makers.items():
        cases = make()
        for reference in cases[0].references:
            figures = measured(cases, reference, ORDERS if name in NETS else ORDERS // 4)
            cells = [f"{figures['standard error'][0]:.2f}"]
            cells += ["{:.1f}, {:.2f}, {:.2f}".format(*figures[method]) for method in METHODS]
            print("", name, reference, *cells, "", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
