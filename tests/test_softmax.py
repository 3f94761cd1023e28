"""Softmax and logsumexp by logarithmic means, however they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import by_hand, by_hand_with_max

import jaxlift

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(3)
H, Q = RNG.normal(size=(2, 5)) * 2
WEIGHTS = RNG.normal(size=5)


def log_mean(p, q):
    """The paper-and-pencil formula, entry by entry."""
    return np.array([a if a == b else (a - b) / (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)])


def plain_softmax(h):
    return np.exp(h - h.max()) / np.exp(h - h.max()).sum()


SOFTMAXES = {
    "softmax": jax.nn.softmax,
    "by hand": by_hand,
    "by hand with max": by_hand_with_max,
    "from log_softmax": lambda h: jnp.exp(h - jax.nn.logsumexp(h)),
    "rows": lambda h: jax.nn.softmax(h[None, :], axis=-1)[0],
    "columns": lambda h: jax.nn.softmax(h[:, None], axis=0)[:, 0],
    "jitted": jax.jit(jax.nn.softmax),
    "checkpointed": jax.checkpoint(jax.nn.softmax),
}
EXACT = [name for name in SOFTMAXES if name != "from log_softmax"]  # which is a softmax only as a composition


def multipliers(fun, h, q, weights=WEIGHTS, rule="rescale"):
    @jax.jit
    def run(h, q):
        (y, y_ref), pullback = jaxlift.vjp(fun, h, q, rule=rule)
        return y, y_ref, pullback(weights)

    return jax.tree.map(np.asarray, run(h, q))


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", EXACT)
def test_softmax_multipliers(name, rule):
    m = log_mean(plain_softmax(H), plain_softmax(Q))
    expected = (np.diag(m) - np.outer(m, m) / m.sum()) @ WEIGHTS
    *_, found = multipliers(SOFTMAXES[name], H, Q, rule=rule)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "fun", [jax.nn.logsumexp, lambda h: jnp.log(jnp.exp(h).sum()), lambda h: h[2] - jax.nn.log_softmax(h)[2]]
)
def test_logsumexp_multipliers(fun):
    m = log_mean(plain_softmax(H), plain_softmax(Q))
    *_, found = multipliers(fun, H, Q, jnp.float64(1))
    np.testing.assert_allclose(found, m / m.sum(), rtol=1e-10)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_complete_and_at_the_reference_the_jacobian(name):
    fun = SOFTMAXES[name]
    y, y_ref, m = multipliers(fun, H, Q)
    np.testing.assert_allclose((m * (H - Q)).sum(), WEIGHTS @ (y - y_ref), rtol=1e-12)
    *_, m = multipliers(fun, H, H)
    np.testing.assert_allclose(m, jax.jit(jax.grad(lambda h: WEIGHTS @ fun(h)))(H), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("fun", [jax.nn.softmax, by_hand, by_hand_with_max, jax.nn.log_softmax])
@pytest.mark.parametrize("of_input", [False, True])
def test_unchanged_by_a_constant_on_either_side(fun, of_input):
    *_, expected = multipliers(fun, H, Q)
    *_, shifted = multipliers(fun, H + 5, Q) if of_input else multipliers(fun, H, Q + 5)
    np.testing.assert_allclose(shifted, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(("fun", "asked"), [(jax.nn.softmax, False), (by_hand_with_max, False), (jnp.max, True)])
def test_the_maximum_that_is_subtracted_is_not_asked(fun, asked):
    """Its multipliers, which find the place of the winner, would all be given 0."""

    def explained(h, q):
        y, pullback = jaxlift.vjp(fun, h, q)
        return y, pullback(jnp.ones_like(y[0]))

    assert ("iota" in jax.jit(explained).lower(H, Q).as_text()) is asked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fun", [jax.nn.softmax, by_hand_with_max, jax.nn.log_softmax])
def test_logits_far_apart(fun, dtype):
    h, q = np.array([1e4, 0, 3, -2, 1], dtype), np.array([0, 1e4, 1, 1, 1], dtype)
    y, y_ref, m = multipliers(fun, h, q, WEIGHTS.astype(dtype))
    assert np.isfinite(m).all()
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose((m * (h - q)).sum(), WEIGHTS @ (y - y_ref), rtol=tolerance)


@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float64).min])
def test_masks(lowest):
    mask = np.array([True, False, True, True, False])
    *_, masked = multipliers(lambda h: jax.nn.softmax(jnp.where(mask, h, lowest)), H, Q)
    *_, alone = multipliers(jax.nn.softmax, H[mask], Q[mask], WEIGHTS[mask])
    np.testing.assert_allclose(masked[mask], alone, rtol=1e-11)
    assert (masked[~mask] == 0).all()
    *_, where = multipliers(lambda h: jax.nn.softmax(h, where=mask), H, Q)
    np.testing.assert_allclose(where, masked, rtol=1e-11)


def test_what_is_constant_in_the_sum():
    """Exponentials of which some entries are replaced by a constant that isn't 0."""
    mask = np.array([True, False, True, True, False])

    def fun(h):
        e = jnp.where(mask, jnp.exp(h), 0.7)
        return e / e.sum()

    y, y_ref, m = multipliers(fun, H, Q)
    np.testing.assert_allclose((m * (H - Q)).sum(), WEIGHTS @ (y - y_ref), rtol=1e-12)
    assert (m[~mask] == 0).all()


def test_half_precision_logits():
    h, q = jnp.asarray(H, jnp.bfloat16), jnp.asarray(Q, jnp.bfloat16)
    y, y_ref, m = multipliers(lambda h: jax.nn.softmax(h.astype(jnp.float32)), h, q, jnp.float32(WEIGHTS))
    assert (m * (h - q)).astype(jnp.float32).sum() == pytest.approx(float(WEIGHTS @ (y - y_ref)), abs=0.03)


@pytest.mark.parametrize("fun", [jax.nn.softmax, jax.nn.logsumexp])
def test_near_the_reference_in_float32(fun):
    """Against the formula in 80 bits, for logits from 1e-8 to 500 apart: all terms of the series are needed."""
    apart = 10.0 ** np.arange(-8, 3, 0.25)
    weights = np.asarray(WEIGHTS if fun is jax.nn.softmax else 1, np.float32)
    h, q = np.asarray(H + apart[:, None] * Q, np.float32), np.asarray(H, np.float32)
    found = jax.jit(jax.vmap(lambda h: jaxlift.vjp(fun, h, q)[1](weights)))(h)
    for d, each, logits in zip(apart, found, h.astype(np.longdouble), strict=True):
        p, p_ref = (plain_softmax(side) for side in (logits, q.astype(np.longdouble)))
        change = logits - q
        # log p - log q: differences of logarithms of nearly equal numbers would be noise here too.
        fall = np.log1p((p_ref * np.expm1(change)).sum()) if d < 1 else np.log(p_ref / p).mean() + change.mean()
        ratio = change - fall
        m = np.where(ratio == 0, p, (p - p_ref) / np.where(ratio == 0, 1, ratio))
        m = np.where(np.abs(ratio) < 1e-3, np.sqrt(p * p_ref) * (1 + ratio**2 / 24), m)
        expected = (np.diag(m) - np.outer(m, m) / m.sum()) @ weights if fun is jax.nn.softmax else m / m.sum()
        # Far apart, what is left of a softmax is the difference of numbers that cancel.
        accuracy, scale = 1e-6 if d < 20 else 1e-4, float(np.abs(expected).max())
        np.testing.assert_allclose(each, expected.astype(float), rtol=0, atol=accuracy * scale + 1e-9, err_msg=str(d))
