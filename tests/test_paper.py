"""What the paper says of its method: its Figures 1, 2 and 3, and how near it comes to Shapley values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxlift

pytestmark = pytest.mark.usefixtures("x64")


@functools.partial(jax.jit, static_argnums=(0, 3))
def multipliers(fun, x, r, rule):
    (y, _), pullback = jaxlift.vjp(fun, x, r, rule=rule)
    return pullback(jnp.ones_like(y))


def contributions(fun, x, r, rule):
    x, r = np.asarray(x, float), np.asarray(r, float)
    return np.asarray(multipliers(fun, x, r, rule)) * (x - r)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_figure_1_saturation(rule):
    """`y = i1 + i2` up to 1. With both inputs on, gradients are 0; the contributions are a half each."""

    def fun(i):
        return 1 - jax.nn.relu(1 - i[0] - i[1])

    np.testing.assert_array_equal(contributions(fun, [1, 1], [0, 0], rule), [0.5, 0.5])
    np.testing.assert_array_equal(jax.grad(fun)(jnp.ones(2)), [0, 0])
    np.testing.assert_array_equal(contributions(fun, [1, 0], [0, 0], rule), [1, 0])


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_figure_2_threshold(rule):
    """`y = max(0, x - 10)`: gradient x input jumps from 0 to 10 at the threshold, contributions don't."""

    def fun(x):
        return jax.nn.relu(x - 10)

    for x, expected in ((9.0, 0.0), (10.0, 0.0), (10.0 + 2**-20, 2**-20), (11.0, 1.0), (20.0, 10.0)):
        np.testing.assert_allclose(contributions(fun, x, 0.0, rule), expected, rtol=1e-15, atol=1e-15)
    just_above = jnp.asarray(10.0 + 2**-20)
    assert just_above * jax.grad(fun)(just_above) > 10


def test_figure_3_minimum():
    """`min(i1, i2) = i1 - max(0, i1 - i2)`: Rescale gives all to one input, RevealCancel a half to each."""

    def fun(i):
        return i[0] - jax.nn.relu(i[0] - i[1])

    for i in ([4.0, 2.0], [8.0, 4.0]):
        np.testing.assert_array_equal(contributions(fun, i, [0, 0], "rescale"), [0, min(i)])
        np.testing.assert_array_equal(contributions(fun, i, [0, 0], "revealcancel"), [min(i) / 2, min(i) / 2])
    np.testing.assert_array_equal(contributions(fun, [1.0, 3.0], [0, 0], "rescale"), [1, 0])
    np.testing.assert_allclose(contributions(fun, [1.0, 3.0], [0, 0], "revealcancel"), [0.5, 0.5], rtol=1e-15)


@pytest.mark.parametrize(
    ("activation", "in_numpy"),
    [
        (jax.nn.relu, lambda z: np.maximum(z, 0)),
        (jnp.tanh, np.tanh),
        (jax.nn.sigmoid, lambda z: 1 / (1 + np.exp(-z))),
    ],
    ids=["relu", "tanh", "sigmoid"],
)
def test_revealcancel_is_nearer_to_shapley_values(activation, in_numpy):
    """On one hidden layer of inputs that oppose each other; distances over 40 networks."""
    rng = np.random.default_rng(11)
    distance = {"rescale": [], "revealcancel": []}

    def network(activation, weights, x):
        w, b, v = weights
        return activation(x @ w + b) @ v

    @functools.partial(jax.jit, static_argnums=3)
    def explain(weights, x, r, rule):
        return multipliers(functools.partial(network, activation, weights), x, r, rule) * (x - r)

    for _ in range(40):
        weights = 1.5 * rng.normal(size=(6, 5)), 0.5 * rng.normal(size=5), rng.normal(size=5)
        x, r = rng.normal(size=(2, 6))
        f = functools.partial(network, in_numpy, weights)
        exact = oracles.shapley(f, x, r)
        np.testing.assert_allclose(exact.sum(), f(x) - f(r), rtol=1e-9)
        for rule, found in distance.items():
            found.append(np.linalg.norm(explain(weights, x, r, rule) - exact) / np.linalg.norm(exact))
    assert np.mean(np.less(distance["revealcancel"], distance["rescale"])) >= 0.7
    assert np.median(distance["revealcancel"]) < 0.75 * np.median(distance["rescale"])


def test_revealcancel_of_two_opposed_inputs_is_exact():
    """One hidden unit with one positive and one negative term: the two parts are the two players."""
    w = np.array([2.0, -3.0])
    x, r = np.array([1.5, 0.7]), np.array([0.2, -0.4])

    def fun(x):
        return jax.nn.relu(x @ w + 0.3)

    exact = oracles.shapley(lambda x: np.maximum(x @ w + 0.3, 0), x, r)
    np.testing.assert_allclose(contributions(fun, x, r, "revealcancel"), exact, rtol=1e-12)
