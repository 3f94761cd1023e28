"""Multipliers where input and reference are near, far, tiny and huge: against float64, for every difference from 0 to
1e3.
"""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

pytestmark = pytest.mark.usefixtures("optimized")
FUNCTIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "gelu erf": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by hand": lambda x: x * (1 + lax.erf(x / np.sqrt(2).astype(x.dtype))) / 2,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softplus by hand": lambda x: jnp.log1p(jnp.exp(x)),
    "exp": jnp.exp,
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "sigmoid by hand": lambda x: 1 / (1 + jnp.exp(-x)),
    "shifted relu": lambda x: jax.nn.relu(x - 0.25),
    "softplus + 5": lambda x: jax.nn.softplus(x) + 5,
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -0.2, 2.5),
    # Of steps whose secants are known.
    "squared relu": lambda x: jax.nn.relu(x) ** 2,
    "relu and silu": lambda x: jax.nn.relu(x) + jax.nn.silu(x),
    "relu6 and silu": lambda x: jax.nn.relu6(x) + jax.nn.silu(x),
    "hard swish by hand": lambda x: x * jnp.minimum(jnp.maximum(x + 3.1, 0), 6) / 6,
    "modulus in tanh": lambda x: jnp.tanh(jnp.abs(x) - jnp.maximum(x, 0.5 * x + 1)),
    "rational": lambda x: x / (2 + lax.square(x)) + 0.5 * x,
    "roots": lambda x: x * lax.rsqrt(1 + x * x) + jnp.sqrt(x**4 + 1) + lax.cbrt(x**2 + 1),
    "clamped": lambda x: x + lax.clamp(x.dtype.type(-0.2), x * jax.nn.sigmoid(x), x.dtype.type(2.5)),
    "erf": lambda x: lax.erf(x) * (1 + jax.nn.sigmoid(x)),
}
# In float32 these lose their tails, derivative included: `1 + tanh(x)` and `1 + erf(x)` are 1 - 1 there. No rule can
# know better; multipliers are still within 5e-6.
LOST_TAILS = {"gelu": -3.7, "gelu by hand": -4.0}


def multiplier(f, x, r, rule):
    (y, _), pullback = jaxlift.vjp(f, x, r, rule=rule)
    return pullback(jnp.ones_like(y))


def compiled(f, x, r, rule):
    """The same as one program, where JAX's own operation by operation says no more."""
    return jax.jit(lambda x, r: multiplier(f, x, r, rule))(x, r)


@pytest.fixture(scope="module")
def grid():
    """References in all ranges, with differences from 0 to 1e3 of either sign, exactly representable in float32."""
    rng = np.random.default_rng(0)
    references = np.concatenate(
        [np.linspace(-12, 12, 97), 3 * rng.normal(size=60), [0, 1e-8, -1e-8, 1e-4, 20, -20, 80, -80]]
    )
    differences = np.concatenate([[0], np.logspace(-12, 3, 151)])
    r, d = np.meshgrid(references.astype(np.float32), np.concatenate([differences, -differences]))
    return (r + d).astype(np.float32).ravel(), r.ravel()


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.sample(16)
def test_multipliers_are_those_of_float64(name, rule, grid):
    f, (x, r) = FUNCTIONS[name], grid
    actual = np.asarray(compiled(f, x, r, rule), np.float64)
    with jax.enable_x64(True):
        exact = np.asarray(compiled(f, x.astype(np.float64), r.astype(np.float64), rule))
    overflows = {"exp": (-np.inf, 87), "softplus by hand": (-np.inf, 87), "sigmoid by hand": (-87, 87)}
    low, high = overflows.get(name, (-np.inf, np.inf))
    finite = (np.minimum(x, r) > low) & (np.maximum(x, r) < high)
    known = finite & (np.minimum(x, r) > LOST_TAILS.get(name, -np.inf))
    actual, exact = np.where(finite, actual, 0), np.where(finite, exact, 0)
    assert not np.isnan(actual[finite]).any()
    error = np.abs(actual - exact)[known]
    allowed = np.maximum(1e-3 * np.abs(exact), 1e-6)[known]
    assert (error <= allowed).all(), (x[known][error > allowed][:5], r[known][error > allowed][:5])
    if name in LOST_TAILS:
        assert np.abs(actual - exact)[finite & ~known].max() < 5e-6


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "gelu erf", "elu"])
def test_references_that_are_much_larger_than_the_input(name, rule):
    """And inputs much larger than the reference: what is missing is no more than the rounding of their difference."""
    f = jax.jit(FUNCTIONS[name])
    small, large = (side.ravel().astype(np.float32) for side in np.meshgrid([0.5, -0.7, 2], [-1e4, -1e6, -1e9]))
    explain = jax.jit(lambda x, r: multiplier(f, x, r, rule))
    for x, r in ((small, large), (large, small)):
        m = explain(x, r)
        error = np.abs(np.asarray(m, np.float64) * (x - r) - (np.asarray(f(x), np.float64) - f(r)))
        assert (error <= 1e-7 * np.abs(x - r)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_contributions_are_complete_to_rounding(name, grid):
    """What is missing is no more than the rounding of `f` itself, intermediate results included."""
    f, (x, r) = FUNCTIONS[name], grid
    near = (np.abs(x) < 80) & (np.abs(r) < 80)
    x, r = x[near], r[near]
    m = np.asarray(compiled(f, x, r, "rescale"))
    with_slope = jax.jit(jax.vmap(jax.value_and_grad(f)))
    (y, slope), (y_ref, slope_ref) = (map(np.asarray, with_slope(end)) for end in (x, r))
    conditioned = [np.abs(y) + np.abs(x * slope), np.abs(y_ref) + np.abs(r * slope_ref)]
    scale = sum(conditioned) + (np.abs(x) + np.abs(r) if name in LOST_TAILS else 0)
    assert (np.abs(m * (x - r) - (y - y_ref)) <= 1e-6 * scale + 1e-37).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_multipliers_of_equal_ends_are_derivatives(name, grid):
    r = np.unique(grid[1])
    r = r[np.abs(r) < 50]
    m = np.asarray(compiled(FUNCTIONS[name], r, r, "rescale"))
    np.testing.assert_allclose(m, jax.jit(jax.vmap(jax.grad(FUNCTIONS[name])))(r), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("f", "secant"),
    {
        "sqrt": (jnp.sqrt, lambda x, r: 1 / (x**0.5 + r**0.5)),
        "rsqrt": (lax.rsqrt, lambda x, r: (x**-0.5 - r**-0.5) / (x - r)),
        "cbrt": (lax.cbrt, lambda x, r: (np.cbrt(x) - np.cbrt(r)) / (x - r)),
        "square": (lax.square, lambda x, r: x + r),
        "reciprocal": (lambda x: x**-1, lambda x, r: -1 / (x * r)),
        **{
            f"to the {n}": (lambda x, n=n: x**n, lambda x, r, n=n: (x**n - r**n) / (x - r))
            for n in (3, 4, 5, 8, 9, -2, -3, -8, -9)
        },
    }.values(),
)
def test_roots_and_powers(f, secant):
    x = np.array([1.5, 2.0, 0.01, 3.0, 1.001], np.float32)
    r = np.array([0.3, 2.5, 0.02, 1e-3, 1.0], np.float32)
    exact = secant(x.astype(np.longdouble), r.astype(np.longdouble))
    np.testing.assert_allclose(compiled(f, x, r, "rescale"), exact, rtol=3e-5)
    at = np.array([1.5, 0.01], np.float32)
    np.testing.assert_allclose(compiled(f, at, at, "rescale"), jax.vmap(jax.grad(f))(at), rtol=1e-5)


@pytest.mark.parametrize("f", [jnp.sqrt, jnp.cbrt, jax.lax.rsqrt, lambda x: x**-1, lambda x: x**-2])
def test_where_equal_ends_have_no_finite_secant_it_counts_as_0(f):
    zeros = jnp.zeros(2)
    _, pull = jaxlift.vjp(f, zeros, zeros)
    np.testing.assert_array_equal(pull(jnp.array([1.0, -2.0])), 0)


def test_roots_of_zero():
    """Where there is no derivative, what doesn't differ has a multiplier of 0."""
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    for f in (jnp.sqrt, lax.cbrt):
        assert compiled(f, zero, zero, "rescale") == 0
        assert compiled(f, one, zero, "rescale") == compiled(f, zero, one, "rescale") == 1
        of_weight = jax.jit(jax.grad(lambda v, f=f: multiplier(lambda x: v * f(x), zero[0], zero[0], "rescale")))
        assert of_weight(np.float32(2)) == 0


def test_an_infinite_difference_of_a_root_is_not_left_out():
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    for f in (lax.rsqrt, lambda x: x**-1, lambda x: x**-2):
        for x, r in ((zero, one), (one, zero)):
            assert not np.isfinite(compiled(f, x, r, "rescale"))


def test_the_derivative_at_a_kink_is_jaxs():
    bounded = [
        lambda x, ends=ends: lax.clamp(np.float32(ends[0]), x, np.float32(ends[1])) for ends in ((0, 1), (-1, 0))
    ]
    for f, expected in (
        (jax.nn.relu, 0.0),
        (lambda x: jnp.maximum(x, 0), 0.5),
        (jnp.abs, 1.0),
        *((f, 0.0) for f in bounded),
    ):
        zero = np.float32(0)
        assert compiled(f, zero, zero, "rescale") == jax.jit(jax.grad(f))(zero) == expected
        assert compiled(f, zero, zero, "revealcancel") == expected


def test_the_kink_of_a_relu_between_input_and_reference():
    distances = np.array([1e-30, 1e-12, 1e-7, 1e-3, 1, 1e3], np.float32)
    np.testing.assert_allclose(compiled(jax.nn.relu, distances, -3 * distances, "rescale"), 0.25, rtol=1e-6)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, jax.nn.gelu])
def test_activations_of_any_size(rule, activation):
    """Where activations are of this size, multipliers are as good as those of the same network with activations of size
    1.
    """
    rng = np.random.default_rng(1)
    w, v = rng.normal(size=(6, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    x, r = rng.normal(size=(2, 6)).astype(np.float32)

    def fun(x, scale):
        if activation is jax.nn.relu:
            return activation(x @ w * scale) @ v
        return (activation(x @ w) * scale) @ v

    @jax.jit
    @jax.vmap
    def explain(scale):
        (y, y_ref), pullback = jaxlift.vjp(lambda x: fun(x, scale), x, r, rule=rule)
        return pullback(jnp.ones_like(y)), y - y_ref

    with jax.enable_x64(True):
        wide = [a.astype(np.float64) for a in (w, v, x, r)]
        exact = compiled(lambda x: activation(x @ wide[0]) @ wide[1], wide[2], wide[3], rule)
    scales = np.array([1e-30, 1e-8, 1e-4, 1e6, 1e12], np.float32)
    for scale, m, change in zip(scales, *map(np.asarray, explain(scales)), strict=True):
        np.testing.assert_allclose(m / scale, exact, rtol=2e-5, atol=2e-5)
        assert np.abs((m * (x - r)).sum() - change) <= 1e-5 * scale * 10


def test_no_nan_where_a_derivative_is_infinite():
    for f in (jnp.sqrt, lambda x: x ** jnp.float32(0.5), jnp.cbrt, lambda x: jnp.linalg.norm(x[None])):
        at_zero, at_one = jax.vmap(lambda x: compiled(f, x, jnp.float32(0), "rescale"))(np.array([0, 1], np.float32))  # noqa: B023
        assert np.isfinite(at_zero)
        assert at_one == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_infinite_values_that_are_equal_differ_by_zero(rule):
    mask = np.array([True, False, True])

    def fun(x):
        logits = jnp.where(mask, x, -jnp.inf)
        return jnp.exp(logits - 1).sum() + jnp.maximum(logits, -5).sum()

    x, r = np.array([0.5, 1, -1], np.float32), np.array([0, 2, 1], np.float32)
    m = np.asarray(compiled(fun, x, r, rule))
    assert np.isfinite(m).all()
    plain = jax.jit(fun)
    np.testing.assert_allclose((m * (x - r)).sum(), plain(x) - plain(r), rtol=1e-6)
    assert m[1] == 0


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_gradients_of_multipliers_are_finite_near_the_reference(rule):
    distances = np.array([0, 1e-20, 1e-9, 1e-5, 1e-2, 1, 100], np.float32)
    for f in (jnp.tanh, jax.nn.gelu, jax.nn.relu, jax.nn.softplus):
        slope = jax.grad(lambda x: multiplier(f, x, jnp.float32(0.3), rule))  # noqa: B023
        assert np.isfinite(jax.jit(jax.vmap(slope))(np.float32(0.3) + distances)).all()


def test_one_program_and_its_compilation_agree():
    """Squares: both formulas are exact, so which holds is a matter of rounding, and must be decided once."""

    def normalised(x, weights):
        h = (x @ weights).reshape(2, 3)
        return ((h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)).ravel()

    @jax.jit
    def explain(weights, x, r):
        (y, y_ref), pullback = jaxlift.vjp(lambda x: normalised(x, weights), x, r)
        return jax.vmap(pullback)(jnp.eye(6)) @ (x - r), y - y_ref

    for seed in range(12):
        rng = np.random.default_rng(seed)
        sides = rng.normal(size=(12, 6)), *rng.normal(size=(2, 12))
        np.testing.assert_allclose(*explain(*map(np.float32, sides)), atol=1e-5)


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))


@jax.custom_jvp
def derived_once(x):
    return jnp.sin(x) * x


derived_once.defjvp(lambda x, t: (derived_once(*x), (jnp.cos(x[0]) * x[0] + jnp.sin(x[0])) * t[0] + 0 * cubed(x[0])))


@pytest.mark.parametrize("f", [cubed, derived_once])
def test_functions_without_second_derivatives(f):
    """JAX takes no second one forwards where a rule calls a `custom_vjp` function. Multipliers only need the first."""
    x, r = np.float32(1.5), np.float32(1.5) - np.array([0, 1e-6, 1e-4, 1e-2, 1], np.float32)
    m = jax.jit(jax.vmap(lambda r: multiplier(f, x, r, "rescale")))(r)
    with jax.enable_x64(True):
        wide, wide_r = x.astype(np.float64), r.astype(np.float64)[1:]
        exact = jax.jit(lambda x, r: (f(x) - f(r)) / (x - r))(wide, wide_r)
    np.testing.assert_allclose(m[0], jax.jit(jax.grad(f))(x), rtol=1e-6)
    np.testing.assert_allclose(m[1:], exact, rtol=1e-4)


@jax.custom_jvp
def straight_through(x):
    return jnp.maximum(x, 0)


straight_through.defjvp(lambda primals, tangents: (straight_through(*primals), *tangents))
SLOPES = jnp.asarray([[0.1, -0.3, 2.0, 0.0]], jnp.float32)
TWO_RAYS = {
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "a slope for each": lambda x: jnp.where(x > 0, x, SLOPES * x),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "abs": jnp.abs,
    "min": lambda x: jnp.minimum(x, 0),
    "max with a line": lambda x: jnp.maximum(x, 0.3 * x),
    "times a condition": lambda x: x * (x > 0),
    "times the sign": lambda x: x * jnp.sign(x) / 2,
}
OTHERS = {
    "relu6": jax.nn.relu6,
    "shifted": lambda x: jnp.maximum(x, 0.25),
    "shifted condition": lambda x: jnp.where(x > 0.25, x, 0),
    "square": lambda x: x * jnp.abs(x),
    "sign": lambda x: jnp.sign(x) * 1.0,
    "hard tanh": jax.nn.hard_tanh,
    "elu": jax.nn.elu,
    "derivative of its own": straight_through,
}


def seeing(what, f, x, r):
    """Multipliers, and what is known of each nonlinearity in a jitted function, whose constants are tracers."""
    seen = []

    class Seeing(jaxlift.Rescale):
        def pull(self, f, x, r, cotangent):
            seen.append(getattr(f, what))
            return super().pull(f, x, r, cotangent)

    return np.asarray(compiled(f, x, r, Seeing())), seen


@pytest.mark.parametrize("name", [*TWO_RAYS, *OTHERS])
def test_two_lines_that_meet_at_zero_are_recognised(name):
    f = (TWO_RAYS | OTHERS)[name]
    x = np.array([[3, 1e-10, -2, 0], [0, 5, -1, 2], [-1e-30, 1e30, 1, -1]], np.float32)
    r = np.array([[-1, -1, 1, 0], [2, 0, -3, 1], [1, -1e30, 1, -1]], np.float32)
    m, seen = seeing("is_two_rays", f, x, r)
    assert seen == [name in TWO_RAYS]
    with_slope = jax.jit(lambda x: (f(x), jax.vjp(f, x)[1](jnp.ones_like(x))[0]))
    (y, derivative), (y_ref, _) = (np.asarray(with_slope(side), np.float64) for side in (x, r))
    d = np.asarray(x, np.float64) - np.asarray(r, np.float64)
    np.testing.assert_allclose((m * d)[d != 0], (y - y_ref)[d != 0], rtol=3e-7, atol=0)
    np.testing.assert_allclose(m[d == 0], derivative[d == 0], rtol=3e-7)


RAMPS = {
    "relu6": (jax.nn.relu6, 0, 6),
    "hard tanh": (jax.nn.hard_tanh, -1, 1),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.7), -0.5, 0.7),
    "clamp": (lambda x: jax.lax.clamp(x.dtype.type(-0.5), x, x.dtype.type(0.7)), -0.5, 0.7),
    "min of max": (lambda x: jnp.minimum(4, jnp.maximum(x, -3)), -3, 4),
    "max of min": (lambda x: jnp.maximum(-3, jnp.minimum(x, 4)), -3, 4),
    "above": (lambda x: jnp.maximum(x, 0.25), 0.25, np.inf),
    "below": (lambda x: jnp.clip(x, max=-2), -np.inf, -2),
    "chosen above": (lambda x: jnp.where(x <= 1, x, 1), -np.inf, 1),
    "chosen twice": (lambda x: jnp.where(x >= 1, 1, jnp.where(x > -2, x, -2)), -2, 1),
    "chosen in turn": (lambda x: jnp.where(jnp.where(x < 1, x, 1) < -2, -2, jnp.where(x < 1, x, 1)), None, None),
    "in another order": (lambda x: jnp.minimum(jnp.maximum(x, 5), 4), None, None),  # 4, whatever `x` is
    "another number above": (lambda x: jnp.where(x > 1, 2, x), None, None),
    "another number below": (lambda x: jnp.where(x < -1, -3, x), None, None),
    "bent": (lambda x: jnp.maximum(0.2 * x, jnp.minimum(x, 3)), None, None),
    "twice": (lambda x: jnp.clip(2 * jnp.clip(x, -1, 1), -1, 1), None, None),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RAMPS)
def test_numbers_held_between_bounds_are_recognised(name, dtype):
    """Their secants by the plain quotient, of ends on all sides of both bounds and in them, near and far."""
    f, low, high = RAMPS[name]
    kinks = [k for k in (low, high) if k is not None and np.isfinite(k)]
    eps = np.finfo(dtype).eps
    near = [k * (1 + step * eps) + step * eps for k in kinks for step in (-3, -1, 1, 3)]
    ends = np.unique(np.array([-1e9, -7.3, -0.6, 0, 1e-8, 0.3, 1.2, 6.5, 1e7, *kinks, *near], dtype))
    x, r = np.meshgrid(ends, ends)
    with jax.enable_x64(dtype == "float64"):
        m, seen = seeing("is_ramp", f, x, r)
        derivative = np.asarray(jax.vmap(jax.grad(f))(ends))
    assert seen == [low is not None] * len(seen)
    if low is None:
        return
    assert seen
    x, r = x.astype(np.longdouble), r.astype(np.longdouble)
    low, high = (np.dtype(dtype).type(bound) for bound in (low, high))
    d = x - r
    expected = (np.clip(x, low, high) - np.clip(r, low, high)) / np.where(d == 0, 1, d)
    np.testing.assert_allclose(m[d != 0], np.asarray(expected[d != 0], float), rtol=4 * eps, atol=0)
    np.testing.assert_allclose(np.diag(m), derivative, atol=0)


PARABOLAS = {
    "square": jnp.square,
    "product": lambda x: x * x,
    "power": lambda x: x**2 / 3,
    "three terms": lambda x: 2 * (x - 0.3) ** 2 - x,
    "coefficients of each": lambda x: SLOPES * x * (x - 1),
}
HIGHER = {
    "cube": lambda x: x**3,
    "fourth": lambda x: jnp.square(x * x),
    "kinked": lambda x: x * jnp.maximum(x, 0),
    "one over": lambda x: x / (1 + x * x),
}


@pytest.mark.parametrize("name", [*PARABOLAS, *HIGHER])
def test_parabolas_are_recognised(name):
    """Their multiplier is the derivative at the midpoint, exactly, at any distance."""
    f = (PARABOLAS | HIGHER)[name]
    rng = np.random.default_rng(2)
    r = rng.normal(size=(40, 4)).astype(np.float32)
    x = r + (10.0 ** rng.uniform(-9, 3, size=r.shape) * rng.choice([-1, 0, 1], size=r.shape)).astype(np.float32)
    m, seen = seeing("is_parabola", f, x, r)
    assert seen == [name in PARABOLAS]
    if name in PARABOLAS:
        with jax.enable_x64(True):
            exact = jax.jit(lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0])((x.astype(np.float64) + r) / 2)
        np.testing.assert_allclose(m, exact, rtol=1e-6, atol=1e-6)


def test_parabolas_of_infinities_that_are_equal():
    """As of distances to what is masked, which `exp` makes 0."""

    def fun(x):
        distance = jnp.where(np.array([True, False, True]), x, jnp.inf)
        return jnp.exp(-jnp.stack([distance**2, distance**2 + 1]).sum(0)).sum()

    x, r = np.array([0.5, 1, -1], np.float32), np.array([0, 2, 1.5], np.float32)
    m = np.asarray(compiled(fun, x, r, "rescale"))
    assert m[1] == 0
    plain = jax.jit(fun)
    np.testing.assert_allclose((m * (x - r)).sum(), plain(x) - plain(r), rtol=1e-6)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "exp"])
def test_equal_infinities_do_not_differ(name, rule):
    """As masked logits do not; beside them, what differs has its sum."""
    x, r = np.array([-np.inf, 1, -np.inf], np.float32), np.array([-np.inf, -2, -np.inf], np.float32)
    multipliers = np.asarray(compiled(FUNCTIONS[name], x, r, rule))
    assert np.isfinite(multipliers).all()
    plain = jax.jit(FUNCTIONS[name])
    np.testing.assert_allclose(multipliers[1] * 3, plain(x)[1] - plain(r)[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 3e-3), ("float32", 1e-6)])
def test_large_numbers_are_not_mistaken_for_infinities(dtype, rtol, name):
    """In half precision too, which ends at 65504."""
    x = jnp.array([6e4, 3e4, -6e4], dtype)
    y, y_ref = (np.asarray(FUNCTIONS[name](each), np.float64) for each in (x, jnp.zeros_like(x)))
    actual = np.asarray(multiplier(FUNCTIONS[name], x, jnp.zeros_like(x), "rescale"), np.float64)
    np.testing.assert_allclose(actual * np.asarray(x, np.float64), y - y_ref, rtol=rtol)


COMPLEX = {
    "modulus": lambda z: jnp.abs(z),
    "scaled modulus": lambda z: jnp.abs(z * (1 + 2j)),
    "power spectrum": lambda z: jnp.abs(z) ** 2,
    "conjugate": lambda z: (jnp.conj(z) ** 2).real,
    "exponential": lambda z: jnp.exp(z).real,
}


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", COMPLEX)
def test_multipliers_of_equal_complex_numbers_are_derivatives(name, rule):
    """Both parts of them: a modulus changes in every direction of the plane."""
    x = np.random.default_rng(0).normal(size=6).astype(np.float32)

    def f(x):
        return COMPLEX[name](jnp.fft.fft(x)).sum()

    np.testing.assert_allclose(compiled(f, x, x, rule), jax.jit(jax.grad(f))(x), rtol=1e-5, atol=1e-5)


FINITE = {
    "elu": jax.nn.elu,
    "celu": lambda x: jax.nn.celu(x, 0.5),
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "log sigmoid": jax.nn.log_sigmoid,
    "soft sign": jax.nn.soft_sign,
    "gelu": jax.nn.gelu,
    "bump": lambda x: jnp.exp(-(x**2)) + jnp.exp(-(x * x) / 2),
    "either side": lambda x: jnp.where(x <= 0, jnp.exp(jnp.where(x < 0, x, 0)), jnp.log1p(jnp.where(x < 0, 0, x))),
    "root": lambda x: x / jnp.sqrt(jnp.square(x) + 0.5) * jnp.abs(x),
    "powers of two": lambda x: 2 - jnp.exp2(-3 * jnp.abs(x)) / (1 + jnp.minimum(x, 0) ** 2),
}
NOT_FINITE = {
    "exp": jnp.exp,
    "sigmoid by hand": lambda x: 1 / (1 + jnp.exp(-x)),
    "softplus by hand": lambda x: jnp.log1p(jnp.exp(x)),
    "derivative is not": lambda x: jnp.where(x > 0, x, jnp.expm1(x)),
    "other side": lambda x: jnp.where(x > 0, jnp.expm1(jnp.where(x > 0, x, 0)), x),
    "compared with something else": lambda x: jnp.expm1(jnp.where(x > 0, 0, 2 * x)),
    "root of a modulus": lambda x: jnp.sqrt(jnp.abs(x)) * jnp.tanh(x),
    "pole": lambda x: jnp.tanh(x) / x,
    "infinity": lambda x: jnp.where(x > 0, x, jnp.inf),
}


@pytest.mark.parametrize("name", [*FINITE, *NOT_FINITE])
def test_functions_that_are_finite_everywhere_are_recognised(name):
    """RevealCancel needs no guards where it evaluates them."""
    f = (FINITE | NOT_FINITE)[name]
    x, r = np.array([-3, 0.5, 2], np.float32), np.array([1, 2, -0.25], np.float32)
    _, seen = seeing("is_total", f, x, r)
    assert seen == [name in FINITE]
    if name in FINITE:
        ends = np.array([0, 1e-30, 1e-5, 1, 10, 88, 100, 1e4], np.float32)
        with_slope = jax.jit(jax.vmap(jax.value_and_grad(f)))
        assert np.isfinite(with_slope(np.concatenate([ends, -ends]))).all()


COMPOSED = {
    "tanh of relu": lambda u: jnp.tanh(jax.nn.relu(u)),
    "tanh of twice relu": lambda u: jnp.tanh(2 * jax.nn.relu(u)),
    "sigmoid of relu": lambda u: jax.nn.sigmoid(jax.nn.relu(u)),
    "softplus of relu": lambda u: jax.nn.softplus(jax.nn.relu(u)),
    "exp of relu": lambda u: jnp.exp(jax.nn.relu(u)),
    "sin of elu": lambda u: jnp.sin(jax.nn.elu(u)),
}


# Without optimisations XLA's CPU compiler rounds what it computes twice in two ways.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if version("jaxlib").startswith("0.10."):
    UNOPTIMISED["xla_cpu_use_fusion_emitters"] = True  # as users have it, and these tests don't


@pytest.mark.parametrize("name", COMPOSED)
def test_derivatives_where_two_formulas_agree_by_chance(name):
    """Of a unit's contribution `f(x) - f(r)`, among 200,000 pairs. About 20 of them are where the formula for near ends
    agrees with the quotient across a kink, or at some distance, within rounding.
    """
    f = COMPOSED[name]

    def contribution(x, r):
        return jaxlift.vjp(f, x, r)[1](jnp.float32(1)) * (x - r)

    x, r = np.random.default_rng(0).normal(size=(2, 200_000)).astype(np.float32)
    lowered = jax.jit(jax.vmap(jax.grad(contribution, (0, 1)))).lower(x, r)
    slope = jax.jit(jax.vmap(jax.grad(f)))
    for options in ({}, UNOPTIMISED):
        of_x, of_r = lowered.compile(compiler_options=options)(x, r)
        np.testing.assert_allclose(of_x, slope(x), atol=5e-3)
        np.testing.assert_allclose(of_r, -slope(r), atol=5e-3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_derivatives_through_two_layers_of_unknown_functions(rule):
    """Contributions sum to the difference of the outputs, so the derivative of their sum is the output's own."""
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(4, 7)), rng.normal(size=(7, 5))

    def fun(x):
        f = COMPOSED["tanh of relu"]
        return f(f(x @ first) @ second).sum(1)

    x, r = rng.normal(size=(5, 4)), rng.normal(size=4)
    attr = jaxlift.attribute(fun, rule=rule)
    found = jax.jit(jax.grad(lambda x: attr(x, reference=r).sum()))(x)
    np.testing.assert_allclose(found, jax.grad(lambda x: fun(x).sum())(x), atol=1e-8)
