"""Shapley values by moments: against formulas in plain NumPy, exact values, and draws."""

import subprocess
import sys
import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.scipy.stats import norm
from jax.test_util import check_grads
from programs import PROGRAMS, input_and_reference
from zoo import COMPLETE, SINGLE_PRECISION

import jaxlift
from jaxlift._moments.softmax import softmax
from jaxlift._moments.values import Moments
from jaxlift._pointwise import normal

FEW = {
    *("relu", "gelu", "where", "prelu", "custom_vjp around a layer", "gate", "division", "maximum of two", "power"),
    *(
        "masked choice",
        "residual",
        "outer product",
        "layer norm",
        "strided conv",
        "concatenate",
        "gather",
        "scatter add",
    ),
    *("dynamic update", "gram matrix", "max over an axis", "max pool, ragged", "checkpoint", "vmap", "cast", "step"),
    *("rnn", "cond that varies", "count", "prod", "segment_max", "softmax masked by -inf", "logsumexp", "fft", "solve"),
}
PRECISION = {program.name: program.precision for program in PROGRAMS} | dict.fromkeys(SINGLE_PRECISION, jnp.float32)
EVERY = {program.name: program.fun for program in PROGRAMS} | COMPLETE | SINGLE_PRECISION
SLOWEST = ("expm", "determinant", "slogdet")
# The output of these depends on choices alone; or on a decomposition of which JAX has no derivative.
BY_CHOICES = (
    *("histogram", "bincount", "argpartition", "nearest code", "sign bit"),
    *("equality of complex numbers", "complex eigenvalues"),
)
UNBATCHED = ("ragged product", "ragged product of two")  # JAX has no `jax.vmap` of these


def distance(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.fixture
def rng():
    """The same draws in each test, whichever ran before."""
    return np.random.default_rng(29)


def layers_of(sizes, rng=None):
    rng = np.random.default_rng(28) if rng is None else rng
    return [(rng.normal(size=(m, n)) * np.sqrt(2 / m), rng.normal(size=n) / 3) for m, n in pairwise(sizes)]


def network(layers, activation, last=lambda y: y[:, 0]):
    def fun(x):
        *hidden, (w, b) = [(jnp.asarray(w, x.dtype), jnp.asarray(b, x.dtype)) for w, b in layers]
        for v, c in hidden:
            x = activation(x @ v + c[None])
        return last(x @ w + b[None])

    return fun


class TestTheFormulas:
    """The method as its docstring has it, for networks of dense layers and ReLUs, one number at a time."""

    LAYERS = layers_of((5, 7, 6, 1))

    def mean(self, p, t, d, r, signs, factors):
        """The mean of the output; `factors` are those of the layers, or a list to put them into."""
        mu, v, s, rest = r + p * d, p * (1 - p) * d**2, np.sqrt(t * (1 - t)) * signs * d, np.zeros((1, 5))
        known = bool(factors)
        for k, (w, b) in enumerate(self.LAYERS):
            mu, v, s, rest = mu @ w + b, v @ w**2, s @ w, rest @ w**2
            if k > 0:
                if not known:
                    count = len(signs) * v.sum() ** 2 / (v**2).sum()
                    ratio = ((s**2).mean(0) + rest).sum() / v.sum()
                    layer = (count * ratio + 4) / (count + 4)
                    own = ((s**2).mean(0) + rest) / v
                    factors.append((len(signs) * own + 16 * layer) / (len(signs) + 16))
                v = v * factors[k - 1]
            if k < len(self.LAYERS) - 1:
                sigma = np.sqrt(v)
                cdf, density = np.asarray(norm.cdf(mu / sigma)), np.asarray(norm.pdf(mu / sigma))
                y = mu * cdf + sigma * density
                variance = (mu**2 + v) * cdf + mu * sigma * density - y**2
                rest = cdf**2 * rest + np.maximum(variance - cdf**2 * v, 0)
                mu, v, s = y, variance, cdf * s
        return mu.item()

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize(("nodes", "probes"), [(3, 1), (2, 3)])
    def test_as_written(self, rng, nodes, probes):
        x, r = rng.normal(size=(2, 1, 5))
        signs = np.asarray(jax.random.rademacher(jax.random.key(3), (nodes, probes, 5), float))
        at, weight = np.polynomial.legendre.leggauss(nodes)
        gradients = []
        for t, e in zip((at + 1) / 2, signs, strict=True):
            factors = []
            self.mean(np.full((1, 5), t), t, x - r, r, e, factors)
            up, down = (
                [self.mean(np.full((1, 5), t) + h * row, t, x - r, r, e, factors) for row in np.eye(5)[:, None]]
                for h in (1e-5, -1e-5)
            )
            gradients.append((np.array(up) - np.array(down)) / 2e-5)
        gradients, weight = np.array(gradients), weight / 2
        fun = network(self.LAYERS, jax.nn.relu)
        found, sizes = weight @ gradients, weight @ np.abs(gradients)
        missing = float((fun(x) - fun(r))[0]) - found.sum()
        expected = found + missing * sizes / sizes.sum()
        attr = jaxlift.shapley_moments(fun, nodes=nodes, probes=probes, key=jax.random.key(3))
        np.testing.assert_allclose(jax.jit(attr)(x, reference=r[0])[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("x64")
class TestExpectations:
    """Against integrals over a fine grid."""

    MEANS, VARIANCES = np.array([-1.5, -0.2, 0.0, 0.7, 3.0]), np.array([0.3, 2.0, 1.0, 0.01, 4.0])
    Z = (np.arange(40_000) + 0.5) / 40_000

    def drawn(self, f):
        z = np.asarray(norm.ppf(self.Z))[:, None]
        return f(self.MEANS + np.sqrt(self.VARIANCES) * z)

    def check(self, found, f, rtol):
        y = self.drawn(f)
        np.testing.assert_allclose(found.mean, y.mean(0), rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found.variance, y.var(0), rtol=rtol, atol=rtol)

    def test_two_rays(self):
        found = normal.of_two_rays(jnp.full(5, 2.0), jnp.full(5, 0.3), self.MEANS, self.VARIANCES)
        self.check(found, lambda u: np.where(u > 0, 2 * u, -0.3 * u), 1e-3)

    def test_a_step(self):
        found = normal.of_a_step(jnp.full(5, 2.0), jnp.full(5, -1.0), self.MEANS, self.VARIANCES)
        self.check(found, lambda u: np.where(u > 0, 2.0, -1.0), 1e-3)

    @pytest.mark.parametrize("f", [jnp.tanh, jax.nn.gelu, jax.nn.softplus, jnp.square])
    def test_quadrature(self, f):
        found = normal.of_any(f, self.MEANS, self.VARIANCES, is_positive=False, is_total=True, is_continuous=True)
        self.check(found, f, 5e-2)  # 7 nodes, where the standard deviation is up to twice the width of the function
        slope = self.drawn(jax.vmap(jax.vmap(jax.grad(f)))).mean(0)
        np.testing.assert_allclose(found.slope, slope, rtol=5e-2, atol=5e-2)

    def test_where_a_function_is_not_defined_it_is_taken_at_the_mean(self):
        found = normal.of_any(
            jnp.log, jnp.ones(2), jnp.array([0.01, 9.0]), is_positive=False, is_total=False, is_continuous=True
        )
        np.testing.assert_allclose(found.mean, [np.log(1) - 0.01 / 2, 0], atol=1e-4)
        assert found.variance[1] == 0

    def test_of_positive_values_it_is_defined(self):
        found = normal.of_any(jnp.log, jnp.ones(1), jnp.ones(1), is_positive=True, is_total=False, is_continuous=True)
        np.testing.assert_allclose(found.mean, -np.log(2) / 2, rtol=1e-6)  # of a log-normal variable
        np.testing.assert_allclose(found.variance, np.log(2), rtol=1e-6)

    @pytest.mark.parametrize("rho", [0.0, 0.6, -0.9])
    def test_two_variables(self, rho):
        z = np.random.default_rng(0).normal(size=(2, 200_000))
        u, w = 0.3 + 0.8 * z[0], -0.2 + 0.7 * (rho * z[0] + np.sqrt(1 - rho**2) * z[1])
        means, variances = (jnp.full(1, 0.3), jnp.full(1, -0.2)), (jnp.full(1, 0.8**2), jnp.full(1, 0.7**2))
        mean, variance, p = normal.of_maximum(means, variances, rho)
        drawn = np.maximum(u, w)
        np.testing.assert_allclose([mean[0], variance[0], p[0]], [drawn.mean(), drawn.var(), (u > w).mean()], rtol=1e-2)
        mean, variance, slopes = normal.of_two(lambda u, w: jnp.tanh(u) * w, means, variances, rho)
        drawn = np.tanh(u) * w
        np.testing.assert_allclose([mean[0], variance[0]], [drawn.mean(), drawn.var()], rtol=5e-2, atol=5e-3)
        by_parts = [(w / np.cosh(u) ** 2).mean(), np.tanh(u).mean()]
        np.testing.assert_allclose(np.ravel(slopes), by_parts, atol=5e-2)

    def test_derivatives_are_those_of_the_mean(self):
        check_grads(normal.positive_part, (self.MEANS, self.VARIANCES), order=1, rtol=1e-5)


@pytest.mark.usefixtures("x64")
class TestExact:
    """Where the multilinear extension is known, Shapley values are exact, whatever the signs."""

    @pytest.mark.parametrize(
        "fun",
        [
            lambda x: x @ np.arange(1, 5.0),
            lambda x: jnp.sin(x).sum(1) - (jnp.exp(x) @ np.arange(4.0)),
            lambda x: (x @ np.arange(4.0)) ** 2,
            lambda x: (x @ np.arange(4.0)) * (x @ np.ones(4)),
        ],
        ids=["linear", "of each alone", "square", "product"],
    )
    def test_small(self, rng, fun):
        x, r = rng.normal(size=(2, 3, 4))
        expected = jax.jit(jaxlift.shapley(fun))(x, reference=r[0])
        np.testing.assert_allclose(jax.jit(jaxlift.shapley_moments(fun))(x, reference=r[0]), expected, atol=1e-10)

    @pytest.mark.parametrize("how", ["conv", "dense", "flat"])
    def test_the_elements_of_a_player_are_added_before_they_are_squared(self, rng, how):
        kernel, weights = rng.normal(size=(3, 4, 2)), rng.normal(size=(6, 4, 3))

        def fun(x):
            if how == "conv":
                y = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
            elif how == "dense":
                y = jnp.einsum("npc,pcf->nf", x, weights)
            else:
                y = x.reshape(-1, 24) @ weights.reshape(24, 3)
            return (y**2).reshape(len(x), -1).sum(1)

        x = np.eye(4)[rng.integers(0, 4, (2, 6))]
        options = {"groups": np.arange(6)[:, None]}
        reference = np.array([0.3, 0.2, 0.2, 0.3]) + np.zeros((6, 4))
        expected = jax.jit(jaxlift.shapley(fun, **options))(x, reference=reference)
        found = jax.jit(jaxlift.shapley_moments(fun, **options))(x, reference=reference)
        np.testing.assert_allclose(found, expected, atol=1e-10)

    def test_tokens(self, rng):
        """Embeddings and what is done to each alone have two values; integers may be explained."""
        table, out = rng.normal(size=(20, 8)), rng.normal(size=8)

        def fun(tokens):
            e = jnp.asarray(table)[tokens]
            e = (e - e.mean(-1, keepdims=True)) / jnp.sqrt(e.var(-1, keepdims=True) + 1e-3)
            return jnp.tanh(e @ out).sum(1) ** 2

        tokens = rng.integers(0, 20, (2, 6))
        reference = np.zeros(6, int)
        expected = jax.jit(jaxlift.shapley(fun))(tokens, reference=reference)
        found = jax.jit(jaxlift.shapley_moments(fun))(tokens, reference=reference)
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:shapley_moments has no formula")
@pytest.mark.parametrize(
    "name",
    [
        # Programs of a kind stand together: of those that are not quick CI tries every fourth, a run by hand the rest.
        pytest.param(name, marks=[] if name in FEW else [pytest.mark.systems if i % 4 else pytest.mark.slow])
        for i, name in enumerate(EVERY)
        if name not in (*SLOWEST, *BY_CHOICES, *UNBATCHED)
    ],
)
@pytest.mark.sample(14)
def test_complete(name):
    x, r = input_and_reference(jnp.float64)
    attr = jaxlift.shapley_moments(lambda x: EVERY[name](x[0])[None], full=True)
    found = jax.jit(attr)(x[None], reference=r)
    assert np.isfinite(found.scores).all()
    scale = np.abs(found.scores).sum() + np.abs(found.output).max()
    assert np.abs(found.delta).max() <= (1e-10 if PRECISION.get(name) is None else 1e-6) * scale


POOLED = """
import jax, jax.numpy as jnp, numpy as np, jaxlift

kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 16))
windows = (1, 2, 2, 1)

def fun(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.nn.relu(jax.lax.conv_general_dilated(x[..., None], kernel, (1, 1), "SAME", dimension_numbers=numbers))
    return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, windows, windows, "VALID").sum((1, 2, 3))

x = jax.random.normal(jax.random.key(1), (4, 8, 8))
found = jax.jit(jaxlift.shapley_moments(fun, nodes=5, probes=8, full=True))(x, reference=jnp.zeros((8, 8)))
np.testing.assert_allclose(found.delta, 0, atol=1e-3)
"""


@pytest.mark.slow
def test_pooled_batches_with_many_probes_run():
    """With XLA's optimisations, which other tests do without: sums over probes were compiled to what crashed."""
    subprocess.run([sys.executable, "-c", POOLED], check=True, timeout=600)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", BY_CHOICES)
def test_refused(name):
    x, r = input_and_reference(jnp.float64)
    attr = jaxlift.shapley_moments(lambda x: EVERY[name](x[0])[None])
    with pytest.raises(jaxlift.MissingRuleError, match=r"zoo\.py:\d+.*samples="):
        jax.eval_shape(lambda x: attr(x, reference=r), x[None])


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, pytest.param(jax.nn.gelu, marks=pytest.mark.slow)], ids=["relu", "gelu"]
)
def test_nearer_than_rules(activation):
    """By at least half, on random networks that no setting was chosen on."""
    found = {"moments": [], "rescale": [], "integrated gradients": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        fun = network(layers_of((10, 48, 48, 1), rng), activation)
        x = rng.normal(size=(3, 10)).astype(np.float32)
        r = np.zeros(10, np.float32)
        expected = np.asarray(jax.jit(jaxlift.shapley(fun))(x, reference=r))
        for name, attr in (
            ("moments", jaxlift.shapley_moments(fun)),
            ("rescale", jaxlift.attribute(fun)),
            ("integrated gradients", jaxlift.integrated_gradients(fun, steps=10)),
        ):
            found[name] += map(distance, jax.jit(attr)(x, reference=r), expected)
    mean = {name: np.median(each) for name, each in found.items()}
    assert mean["moments"] < min(0.2, mean["rescale"] / 2, mean["integrated gradients"] / 2)


@pytest.mark.parametrize("lead", [0.0, 2.0, 6.0])
def test_softmax_as_written(rng, lead):
    """The module's formulas, one logit at a time: the first one leads, or none does."""
    means, v = rng.normal(size=5), rng.uniform(0.1, 2, size=5)
    means[0] += lead
    each = []
    for k in range(5):
        others = [j for j in range(5) if j != k]
        w = np.exp(means[others]) / np.exp(means[others]).sum()
        level = means[k] - np.log(np.exp(means[others]).sum()) - (w * (1 - w) * v[others]).sum() / 2
        each.append(1 / (1 + np.exp(-level / np.sqrt(1 + np.pi / 8 * (v[k] + (w**2 * v[others]).sum())))))
    with jax.enable_x64(True):
        found = softmax(Moments(*map(jnp.asarray, (means, v, np.zeros((1, 5)), np.zeros(5)))), (0,)).mean
    np.testing.assert_allclose(found, np.array(each) / np.sum(each), rtol=1e-12)


def test_softmax_has_its_digits_in_float32(rng):
    """Also where one logit is beyond all others together, and 1 less its softmax has few digits or none."""
    means, variances = 6 * rng.normal(size=(2000, 9)), rng.uniform(0.1, 30, size=(2000, 9))
    means[:, 0] += np.linspace(0, 200, 2000)

    def mean(means, variances):
        return softmax(Moments(means, variances, jnp.zeros((1, 9), means.dtype), variances * 0), (0,)).mean

    def both(dtype):
        rows = means.astype(dtype), variances.astype(dtype)
        return jax.jit(jax.vmap(mean))(*rows), jax.jit(jax.vmap(jax.jacobian(mean)))(*rows)

    with jax.enable_x64(True):
        expected = both(np.float64)
    for found, exact in zip(both(np.float32), expected, strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize("lead", [0.0, 5.0, 20.0])
def test_softmax_is_near_to_what_is_drawn(rng, lead):
    means, variances = np.append(rng.normal(size=5), lead), rng.uniform(0.1, 1.5, size=6)
    drawn = np.exp(means + np.sqrt(variances) * rng.normal(size=(200_000, 6)))
    expected = (drawn / drawn.sum(1, keepdims=True)).mean(0)
    u = Moments(*(jnp.asarray(each, jnp.float32) for each in (means, variances, np.zeros((1, 6)), np.zeros(6))))
    np.testing.assert_allclose(softmax(u, (0,)).mean, expected, atol=0.03)


def attention(x):
    """Attention over six tokens of four numbers, with a layer normalisation."""
    rng = np.random.default_rng(5)
    q, k, v, w = (jnp.asarray(rng.normal(size=(4, 4)), x.dtype) for _ in range(4))
    x = x + (jax.nn.softmax(jnp.einsum("nic,njc->nij", x @ q, x @ k) / 2, -1) @ (x @ v))
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return jnp.tanh(x @ w).sum((1, 2))


@pytest.mark.slow
def test_attention(rng):
    x = rng.normal(size=(4, 6, 4)).astype(np.float32)
    r = np.zeros((6, 4), np.float32)
    groups = np.arange(6)[:, None]
    expected = np.asarray(jax.jit(jaxlift.shapley(attention, groups=groups))(x, reference=r)).sum(-1)
    found, rescale = (
        np.asarray(jax.jit(attr)(x, reference=r)).sum(-1)
        for attr in (jaxlift.shapley_moments(attention, groups=groups, probes=4), jaxlift.attribute(attention))
    )
    assert np.median(list(map(distance, found, expected))) < np.median(list(map(distance, rescale, expected)))


class TestTransformations:
    FUN = staticmethod(network(layers_of((4, 6, 3)), jnp.tanh, lambda y: y))
    DRAWN = np.random.default_rng(30).normal(size=(5, 4)).astype(np.float32)
    X, R = DRAWN[:3], DRAWN[3:]

    def test_examples_and_references_are_independent(self):
        attr = jax.jit(jaxlift.shapley_moments(self.FUN, target=1, average=False))
        found = attr(self.X, reference=self.R)
        alone = [[attr(x[None], reference=r)[0] for r in self.R] for x in self.X]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)
        mean = jax.jit(jaxlift.shapley_moments(self.FUN, target=1, batch_size=2))(self.X, reference=self.R)
        np.testing.assert_allclose(mean, np.mean(found, 1), rtol=1e-4, atol=1e-6)

    def test_all_targets(self):
        found = jax.jit(jaxlift.shapley_moments(self.FUN, target="all", full=True))(self.X, reference=self.R[0])
        for k in range(3):
            one = jax.jit(jaxlift.shapley_moments(self.FUN, target=k))(self.X, reference=self.R[0])
            np.testing.assert_allclose(found.scores[:, k], one, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.delta, 0, atol=1e-5)

    def test_vmap_and_grad(self):
        attr = jaxlift.shapley_moments(self.FUN, target=0)
        by_vmap = jax.jit(jax.vmap(lambda x: attr(x[None], reference=self.R[0])[0]))(self.X)
        np.testing.assert_allclose(by_vmap, jax.jit(attr)(self.X, reference=self.R[0]), rtol=1e-4, atol=1e-6)
        gradient = jax.jit(jax.grad(lambda x: (attr(x, reference=self.R[0]) ** 2).sum()))(self.X)
        assert np.isfinite(gradient).all()
        assert gradient.any()

    def test_layers(self, rng):
        w = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)

        def fun(x):
            return jnp.tanh(checkpoint_name(x @ w, "h") ** 2).sum(1)

        found = jax.jit(jaxlift.shapley_moments(fun, layer="h"))(self.X, reference=self.R[0])
        h, r = self.X @ w, self.R[0] @ w
        np.testing.assert_allclose(found, jnp.tanh(h**2) - jnp.tanh(r**2)[None], rtol=1e-4, atol=1e-5)

    def test_pytrees_and_arguments(self, rng):
        def fun(weights, x, y):  # a square, whose moments are exact
            return ((jnp.concatenate([x["a"], y.reshape(-1, 4)], 1) @ weights) ** 2).sum(1)

        weights = rng.normal(size=(6, 3)).astype(np.float32)
        x = {"a": rng.normal(size=(2, 2)).astype(np.float32)}
        y = rng.normal(size=(2, 2, 2)).astype(np.float32)
        reference = jax.tree.map(lambda leaf: np.zeros_like(leaf[0]), (x, y))
        options = {"argnums": (1, 2), "groups": ({"a": np.arange(2)}, np.array([[2], [3]]))}
        found, exact = (
            jax.jit(attr)(weights, x, y, reference=reference)
            for attr in (jaxlift.shapley_moments(fun, **options), jaxlift.shapley(fun, **options))
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1][..., 0], found[1][..., 1], rtol=1e-6)  # a group's elements share alike

    def test_precisions(self):
        single = jax.jit(jaxlift.shapley_moments(self.FUN, target=0))(self.X, reference=self.R[0])
        assert single.dtype == np.float32
        with jax.enable_x64(True):
            x, r = self.X.astype(float), self.R[0].astype(float)
            double = jax.jit(jaxlift.shapley_moments(self.FUN, target=0, key=jax.random.key(0)))(x, reference=r)
            assert double.dtype == np.float64
            full = jax.jit(jaxlift.shapley_moments(self.FUN, target=0, full=True))(x, reference=r)
            np.testing.assert_allclose(full.delta, 0, atol=1e-14)
        half = jax.jit(jaxlift.shapley_moments(self.FUN, target=0))(
            self.X.astype(jnp.bfloat16), reference=self.R[0].astype(jnp.bfloat16)
        )
        assert half.dtype == jnp.bfloat16
        assert distance(half.astype(np.float32), np.asarray(single)) < 0.1


class TestDraws:
    FUN = staticmethod(network(layers_of((6, 12, 12, 1)), jax.nn.relu))
    X, R = np.random.default_rng(30).normal(size=(2, 6)).astype(np.float32), np.zeros(6, np.float32)

    def drawn(self, **options):
        """Scores as a function of the key."""
        return jax.jit(
            lambda key: jaxlift.shapley_moments(self.FUN, key=key, full=True, **options)(self.X, reference=self.R)
        )

    def test_the_standard_error_is_that_of_independent_draws(self):
        drawn = self.drawn(samples=16)
        few = [drawn(jax.random.key(k)) for k in range(8)]
        spread = np.std([each.scores for each in few], 0, ddof=1)
        error = np.mean([each.standard_error for each in few], 0)
        np.testing.assert_allclose(np.linalg.norm(error), np.linalg.norm(spread), rtol=0.4)
        np.testing.assert_allclose(few[0].delta, 0, atol=1e-5)

    def test_keys(self):
        drawn = self.drawn()
        one, other = (drawn(jax.random.key(k)).scores for k in (0, 1))
        assert (one != other).any()
        without = jax.jit(jaxlift.shapley_moments(self.FUN))(self.X, reference=self.R)
        np.testing.assert_allclose(without, one, rtol=1e-5)


@pytest.mark.slow
def test_what_is_for_compilers_has_the_moments_of_what_it_hands_on():
    """Multipliers wait for their cotangents, and streams are computed once."""

    def multipliers(x):
        reference = jnp.zeros(3)
        return jax.vmap(lambda x: jaxlift.vjp(lambda x: (x + jnp.tanh(x @ jnp.eye(3))).sum(), x, reference)[1](1.0))(x)

    x = jnp.array([[0.5, -1.0, 2.0]])
    program = str(jax.make_jaxpr(multipliers)(x))
    assert "computed_once" in program
    assert "wait_for_cotangent" in program
    scores = jaxlift.shapley_moments(lambda x: multipliers(x).sum(1))(x, reference=jnp.zeros(3))
    np.testing.assert_allclose(scores.sum(1), (multipliers(x) - multipliers(0 * x)).sum(1), rtol=1e-4)


class TestMessages:
    X = np.linspace(-1, 2, 6, dtype=np.float32)[None]

    def attr(self, fun, **options):
        return jaxlift.shapley_moments(lambda x: fun(x[0])[None], **options)

    def test_what_has_no_formula_is_named(self):
        fun = lambda x: jnp.linalg.eigvalsh(jnp.outer(x[:3], x[:3]) + jnp.eye(3)).max()  # noqa: E731
        with pytest.warns(
            UserWarning, match=r"no formula for the moments of `eigh` \(linearised.*test_moments\.py:\d+"
        ):
            jax.eval_shape(lambda x: self.attr(fun)(x, reference=x[0] * 0), self.X)
        with pytest.raises(jaxlift.MissingRuleError, match=r"`eigh` has no formula.*test_moments\.py:\d+.*samples="):
            jax.eval_shape(lambda x: self.attr(fun, missing_rule="raise")(x, reference=x[0] * 0), self.X)

    def test_what_has_no_derivative_is_refused(self):
        fun = lambda x: jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h * 1.5 + 1, jnp.abs(x)).sum()  # noqa: E731
        with pytest.raises(jaxlift.MissingRuleError, match=r"`while` .*no derivative.*test_moments\.py:\d+"):
            jax.eval_shape(lambda x: self.attr(fun)(x, reference=x[0] * 0), self.X)

    def test_what_depends_by_choices_alone_is_refused(self):
        with pytest.raises(jaxlift.MissingRuleError, match=r"by choices alone.*`argmax` \(held.*test_moments\.py:\d+"):
            jax.eval_shape(lambda x: self.attr(lambda x: x.argmax() * 2.0)(x, reference=x[0] * 0), self.X)

    def test_formulas_give_no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attr = jaxlift.shapley_moments(attention)
            jax.eval_shape(lambda x: attr(x, reference=x[0] * 0), np.ones((1, 6, 4)))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"nodes": 0}, ValueError, "nodes=0 must be an int, 1 at least"),
            ({"probes": 1.5}, ValueError, "probes=1.5 must be an int"),
            ({"samples": 1}, ValueError, "samples=1 must be an int, 2 at least"),
            ({"key": 3}, TypeError, "expected a PRNG key"),
            ({"missing_rule": "skip"}, ValueError, "missing_rule='skip' must be one of 'raise', 'derivative'"),
            ({"output": "multipliers"}, ValueError, "needs a method that gives multipliers"),
            ({"node": 3}, TypeError, "did you mean nodes="),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            jaxlift.shapley_moments(lambda x: x.sum(1), **options)

    def test_bad_groups(self):
        with pytest.raises(ValueError, match="integers that aren't negative, or strings"):
            self.attr(jnp.sum, groups=np.array([0, 0, -1, 2, 2, 2]))(self.X, reference=self.X[0] * 0)


@pytest.mark.parametrize(
    ("fun", "x"),
    [
        (lambda x: (x[:, 0] * x[:, 1] > 1e10) * 1.0, [[2e5, 1e5]]),
        (lambda x: jax.nn.relu(x.sum(1) - 990), np.ones((1, 1000))),
    ],
    ids=["squared variances above the range", "squared gradients below it"],
)
def test_sums_are_kept_at_the_ends_of_the_range(fun, x):
    x = jnp.asarray(x, jnp.float32)
    scores = jax.jit(jaxlift.shapley_moments(fun))(x, reference=jnp.zeros_like(x[0]))
    np.testing.assert_allclose(scores.sum(1), fun(x), rtol=1e-4)


@pytest.mark.slow
def test_a_mask_that_varies_is_told():
    """The mean with an infinite number is none, so such a choice is the one at the mean."""
    mix = np.random.default_rng(0).normal(size=(4, 3))
    attr = jaxlift.shapley_moments(
        lambda x: jax.nn.softmax(jnp.where(x[:, :3] @ mix[:3] > -5, x @ mix, -jnp.inf))[:, 0]
    )
    with pytest.warns(UserWarning, match="`select_n` .choice held as it is at the mean"):
        attr(jnp.ones((1, 4)), reference=jnp.zeros(4))
