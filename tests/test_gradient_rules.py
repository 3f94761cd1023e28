"""The methods that the paper compares with, as rules: against formulas by hand, and the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from original import ORACLES
from test_original import scores

import jaxlift

NAMES = {"gradient": "gradient", "guidedbackprop": "guided_backprop", "deconvnet": "deconvnet"}  # the original's, ours

RNG = np.random.default_rng(5)
W, V = RNG.normal(size=(4, 6)), RNG.normal(size=6)
B = RNG.normal(size=6)
X = RNG.normal(size=(3, 4))
R = RNG.normal(size=4)


def network(act):
    return lambda x: act(x @ W + B[None]) @ V


def multipliers(act, rule):
    return jax.jit(jaxlift.attribute(network(act), rule=rule, output="multipliers"))(X)


def gradient(fun):
    return np.asarray(jax.jit(jax.grad(lambda x: fun(x).sum()))(X))


@pytest.mark.usefixtures("x64")
class TestFormulas:
    def test_gradient(self):
        expected = gradient(network(jnp.tanh))
        np.testing.assert_allclose(multipliers(jnp.tanh, "gradient"), expected, rtol=1e-12)

    @pytest.mark.parametrize("relu", [jax.nn.relu, lambda h: jnp.maximum(h, 0)])
    def test_guided_backprop_and_deconvnet_at_relus(self, relu):
        on, positive = X @ W + B > 0, np.maximum(V, 0)
        np.testing.assert_allclose(multipliers(relu, "guided_backprop"), (on * positive) @ W.T, rtol=1e-12)
        expected = np.broadcast_to(positive @ W.T, X.shape)
        np.testing.assert_allclose(multipliers(relu, "deconvnet"), expected, rtol=1e-12)

    @pytest.mark.parametrize("rule", ["guided_backprop", "deconvnet"])
    def test_they_pass_positive_cotangents_at_other_activations(self, rule):
        slope = 1 - np.tanh(X @ W + B) ** 2
        np.testing.assert_allclose(multipliers(jnp.tanh, rule), (slope * np.maximum(V, 0)) @ W.T, rtol=1e-12)

    @pytest.mark.parametrize("rule", ["guided_backprop", "deconvnet"])
    def test_they_pass_all_at_what_is_no_activation(self, rule):
        expected = gradient(network(jnp.square))
        np.testing.assert_allclose(multipliers(jnp.square, rule), expected, rtol=1e-12)

    def test_lrp_of_relu_networks_is_gradient_times_input_in_the_limit(self):
        def deep(x):
            return jax.nn.relu(jax.nn.relu(x @ W + B[None]) @ np.outer(V, V)) @ V

        lrp = jax.jit(jaxlift.attribute(deep, rule=jaxlift.EpsilonLRP(0.0)))(X)
        np.testing.assert_allclose(lrp, X * gradient(deep), rtol=1e-12)

    def test_a_reference_is_what_multipliers_are_multiplied_with(self):
        fun = network(jnp.tanh)
        attr = jax.jit(jaxlift.attribute(fun, rule="gradient", full=True))
        scores, delta, *_ = map(np.asarray, attr(X, reference=R))
        np.testing.assert_allclose(scores, gradient(fun) * (X - R), rtol=1e-12)
        change = (np.tanh(X @ W + B) - np.tanh(R @ W + B)) @ V
        np.testing.assert_allclose(delta, change - scores.sum(1), rtol=1e-9)
        alone = jax.jit(jaxlift.attribute(fun, rule="gradient"))(X)
        np.testing.assert_allclose(alone, gradient(fun) * X, rtol=1e-12)

    def test_products_and_maxima_are_differentiated_too(self):
        def fun(x):
            return jax.nn.softmax(x @ W, -1).max(-1) * (x[:, 0] * x[:, 1])

        found = jax.jit(jaxlift.attribute(fun, rule="gradient", output="multipliers"))(X, reference=R)
        np.testing.assert_allclose(found, gradient(fun), rtol=1e-9)


@pytest.mark.parametrize(
    ("oracle", "name"),
    [
        pytest.param(oracle, name, id=f"{oracle.name}-{name}")
        for oracle in ORACLES
        for name in NAMES
        if name in oracle.spec["rules"]
    ],
)
def test_against_the_original(oracle, name):
    ours, theirs = scores(oracle, "mults", NAMES[name]), oracle.scores("mults", name)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale), ours, theirs)
