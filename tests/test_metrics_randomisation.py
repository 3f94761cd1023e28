"""Randomised parameters and logits, against loops over layers; the order of layers; frameworks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen, nnx

import jaxlift
from jaxlift import metrics

RNG = np.random.default_rng(29)
X = RNG.normal(size=(4, 6))
KEY = jax.random.key(4)


def drawn():
    """Three layers, of which the last is `(5,)`, and a number that isn't a parameter."""
    return {f"layer_{i}": RNG.normal(size=shape) for i, shape in enumerate([(6, 5), (5, 5), (5,)])} | {"layer_3": 7}


PARAMS, FRESH = drawn(), drawn()


def model(params, x):
    for layer in ("layer_0", "layer_1"):
        x = jnp.tanh(x @ params[layer])
    return x @ params["layer_2"]


def explain(params, x):
    return jax.grad(lambda x: model(params, x).sum())(x)


@pytest.mark.usefixtures("x64")
class TestParameters:
    @pytest.mark.parametrize(
        ("order", "random"),
        [
            ("top_down", [(0, 1, 2), (1, 2), (2,)]),
            ("bottom_up", [(0,), (0, 1), (0, 1, 2)]),
            ("independent", [(0,), (1,), (2,)]),
        ],
    )
    def test_against_loops(self, order, random):
        found = metrics.parameter_randomisation(explain, PARAMS, X, fresh=FRESH, order=order)
        original = np.array(explain(PARAMS, X))
        for column, layers in enumerate(random):
            mixed = {**PARAMS, **{f"layer_{i}": FRESH[f"layer_{i}"] for i in layers}}
            changed = np.array(explain(mixed, X))
            expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(original, changed, strict=True)]
            np.testing.assert_allclose(found[:, column], expected, rtol=1e-9)

    def test_layers_and_similarity_of_the_caller(self):
        nested = {"encoder": {"a": PARAMS["layer_1"], "b": PARAMS["layer_0"]}, "head": PARAMS["layer_2"]}
        fresh = {"encoder": {"a": FRESH["layer_1"], "b": FRESH["layer_0"]}, "head": FRESH["layer_2"]}

        def flat(params):
            return {
                "layer_0": params["encoder"]["b"],
                "layer_1": params["encoder"]["a"],
                "layer_2": params["head"],
            }

        def distance(a, b):
            return jnp.abs(a - b).max(1)

        @jax.jit
        def of(params, fresh, x):
            return metrics.parameter_randomisation(
                lambda params, x: explain(flat(params), x),
                params,
                x,
                fresh=fresh,
                layers=["encoder/b", "encoder", "head"],
                order="independent",
                similarity=distance,
            )

        found = of(nested, fresh, X)
        for column, layers in enumerate([(0,), (0, 1), (2,)]):
            mixed = {**PARAMS, **{f"layer_{i}": FRESH[f"layer_{i}"] for i in layers}}
            np.testing.assert_allclose(found[:, column], distance(explain(PARAMS, X), explain(mixed, X)), rtol=1e-9)

    def test_smooth(self):
        """The smooth test is that of the mean over noisy inputs."""

        def smoothed(params, x):
            return jaxlift.smooth(lambda x: explain(params, x), noise=0.3, key=KEY, samples=4)(x)

        found = metrics.parameter_randomisation(smoothed, PARAMS, X, fresh=FRESH, order="bottom_up")
        noise = [
            0.3 * jax.random.normal(jax.random.split(key, 1)[0], X.shape, X.dtype) for key in jax.random.split(KEY, 4)
        ]
        before, after = (np.mean([explain(params, X + drawn) for drawn in noise], 0) for params in (PARAMS, FRESH))
        expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(before, after, strict=True)]
        np.testing.assert_allclose(found[:, -1], expected, rtol=1e-9)

    def test_shuffled(self):
        params = {"w": PARAMS["layer_0"], "n": np.arange(3), "f": jnp.tanh}
        shuffled = metrics.shuffled(params, KEY)
        np.testing.assert_array_equal(np.sort(np.ravel(shuffled["w"])), np.sort(params["w"].ravel()))
        assert (shuffled["w"] != params["w"]).mean() > 0.8
        assert shuffled["n"] is params["n"]
        assert shuffled["f"] is jnp.tanh


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        for _ in range(11):
            x = linen.Dense(6)(x)
        return x[:, 0]


class TestFrameworks:
    """All layers at random is the model that they were taken from; no layer at random is the model."""

    def check(self, layers, of, params, fresh):
        x = np.float32(X)

        def explain(params, x):
            return jax.grad(lambda x: of(params, x).sum())(x)

        assert metrics.layers_of(params) == layers
        distance = metrics.parameter_randomisation(
            explain, params, x, fresh=fresh, similarity=lambda a, b: jnp.abs(a - b).max(1)
        )
        assert distance.shape == (4, len(layers))
        np.testing.assert_allclose(distance[:, 0], np.abs(explain(params, x) - explain(fresh, x)).max(1), rtol=1e-5)
        assert (distance > 0).all()

    def test_linen(self):
        def variables(seed):
            return Linen().init(jax.random.key(seed), np.float32(X))

        names = tuple(f"params/Dense_{i}" for i in range(11))
        self.check(names, Linen().apply, variables(0), variables(1))

    def test_equinox(self):
        def mlp(seed):
            return eqx.nn.MLP(6, "scalar", 8, 2, jnp.tanh, key=jax.random.key(seed))

        self.check(("layers/0", "layers/1", "layers/2"), lambda params, x: jax.vmap(params)(x), mlp(0), mlp(1))

    def test_nnx_with_other_state(self):
        def network(seed):
            rngs = nnx.Rngs(seed)
            return nnx.Sequential(
                nnx.Linear(6, 3, rngs=rngs),
                nnx.BatchNorm(3, use_running_average=True, rngs=rngs),
                jnp.tanh,
                nnx.Linear(3, 1, rngs=rngs),
            )

        graph, params, rest = nnx.split(network(0), nnx.Param, ...)
        fresh = metrics.shuffled(nnx.state(network(1), nnx.Param), KEY)
        fresh = jax.tree.map(lambda leaf: leaf + 0.1, fresh)  # a norm begins with equal numbers
        self.check(
            ("layers/0", "layers/1", "layers/3"), lambda params, x: nnx.merge(graph, params, rest)(x), params, fresh
        )


class TestLogits:
    def test_others_are_equally_likely(self):
        n, classes = 6000, 4
        targets = np.arange(n) % classes
        seen = []

        def explain(x, target):
            seen.append(np.array(target))
            return x

        metrics.logit_randomisation(explain, np.ones((n, 1), np.float32), target=targets, classes=classes, key=KEY)
        np.testing.assert_array_equal(seen[0], targets)
        counts = np.bincount(classes * targets + seen[1], minlength=classes**2).reshape(classes, classes)
        assert (counts.diagonal() == 0).all()
        assert np.abs(counts[~np.eye(classes, dtype=bool)] - n / 12).max() < 5 * np.sqrt(n / 12)

    def test_against_scipy(self):
        weights = np.float32(RNG.normal(size=(6, 2)))

        @jax.jit
        def of(x, target):
            attr = lambda x, target: x * jnp.asarray(weights).T[target]  # noqa: E731
            return metrics.logit_randomisation(attr, x, target=target, classes=2, key=KEY)

        expected = [scipy.stats.spearmanr(*(x[:, None] * weights).T).statistic for x in np.float32(X)]
        for target in (0, -1, jnp.array([0, 1, 1, 0])):
            np.testing.assert_allclose(of(np.float32(X), target), expected, rtol=1e-5)


def randomised(params=PARAMS, **options):
    return metrics.parameter_randomisation(explain, params, X, **{"fresh": FRESH, **options})


def of_logits(**options):
    return metrics.logit_randomisation(lambda x, _: x, X, **{"target": 0, "classes": 3, "key": KEY, **options})


CASES = {
    "no order": (
        lambda: metrics.layers_of({"conv": X, "blocks": [X, X], "n": 3}),
        ValueError,
        r"which layer comes first: write layers=\[...\].*\['blocks', 'conv'\]",
    ),
    "one array": (lambda: metrics.layers_of(X), TypeError, r"floating-point arrays in its entries"),
    "no arrays": (lambda: metrics.layers_of({"a": 3}), TypeError, r"floating-point arrays in its entries"),
    "order": (lambda: randomised(order="down"), ValueError, r"order='down' must be one of 'top_down', 'bottom_up'"),
    "layer": (
        lambda: randomised(layers=["layer_0", "layer"]),
        ValueError,
        r"\['layer'\] do not: .*'layer_0', 'layer_1'",
    ),
    "no layers": (lambda: randomised(layers=[]), ValueError, r"must name parameters"),
    "structure": (lambda: randomised(fresh={}), ValueError, r"fresh must have the structure of params"),
    "shape": (
        lambda: randomised(fresh={**FRESH, "layer_1": X}),
        ValueError,
        r"layer_1 has shape \(4, 6\) instead of \(5, 5\)",
    ),
    "similarity": (
        lambda: randomised(similarity=lambda a, b: a),
        ValueError,
        r"\(4,\), but returns the shape \(4, 6\)",
    ),
    "full": (
        lambda: metrics.logit_randomisation(
            lambda *_: jaxlift.Attribution._make([X] * len(jaxlift.Attribution._fields)),
            X,
            target=0,
            classes=3,
            key=KEY,
        ),
        ValueError,
        r"logit_randomisation takes .* leave out full=True",
    ),
    "no number to randomise": (lambda: randomised(layers=["layer_3"]), ValueError, r"\['layer_3'\] do not"),
    "classes": (lambda: of_logits(classes=1), ValueError, r"classes=1 must be an int, 2 at least"),
    "target": (lambda: of_logits(target=3), ValueError, r"target=3 must be between 0 and 2"),
    "targets": (lambda: of_logits(target=[0, 1]), TypeError, r"ints \(4,\), but has dtype int32 and shape \(2,\)"),
    "float target": (lambda: of_logits(target=1.0), TypeError, r"must be an int"),
    "key": (lambda: metrics.shuffled(PARAMS, 3), TypeError, r"expected a PRNG key"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
