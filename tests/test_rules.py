"""The rules, against the paper's formulas written out (`oracles.py`), on random networks in float64."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

import jaxlift

pytestmark = pytest.mark.usefixtures("x64")

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
}
RULES = {"rescale": oracles.Rescale, "revealcancel": oracles.RevealCancel}


def contributions(fun, x, r, rule, output):
    (y, _), pullback = jaxlift.vjp(fun, jnp.asarray(x), jnp.asarray(r), rule=rule)
    return pullback(jnp.zeros_like(y).at[output].set(1.0)) * (x - r)


def perceptron(rng, activation, make):
    """Four layers; some inputs and one hidden difference are 0."""
    w = [rng.normal(size=shape) for shape in ((7, 6), (6, 5), (5, 3))]
    b = [rng.normal(size=n) for n in (6, 5, 3)]
    layers = [oracles.Dense(w[0], b[0]), make(), oracles.Dense(w[1], b[1]), make(), oracles.Dense(w[2], b[2])]
    f = ACTIVATIONS[activation]
    return 7, layers, lambda x: f(f(x @ w[0] + b[0]) @ w[1] + b[1]) @ w[2] + b[2]


def batch_norm(rng, activation, make):
    w, v, b = rng.normal(size=(6, 5)), rng.normal(size=(5, 2)), rng.normal(size=5)
    slope, offset = rng.normal(size=5), rng.normal(size=5)
    layers = [oracles.Dense(w, b), oracles.Scale(slope, offset), make(), oracles.Dense(v, np.zeros(2))]
    f = ACTIVATIONS[activation]
    return 6, layers, lambda x: f((x @ w + b) * slope + offset) @ v


def convolution(rng, activation, make):
    """Convolution, activation, average pooling, activation (whose parts come through the pooling), dense."""
    k, b = rng.normal(size=(3, 2, 4)), rng.normal(size=4)
    k2, b2 = rng.normal(size=(2, 4, 3)), rng.normal(size=3)
    v = rng.normal(size=(12, 2))
    layers = [oracles.conv1d(k, b, 7), make(), oracles.conv1d(k2, b2, 5), make(), oracles.Dense(v, np.zeros(2))]
    f = ACTIVATIONS[activation]

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))

    def fun(x):
        h = f(conv(x.reshape(1, 7, 2), k) + b[None, None])
        return f(conv(h, k2) + b2[None, None]).reshape(12) @ v

    return 14, layers, fun


def pooling(rng, activation, make):
    """Parts that pass from one activation to the next through an average and a scaling of either sign."""
    w, b = rng.normal(size=(5, 8)), rng.normal(size=8)
    slope, offset, v = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(4, 2))
    layers = [
        *(oracles.Dense(w, b), make(), oracles.Mean(2), oracles.Scale(slope, offset), make()),
        oracles.Dense(v, np.zeros(2)),
    ]
    f = ACTIVATIONS[activation]
    return 5, layers, lambda x: f(f(x @ w + b).reshape(4, 2).mean(1) * slope + offset) @ v


def residual(rng, activation, make):
    """Parts that meet in a sum, before an activation that needs them."""
    w, b, v = rng.normal(size=(5, 5)), rng.normal(size=5), rng.normal(size=(5, 2))
    first, first_b = rng.normal(size=(4, 5)), rng.normal(size=5)
    inner = [oracles.Dense(w, b), make()]
    layers = [oracles.Dense(first, first_b), oracles.Residual(inner), make(), oracles.Dense(v, np.zeros(2))]
    f = ACTIVATIONS[activation]

    def fun(x):
        h = x @ first + first_b
        return f(h + f(h @ w + b)) @ v

    return 4, layers, fun


# Every second pair here, so that each network and each activation has its share; the rest with the slow tests.
PAIRS = [
    pytest.param(network, activation, marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, network in enumerate((perceptron, batch_norm, convolution, pooling, residual))
    for j, activation in enumerate(ACTIVATIONS)
]


@pytest.mark.parametrize(("network", "activation"), PAIRS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.sample(12)
def test_rule_is_the_papers(network, activation, rule):
    rng = np.random.default_rng(5)
    size, layers, fun = network(rng, activation, lambda: RULES[rule](*oracles.FUNCTIONS[activation]))
    explain = jax.jit(lambda x, r: contributions(fun, x, r, rule, 1))
    for _ in range(3):
        x, r = rng.normal(size=(2, size))
        x[1] = r[1]
        expected = oracles.deeplift(layers, x, r, 1)
        np.testing.assert_allclose(explain(x, r), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(
            expected.sum(), (oracles.forward(layers, x) - oracles.forward(layers, r))[1], atol=1e-12
        )


def test_linear_rule_where_differences_are_zero():
    """A zero difference has the mean of both parts' multipliers; nothing but RevealCancel above it tells."""
    w = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 1.0]])
    x, r = np.array([1.0, 2.0, 0.0]), np.array([0.0, 2.0, 1.0])

    @jax.jit
    def multipliers(x, r):
        return jaxlift.vjp(lambda x: jnp.tanh(x @ w), x, r, rule="revealcancel")[1](np.ones(2))

    layers = [oracles.Dense(w, np.zeros(2)), oracles.RevealCancel(*oracles.FUNCTIONS["tanh"])]
    d = x - r
    states = oracles.trace(layers, x, r, np.maximum(d, 0), np.minimum(d, 0))
    expected, _ = oracles.back(layers, states, np.ones(2), np.ones(2))
    np.testing.assert_allclose(multipliers(x, r), expected, rtol=1e-12)


class TestChoiceOfRule:
    """A network of a convolution and two dense layers, explained by a rule for each place."""

    rng = np.random.default_rng(9)
    k, w, v = rng.normal(size=(3, 1, 2)), rng.normal(size=(8, 3)), rng.normal(size=(3, 1))
    x, r = rng.normal(size=(2, 6))

    def fun(self, x):
        h = lax.conv_general_dilated(x.reshape(1, 6, 1), self.k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        with jax.named_scope("body"):
            h = jax.nn.relu(h + 0.1).reshape(8)
        with jax.named_scope("head"):
            return (jax.nn.relu(h @ self.w + 0.1) @ self.v)[0]

    def expected(self, after_conv, after_dense):
        layers = [
            *(oracles.conv1d(self.k, np.full(2, 0.1), 6), after_conv(*oracles.FUNCTIONS["relu"])),
            *(oracles.Dense(self.w, np.full(3, 0.1)), after_dense(*oracles.FUNCTIONS["relu"])),
            oracles.Dense(self.v, np.zeros(1)),
        ]
        return oracles.deeplift(layers, self.x, self.r, 0)

    @pytest.mark.parametrize(
        ("rule", "after_conv", "after_dense"),
        [
            ("genomics_default", oracles.Rescale, oracles.RevealCancel),
            (jaxlift.PerLayer(dense="rescale", conv="revealcancel"), oracles.RevealCancel, oracles.Rescale),
            (jaxlift.PerLayer(scopes={"head*": "revealcancel"}), oracles.Rescale, oracles.RevealCancel),
            (
                jaxlift.PerLayer(dense="revealcancel", scopes={"head*": jaxlift.Rescale()}),
                oracles.Rescale,
                oracles.Rescale,
            ),
        ],
    )
    def test_by_feeding_layer_and_by_scope(self, rule, after_conv, after_dense):
        explain = jax.jit(lambda x, r: jaxlift.vjp(self.fun, x, r, rule=rule)[1](jnp.ones(())) * (x - r))
        expected = self.expected(after_conv, after_dense)
        np.testing.assert_allclose(explain(self.x, self.r), expected, rtol=1e-10, atol=1e-12)
        assert not np.allclose(self.expected(after_dense, after_conv), expected) or after_conv is after_dense

    def test_what_feeds_passes_normalisation_and_pooling(self):
        def fun(x):
            h = lax.conv_general_dilated(
                x.reshape(1, 6, 1), self.k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
            h = lax.reduce_window(h * 0.5 + 1, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
            return jax.nn.relu(h - 1).sum()

        seen = []

        class Watch(jaxlift.Rescale):
            def at(self, place):
                seen.extend([place.fed_by] if place.family == "pointwise" else [])
                return self

        jax.eval_shape(lambda x, r: jaxlift.vjp(fun, x, r, rule=Watch())[0], self.x, self.r)
        assert seen == [frozenset({"conv"})]

    def test_a_scope_that_is_none_of_the_programs(self):
        rule = jaxlift.PerLayer(scopes={"hidden": "revealcancel", "head*": "rescale"})

        def model(x):
            with jax.named_scope("hidden"):
                h = jax.nn.relu(x @ jnp.ones((3, 4)))
            return jnp.tanh(h).sum(1)

        attr = jaxlift.attribute(model, rule=rule)
        with pytest.warns(
            UserWarning, match=r"'head\*' of PerLayer is that of nothing.*scopes are: hidden\."
        ) as record:
            jax.jit(lambda x: attr(x, reference=jnp.zeros(3)))(jnp.ones((2, 3)))
        assert len(record) == 1
        with pytest.warns(UserWarning, match=r"scopes are: none \(of a Flax NNX module jaxlift\.scoped"):
            jaxlift.vjp(jnp.tanh, jnp.ones(3), jnp.zeros(3), rule=jaxlift.PerLayer(scopes={"out": "revealcancel"}))


def test_a_users_own_rule():
    class LowerEnd(jaxlift.Rule):
        """The derivative at the reference."""

        def multiplier(self, f, x, r):
            return f.derivative(r)

    _, pullback = jaxlift.vjp(jnp.tanh, jnp.float64(2.0), jnp.float64(0.5), rule=LowerEnd())
    np.testing.assert_allclose(pullback(jnp.float64(1.0)), 1 - np.tanh(0.5) ** 2, rtol=1e-12)


def test_a_users_own_rule_of_parts():
    """RevealCancel without the averaging over orders: positive parts first."""

    class PositiveFirst(jaxlift.Rule):
        needs_variation = True

        def parts(self, f, x, r, a):
            up = r + (x - r + a) / 2
            return f.secant(up, r), f.secant(x, up)

    w, x, r = np.array([2.0, -1.0]), np.array([1.0, 0.5]), np.zeros(2)

    @jax.jit
    def multipliers(x, r):
        return jaxlift.vjp(lambda x: jnp.tanh(x @ w), x, r, rule=PositiveFirst())[1](jnp.ones(()))

    expected = [np.tanh(2.0), np.tanh(1.5) - np.tanh(2.0)]
    np.testing.assert_allclose(multipliers(x, r) * (x - r), expected, rtol=1e-12)


def test_a_users_rule_may_start_from_the_parts_of_revealcancel():
    class Doubled(jaxlift.RevealCancel):
        def parts(self, f, x, r, a):
            plus, minus = super().parts(f, x, r, a)
            return 2 * plus, 3 * minus

    w, x, r = np.array([2.0, -1.0]), np.array([1.0, 0.5]), np.zeros(2)

    @jax.jit
    def multipliers(x, r):
        return jaxlift.vjp(lambda x: jnp.tanh(x @ w), x, r, rule=Doubled())[1](jnp.ones(()))

    up, down, both = np.tanh(2.0), np.tanh(-0.5), np.tanh(1.5)
    expected = [2 * (up + both - down) / 2, 3 * (down + both - up) / 2]
    np.testing.assert_allclose(multipliers(x, r) * (x - r), expected, rtol=1e-12)


class Plain(jaxlift.Rule):
    def __init__(self, by):
        self.by = by

    def multiplier(self, f, x, r):
        return self.by * f.secant(x, r)


@dataclass
class NotHashable(jaxlift.Rule):
    by: float
    multiplier = Plain.multiplier


class Derived(jaxlift.Rescale):
    def __init__(self, by):
        object.__setattr__(self, "by", by)

    def pull(self, f, x, r, cotangent):
        return cotangent * Plain.multiplier(self, f, x, r)


@pytest.mark.parametrize("kind", [Plain, NotHashable, Derived])
def test_a_users_own_rule_may_be_any_object(kind):
    """Equal to another that differs, or changed after its use: what was traced for one is not taken for the other."""
    rules = [kind(2.0), kind(3.0), kind(2.0)]
    object.__setattr__(rules[2], "by", 4.0)
    for rule in rules:
        _, pullback = jaxlift.vjp(jnp.tanh, jnp.float32(1.0), jnp.float32(0.0), rule=rule)
        np.testing.assert_allclose(pullback(jnp.float32(1.0)), rule.by * np.tanh(1.0), rtol=1e-6)
    object.__setattr__(rules[0], "by", 5.0)
    _, pullback = jaxlift.vjp(jnp.tanh, jnp.float32(1.0), jnp.float32(0.0), rule=rules[0])
    np.testing.assert_allclose(pullback(jnp.float32(1.0)), 5 * np.tanh(1.0), rtol=1e-6)
