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


def pulled(fun, **options):
    """The output and the multipliers of a function at `X`, compiled as one program."""

    @jax.jit
    def of_pair(x, r):
        (y, _), pullback = jaxlift.vjp(fun, x, r, **options)
        return y, pullback(jnp.ones_like(y))

    return of_pair(X, R)


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
@pytest.mark.sample(12)
def test_the_gradient_is_that_of_jax_bit_for_bit(name):
    def fun(x):
        return FUNCTIONS[name](x).astype(jnp.float32)

    jax.tree.map(np.testing.assert_array_equal, pulled(fun, rule="gradient"), jax.jit(jax.value_and_grad(fun))(X))


@pytest.mark.parametrize("name", OWN_DERIVATIVES)
def test_attribute_and_methods_that_take_gradients(name):
    fun = OWN_DERIVATIVES[name]

    def model(x):
        return lax.map(fun, x)  # callbacks and loops as they are, without a vmap

    @jax.jit
    def every(x, r):
        found = jaxlift.attribute(model, rule="gradient", output="multipliers")(x[None], reference=r)
        ones = jaxlift.integrated_gradients(model, steps=1, output="multipliers")(x[None], reference=x)
        return jax.grad(fun)(x), found[0], ones[0]

    expected, found, ones = every(X, R)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ones, expected, rtol=1e-5, atol=1e-6)


def relu_network(x):
    h = jax.nn.relu(x @ W.astype(x.dtype))
    return jnp.tanh(h @ V.astype(x.dtype)) @ np.arange(-2, 4).astype(x.dtype)


GUIDED = {
    "product": lambda h: h[0] * h[1],
    "loop": decays,
    "callback": calls_back,
    "straight through": straight_through,
    "softmax": lambda h: jax.nn.softmax(h) @ np.arange(5, dtype=np.float32),
    "maximum": lambda h: h.max() + jnp.sort(h)[1],
    "branch": lambda h: lax.cond(h[0] > 0.1, lambda h: h.sum(), lambda h: h[0] * 2, h),
    "scan": lambda h: lax.scan(lambda c, e: (c * 0.5 + e, c * e), 0.0, h)[1].sum(),
    "layer norm": lambda h: ((h - h.mean()) * lax.rsqrt(h.var() + 1e-3)) @ np.arange(5, dtype=np.float32),
    "complex": lambda h: jnp.abs(jnp.fft.fft(h)).sum(),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("rule", ["guided_backprop", "deconvnet"])
def test_what_a_rule_does_not_override_has_the_derivative_of_jax(name, rule):
    """One ReLU, and what comes after it: by hand, the derivative of that, cut at 0, where the unit is on."""
    fun = GUIDED[name]
    h = X @ W.astype(X.dtype)
    cotangent = np.maximum(jax.jit(jax.grad(fun))(np.maximum(h, 0)), 0) * (1 if rule == "deconvnet" else h > 0)
    _, found = pulled(lambda x: fun(jax.nn.relu(x @ W.astype(x.dtype))), rule=rule)
    expected = np.einsum("ij,j->i", W.astype(X.dtype), cotangent)  # BLAS has warned of invalid values, of finite ones
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: lambda x: lax.map(f, x[None])[0]])
def test_nonlinearities_inside_calls_and_loops_are_found(wrap):
    _, expected = pulled(relu_network, rule="guided_backprop")
    _, found = pulled(wrap(relu_network), rule="guided_backprop")
    assert np.abs(expected - jax.jit(jax.grad(relu_network))(X)).max() > 1e-3
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

    _, found = pulled(fun, rule=HalfOfProducts())
    expected = np.array(jax.jit(jax.grad(fun))(X))
    expected[:2] /= 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_choice_of_rules_may_mix_those_with_and_without_a_reference():
    rule = jaxlift.PerLayer(where=[(lambda place: place.family == "bilinear", "gradient")])

    def fun(x):
        return x[0] * x[1] + jnp.tanh(x[2])

    _, found = pulled(fun, rule=rule)
    assert (found[0], found[1]) == (X[1], X[0])
    _, rescale = pulled(fun)
    assert found[2] == rescale[2]
    assert found[0] != rescale[0]


def test_a_rule_that_tells_parts_apart_needs_a_reference():
    class Confused(jaxlift.Gradient):
        needs_variation = True

    with pytest.raises(ValueError, match="must have needs_reference"):
        jaxlift.vjp(relu_network, X, R, rule=Confused())


FAMILIES = {
    "maximum": (lambda x: jnp.max(x), "maximum"),
    "softmax": (lambda x: jax.nn.softmax(x) @ jnp.arange(x.size, dtype=x.dtype), "softmax"),
    "quotient": (lambda x: x[2] / x[3], "elementwise"),
    "product": (lambda x: x[0] * x[1], "bilinear"),
    "activation": (lambda x: jnp.tanh(x[2]), "pointwise"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_choice_of_the_gradient_for_one_family(name):
    """Its answer for each family, beside rules with a reference: the derivative at the input, times the cotangent."""
    fun, family = FAMILIES[name]
    rule = jaxlift.PerLayer(where=[(lambda place: place.family == family, "gradient")])
    _, found = pulled(lambda x: 3 * fun(x), rule=rule)
    np.testing.assert_allclose(found, 3 * jax.jit(jax.grad(fun))(X), rtol=1e-5, atol=1e-7)
