"""Attribution to and of values that a model names, against models cut in two by hand and the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from original import ORACLES

import jaxlift

RNG = np.random.default_rng(11)
W1, W2 = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 5))
V = RNG.normal(size=(5, 3))
X, R = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 4))
REFERENCES = {"rescale", "revealcancel", "genomics_default"}


def lower(x):
    return jax.nn.gelu(x @ W1)


def upper(h):
    return jnp.tanh(h @ W2) @ V


def model(x):
    return upper(checkpoint_name(lower(x), "hidden"))


def with_skip(x):
    h = checkpoint_name(lower(x), "hidden")
    return upper(h) + x[:, :3] * h[:, :1]


@pytest.mark.usefixtures("x64")
class TestCut:
    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
    def test_the_two_halves(self, wrap):
        fun = wrap(model)
        np.testing.assert_allclose(jaxlift.below(fun, "hidden")(X), lower(X), rtol=1e-14)
        np.testing.assert_allclose(jaxlift.above(fun, "hidden")(lower(X), X), model(X), rtol=1e-14)

    def test_several_values_and_other_outputs(self):
        def fun(params, x):
            a = checkpoint_name(x @ params["w"], "a")
            b = checkpoint_name(jnp.sin(a), "b")
            return {"sum": a + b, "rest": x}

        args = {"w": W1}, X
        a, b = jaxlift.below(fun, ("a", "b"))(*args)
        np.testing.assert_allclose(b, jnp.sin(X @ W1))
        found = jaxlift.above(fun, ("a", "b"))((a + 1, b - 1), *args)
        np.testing.assert_allclose(found["sum"], a + b)
        np.testing.assert_array_equal(found["rest"], X)

    def test_nothing_is_computed_that_is_not_needed(self):
        def primitives(fun, *args):
            return {eqn.primitive.name for eqn in jax.make_jaxpr(fun)(*args).jaxpr.eqns}

        assert "tanh" in primitives(lower, X)
        below, above = jaxlift.below(model, "hidden"), jaxlift.above(model, "hidden")
        count = lambda fun, *args: str(jax.make_jaxpr(fun)(*args)).count("dot_general")  # noqa: E731
        assert (count(model, X), count(below, X), count(above, lower(X), X)) == (3, 1, 2)

    def test_the_lines_of_the_user_s_code_stay(self):
        def fun(x):
            h = checkpoint_name(x * 2, "h")
            return jnp.linalg.eigvals(jnp.outer(h, h)).real.sum() + jax.pure_callback(np.sum, x[0], h)

        with pytest.raises(jaxlift.MissingRuleError, match=r"test_layers\.py"):
            jaxlift.vjp(lambda h: jaxlift.above(fun, "h")(h, X[0]), X[0], X[1])

    @pytest.mark.parametrize(
        ("fun", "name", "message"),
        [
            (model, "hiden", r"exactly one value must be named 'hiden'.*names 0; its names are \['hidden'\]"),
            (lambda x: model(x) + model(x), "hidden", "names 2"),
            (
                lambda x: jax.lax.scan(lambda h, _: (checkpoint_name(h * 2, "step"), None), x, length=3)[0],
                "step",
                "the value named 'step' is inside of `scan`, called from .*test_layers.py",
            ),
        ],
    )
    def test_errors(self, fun, name, message):
        with pytest.raises(ValueError, match=message):
            jaxlift.below(fun, name)(X)

    def test_a_value_of_another_shape(self):
        with pytest.raises(ValueError, match=r"'hidden' must be float64\[3,6\]; got float64\[3,5\]"):
            jaxlift.above(model, "hidden")(X @ W1[:, :5], X)


@pytest.mark.usefixtures("x64")
class TestAttribution:
    @pytest.mark.parametrize("rule", ["rescale", "gradient", "guided_backprop", "deconvnet", "epsilon_lrp"])
    def test_to_a_layer_is_of_the_upper_half(self, rule):
        options = {"target": 1, "rule": rule, "average": False, "full": True}
        found, delta, *_ = jax.jit(jaxlift.attribute(model, layer="hidden", **options))(X, reference=R)
        of_upper = jax.jit(jaxlift.attribute(upper, **options))
        expected, expected_delta, *_ = of_upper(lower(X), reference=lower(R))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        np.testing.assert_allclose(delta, expected_delta, atol=1e-12)

    @pytest.mark.parametrize("method", [jaxlift.integrated_gradients, jaxlift.occlusion, jaxlift.shapley])
    def test_other_methods(self, method):
        found = jax.jit(method(model, layer="hidden", target="all"))(X, reference=R)
        expected = jax.jit(method(upper, target="all"))(lower(X), reference=lower(R))
        np.testing.assert_allclose(found, expected, rtol=1e-10)

    @pytest.mark.parametrize("rule", sorted(REFERENCES))
    @pytest.mark.parametrize("fun", [model, with_skip])
    def test_sum(self, fun, rule):
        attr = jax.jit(jaxlift.attribute(fun, layer="hidden", target="all", rule=rule, average=False, full=True))
        found, delta, *_ = attr(X, reference=R)
        rest = jax.jit(jaxlift.above(fun, "hidden"))
        found = np.asarray(found)
        for i, x in enumerate(X):
            for j, r in enumerate(R):
                y, y_ref = (rest(lower(side[None]), x[None])[0] for side in (x, r))
                np.testing.assert_allclose(found[i, j].sum(1), y - y_ref, rtol=1e-10)
        np.testing.assert_allclose(delta, 0, atol=1e-12)

    def test_parts_are_those_below(self):
        """One unit fed by +3 and -2: each part reaches the layer, and passes a ReLU there, by itself."""

        def fun(x):
            h = checkpoint_name(x.sum(1, keepdims=True), "h")
            return jax.nn.relu(h)[:, 0]

        def by_hand(plus, minus, f):
            return (f(plus) + f(plus + minus) - f(minus)) / 2, (f(minus) + f(plus + minus) - f(plus)) / 2

        of_layer = jax.jit(jaxlift.attribute(fun, rule="revealcancel", layer="h"))
        found = of_layer(np.array([[3.0, -2.0]]), reference=np.zeros(2))
        np.testing.assert_allclose(found, [[sum(by_hand(3.0, -2.0, lambda v: max(v, 0)))]])
        x = np.array([[2.0, -2.0]])  # no difference, but parts
        at_input = jax.jit(jaxlift.attribute(fun, rule="revealcancel"))(x, reference=np.zeros(2))
        np.testing.assert_allclose(at_input, [[1.0, -1.0]])
        np.testing.assert_allclose(of_layer(x, reference=np.zeros(2)), [[0.0]])

    def test_without_a_reference_a_layer_s_is_zeros(self):
        found = jax.jit(jaxlift.attribute(model, rule="gradient", layer="hidden", target=0))(X)
        gradient = jax.jit(jax.grad(lambda h: upper(h)[:, 0].sum()))(lower(X))
        np.testing.assert_allclose(found, gradient * lower(X), rtol=1e-12)

    def test_of_a_neuron(self):
        found = jax.jit(jaxlift.attribute(jaxlift.below(model, "hidden"), target=4))(X, reference=R)
        expected = jax.jit(jaxlift.attribute(lower, target=4))(X, reference=R)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_between_layers(self):
        def fun(x):
            a = checkpoint_name(jnp.tanh(x), "a")
            return checkpoint_name(lower(a), "b").sum(1)

        found = jax.jit(jaxlift.attribute(jaxlift.below(fun, "b"), layer="a", target=2))(X, reference=R)
        expected = jax.jit(jaxlift.attribute(lower, target=2))(np.tanh(X), reference=np.tanh(R))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_several_layers_at_once(self):
        def fun(x):
            a, b = checkpoint_name(lower(x), "a"), checkpoint_name(jnp.sin(x), "b")
            return (a[:, :4] * b).sum(1)

        a, b = map(np.asarray, jax.jit(jaxlift.attribute(fun, layer=("a", "b")))(X, reference=R[0]))
        plain = jax.jit(fun)
        np.testing.assert_allclose(a.sum(1) + b.sum(1), plain(X) - plain(R[:1]), rtol=1e-10)

    def test_the_batch_must_come_first(self):
        fun = lambda x: checkpoint_name(x.T, "turned").sum(0)  # noqa: E731
        with pytest.raises(ValueError, match=r"'turned' must have the batch axis first.*\(4, 1\)"):
            jaxlift.attribute(fun, layer="turned")(X, reference=R)

    def test_parts_have_no_multipliers(self):
        with pytest.raises(ValueError, match="needs a method that gives multipliers"):
            jaxlift.attribute(model, layer="hidden", rule="revealcancel", output="multipliers")


def hidden_scores(oracle, name, rule):
    fun = oracle.model(layer_named=name)
    options = {"target": "all", "rule": jaxlift.OriginalMaxPooling(rule), "pairing": "paired", "layer": name}
    argument = jaxlift.attribute(fun, **options)
    found = jax.jit(lambda x, r: argument(x, reference=r))(oracle.inputs("x"), oracle.inputs("ref"))
    return np.moveaxis(np.asarray(found), 1, 0)[oracle.targets]


def is_zero(oracle, key, rule):
    """The original gives zeros for a max-pooling layer, and has nothing that says so."""
    return not np.any(oracle.arrays[f"hidden/{key}/{rule}"])


def small(oracle):
    return oracle.name.startswith(("mlp", "cancel"))


@pytest.mark.parametrize(
    ("oracle", "key", "name", "rule"),
    [
        pytest.param(
            oracle, key, name, rule, id=f"{oracle.name}-{name}-{rule}", marks=[] if small(oracle) else pytest.mark.slow
        )
        for oracle in ORACLES
        for key, name in oracle.hidden_layers().items()
        for rule in ("rescale", "revealcancel", "genomics_default", "gradient")
        if f"hidden/{key}/{rule}" in oracle.arrays and not is_zero(oracle, key, rule)
    ],
)
@pytest.mark.sample(16)
def test_against_the_original(oracle, key, name, rule):
    expected = oracle.arrays[f"hidden/{key}/{rule}"]
    found = hidden_scores(oracle, name, rule)
    # The original adds 1e-7 to parts that are 0, which shows where the differences themselves are that small.
    pseudocount = 2.1e-7 if oracle.name.startswith("near_zero") else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() + pseudocount)
