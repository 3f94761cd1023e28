"""Small networks with few enough players that their Shapley values can be had, for the example on distances to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from motifs import BASES
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Params = Any
Apply = Callable[[Params, jax.Array], jax.Array]
CLASS = 8  # whose logit is explained, less the mean of all classes' logits, for digits that are of this class
FETCHED = ["MiniLM", "SpliceAI"]  # whose weights are packages, of 80 and 20 MB
SENTENCES = [  # as many tokens each
    "The young woman eats an apple.",
    "Nobody wants to share the soup.",
    "A boy is having some lunch.",
    "My brother never cooks at home.",
    "The old dog bit the baker.",
    "Two people are cutting the cake.",
]


@dataclass(frozen=True)
class Game:
    """A network, inputs and a reference, and what the players are.

    Attributes:
        fun: `(N, ...) -> (N,)`.
        x: the inputs `(N, ...)`, `reference` without the N.
        groups: the player of each element, as for `jaxlift.shapley`.
        orders: how many orders the truth is drawn from; None if it is enumerated.
        about: what it is, in a few words.
        rows: how many examples go through the network together: a batch of a few small ones is overhead.
    """

    fun: Callable[[jax.Array], jax.Array]
    x: np.ndarray
    reference: np.ndarray
    groups: np.ndarray
    orders: int | None
    about: str
    rows: int = 256

    @property
    def players(self) -> int:
        return int(self.groups.max()) + 1


def weights(rng: np.random.Generator, *shape: int, gain: float = 1.0) -> dict[str, jax.Array]:
    """A linear map with a bias, drawn at random."""
    scale = gain / np.sqrt(np.prod(shape[:-1]))
    return {"w": jnp.asarray(scale * rng.normal(size=shape), jnp.float32), "b": jnp.zeros(shape[-1])}


def dense(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def convolved(p: Params, x: jax.Array) -> jax.Array:
    """Over one or two axes, padded to the same size."""
    axes = "HW"[: x.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, p["w"], (1,) * len(axes), "SAME", dimension_numbers=numbers) + p["b"]


def max_pooled(x: jax.Array, size: int) -> jax.Array:
    window = (1, *[size] * (x.ndim - 2), 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def normalised(p: Params, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["b"]


def norm(width: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(width), "b": jnp.zeros(width)}


def train(apply: Apply, params: Params, x: np.ndarray, y: np.ndarray, loss: Any, epochs: int) -> Params:
    rows = np.random.default_rng(0)
    batches = len(x) // 64
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * batches), weight_decay=1e-3)

    @jax.jit
    def step(params: Params, state: Any, x: jax.Array, y: jax.Array) -> Any:
        gradient = jax.grad(lambda params: loss(apply(params, x), y).mean())(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(epochs):
        for batch in np.array_split(rows.permutation(len(x)), batches):
            params, state = step(params, state, x[batch], y[batch])
    return params


def arrays(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and answers of a data set of scikit-learn, whose types say less than is known."""
    x, y = map(np.asarray, data)
    return x, y


def parts_of(x: Any, y: Any) -> list[np.ndarray]:
    """What a network is trained on and what it isn't: inputs of both, then answers of both."""
    return [*map(np.asarray, train_test_split(np.asarray(x, np.float32), y, random_state=0))]


CLASSES = optax.softmax_cross_entropy_with_integer_labels
LABELS = optax.sigmoid_binary_cross_entropy
NUMBERS = optax.squared_error


def of_digits(
    apply: Apply, params: Params, groups: np.ndarray, count: int, epochs: int, empty: bool, about: str
) -> Game:
    """A network trained on handwritten digits, and unseen eights against an empty image or the mean of the digits."""
    pixels, labels = arrays(load_digits(return_X_y=True))
    seen, unseen, labels, truth = parts_of(pixels.reshape(-1, 8, 8) / 16, labels)
    params = train(apply, params, seen, labels, CLASSES, epochs)
    accuracy = float((np.asarray(jax.jit(apply)(params, unseen)).argmax(1) == truth).mean())

    def margin(images: jax.Array) -> jax.Array:
        logits = apply(params, images)
        return logits[:, CLASS] - logits.mean(1)

    reference = np.zeros((8, 8), np.float32) if empty else seen.mean(0)
    orders = 400 if groups.max() >= 16 else None
    return Game(margin, unseen[truth == CLASS][:count], reference, groups, orders, f"{about}; accuracy {accuracy:.1%}")


def digits_cnn(count: int, epochs: int) -> Game:
    rng = np.random.default_rng(1)
    params = [weights(rng, 3, 3, 1, 12), weights(rng, 3, 3, 12, 16), weights(rng, 256, 48), weights(rng, 48, 10)]

    def apply(params: Params, images: jax.Array) -> jax.Array:
        h = jax.nn.gelu(convolved(params[0], images[..., None]))
        h = max_pooled(jax.nn.gelu(convolved(params[1], h)), 2)
        h = jax.nn.gelu(dense(params[2], h.reshape(len(h), -1)))
        return dense(params[3], h)

    pixels = np.arange(64).reshape(8, 8)
    return of_digits(apply, params, pixels, count, epochs, True, "digits, CNN, GELU, max-pooling; pixels, empty image")


def gru(count: int, epochs: int) -> Game:
    rng = np.random.default_rng(2)
    width = 24
    params = {name: weights(rng, 8 + width, width) for name in ("update", "reset", "new")}
    params["logits"] = weights(rng, width, 10)

    def apply(params: Params, images: jax.Array) -> jax.Array:
        def step(h: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
            both = jnp.concatenate([row, h], 1)
            update, reset = (jax.nn.sigmoid(dense(params[gate], both)) for gate in ("update", "reset"))
            new = jnp.tanh(dense(params["new"], jnp.concatenate([row, reset * h], 1)))
            return update * h + (1 - update) * new, None

        start = jnp.zeros((len(images), width))
        return dense(params["logits"], jax.lax.scan(step, start, jnp.moveaxis(images, 1, 0))[0])

    halves = np.arange(16).reshape(8, 2).repeat(4, 1)
    return of_digits(apply, params, halves, count, epochs, False, "digits, GRU over rows; half rows, mean digit")


def attention(count: int, epochs: int) -> Game:
    rng = np.random.default_rng(3)
    width, heads = 16, 2
    blocks = [
        {
            "norm": norm(width),
            "qkv": weights(rng, width, 3 * width),
            "mixed": weights(rng, width, width, gain=0.5),
            "norm2": norm(width),
            "up": weights(rng, width, 2 * width),
            "down": weights(rng, 2 * width, width, gain=0.5),
        }
        for _ in range(2)
    ]
    params = {
        "tokens": weights(rng, 4, width, gain=2.0),
        "places": jnp.asarray(0.5 * rng.normal(size=(16, width)), jnp.float32),
        "blocks": blocks,
        "norm": norm(width),
        "logits": weights(rng, width, 10),
    }

    def apply(params: Params, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        h = dense(params["tokens"], patches) + params["places"]
        for p in params["blocks"]:
            parts = dense(p["qkv"], normalised(p["norm"], h)).reshape(len(h), 16, 3, heads, -1)
            q, k, v = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
            mix = jax.nn.softmax(jnp.einsum("nihc,njhc->nhij", q, k) / np.sqrt(width / heads))
            h = h + dense(p["mixed"], jnp.einsum("nhij,njhc->nihc", mix, v).reshape(h.shape))
            h = h + dense(p["down"], jax.nn.gelu(dense(p["up"], normalised(p["norm2"], h))))
        return dense(params["logits"], normalised(params["norm"], h).mean(1))

    patches = np.arange(16).reshape(4, 4).repeat(2, 0).repeat(2, 1)
    about = "digits, attention and layer normalisation; 2 x 2 patches, mean digit"
    return of_digits(apply, params, patches, count, epochs, False, about)


def planted(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One-hot sequences `(count, 64, 4)`, a half with both of two motifs, the others with one of them or none."""
    bases = rng.choice(4, size=(count, 64))
    labels = np.arange(count) % 2
    for i, sequence in enumerate(bases):
        has = [True, True] if labels[i] else [[False, False], [True, False], [False, True]][rng.integers(3)]
        for motif, start, is_there in zip(
            ("AGATAAGG", "CAGCTGGT"), (rng.integers(24), 32 + rng.integers(24)), has, strict=True
        ):
            if is_there:
                sequence[start : start + 8] = [BASES.index(base) for base in motif]
    return np.eye(4, dtype=np.float32)[bases], labels.astype(np.float32)


def dna_cnn(count: int, epochs: int) -> Game:
    rng = np.random.default_rng(4)
    params = [
        weights(rng, 9, 4, 16, gain=1.4),
        weights(rng, 5, 16, 16, gain=1.4),
        weights(rng, 256, 16, gain=1.4),
        weights(rng, 16, 1),
    ]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        h = max_pooled(jax.nn.relu(convolved(params[0], x)), 4)
        h = jax.nn.relu(convolved(params[1], h)).reshape(len(x), -1)
        return dense(params[3], jax.nn.relu(dense(params[2], h)))[:, 0]

    x, labels = planted(np.random.default_rng(0), 3000)
    params = train(apply, params, x, labels, LABELS, epochs)
    unseen, truth = planted(np.random.default_rng(1), 500)
    accuracy = float(((np.asarray(jax.jit(apply)(params, unseen)) > 0) == truth).mean())
    about = f"DNA, CNN, ReLU, two planted motifs; 64 positions, all bases at 1/4; accuracy {accuracy:.1%}"
    reference = np.full((64, 4), 0.25, np.float32)
    return Game(
        lambda x: apply(params, x),
        unseen[truth == 1][:count],
        reference,
        np.arange(64)[:, None].repeat(4, 1),
        400,
        about,
    )


def diabetes(count: int, epochs: int) -> Game:
    """A regression on ten features, each a player, against the mean of the data."""
    x, y = arrays(load_diabetes(return_X_y=True))
    seen, unseen, y, y_unseen = parts_of(StandardScaler().fit_transform(x), (y - y.mean()) / y.std())
    rng = np.random.default_rng(5)
    params = [weights(rng, 10, 32, gain=1.4), weights(rng, 32, 32, gain=1.4), weights(rng, 32, 1)]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return dense(params[2], jax.nn.silu(dense(params[1], jax.nn.silu(dense(params[0], x)))))[:, 0]

    params = train(apply, params, seen, y.astype(np.float32), NUMBERS, 3 * epochs)
    r2 = 1 - np.mean((np.asarray(apply(params, jnp.asarray(unseen))) - y_unseen) ** 2) / np.var(y_unseen)
    about = f"diabetes, SiLU, two hidden layers; 10 features, mean; R² {r2:.2f}"
    return Game(lambda x: apply(params, x), unseen[: 4 * count], np.zeros(10, np.float32), np.arange(10), None, about)


def cancer(count: int, epochs: int) -> Game:
    """Gates and layer normalisation on thirty features: mean, error and worst of each measure are a player."""
    x, y = arrays(load_breast_cancer(return_X_y=True))
    seen, unseen, y, truth = parts_of(StandardScaler().fit_transform(x), y.astype(np.float32))
    rng = np.random.default_rng(6)
    params: list[Any] = [
        {"value": weights(rng, i, 24), "gate": weights(rng, i, 24), "norm": norm(24)} for i in (30, 24)
    ]
    params.append(weights(rng, 24, 1))

    def apply(params: Params, x: jax.Array) -> jax.Array:
        for p in params[:-1]:
            x = normalised(p["norm"], dense(p["value"], x) * jax.nn.sigmoid(dense(p["gate"], x)))
        return dense(params[-1], x)[:, 0]

    params = train(apply, params, seen, y, LABELS, 2 * epochs)
    accuracy = float(((np.asarray(apply(params, jnp.asarray(unseen))) > 0) == truth).mean())
    about = f"breast cancer, gates and layer normalisation; 10 groups, mean; accuracy {accuracy:.1%}"
    return Game(
        lambda x: apply(params, x), unseen[: 4 * count], np.zeros(30, np.float32), np.arange(30) % 10, None, about
    )


def random_mlp(activation: Callable[[jax.Array], jax.Array], count: int) -> Game:
    """Three hidden layers of random weights, and two random points."""
    rng = np.random.default_rng(7)
    layers = [weights(rng, a, b, gain=1.5) for a, b in [(12, 48), (48, 48), (48, 48), (48, 1)]]

    def fun(x: jax.Array) -> jax.Array:
        for p in layers[:-1]:
            x = activation(dense(p, x))
        return dense(layers[-1], x)[:, 0]

    x, reference = (rng.normal(size=shape).astype(np.float32) for shape in [(4 * count, 12), (12,)])
    about = f"random weights, {activation.__name__}, three hidden layers; 12 features, another point"
    return Game(fun, x, reference, np.arange(12), None, about)


def minilm(count: int, epochs: int) -> Game:
    """The similarity of sentences to another one, by a trained sentence transformer: a word's embedding is a player.

    The reference has the marks of beginning and end, and embeddings of zero at the words' positions.
    """
    from transformer import encode, trained

    params, embedded = trained()
    other = jax.jit(encode)(params, jnp.asarray(embedded("A man is eating a piece of bread.")[1]))
    x = np.stack([embedded(sentence)[1] for sentence in SENTENCES[:count]])
    length = x.shape[1]
    reference = x[0] * np.isin(np.arange(length), [0, length - 1])[:, None]
    groups = np.arange(length)[:, None].repeat(x.shape[2], 1)
    about = "MiniLM-L6-v2, six layers of attention; words, embeddings of zero"

    def similarity(words: jax.Array) -> jax.Array:
        return jax.vmap(lambda words: encode(params, words) @ other)(words)

    return Game(similarity, x, reference, groups, None, about, rows=16)


def spliceai(count: int, epochs: int) -> Game:
    """The log-odds of the acceptor of beta globin's second exon, by the first of SpliceAI's five networks.

    The input is 40 bases, the last 32 of the intron and the first 8 of the exon, in both alleles of a variant there; a
    player is five of them, and the reference is zeros. The gene around them is part of the function.
    """
    import splice

    (_, end, _), (_, acceptor, _), *_, (start, _, _) = splice.read_exons()
    gene = splice.one_hot(splice.read_dna(splice.record_file())[splice.FIRST : splice.FIRST + end - start])
    network = splice.log_odds_of(splice.log_probabilities_of(*splice.SPLICEAI, "spliceai/models/spliceai1.h5"))
    place = end - acceptor  # in the gene, from 0
    seen = splice.around(gene, place)
    window = slice(splice.SIDE - 32, splice.SIDE + 8)
    normal, variant = seen[window], seen[window].copy()
    variant[splice.VARIANT - place + 32] = splice.one_hot("A")[0]

    def log_odds(x: jax.Array) -> jax.Array:
        before, after = (
            jnp.broadcast_to(side, (len(x), *side.shape)) for side in (seen[: window.start], seen[window.stop :])
        )
        return network(jnp.concatenate([before, x, after], 1))[:, splice.ACCEPTOR]

    about = "SpliceAI, the first of its five networks; 8 times 5 bases around an acceptor, zeros"
    groups = np.arange(40)[:, None].repeat(4, 1) // 5
    return Game(log_odds, np.stack([normal, variant])[:count], np.zeros_like(normal), groups, None, about, rows=2)


# Of how many examples, and epochs. Networks with few players have four times as many: their truth costs little.
GAMES: dict[str, Callable[[int, int], Game]] = {
    "digits CNN": digits_cnn,
    "DNA CNN": dna_cnn,
    "GRU": gru,
    "attention": attention,
    "diabetes": diabetes,
    "cancer": cancer,
    "ReLU MLP": lambda count, epochs: random_mlp(jax.nn.relu, count),
    "tanh MLP": lambda count, epochs: random_mlp(jnp.tanh, count),
    "MiniLM": minilm,
    "SpliceAI": spliceai,
}
