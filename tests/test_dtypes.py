"""Mixed precision: every rule through casts between the dtypes, in any order, on JAX's own values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift
from jaxlift.rules.rule import NAMED

pytestmark = pytest.mark.usefixtures("x64")
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
# A walk over all ordered pairs.
EVERY_CAST = [DTYPES[i] for i in (0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0)]
RNG = np.random.default_rng(11)
X, R, W, V = RNG.normal(size=3), RNG.normal(size=3), RNG.normal(size=(3, 4)), RNG.normal(size=(4, 4)) / 2


def cast(h, dtype):
    return h.astype(dtype)


def in_scan(h, weights):
    """A recurrent layer whose products are wider than its carry."""

    def step(carry, _):
        product = lax.dot(carry, weights, preferred_element_type=jnp.promote_types(h.dtype, jnp.float32))
        return jnp.clip(product.astype(h.dtype), -1, 1), carry

    last, before = lax.scan(step, h, length=2)
    return last + before.sum(0, dtype=h.dtype)


LAYERS = {
    "dense, then an activation": lambda h: jax.nn.softplus(h @ V.astype(h.dtype)),
    "an activation by itself": lambda h: jnp.maximum(2 * h, h),
    "clip": lambda h: jnp.clip(h * 2, -0.5, 1.0),
    "a gate": lambda h: h * jax.nn.sigmoid(h[::-1]),
    "scan": lambda h: in_scan(h, V.astype(h.dtype)),
    "softmax": lambda h: jax.nn.softmax(h) + h,
}


def network(order, layer, apply=lambda f: f):
    """The layer in each dtype, cast right before and after; perhaps with what is done to a function done to each."""

    def fun(x):
        h = x @ W.astype(x.dtype)
        for dtype in order:
            h = apply(LAYERS[layer])(apply(functools.partial(cast, dtype=dtype))(h))
        return h.astype(x.dtype).sum()

    return fun


def explained(fun, rule, dtype):
    def run(x, r):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
        return y, y_ref, pullback(jnp.ones_like(y))

    return run, X.astype(dtype), R.astype(dtype)


@pytest.mark.parametrize("apply", [lambda f: f, jax.jit], ids=["plain", "jitted"])
@pytest.mark.parametrize("layer", LAYERS)
def test_after_every_cast(layer, apply):
    """Every pair of dtypes, one after the other in one network. Multipliers have the dtype of what they are of."""
    run, x, r = explained(network(EVERY_CAST, layer, apply), "revealcancel", jnp.float64)
    y, _, m = jax.eval_shape(run, x, r)
    assert (y.dtype, m.dtype) == (jnp.float64, jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(DTYPES)))
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.sample(6)
def test_any_order_of_casts(layer, order):
    """Every rule, and input of every dtype."""
    for rule, apply, dtype in zip(NAMED, itertools.cycle([lambda f: f, jax.jit, jax.checkpoint]), DTYPES * 9):
        run, x, r = explained(network(order, layer, apply), rule, dtype)
        y, _, m = jax.eval_shape(run, x, r)
        assert (y.dtype, m.dtype) == (dtype, dtype)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_the_sum_is_right_to_rounding(layer, rule):
    """As far as the coarsest dtype on the way has digits."""
    run, x, r = explained(network([jnp.float32, jnp.bfloat16, jnp.float32, jnp.float16], layer), rule, jnp.float64)
    y, y_ref, m = jax.jit(run)(x, r)
    contributions = np.asarray(m * (x - r))
    np.testing.assert_allclose(contributions.sum(), y - y_ref, atol=2**-6 * np.abs(contributions).sum())


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_without_jit(rule):
    """There each operation is compiled for the dtypes that it is called with, and no others."""
    run, x, r = explained(lambda x: jnp.maximum((2 * x).astype(jnp.bfloat16), 0.5).sum(), rule, jnp.float32)
    y, y_ref, m = run(x, r)
    contributions = np.asarray(m * (x - r))
    np.testing.assert_allclose(contributions.sum(), float(y - y_ref), atol=2**-6 * np.abs(contributions).sum())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_a_conversion_is_the_identity(rule, dtype):
    """However near the reference is: the secants of what is rounded away are 0 there, or many times 1."""
    weights = jnp.asarray(V[0])

    @jax.jit
    def multipliers(x, r):
        return jaxlift.vjp(lambda x: x.astype(dtype).astype(x.dtype) @ weights, x, r, rule=rule)[1](jnp.ones(()))

    found = multipliers(jnp.ones(4) + jnp.array([0.0, 1e-9, 1e-5, 3e-3]), jnp.ones(4))
    np.testing.assert_array_equal(found, weights.astype(dtype).astype(weights.dtype))  # cotangents are rounded, too
