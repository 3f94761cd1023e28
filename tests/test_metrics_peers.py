"""The metrics, beside those of Captum 0.9.0 and Quantus 0.6.0: on the same arrays, with the same perturbations.

Skipped where they aren't installed. `python -m pytest tests/test_metrics_peers.py -s` prints the largest differences;
`python -m tests.test_metrics_peers` writes the figures that test_metrics_stored.py reads.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from jaxlift import metrics
from tests import test_metrics_stored as stored

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


def infidelity(multipliers, scaled=False):
    """Ours, with Gaussian noise."""
    return metrics.infidelity(
        model, X, multipliers, perturbation=0.4, key=KEY, samples=SAMPLES, target=CLASSES, scaled=scaled
    )


class TestCaptum:
    def repeated(self, samples):
        """In Captum an example's samples follow each other."""
        return torch.tensor(np.moveaxis(samples, 0, 1).reshape(-1, *X.shape[1:]))

    @pytest.mark.parametrize("scaled", [False, True])
    def test_infidelity(self, scaled):
        scores = np.array(gradient(X))
        change = perturbations()
        theirs = captum.infidelity(
            Network(),
            lambda x: (self.repeated(change), x - self.repeated(change)),
            torch.tensor(X),
            torch.tensor(scores),
            target=torch.tensor(CLASSES),
            n_perturb_samples=SAMPLES,
            normalize=scaled,
        )
        check(f"Captum, infidelity, scaled={scaled}", infidelity(scores, scaled), theirs, 1e-12)

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

    def test_logits(self):
        """Of two classes, so that the other is known."""

        def explain(x, target):
            return jax.grad(lambda x: model(x)[jnp.arange(len(x)), target].sum())(x)

        metric = quantus.RandomLogit(num_classes=2, similarity_func=quantus.correlation_spearman, **self.options())
        theirs = metric(
            model=Network().eval(),
            x_batch=X,
            y_batch=CLASSES % 2,
            a_batch=np.array(explain(X, CLASSES % 2)),
            explain_func=lambda model, inputs, targets, **_: np.array(explain(np.asarray(inputs, float), targets)),
        )
        ours = metrics.logit_randomisation(explain, X, target=CLASSES % 2, classes=2, key=KEY)
        check("Quantus, random logit", ours, theirs, 1e-12)


def explained(model, inputs, targets, **_):
    """Gradients of a network of PyTorch, in float64."""
    with torch.enable_grad():
        x = torch.tensor(np.asarray(inputs), dtype=torch.float64, requires_grad=True)
        y = model.double()(x)[torch.arange(len(x)), torch.tensor(targets)].sum()
        (scores,) = torch.autograd.grad(y, x)
    model.float()
    return scores.numpy()


class TestParameters:
    """The same layers, drawn by PyTorch."""

    def of(self, metric):
        torch.manual_seed(0)
        layers = torch.nn.Linear(H * H, 10), torch.nn.Linear(10, 8), torch.nn.Linear(8, K)
        net = torch.nn.Sequential(torch.nn.Flatten(), layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
        params = self.weights(net)
        found = metric(
            model=net.eval(), x_batch=np.float32(X), y_batch=CLASSES, explain_func=explained, channel_first=True
        )
        wrapped = quantus.helpers.model.pytorch_model.PyTorchModel(net, channel_first=True)
        *_, (_, fresh) = wrapped.get_random_layer_generator(order="bottom_up", seed=metric.seed)
        return found, params, self.weights(fresh)

    def weights(self, net):
        """A list of layers, `{"weight", "bias"}`."""
        linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        return [{k: v.detach().numpy().astype(float) for k, v in layer.named_parameters()} for layer in linear]

    def explain(self, params, x):
        def model(x):
            x = x.reshape(len(x), -1)
            for i, layer in enumerate(params):
                x = (jnp.tanh(x) if i else x) @ layer["weight"].T + layer["bias"][None]
            return x[jnp.arange(len(x)), CLASSES].sum()

        return jax.grad(model)(x)

    @pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
    def test_layers(self, order):
        metric = quantus.MPRT(
            layer_order=order,
            similarity_func=quantus.correlation_spearman,
            abs=False,
            normalise=False,
            disable_warnings=True,
        )
        found, params, fresh = self.of(metric)
        theirs = np.array([found[layer] for layer in ("1", "3", "5")]).T
        x = np.float32(X).astype(float)
        ours = metrics.parameter_randomisation(self.explain, params, x, fresh=fresh, order=order)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def test_complexity_rise(self):
        metric = quantus.EfficientMPRT(
            complexity_func_kwargs={"n_bins": 12}, abs=False, normalise=False, disable_warnings=True
        )
        theirs, params, fresh = self.of(metric)
        x = np.float32(X).astype(float)
        ours = metrics.complexity_rise(self.explain(params, x), self.explain(fresh, x), bins=12)
        check("Quantus, eMPRT", ours, theirs, 1e-5)


def theirs():
    """What Quantus computes from the arrays of test_metrics_stored.py."""
    options = {"disable_warnings": True, "abs": False, "normalise": False}
    scores, masks, images = stored.SCORES, stored.MASK, stored.IMAGES

    def of(metric, **more):
        batch = {"x_batch": images, "y_batch": np.zeros(len(images), int), "a_batch": scores.copy(), **more}
        return np.array(metric(model=None, channel_first=True, **batch), float).tolist()

    def entropy(scores):
        return np.array([quantus.functions.complexity_func.discrete_entropy(each, each, n_bins=20) for each in scores])

    curve = []
    for step in range(5):
        order = np.argsort(-scores.reshape(len(scores), -1), 1)[:, : step * scores[0].size // 5]
        gone = [quantus.noisy_linear_imputation(image, of, noise=0) for image, of in zip(images, order, strict=True)]
        curve.append(np.stack(gone).reshape(len(images), -1) @ stored.WEIGHTS)
    curve = np.stack(curve, 1)
    return {
        "complexity": of(quantus.Complexity(**options)),
        "sparseness": of(quantus.Sparseness(**options)),
        "pointing game": of(quantus.PointingGame(**options), s_batch=masks),
        "relevance mass": of(quantus.RelevanceMassAccuracy(**options), s_batch=masks),
        "relevance rank": of(quantus.RelevanceRankAccuracy(**options), s_batch=masks),
        "discrete entropy": (entropy(stored.RANDOM) / entropy(scores) - 1).tolist(),
        "road": ((curve.argmax(-1) == stored.CLASSES[:, None]) * 1.0).tolist(),
        "imputation": curve[..., 0].tolist(),
    }


def test_what_is_stored():
    figures = json.loads(stored.STORED.read_text())
    for name, figure in theirs().items():
        np.testing.assert_allclose(figure, figures[name], rtol=1e-10, err_msg=name)
    assert figures.keys() == stored.OURS.keys()


if __name__ == "__main__":
    stored.STORED.write_text(json.dumps(theirs(), indent=1) + "\n")
