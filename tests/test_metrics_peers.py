"""The metrics, beside those of Captum 0.9.0 and Quantus 0.6.0: on the same arrays, with the same perturbations.

Skipped where they aren't installed. `python -m pytest tests/test_metrics_peers.py -s` prints the largest differences.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from jaxlift import metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    captum = pytest.importorskip("captum.metrics")
    quantus = pytest.importorskip("quantus")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("x64")]

RNG = np.random.default_rng(13)
N, H, K, SAMPLES = 5, 4, 3, 8
W, V = RNG.normal(size=(H * H, 10)) / 2, RNG.normal(size=(10, K))
X, REFERENCE = RNG.normal(size=(N, 1, H, H)), RNG.normal(size=(1, H, H))
CLASSES = np.array([0, 2, 1, 1, 0])
KEY = jax.random.key(3)


def model(x):
    return jnp.tanh(x.reshape(-1, H * H) @ W) @ V


def gradient(x):
    """The scores: gradients of each example's class."""
    return jax.grad(lambda x: model(x)[jnp.arange(len(x)), CLASSES].sum())(x)


class Network(torch.nn.Module):
    """The same model. Quantus gives it float32."""

    def forward(self, x):
        w, v = (torch.tensor(a, dtype=x.dtype) for a in (W, V))
        return torch.tanh(x.reshape(-1, H * H) @ w) @ v


def check(name, ours, theirs, rtol):
    difference = np.abs(np.asarray(ours) / np.asarray(theirs) - 1).max()
    print(f"{name}: largest relative difference {difference:.1e}")
    assert difference < rtol


def perturbations():
    """What `metrics.infidelity` draws, `(SAMPLES, N, ...)`, seen without compilation."""
    seen = []
    with jax.disable_jit():
        metrics.infidelity(
            lambda x: seen.append(X - x) or x[:, 0, 0, 0], X, X, perturbation=0.4, key=KEY, samples=SAMPLES
        )
    return np.stack([change for change in seen[1:] if not isinstance(change, Tracer)])


def moved():
    """The inputs that `metrics.sensitivity` tries, `(SAMPLES, N, ...)`, seen without compilation."""
    seen = []
    with jax.disable_jit():
        metrics.sensitivity(lambda x: seen.append(np.array(x)) or x, X, radius=0.3, key=KEY, samples=SAMPLES)
    return np.stack(seen[1:])


def replace(arr, indices, **_):
    """A perturbation function of Quantus, for flat examples."""
    reference = np.broadcast_to(REFERENCE, X.shape).reshape(N, -1)
    arr = arr.copy()
    np.put_along_axis(arr, indices, np.take_along_axis(reference, indices, 1), 1)
    return arr


def infidelity(multipliers):
    """Ours, with Gaussian noise."""
    return metrics.infidelity(model, X, multipliers, perturbation=0.4, key=KEY, samples=SAMPLES, target=CLASSES)


class TestCaptum:
    def repeated(self, samples):
        """In Captum an example's samples follow each other."""
        return torch.tensor(np.moveaxis(samples, 0, 1).reshape(-1, *X.shape[1:]))

    def test_infidelity(self):
        scores = np.array(gradient(X))
        change = perturbations()
        theirs = captum.infidelity(
            Network(),
            lambda x: (self.repeated(change), x - self.repeated(change)),
            torch.tensor(X),
            torch.tensor(scores),
            target=torch.tensor(CLASSES),
            n_perturb_samples=SAMPLES,
        )
        check("Captum, infidelity", infidelity(scores), theirs, 1e-12)

    def test_infidelity_of_contributions(self):
        """Its decorator divides by the difference, so that contributions may be given for multipliers."""
        multipliers = np.array(gradient(X))
        decorator = captum.infidelity_perturb_func_decorator(True)
        theirs = captum.infidelity(
            Network(),
            decorator(lambda x, baseline: x - self.repeated(perturbations())),
            torch.tensor(X),
            torch.tensor(multipliers * (X - REFERENCE)),
            baselines=torch.tensor(np.broadcast_to(REFERENCE, X.shape).copy()),
            target=torch.tensor(CLASSES),
            n_perturb_samples=SAMPLES,
        )
        check("Captum, infidelity of contributions", infidelity(multipliers), theirs, 1e-9)

    def test_sensitivity(self):
        def explain(x):
            if isinstance(x, tuple):
                return (explain(*x),)
            samples = x.numpy().reshape(N, -1, *X.shape[1:])
            scores = np.stack([gradient(x) for x in np.moveaxis(samples, 1, 0)], 1)
            return torch.tensor(scores.reshape(x.shape))

        theirs = captum.sensitivity_max(
            explain, torch.tensor(X), perturb_func=lambda x: self.repeated(moved()), n_perturb_samples=SAMPLES
        )
        ours = metrics.sensitivity(gradient, X, radius=0.3, key=KEY, samples=SAMPLES, relative=True)
        check("Captum, sensitivity", ours, theirs, 1e-12)


class TestQuantus:
    """Quantus computes in float32."""

    def of(self, metric, scores, **options):
        arguments = {"model": Network().eval(), "x_batch": X, "y_batch": CLASSES, "a_batch": scores}
        return np.array(metric(**arguments, channel_first=True, softmax=False, **options))

    def options(self, **more):
        return {"normalise": False, "abs": False, "disable_warnings": True, **more}

    def test_deletion(self):
        scores = np.array(gradient(X))
        theirs = self.of(quantus.PixelFlipping(features_in_step=2, perturb_func=replace, **self.options()), scores)
        ours = metrics.deletion(model, X, scores, reference=REFERENCE, steps=8, target=CLASSES)
        check("Quantus, pixel flipping", ours[:, 1:], theirs, 1e-4)

    def test_deletion_of_regions(self):
        """Patches of 2 x 2 pixels, by the sum of their scores, are features with one score each."""
        scores = np.array(gradient(X))
        metric = quantus.RegionPerturbation(
            patch_size=2, regions_evaluation=4, perturb_func=replace, order="morf", **self.options()
        )
        theirs = self.of(metric, scores)
        patches = (-1, 2, 2, 2, 2)
        ours = metrics.deletion(
            lambda x: model(x.reshape(-1, 1, H, H)),
            X.reshape(patches),
            scores.reshape(patches).sum((2, 4), keepdims=True),
            reference=REFERENCE.reshape(patches)[0],
            steps=4,
            target=CLASSES,
        )
        check("Quantus, region perturbation", ours[:, :1] - ours[:, 1:], theirs, 1e-4)

    def test_infidelity(self):
        scores = np.array(gradient(X))
        changes = iter(perturbations().reshape(SAMPLES, N, -1))
        metric = quantus.Infidelity(
            perturb_patch_sizes=[H],
            n_perturb_samples=SAMPLES,
            perturb_func=lambda arr, **_: arr - next(changes),
            **self.options(),
        )
        theirs = self.of(metric, scores)
        check("Quantus, infidelity", infidelity(scores), theirs, 1e-4)

    def test_sensitivity(self):
        inputs = iter(moved().reshape(SAMPLES, N, -1))
        metric = quantus.MaxSensitivity(
            nr_samples=SAMPLES, perturb_func=lambda arr, **_: next(inputs), **self.options()
        )
        theirs = self.of(
            metric,
            np.array(gradient(X)),
            explain_func=lambda model, inputs, targets, **_: np.array(gradient(np.asarray(inputs, float))),
        )
        ours = metrics.sensitivity(gradient, X, radius=0.3, key=KEY, samples=SAMPLES, relative=True)
        check("Quantus, sensitivity", ours, theirs, 1e-4)
