"""Conductance of layers and units, against sums over steps in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxlift

RNG = np.random.default_rng(8)
W, V = RNG.normal(size=(4, 5)), RNG.normal(size=(5, 6)) / 2
OUT = RNG.normal(size=6)
X, R = RNG.normal(size=(2, 4)), RNG.normal(size=(3, 4))


def model(x):
    first = checkpoint_name(jnp.tanh(x @ W), "first")
    return jnp.tanh(checkpoint_name(jnp.tanh(first @ V), "second") @ OUT)


def slopes(x):
    """The derivatives of the output in the second layer's units, and these in the input."""
    first = np.tanh(x @ W)
    second = np.tanh(first @ V)
    inner = (1 - second**2)[:, None] * (V.T * (1 - first**2)) @ W.T
    return (1 - np.tanh(second @ OUT) ** 2) * OUT, inner


def along(x, r, t):
    return r + t * (x - r)


@pytest.mark.usefixtures("x64")
class TestConductance:
    def test_the_sum_over_steps(self):
        def of_pair(x, r):
            total = np.zeros(6)
            for k in range(7):
                before, after = (np.tanh(np.tanh(along(x, r, t) @ W) @ V) for t in (k / 7, (k + 1) / 7))
                total += slopes(along(x, r, (k + 0.5) / 7))[0] * (after - before)
            return total

        attr = jax.jit(jaxlift.conductance(model, layer="second", steps=7, average=False))
        np.testing.assert_allclose(attr(X, reference=R), [[of_pair(x, r) for r in R] for x in X], rtol=1e-9)

    def test_of_a_unit(self):
        def of_pair(x, r):
            total = np.zeros(4)
            for k in range(7):
                outer, inner = slopes(along(x, r, (k + 0.5) / 7))
                total += outer[3] * inner[3] * (x - r) / 7
            return total

        attr = jax.jit(jaxlift.conductance(model, layer="second", unit=3, steps=7, average=False))
        np.testing.assert_allclose(attr(X, reference=R), [[of_pair(x, r) for r in R] for x in X], rtol=1e-9)

    @pytest.mark.parametrize("layer", ["first", "second"])
    def test_sums_to_the_difference_and_is_no_integrated_gradient_of_the_layer(self, layer):
        found, straight = (
            jax.jit(method(model, layer=layer, steps=400, full=True))(X, reference=R)
            for method in (jaxlift.conductance, jaxlift.integrated_gradients)
        )
        np.testing.assert_allclose(found.output - found.output_reference, model(X) - model(R).mean(), rtol=1e-9)
        for each in (found, straight):
            np.testing.assert_allclose(each.delta, 0, atol=1e-4)
        apart = np.linalg.norm(found.scores - straight.scores) / np.linalg.norm(found.scores)
        assert apart > 0.1

    def test_what_passes_beside_the_layer_is_missing(self):
        """All of the model follows the way, also what goes past the layer: here a factor of its value."""

        def beside(x):
            return checkpoint_name(x**2, "squares")[:, 0] * jnp.tanh(x[:, 1]) + x[:, 2]

        attr = jaxlift.conductance(beside, layer="squares", steps=300, full=True)
        found = jax.jit(attr)(X, reference=R[0])
        t = (np.arange(4000) + 0.5) / 4000
        points = R[0] + t[:, None, None] * (X - R[0])
        expected = (np.tanh(points[..., 1]) * 2 * points[..., 0] * (X - R[0])[:, 0]).mean(0)
        np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-4)
        np.testing.assert_allclose(found.scores[:, 1:], 0, atol=1e-12)
        np.testing.assert_allclose(found.delta, beside(X) - beside(R[:1]) - found.scores.sum(1), rtol=1e-9)

    def test_several_layers_pytrees_and_no_layer(self):
        def two(x):
            a, b = checkpoint_name(jnp.tanh(x["a"]), "a"), checkpoint_name(x["b"] ** 3, "b")
            return (a * b).sum(1)

        x, r = ({"a": each[:, :2], "b": each[:, 2:]} for each in (X, R))
        a, b = jax.jit(jaxlift.conductance(two, layer=("a", "b"), steps=300))(x, reference=r)
        assert a.shape == b.shape == (2, 2)
        np.testing.assert_allclose((a + b).sum(1), two(x) - two(r).mean(), rtol=1e-3, atol=1e-4)
        own, straight = (
            jax.jit(method(two, steps=9, **options))(x, reference=r)
            for method, options in ((jaxlift.conductance, {"layer": None}), (jaxlift.integrated_gradients, {}))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), own, straight)

    def test_errors(self):
        for unit in (6, (1, 2), ()):
            with pytest.raises(ValueError, match=r"unit=.* must be one int .* here its shape is \(6,\)"):
                jaxlift.conductance(model, layer="second", unit=unit)(X, reference=R)
        with pytest.raises(ValueError, match=r"one layer, .* here its shape is \(\(5,\), \(6,\)\)"):
            jaxlift.conductance(model, layer=("first", "second"), unit=0)(X, reference=R)
        embedded = lambda tokens: checkpoint_name(jnp.asarray(W)[tokens], "embedded").sum((1, 2))  # noqa: E731
        with pytest.raises(TypeError, match="dtype int"):
            jaxlift.conductance(embedded, layer="embedded")(np.array([[1, 2]]), reference=np.zeros(2, int))
