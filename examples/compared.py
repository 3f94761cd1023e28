"""What the examples that compare methods have in common: names, colours, how images are explained, and statistics."""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

Explain = Callable[[np.ndarray], Any]  # images (N, ...) to scores (N, K, ...), of all K classes

# All classes at once, and for each its logit less the mean over classes (eq. 5).
OPTIONS: dict[str, Any] = {"target": "all", "normalize_target": True}

# Rules of `jaxlift.attribute`, by the names that their contributions have in the literature.
RULES = {
    "gradient x input": "gradient",
    "guided backprop x input": "guided_backprop",
    "deconvnet x input": "deconvnet",
    "ε-LRP": "epsilon_lrp",
    "DeepLIFT Rescale": "rescale",
    "DeepLIFT RevealCancel": "revealcancel",
    "DeepLIFT genomics default": "genomics_default",
}

COLOURS = {
    "gradient x input": "0.5",
    "guided backprop x input": "#9c6b3c",
    "deconvnet x input": "#d48fb8",
    "ε-LRP": "#b8a400",
    "integrated gradients": "#3a86c8",
    "integrated gradients, 5 steps": "#8fc1ea",
    "integrated gradients, 10 steps": "#3a86c8",
    "DeepLIFT Rescale": "#f0a04b",
    "DeepLIFT RevealCancel": "#cc2b2b",
    "DeepLIFT genomics default": "#e3705a",
    "occlusion": "#3f9b5f",
    "Shapley values": "#5b3f94",
    "Shapley sampling": "#5b3f94",
}


def on_images(attr: Callable[..., Any]) -> Explain:
    """A method that takes whole images, against an empty one."""
    compiled = jax.jit(attr)
    return lambda images: np.asarray(compiled(jnp.asarray(images), reference=jnp.zeros(images.shape[1:])))


def on_ink(model: Callable[[jax.Array], jax.Array], method: Callable[..., Any]) -> Explain:
    """A method that changes one pixel after the other, and so needs to change those only that aren't empty.

    The others contribute nothing under it, and are most of an image. With drawn scores comes their standard error.
    """

    def explain(images: np.ndarray) -> Any:
        flat = images.reshape(len(images), -1)
        count = -(-int((flat != 0).sum(1).max()) // 64) * 64  # few sizes, as each is compiled
        places = np.argsort(flat == 0, axis=1, stable=True)[:, :count]
        values = jnp.asarray(np.take_along_axis(flat, places, 1))
        found = explain_pixels(values, places, images.shape[1:])

        def on_image(scores: jax.Array) -> np.ndarray:
            whole = np.zeros((*scores.shape[:2], flat.shape[1]), np.float32)
            np.put_along_axis(whole, places[:, None], np.asarray(scores), 2)
            return whole.reshape(*scores.shape[:2], *images.shape[1:])

        return jax.tree.map(on_image, found)

    @functools.partial(jax.jit, static_argnums=2)
    def explain_pixels(values: jax.Array, places: jax.Array, shape: tuple[int, ...]) -> Any:
        def of_pixels(values: jax.Array, places: jax.Array) -> jax.Array:
            empty = jnp.zeros(math.prod(shape))
            return model(jax.vmap(lambda v, at: empty.at[at].set(v).reshape(shape))(values, places))

        attr = method(of_pixels, batch_argnums=(1,), chunk=64, full=True, **OPTIONS)
        found = attr(values, places, reference=jnp.zeros(values.shape[1]))
        return found.scores if found.standard_error is None else (found.scores, found.standard_error)

    return explain


def explain_all(explain: Explain, images: np.ndarray, size: int) -> tuple[Any, float]:
    """The scores of all images, so many at a time; and the seconds that one took, by the median."""
    by_ink = np.argsort((images != 0).sum((1, 2, 3)), stable=True)
    batches = by_ink[np.arange(-(-len(images) // size) * size) % len(images)].reshape(-1, size)
    found, seconds = [], []
    for rows in batches:
        start = time.perf_counter()
        found.append(explain(images[rows]))
        seconds.append((time.perf_counter() - start) / size)
    back = np.argsort(by_ink, stable=True)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *found), float(np.median(seconds))


def median(values: np.ndarray) -> dict[str, float]:
    """The median, and its 95% interval from 1,000 bootstrap samples."""
    resampled = np.random.default_rng(0).choice(values, (1000, len(values)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "images": len(values)}


def save(figure: Figure, numbers: dict[str, Any], file: Path) -> None:
    """The picture, and beside it its numbers as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)
    file.with_suffix(".json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    print(f"picture: {file}, numbers: {file.with_suffix('.json')}")
