"""Activations: the same under every rule however they are written, and finite and complete under RevealCancel for all
ends.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift


@jax.jit
def with_jits_around(z):
    return jax.jit(lambda z: jax.jit(jnp.maximum)(z, 0))(z)


@jax.jit
def above_a_difference_of_numbers(z, a=2.0, b=2.0):
    return jnp.where(a >= b, jnp.maximum(z, (a - b) * 3 / b), jnp.nan)


RULES = ("rescale", "revealcancel", "guided_backprop", "deconvnet")
SPELLINGS = {
    "relu": [
        jax.nn.relu,
        lambda z: jnp.maximum(z, 0),
        lambda z: jnp.maximum(0.0, z),
        lambda z: jnp.where(z > 0, z, 0),
        lambda z: jnp.where(z >= 0, z, 0.0),
        lambda z: jnp.where(z < 0, 0, z),
        lambda z: jnp.where(z > 0, z, jnp.zeros_like(z)),
        lambda z: jnp.where(z > 0, 1.0, 0.0) * z,
        lambda z: z * (z > 0),
        lambda z: (z > 0).astype(z.dtype) * z,
        lambda z: z * jnp.logical_not(z <= 0),
        lambda z: z * (1 - (z < 0)),
        lambda z: (z + jnp.abs(z)) / 2,
        lambda z: 0.5 * z + 0.5 * jnp.abs(z),
        lambda z: (z + jnp.sqrt(z * z)) / 2,
        lambda z: (z + jnp.sqrt(z**2)) / 2,
        lambda z: jnp.clip(z, 0),
        lambda z: jnp.clip(z, 0, jnp.inf),
        lambda z: jnp.clip(z, min=0.0),
        lambda z: lax.clamp(0.0, z, jnp.inf),
        lambda z: -jnp.minimum(-z, 0),
        lambda z: z - jnp.minimum(z, 0),
        lambda z: z * 0.5 * (1 + jnp.sign(z)),
        lambda z: z * jnp.heaviside(z, 0),
        lambda z: z * jnp.clip(jnp.sign(z), 0),
        lambda z: lax.select(z > 0, z, jnp.zeros_like(z)),
        lambda z: lax.max(z, lax.full_like(z, 0)),
        lambda z: jax.nn.leaky_relu(z, 0.0),
        lambda z: jnp.where(jnp.isnan(z), z, jnp.maximum(z, 0)),
        lambda z: jnp.maximum(z, 0).astype(jnp.float64).astype(z.dtype),
        lambda z: jnp.maximum(z.astype(jnp.float64), 0).astype(z.dtype),
        lambda z: 3 * jnp.maximum(z / 3, 0),
        with_jits_around,
        lambda z: above_a_difference_of_numbers(z, 2.0, 2.0),
    ],
    "leaky relu": [
        lambda z: jax.nn.leaky_relu(z, 0.2),
        lambda z: jnp.where(z > 0, z, 0.2 * z),
        lambda z: jnp.maximum(z, 0.2 * z),
        lambda z: 0.6 * z + 0.4 * jnp.abs(z),
        lambda z: jnp.maximum(z, 0) + 0.2 * jnp.minimum(z, 0),
        lambda z: z * jnp.where(z > 0, 1, 0.2),
    ],
    "abs": [
        jnp.abs,
        lambda z: z * jnp.sign(z),
        lambda z: jnp.maximum(z, -z),
        lambda z: jnp.where(z > 0, z, -z),
        lambda z: jnp.sqrt(z**2),
    ],
    "relu6": [jax.nn.relu6, lambda z: jnp.clip(z, 0, 6), lambda z: jnp.minimum(jnp.maximum(z, 0), 6)],
    "hard tanh": [jax.nn.hard_tanh, lambda z: jnp.clip(z, -1, 1)],
    "hard sigmoid": [jax.nn.hard_sigmoid, lambda z: jnp.clip(z / 6 + 0.5, 0, 1)],
    "hard silu": [jax.nn.hard_silu, lambda z: z * jnp.clip(z + 3, 0, 6) / 6],
    "sigmoid": [
        jax.nn.sigmoid,
        lambda z: 1 / (1 + jnp.exp(-z)),
        lambda z: 1.0 / (jnp.exp(-z) + 1.0),
        lambda z: jnp.exp(z) / (1 + jnp.exp(z)),
        lambda z: 1 - 1 / (1 + jnp.exp(z)),
        lambda z: jnp.reciprocal(1 + jnp.exp(-z)),
        lambda z: (1 + jnp.exp(-z)) ** -1,
        lambda z: 0.5 * (1 + jnp.tanh(z / 2)),
        lambda z: jnp.exp(-jnp.log1p(jnp.exp(-z))),
        lambda z: 1 / (1 + jnp.exp2(-z / np.log(2))),
    ],
    "tanh": [
        jnp.tanh,
        lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)),
        lambda z: jnp.sinh(z) / jnp.cosh(z),
        lambda z: (jnp.exp(2 * z) - 1) / (jnp.exp(2 * z) + 1),
        lambda z: jnp.expm1(2 * z) / (jnp.expm1(2 * z) + 2),
        lambda z: 2 / (1 + jnp.exp(-2 * z)) - 1,
        lambda z: 1 - 2 / (jnp.exp(2 * z) + 1),
    ],
    "silu": [
        jax.nn.silu,
        lambda z: z / (1 + jnp.exp(-z)),
        lambda z: z * (1 / (1 + jnp.exp(-z))),
        lambda z: z * jnp.exp(z) / (1 + jnp.exp(z)),
        lambda z: z * jax.nn.sigmoid(z),
    ],
    "softplus": [
        jax.nn.softplus,
        lambda z: jnp.log1p(jnp.exp(z)),
        lambda z: jnp.log(1 + jnp.exp(z)),
        lambda z: jnp.logaddexp(z, 0),
        lambda z: z + jnp.log1p(jnp.exp(-z)),
        lambda z: -jax.nn.log_sigmoid(-z),
        lambda z: -jnp.log(1 / (1 + jnp.exp(z))),
    ],
    "elu": [
        jax.nn.elu,
        lambda z: jnp.where(z > 0, z, jnp.exp(jnp.where(z > 0, 0, z)) - 1),
        lambda z: jnp.maximum(z, 0) + jnp.expm1(jnp.minimum(z, 0)),
    ],
    "gelu": [
        jax.nn.gelu,
        lambda z: 0.5 * z * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        lambda z: z / (1 + jnp.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    ],
    "exact gelu": [
        lambda z: jax.nn.gelu(z, approximate=False),
        lambda z: z * 0.5 * (1 + lax.erf(z / np.sqrt(2))),
        lambda z: z * jax.scipy.stats.norm.cdf(z),
    ],
    "mish": [
        jax.nn.mish,
        lambda z: z * jnp.tanh(jnp.log1p(jnp.exp(z))),
        lambda z: z * ((1 + jnp.exp(z)) ** 2 - 1) / ((1 + jnp.exp(z)) ** 2 + 1),
    ],
    "soft sign": [jax.nn.soft_sign, lambda z: z / (1 + jnp.abs(z)), lambda z: z / (jnp.abs(z) + 1)],
    "squareplus": [jax.nn.squareplus, lambda z: (z + jnp.sqrt(z**2 + 4)) / 2, lambda z: (z + (z * z + 4) ** 0.5) / 2],
    "inverse root unit": [lambda z: z / jnp.sqrt(1 + z * z), lambda z: z * lax.rsqrt(1 + z**2)],
    "snake": [lambda z: z + jnp.sin(3 * z) ** 2 / 3, lambda z: z + (1 - jnp.cos(6 * z)) / 6],
}
HAND_MADE = [
    pytest.param(name, i, id=f"{name} {i}", marks=[pytest.mark.slow] * (i > (8 if name == "relu" else 0)))
    for name, spellings in SPELLINGS.items()
    for i in range(1, len(spellings))
]
ACTIVATIONS = {name: spellings[0] for name, spellings in SPELLINGS.items()}
NONE = {
    "exp": jnp.exp,
    "exp with a bias": lambda z: jnp.exp(-z) + 1,
    "log": jnp.log,
    "reciprocal": lambda z: 1 / (z + 3),
    "root": lambda z: jnp.sqrt(z + 1e-5),
    "reciprocal root": lambda z: lax.rsqrt(z + 1e-5),
    "power": lambda z: (z + 3) ** 1.5,
    "cube": lambda z: z**3,
    "hyperbolic cosine": jnp.cosh,
    "quadratic by exponentials": lambda z: z**2 / (1 + jnp.exp(-z)),
    "masked exp": lambda z: jnp.where(np.array([True, False, True, True, False]), jnp.exp(z), 0),
}


class Seeing(jaxlift.Rescale):
    def __init__(self):
        object.__setattr__(self, "seen", [])

    def pull(self, f, x, r, cotangent):
        self.seen.append(f)
        return super().pull(f, x, r, cotangent)


def seen_in(f):
    """The function as rules see it, in a jitted program, where constants are tracers."""
    rule = Seeing()
    x, r = np.array([0.5, 1, 2, 3, 1.5]), np.array([1.0, 0.25, 3, 2, 4])

    @jax.jit
    def multipliers(x, r):
        (y, _), pullback = jaxlift.vjp(f, x, r, rule=rule)
        return pullback(jnp.ones_like(y))

    jax.eval_shape(multipliers, x, r)
    [only] = rule.seen
    return only


@functools.cache
def explained(name, i):
    """Contributions of a network with one spelling of an activation, under each rule."""
    rng = np.random.default_rng(3)
    w, b, v = rng.normal(size=(5, 7)), rng.normal(size=7), rng.normal(size=(7, 2))
    x, r = rng.normal(size=(2, 3, 5))
    f = SPELLINGS[name][i]

    def fun(x):
        return f(f(x @ w + b) @ v).sum()

    def contributions(rule, x, r):
        return jaxlift.vjp(fun, x, r, rule=rule)[1](1.0) * (x - r)

    def under_each_rule(x, r):
        return {rule: jax.vmap(functools.partial(contributions, rule))(x, r) for rule in RULES}

    return jax.device_get(jax.jit(under_each_rule)(x, r))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "i"), HAND_MADE)
@pytest.mark.sample(10)
def test_activations_by_hand_are_what_they_are(name, i):
    for rule in RULES:
        expected, actual = explained(name, 0)[rule], explained(name, i)[rule]
        np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8, err_msg=rule)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPELLINGS)
def test_what_rules_are_told(name):
    for f in SPELLINGS[name]:
        seen = seen_in(f)
        assert seen.is_activation
        assert seen.is_relu == (name == "relu")


@pytest.mark.parametrize("name", NONE)
def test_what_normalisations_are_made_of_is_no_activation(name):
    seen = seen_in(NONE[name])
    assert not seen.is_activation
    assert not seen.is_relu


@pytest.mark.parametrize(
    "f",
    [
        *(
            lambda z: jnp.maximum(z, 1e-3),
            lambda z: 2 * jnp.maximum(z, 0) * (z < 5),
            lambda z: jnp.maximum(-z, 0) + z**2,
        ),
        *(lambda z: jnp.minimum(z, 0), lambda z: jnp.maximum(z, 0.01 * z), lambda z: z * jnp.maximum(z, 0)),
    ],
)
def test_what_is_like_a_relu_is_none(f):
    assert not seen_in(f).is_relu
    assert seen_in(f).is_activation


DTYPES = ("float32", "float64")
SWEPT = {
    **ACTIVATIONS,
    "celu": lambda z: jax.nn.celu(z, 0.5),
    "selu": jax.nn.selu,
    "log sigmoid": jax.nn.log_sigmoid,
    "sparse plus": jax.nn.sparse_plus,
    "sparse sigmoid": jax.nn.sparse_sigmoid,
    "identity": jax.nn.identity,
    "clip": lambda z: jnp.clip(z, -0.5, 0.7),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "square": jnp.square,
    "cube": lambda z: z**3,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "round": jnp.round,
    "heaviside": lambda z: jnp.heaviside(z, 0.5),
    "sigmoid by hand": SPELLINGS["sigmoid"][1],
    "softplus by hand": SPELLINGS["softplus"][1],
}


@pytest.mark.parametrize(
    ("name", "dtype", "count"),
    [
        *((name, dtype, 20_000) for name in ("clip", "sin", "relu6", "hard sigmoid") for dtype in DTYPES),
        *(pytest.param(name, dtype, 100_000, marks=pytest.mark.slow) for name in SWEPT for dtype in DTYPES),
    ],
)
@pytest.mark.usefixtures("x64")
@pytest.mark.sample(10)
def test_revealcancel_is_finite_and_complete(name, dtype, count):
    """For a unit with one input, one of whose parts is 0 but for rounding, and for one with several. The long run has
    300,000 pairs of ends of each function.
    """
    rng = np.random.default_rng(7)
    draws = [rng.normal(size=(2, n, 3)) for n in (count // 4, count // 4)]
    near = draws[1][1] + 10.0 ** rng.uniform(-12, 0, size=draws[1][1].shape)
    x, r = (np.concatenate(each).astype(dtype) for each in ((draws[0][0], near), (draws[0][1], draws[1][1])))
    f, eps = SWEPT[name], np.finfo(dtype).eps

    @jax.jit
    def explain(x, r, w, b):
        (y, y_ref), pullback = jaxlift.vjp(lambda x: f((x * w).sum(1) + b), x, r, rule="revealcancel")
        return pullback(jnp.ones_like(y)), y - y_ref, (jnp.abs(x * w) + jnp.abs(r * w)).sum(1) + abs(b)

    for w in ([3.0, 0, 0], [0.7, 0, 0], [3.0, -2.0, 0.5]):
        for b in (0.0, 0.1):
            m, delta, size = map(np.asarray, explain(x, r, np.array([w], dtype), np.array(b, dtype)))
            assert np.isfinite(m).all()
            missing = np.abs((m * (x - r)).sum(1) - delta)
            # The rounding of the ends, times the multiplier: large where there is a step between ends that are near.
            allowed = 100 * eps * (1 + size) * (1 + np.abs(m).max(1))
            assert (missing <= allowed).all(), (x[missing > allowed][:3], r[missing > allowed][:3], missing.max())


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_and_multipliers(fun, rule, x, r):
    (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
    return y, y_ref, pullback(jnp.ones_like(y))


@pytest.mark.parametrize("name", ["gelu", "exact gelu", "relu", "silu", "softplus", "elu", "mish", "soft sign"])
def test_revealcancel_of_vast_numbers(name):
    """Whose third powers, within a GELU, are none in float32."""
    for scale in (1e10, 1e13, 1e15, 1e25, 1e35):
        x, r = (np.array(signs, np.float32) * np.float32(scale) for signs in ([1, -1, 2], [-1, 2, 1]))
        y, y_ref, m = map(np.asarray, values_and_multipliers(ACTIVATIONS[name], "revealcancel", x, r))
        np.testing.assert_allclose(m * (x - r), y - y_ref, rtol=1e-6, atol=1e-6 * scale, err_msg=str(scale))


def copied_sign(z):
    return jnp.copysign(0.75, z)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_the_sign_of_a_reference_of_zero(rule, zero):
    """Of which one value is known as 0 and as -0: nothing but the reference itself has its sign."""
    x, r = np.array([1, -2], np.float32), np.array([zero, zero], np.float32)
    y, y_ref, m = map(np.asarray, values_and_multipliers(copied_sign, rule, x, r))
    np.testing.assert_allclose(m * (x - r), y - y_ref, rtol=1e-6)
