"""Train a small network on handwritten digits, and explain what it saw.

It trains in seconds, explains test digits under both rules against an empty image and against many other digits, checks
that contributions sum to the difference of the outputs, and saves a picture.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import seconds

import jaxlift
from jaxlift import plot

try:
    import optax
    from flax import nnx
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error


class Network(nnx.Module):
    """Two convolutions and two dense layers: `(N, 8, 8, 1) -> (N, 10)` logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.logits = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        h = nnx.relu(self.conv1(images))
        h = nnx.max_pool(nnx.relu(self.conv2(h)), (2, 2), strides=(2, 2))
        h = nnx.relu(self.dense(h.reshape(len(h), -1)))
        return self.logits(h)


def train(images: np.ndarray, labels: np.ndarray, epochs: int) -> Network:
    """A network that has seen the digits so many times."""
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(2e-3, weight_decay=1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> None:
        def loss(model: Network) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(images)), len(images) // 64):
            step(model, optimizer, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
    return model


def picture(digits: np.ndarray, classes: np.ndarray, scores: dict[str, np.ndarray]) -> Figure:
    """Digits in the first row, and below it their contributions by each method, on one scale centred on zero."""
    limit = float(max(np.abs(rows).max() for rows in scores.values()))
    figure = Figure((1.05 * len(digits) + 2.2, 1.08 * (1 + len(scores))), layout="constrained")
    axes: Any = figure.subplots(1 + len(scores), len(digits))
    for column, (digit, label) in enumerate(zip(digits, classes, strict=True)):
        axes[0, column].imshow(digit[..., 0], cmap="gray_r")
        axes[0, column].set_title(f"class {label}", fontsize=9)
        for row, values in enumerate(scores.values(), start=1):
            plot.image(values[column], ax=axes[row, column], limit=limit, bar=False)
    for axis, name in zip(axes[:, 0], ["digit", *scores], strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(linewidth=0.4, color="0.6")
    bar = figure.colorbar(axes[1, 0].images[0], ax=axes[1:], shrink=0.9, pad=0.015)
    bar.set_label("contribution to the class's logit,\nabove the mean of all classes", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/digits.png"), help="where the picture goes")
    parser.add_argument("--epochs", type=int, default=15, help="how long to train")
    options = parser.parse_args()

    pixels, digits = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 16
    seen, unseen, labels, truth = map(np.asarray, train_test_split(images, digits, test_size=0.25, random_state=0))
    start = time.perf_counter()
    model = train(seen, labels, options.epochs)
    predicted = np.asarray(model(jnp.asarray(unseen))).argmax(1)
    print(
        f"trained on {len(seen)} digits in {time.perf_counter() - start:.1f} s; accuracy on {len(unseen)} others: "
        f"{(predicted == truth).mean():.1%}"
    )

    # One test digit of each class, explained for the class that the network gives it.
    chosen = np.array([np.flatnonzero(predicted == label)[1] for label in range(10)])
    x, classes = jnp.asarray(unseen[chosen]), predicted[chosen]
    empty, others = jnp.zeros(x.shape[1:]), jnp.asarray(seen[:50])

    scores = {}
    for name, rule, reference in [
        ("Rescale\nzero reference", "rescale", empty),
        ("Rescale\n50 digits", "rescale", others),
        ("RevealCancel\nzero reference", "revealcancel", empty),
        ("RevealCancel\n50 digits", "revealcancel", others),
    ]:
        attr = jaxlift.attribute(model, target=classes, normalize_target=True, rule=rule, full=True)
        compiled = jax.jit(attr)
        eager = seconds(attr, x, reference=reference)
        contributions, delta, *_ = compiled(x, reference=reference)
        jitted = seconds(compiled, x, reference=reference)
        scores[name] = np.asarray(contributions)
        pairs = len(x) * (len(others) if reference is others else 1)
        print(
            f"{name.replace(chr(10), ', '):30} largest summation-to-delta error {np.abs(delta).max():.1e};  "
            f"{1e3 * jitted / pairs:7.3f} ms per explanation, {1e3 * eager / pairs:7.2f} ms without jax.jit"
        )

    options.output.parent.mkdir(parents=True, exist_ok=True)
    picture(unseen[chosen], classes, scores).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
