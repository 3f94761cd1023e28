"""The catalogue of models, what a model is, and how it is measured.

To add a model: write a function in the file of its framework that takes a dtype and returns a `Model` with parameters
drawn from a fixed seed, and put its name into `CATALOGUE`. To add a framework: one more file, and one more row.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift

RULES = ("rescale", "revealcancel")
DTYPES = (np.float32, np.float64)


class Framework(NamedTuple):
    """A file of this folder.

    Attributes:
        install: what `pip install` takes to install it, first the package itself.
        models: the functions in the file that make models.
    """

    install: str
    models: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """The package's name."""
        return re.findall(r"[\w-]+", self.install)[0]


CATALOGUE = {
    "alphagenome": Framework("dm-haiku", ("blocks",)),
    "diffrax": Framework("diffrax", ("neural_ode",)),
    "discretax": Framework("discretax", ("s5", "lru", "linoss")),
    "distrax": Framework("distrax", ("spline_flow",)),
    "e3nn": Framework("e3nn-jax", ("point_cloud",)),
    "equimo": Framework("equimo", ("vit", "convnext", "mlla", "vssd", "audio_spectrogram_transformer")),
    "gemma": Framework("gemma 'sentencepiece<0.2.2'", ("transformer",)),
    "haiku": Framework("dm-haiku", ("resnet",)),
    "huggingface": Framework("'transformers<5'", ("bert", "gpt2", "bart", "vit", "clip")),
    "jraph": Framework("jraph==0.0.6.dev0", ("attention", "messages")),
    "keras_applications": Framework("keras", ("mobilenet", "resnet", "resnet_v2", "densenet", "efficientnet")),
    "mamba": Framework("mamba2-jax", ("forecaster",)),
    "torchax": Framework("torchax torch==2.9.1", ("resnet",)),
}
NAMES = [(framework, name) for framework, (_, names) in CATALOGUE.items() for name in names]


@dataclass(frozen=True)
class Model:
    """A model with its parameters.

    Attributes:
        fun: the model, `(N, *shape) -> (N, ...)`.
        shape: the shape of one example.
        draw: draws such examples, `(rng, shape) -> array`; by default of the standard normal distribution.
        single: whether it computes in float32 somewhere, whatever the dtypes of its input and parameters are.
    """

    fun: Callable[[Any], Any]
    shape: tuple[int, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = lambda rng, shape: rng.normal(size=shape)
    single: bool = False


class Figures(NamedTuple):
    """What is measured of a model under a rule, the worst of two examples.

    Attributes:
        error: what is missing from the sum of the contributions, in units of `eps * sum |contributions|`, where `eps`
            is that of the dtype in which the model computes.
        relative_error: the same as a share of `sum |contributions|`.
        cancellation: `sum |contributions| / |difference of the outputs|`.
    """

    error: float
    relative_error: float
    cancellation: float


def make(framework: str, name: str, dtype: Any) -> Model:
    """A model of the catalogue.

    Raises:
        ImportError: where its packages aren't installed, or don't run here; with the command that installs them.
    """
    try:
        module = importlib.import_module(f".{framework}", __package__)
    except ImportError as error:
        raise ImportError(f"{error} (pip install {CATALOGUE[framework].install})") from error
    return getattr(module, name)(dtype)


def perturbed(tree: Any, dtype: Any) -> Any:
    """Parameters and statistics of this dtype near the initial ones, which are often 0 or 1: that would hide what is
    done with them.
    """
    rng = np.random.default_rng(0)

    def perturb(leaf: Any) -> Any:
        if not jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact):
            return leaf
        to = jnp.result_type(dtype, 1j) if jnp.iscomplexobj(leaf) else dtype
        return jnp.asarray(np.asarray(leaf, to) + 0.1 * rng.normal(size=leaf.shape), to)

    return jax.tree.map(perturb, tree)


@functools.partial(jax.jit, static_argnums=(0, 1))
def explained(fun: Callable[[Any], Any], rule: str, x: Any, reference: Any) -> Any:
    """Contributions to one number made of all outputs, and that number as the plain model gives it."""

    def number(x: Any) -> Any:
        y = fun(x).reshape(len(x), -1)
        return y @ jnp.cos(jnp.arange(1, y.shape[1] + 1, dtype=y.dtype))

    contributions = jaxlift.attribute(number, rule=rule)(x, reference=reference)
    return contributions, number(x), number(reference[None])


def measure(model: Model, rule: str, dtype: Any) -> Figures:
    """Explain two examples by a rule, and compare the sums with differences of the plain model's outputs."""
    rng = np.random.default_rng(1)
    x, reference = (np.asarray(model.draw(rng, shape), dtype) for shape in ((2, *model.shape), model.shape))
    contributions, y, y_ref = (np.asarray(a, np.float64) for a in explained(model.fun, rule, x, reference))
    difference = y - y_ref
    contributions = contributions.reshape(2, -1)
    total = np.abs(contributions).sum(1)
    missing = np.abs(contributions.sum(1) - difference)
    eps = jnp.finfo(np.float32 if model.single else dtype).eps
    # NaN, which any comparison hides, comes through `max`.
    return Figures(*(float(np.max(a)) for a in (missing / total / eps, missing / total, total / np.abs(difference))))
