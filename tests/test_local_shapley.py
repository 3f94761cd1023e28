"""The rule `"local_shapley"`: against its formula in plain NumPy, and what every rule must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from programs import PROGRAMS, input_and_reference
from test_moments import distance, layers_of, network
from test_sum import explain, missing

import jaxlift

AT, WEIGHT = np.polynomial.legendre.leggauss(5)
Z, OF_Z = np.polynomial.hermite_e.hermegauss(7)
OF_Z = OF_Z / OF_Z.sum()

RULES = {"alone": "local_shapley", "per layer": jaxlift.PerLayer(conv="revealcancel", dense="local_shapley")}


@pytest.fixture
def rng():
    """The same draws in each test, whichever ran before."""
    return np.random.default_rng(31)


def mean_derivative(activation, r, d, q):
    """`m_1` of one unit."""
    total = 0.0
    for t, w in zip((AT + 1) / 2, WEIGHT / 2, strict=True):
        mu, sigma = r + t * d, np.sqrt(t * (1 - t) * q)
        if activation is jax.nn.relu:
            total += w * float(norm.cdf(mu / sigma))
        else:
            total += w * sum(u * (1 - np.tanh(mu + sigma * z) ** 2) for z, u in zip(Z, OF_Z, strict=True))
    return total


def by_hand(layers, activation, x, r):
    """Contributions, unit by unit, for networks of dense layers."""
    f = {jax.nn.relu: lambda u: np.maximum(u, 0), jnp.tanh: np.tanh}[activation]
    ends = [(x, r)]
    for w, b in layers[:-1]:
        ends += [tuple(f(end @ w + b) for end in ends[-1])]
    multipliers = layers[-1][0][:, 0]
    for (w, b), (h, g) in zip(layers[-2::-1], ends[-2::-1], strict=True):
        back = np.zeros(len(h))
        for unit in range(w.shape[1]):
            c = w[:, unit] * (h - g)
            start, d, q = g @ w[:, unit] + b[unit], c.sum(), (c**2).sum()
            m1 = mean_derivative(activation, start, d, q)
            m2 = (f(start + d) - f(start) - m1 * d) / q
            back += multipliers[unit] * (m1 * w[:, unit] + m2 * w[:, unit] * c)
        multipliers = back
    return multipliers * (x - r)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_as_written(rng, activation):
    layers = layers_of((4, 6, 5, 1))
    x, r = rng.normal(size=(2, 4))
    attr = jax.jit(jaxlift.attribute(network(layers, activation), rule="local_shapley"))
    np.testing.assert_allclose(attr(x[None], reference=r)[0], by_hand(layers, activation, x, r), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("program", "rule"),
    [
        # A quarter is quick, and another quarter is tried by layer as well.
        pytest.param(
            program, rule, id=f"{program}-{kind}", marks=[pytest.mark.slow] * (kind == "per layer" or i % 4 > 0)
        )
        for i, program in enumerate(PROGRAMS)
        for kind, rule in RULES.items()
        if program.precision is None and (kind == "alone" or i % 4 == 1)
    ],
)
@pytest.mark.sample(12)
def test_complete(program, rule):
    x, r = input_and_reference(jnp.float64)
    values, multipliers, plain = explain(program.fun, x, r, rule)
    error, scale = missing(values, multipliers, x, r)
    assert np.isfinite(multipliers).all()
    assert error <= 1e-11 * scale
    np.testing.assert_allclose(values, plain, rtol=1e-9)


@pytest.mark.usefixtures("x64")
class TestUnits:
    def multipliers(self, fun, x, r, rule="local_shapley"):
        return jax.jit(lambda x, r: jaxlift.vjp(fun, x, r, rule=rule)[1](jnp.ones(())))(x, r)

    def test_one_term_takes_all(self):
        for fun in (jnp.tanh, jax.nn.relu, jax.nn.gelu):
            m = self.multipliers(fun, 1.3, -0.4)
            np.testing.assert_allclose(m, (fun(1.3) - fun(-0.4)) / 1.7, rtol=1e-12)

    def test_equal_terms_share_alike(self):
        w = jnp.array([1.0, 1.0, 1.0])
        m = self.multipliers(lambda x: jax.nn.relu(x @ w - 1), jnp.ones(3), jnp.zeros(3))
        np.testing.assert_allclose(m, 2 / 3, rtol=1e-12)

    def test_sums_of_branches_add_squares(self, rng):
        """A sum is one map, in however many steps it is made."""
        w = rng.normal(size=(4, 3))
        x, r = rng.normal(size=(2, 4))
        whole = self.multipliers(lambda x: jnp.tanh(x @ w).sum(), x, r)
        parts = self.multipliers(lambda x: jnp.tanh(x[:2] @ w[:2] + x[2:] @ w[2:]).sum(), x, r)
        negated = self.multipliers(lambda x: jnp.tanh(x[:2] @ w[:2] - x[2:] @ -w[2:]).sum(), x, r)
        terms = self.multipliers(lambda x: jnp.tanh((x[:, None] * w).sum(0)).sum(), x, r)
        for other in (parts, negated, terms):
            np.testing.assert_allclose(other, whole, rtol=1e-10)

    @pytest.mark.parametrize("fun", [jnp.tanh, jax.nn.gelu, jax.nn.silu])
    def test_tends_to_the_derivative(self, rng, fun):
        w = rng.normal(size=(4, 3))
        r = rng.normal(size=4)
        gradient = jax.grad(lambda x: fun(x @ w).sum())(r)
        for size in (1e-2, 1e-4, 1e-7, 1e-12, 0.0):
            found = self.multipliers(lambda x: fun(x @ w).sum(), r + size, r)
            np.testing.assert_allclose(found, gradient, atol=10 * size + 1e-6)

    def test_what_is_no_activation_takes_rescale(self, rng):
        fun = lambda x: jnp.exp(x @ jnp.arange(3.0)) + (x @ jnp.ones(3)) ** 3  # noqa: E731
        x, r = rng.normal(size=(2, 3))
        np.testing.assert_allclose(self.multipliers(fun, x, r), self.multipliers(fun, x, r, "rescale"), rtol=1e-12)


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, pytest.param(jnp.tanh, marks=pytest.mark.slow)], ids=["relu", "tanh"]
)
def test_nearer_than_rescale(activation):
    found = {"local_shapley": [], "rescale": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        fun = network(layers_of((10, 48, 48, 1), rng), activation)
        x, r = rng.normal(size=(3, 10)).astype(np.float32), np.zeros(10, np.float32)
        expected = np.asarray(jax.jit(jaxlift.shapley(fun))(x, reference=r))
        for rule, each in found.items():
            each += map(distance, jax.jit(jaxlift.attribute(fun, rule=rule))(x, reference=r), expected)
    assert np.median(found["local_shapley"]) < 0.9 * np.median(found["rescale"])


@pytest.mark.slow
def test_transformations(rng):
    fun = network(layers_of((4, 6, 3)), jax.nn.gelu, lambda y: y)
    x, r = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
    attr = jaxlift.attribute(fun, rule="local_shapley", target=1, average=False, full=True)
    found = jax.jit(attr)(x, reference=r)
    np.testing.assert_allclose(found.delta, 0, atol=2e-6)
    alone = [[jax.jit(attr)(a[None], reference=b).scores[0] for b in r] for a in x]
    np.testing.assert_allclose(found.scores, alone, rtol=1e-4, atol=1e-6)
    by_vmap = jax.vmap(lambda a: attr(a[None], reference=r).scores[0])(x)
    np.testing.assert_allclose(found.scores, by_vmap, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda x: (attr(x, reference=r).scores ** 2).sum())(x)
    assert np.isfinite(gradient).all()
    with jax.enable_x64(True):
        double = jax.jit(attr)(x.astype(float), reference=r.astype(float))
        np.testing.assert_allclose(found.scores, double.scores, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inner", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16])
def test_activations_of_another_dtype_than_their_argument(rng, inner, dtype):
    """A function that casts between its steps."""
    w = jnp.asarray(rng.normal(size=(4, 3)), dtype)
    x, r = (jnp.asarray(rng.normal(size=4), dtype) for _ in range(2))

    def fun(x):
        return jnp.clip(2 * jnp.tanh(x @ w).astype(inner), -0.5, 1).sum()

    (y, y_ref), pull = jaxlift.vjp(fun, x, r, rule="local_shapley")
    multipliers = pull(jnp.ones_like(y))
    assert multipliers.dtype == dtype
    contributions = np.asarray(multipliers * (x - r), float)
    tolerance = 4 * float(max(jnp.finfo(inner).eps, jnp.finfo(dtype).eps)) * np.abs(contributions).sum() + 1e-6
    np.testing.assert_allclose(contributions.sum(), float(y) - float(y_ref), atol=tolerance)


@pytest.mark.parametrize("rule", ["local_shapley", "guided_backprop", "epsilon_lrp", "moments"])
@pytest.mark.parametrize("root", [lambda x: jnp.sqrt(jax.nn.relu(x)), lambda x: jax.nn.relu(x) ** 0.5])
def test_a_root_of_a_relu_has_a_derivative_to_its_left(rng, root, rule):
    """0, as JAX's is. Forwards it is an infinity times 0."""
    x, r = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 5), (5,)))
    weights = rng.normal(size=(5, 9)).astype(np.float32)

    def model(x):
        return root(x @ weights).sum(1)

    if rule == "moments":
        found = jaxlift.shapley_moments(model, full=True)(x, reference=r)
    else:
        needs = {"reference": r} if rule == "local_shapley" else {}
        found = jaxlift.attribute(model, rule=rule, full=True)(x, **needs)
    assert np.isfinite(found.scores).all()
    if rule == "guided_backprop":  # of one layer it is the gradient
        np.testing.assert_allclose(found.scores, x * jax.grad(lambda x: model(x).sum())(x), rtol=1e-5, atol=1e-6)
    if rule in ("local_shapley", "moments"):
        assert np.abs(found.delta).max() < 1e-5 * np.abs(found.scores).sum(1).max()


def test_a_root_of_a_maximum_where_both_ends_lie_on_its_kink():
    attr = jaxlift.attribute(lambda x: jnp.sqrt(jnp.maximum(x, 0)).sum(1), rule="local_shapley")
    scores = attr(jnp.array([[0.0, 4.0, -1.0]]), reference=jnp.array([0.0, 1.0, -2.0]))
    np.testing.assert_allclose(scores, [[0, 1, 0]], atol=1e-6)
