"""Rules that compare with nothing: evaluated on the input alone, with JAX's derivative wherever they don't differ."""

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from programs import PROGRAMS, V, W, input_and_reference

import jaxlift

X, R = input_and_reference(np.float32)


def decays(x):
    """A loop of unknown length with a derivative of its own."""

    @jax.custom_vjp
    def loop(x):
        return lax.while_loop(lambda h: jnp.abs(h).max() > 0.5, lambda h: h * 0.5, x)

    loop.defvjp(lambda x: (loop(x), x), lambda x, ct: (ct * 0.25,))
    return loop(x).sum()


def calls_back(x):
    """A callback inside of a custom rule."""

    @jax.custom_vjp
    def doubled(x):
        return jax.pure_callback(
            lambda x: np.asarray(2 * x), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
        )

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, ct: (2 * ct,))
    return jnp.tanh(doubled(x)).sum()


def straight_through(x):
    return ((x + lax.stop_gradient(jnp.round(x) - x)) ** 2).sum()


def equinox_loop(kind):
    def fun(x):
        def step(carry):
            return jnp.tanh(carry[0]) * 0.9, carry[1] + 1

        def goes_on(carry):
            return (jnp.abs(carry[0]).max() > 0.2) & (carry[1] < 6)

        return eqxi.while_loop(goes_on, step, (x, 0), max_steps=8, kind=kind)[0].sum()

    return fun


OWN_DERIVATIVES = {
    "product": lambda x: x[0] * x[1],
    "loop": decays,
    "callback": calls_back,
    "straight through": straight_through,
    "bounded loop": equinox_loop("bounded"),
    "checkpointed loop": equinox_loop("checkpointed"),
    "maximum": lambda x: jnp.maximum(x[:3], x[3:]).max() * jax.nn.softmax(x)[0],
    "integers": lambda x: x[jnp.argsort(x)][:2].sum() * x.astype(int).sum(),
}
FUNCTIONS = {str(program): program.fun for program in PROGRAMS} | OWN_DERIVATIVES
# JAX has no reverse-mode derivative of it.
WITHOUT_DERIVATIVE = {"max pool, dilated"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in OWN_DERIVATIVES))
        for name in sorted(FUNCTIONS.keys() - WITHOUT_DERIVATIVE)
    ],
)
def test_the_gradient_is_that_of_jax_bit_for_bit(name):
    fun = FUNCTIONS[name]
    y, expected = jax.value_and_grad(lambda x: fun(x).astype(jnp.float32))(X)
    (found_y, _), pullback = jaxlift.vjp(lambda x: fun(x).astype(jnp.float32), X, R, rule="gradient")
    np.testing.assert_array_equal(found_y, y)
    np.testing.assert_array_equal(pullback(jnp.float32(1)), expected)


@pytest.mark.parametrize("name", OWN_DERIVATIVES)
def test_attribute_and_methods_that_take_gradients(name):
    fun = OWN_DERIVATIVES[name]

    def model(x):
        return lax.map(fun, x)  # callbacks and loops as they are, without a vmap

    expected = jax.grad(fun)(X)
    options = {"rule": "gradient", "output": "multipliers"}
    found = jaxlift.attribute(model, **options)(X[None], reference=R)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    ones = jaxlift.integrated_gradients(model, steps=1, output="multipliers")(X[None], reference=X)
    np.testing.assert_allclose(ones[0], expected, rtol=1e-5, atol=1e-6)


def relu_network(x):
    h = jax.nn.relu(x @ W.astype(x.dtype))
    return jnp.tanh(h @ V.astype(x.dtype)) @ jnp.arange(-2, 4).astype(x.dtype)


GUIDED = {
    "product": lambda h: h[0] * h[1],
    "loop": decays,
    "callback": calls_back,
    "straight through": straight_through,
    "softmax": lambda h: jax.nn.softmax(h) @ jnp.arange(5.0),
    "maximum": lambda h: h.max() + jnp.sort(h)[1],
    "branch": lambda h: lax.cond(h[0] > 0.1, lambda h: h.sum(), lambda h: h[0] * 2, h),
    "scan": lambda h: lax.scan(lambda c, e: (c * 0.5 + e, c * e), 0.0, h)[1].sum(),
    "layer norm": lambda h: ((h - h.mean()) * lax.rsqrt(h.var() + 1e-3)) @ jnp.arange(5.0),
    "complex": lambda h: jnp.abs(jnp.fft.fft(h)).sum(),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("rule", ["guided_backprop", "deconvnet"])
def test_what_a_rule_does_not_override_has_the_derivative_of_jax(name, rule):
    """One ReLU, and what comes after it: by hand, the derivative of that, cut at 0, where the unit is on."""
    fun = GUIDED[name]
    h = X @ W.astype(X.dtype)
    cotangent = np.maximum(jax.grad(fun)(jax.nn.relu(h)), 0) * (1 if rule == "deconvnet" else h > 0)
    _, pullback = jaxlift.vjp(lambda x: fun(jax.nn.relu(x @ W.astype(x.dtype))), X, R, rule=rule)
    np.testing.assert_allclose(pullback(jnp.float32(1)), cotangent @ W.T.astype(X.dtype), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: lambda x: lax.map(f, x[None])[0]])
def test_nonlinearities_inside_calls_and_loops_are_found(wrap):
    expected = jaxlift.vjp(relu_network, X, R, rule="guided_backprop")[1](jnp.float32(1))
    found = jaxlift.vjp(wrap(relu_network), X, R, rule="guided_backprop")[1](jnp.float32(1))
    assert np.abs(expected - jax.grad(relu_network)(X)).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_program_is_evaluated_once():
    """One forward pass of the input; the reference's is not part of what is differentiated."""
    seen = []

    class Watched(jaxlift.Gradient):
        def multiplier(self, f, x, r):
            del r
            seen.append(f)
            return f.derivative(x)

    lifted = jaxlift.lift(relu_network, rule=Watched())
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: lifted(x, x)[0]))(X))
    assert len(seen) == 2
    assert jaxpr.count("dot_general") == 3 * 3  # of the input, forwards and backwards, and of the reference


def test_a_rule_of_a_user_for_one_family():
    class HalfOfProducts(jaxlift.Gradient):
        def bilinear(self, bilinear, values, references, cotangent):
            return bilinear.transpose(values, cotangent / 2)

    def fun(x):
        return jnp.tanh(x[0] * x[1]) + x[2] / x[3]

    found = jaxlift.vjp(fun, X, R, rule=HalfOfProducts())[1](jnp.float32(1))
    expected = np.array(jax.grad(fun)(X))
    expected[:2] /= 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_choice_of_rules_may_mix_those_with_and_without_a_reference():
    rule = jaxlift.PerLayer(where=[(lambda place: place.family == "bilinear", "gradient")])

    def fun(x):
        return x[0] * x[1] + jnp.tanh(x[2])

    found = jaxlift.vjp(fun, X, R, rule=rule)[1](jnp.float32(1))
    assert (found[0], found[1]) == (X[1], X[0])
    rescale = jaxlift.vjp(fun, X, R)[1](jnp.float32(1))
    assert found[2] == rescale[2]
    assert found[0] != rescale[0]


def test_a_rule_that_tells_parts_apart_needs_a_reference():
    class Confused(jaxlift.Gradient):
        needs_variation = True

    with pytest.raises(ValueError, match="must have needs_reference"):
        jaxlift.vjp(relu_network, X, R, rule=Confused())
