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


# Masks that the data decides. A row of logits and what masks it; some entries are kept on one side only, some on both.
LOGITS, LOGITS_REF = np.array([1.0, -0.5, 0.7, 2.0, -0.3]), np.array([0.3, 0.8, -0.2, 1.0, -0.9])
PROJECTION = RNG.normal(size=(2, 4, 3))


def keeps_others(a):
    return jnp.roll(a, 1) > 0


def top_two(a):
    return a >= jnp.sort(a)[-2:-1]


def attention(x, lowest):
    scores = (x @ PROJECTION[0]) @ (x @ PROJECTION[1]).T / 2
    return jax.nn.softmax(scores + jnp.where(x[:, 0] > 0, 0.0, lowest)[None, :]) @ x


def layers(x, lowest):
    """Two calls of one layer, which is lifted once."""
    bias = jnp.where(x[:, 0] > 0, 0.0, lowest)[None, :]

    @jax.jit
    def layer(x, bias):
        return jax.nn.softmax((x @ PROJECTION[0]) @ (x @ PROJECTION[1]).T + bias) @ x

    return layer(layer(x, bias), bias)


def of_rows(fun):
    """A function of one row, of what is made of an array of shape (5, 4)."""
    return lambda x, lowest: fun(x[:, 0], lowest)


MASKED = {
    "softmax": of_rows(lambda a, lowest: jax.nn.softmax(jnp.where(a > 0, a, lowest))),
    "added": of_rows(lambda a, lowest: jax.nn.softmax(a + jnp.where(a > 0, 0.0, lowest))),
    "by hand": of_rows(lambda a, lowest: by_hand(jnp.where(a > 0, a, lowest))),
    "by hand with max": of_rows(lambda a, lowest: by_hand_with_max(jnp.where(a > 0, a, lowest))),
    "checkpointed": of_rows(lambda a, lowest: jax.checkpoint(jax.nn.softmax)(jnp.where(a > 0, a, lowest))),
    "temperature": of_rows(lambda a, lowest: jax.nn.softmax(jnp.where(a > 0, a, lowest) / 8)),
    "other keeps": of_rows(lambda a, lowest: jax.nn.softmax(jnp.where(keeps_others(a), a, lowest))),
    "two masks": of_rows(
        lambda a, lowest: jax.nn.softmax(jnp.where(a < 1.5, jnp.where(keeps_others(a), a, lowest), lowest))
    ),
    "top two": of_rows(lambda a, lowest: jax.nn.softmax(jnp.where(top_two(a), a, lowest))),
    "where": of_rows(lambda a, lowest: jax.nn.softmax(jnp.where(a > 0, a, lowest), where=a > 0)),
    "logsumexp": of_rows(lambda a, lowest: jax.nn.logsumexp(jnp.where(a > 0, a, lowest))),
    "of a label": of_rows(lambda a, lowest: jax.nn.log_softmax(jnp.where(a > 0, a, lowest))[3]),
    "maximum": of_rows(lambda a, lowest: jnp.where(keeps_others(a), a, lowest).max()),
    "attention": attention,
    "layers": layers,
}
IMPOSSIBLE = {
    "square": lambda a: (jnp.where(keeps_others(a), a, -jnp.inf) ** -2).sum(),
    "relu": lambda a: jax.nn.relu(jnp.where(keeps_others(a), a, -jnp.inf)).sum(),
    "is finite": lambda a: jnp.isfinite(jnp.where(keeps_others(a), a, -jnp.inf)).sum() * a[0],
    "choice of masked": lambda a: jnp.where(keeps_others(a), jnp.where(keeps_others(a), a, -jnp.inf), 0.0).sum(),
    "loop": lambda a: jax.lax.scan(
        lambda c, each: (c + jnp.exp(each), None), jnp.zeros_like(a[0]), jnp.where(keeps_others(a), a, -jnp.inf)
    )[0],
}


def masked_pair(dtype):
    rng = np.random.default_rng(8)
    x, r = rng.normal(size=(2, 5, 4))
    x[:, 0], r[:, 0] = LOGITS, LOGITS_REF
    return x.astype(dtype), r.astype(dtype)


def explained(fun, rule="rescale"):
    @jax.jit
    def run(x, r):
        (y, y_ref), pullback = jaxlift.vjp(lambda x: fun(x).astype(x.dtype), x, r, rule=rule)
        weights = jnp.asarray(np.random.default_rng(5).normal(size=y.shape), y.dtype)
        return (weights * (y - y_ref)).sum(), pullback(weights) * (x - r)

    return lambda x, r: jax.tree.map(lambda each: np.asarray(each, np.float64), run(x, r))


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", ["softmax", "added", "by hand", "by hand with max"])
def test_masks_of_the_data_by_the_formula(name, rule):
    """What is kept on both sides has shares by logarithmic means, and what is kept on one side its own change."""
    a, r = LOGITS, LOGITS_REF
    p, q = (np.where(side > 0, np.exp(side), 0) / np.exp(side[side > 0]).sum() for side in (a, r))
    both = (a > 0) & (r > 0)
    m = np.where(both, log_mean(np.where(both, p, 1), np.where(both, q, 1)), 0)
    each = np.where(both, m * (a - r), p - q)
    weights = np.random.default_rng(5).normal(size=5)
    expected = each * (weights - (weights * m).sum() / m.sum())
    difference, found = explained(lambda a: MASKED[name](a[:, None], -np.inf), rule)(a, r)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(difference, (weights * (p - q)).sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "dtype"), [("rescale", np.float32), pytest.param("revealcancel", np.float64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", MASKED)
def test_masks_of_the_data_are_the_limit_of_large_numbers(name, rule, dtype):
    x, r = masked_pair(dtype)
    difference, found = explained(lambda x: MASKED[name](x, -np.inf), rule)(x, r)
    tolerance = 100 * np.finfo(dtype).eps * np.abs(found).sum()
    np.testing.assert_allclose(found.sum(), difference, rtol=0, atol=tolerance)
    x, r = masked_pair(np.float64)
    _, limit = explained(lambda x: MASKED[name](x, -1e12), rule)(x, r)
    np.testing.assert_allclose(found, limit, rtol=0, atol=max(tolerance, 1e-8))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_masks_of_the_data_in_half_precision(dtype):
    x, r = masked_pair(dtype)
    run = explained(lambda a: jax.nn.softmax(jnp.where(a > 0, a, -jnp.inf).astype(jnp.float32)))
    difference, found = run(x[:, 0], r[:, 0])
    assert found.sum() == pytest.approx(difference, abs=0.03)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_where_a_difference_stays_infinite_no_sum_is_wrong(name, rule):
    """It isn't known what such a difference does, and that is said; where none is infinite all is as usual."""
    run = explained(IMPOSSIBLE[name], rule)
    difference, found = run(LOGITS, LOGITS_REF)
    assert np.isfinite(difference)
    assert np.isnan(found).any()
    same = LOGITS * np.array([1.1, 1.2, 0.7, 0.9, 1.3])
    difference, found = run(LOGITS, same)
    np.testing.assert_allclose(found.sum(), difference, rtol=1e-10)


def test_logsumexp_of_different_entries_has_no_limit():
    difference, found = explained(lambda a: MASKED["logsumexp"](a[:, None], -np.inf))(LOGITS, -LOGITS)
    assert np.isfinite(difference)
    assert np.isnan(found).any()


def test_a_row_that_is_masked_altogether_stays_nan():
    difference, found = explained(lambda a: MASKED["softmax"](a[:, None], -np.inf))(LOGITS, -np.abs(LOGITS_REF))
    assert np.isnan(difference)
    assert np.isnan(found).all()


def test_masks_of_the_data_in_attribute():
    """Each example with each reference, as by itself."""
    weights = np.random.default_rng(5).normal(size=5)
    rows = np.stack([LOGITS, LOGITS[::-1], np.roll(LOGITS, 2)])
    references = np.stack([LOGITS_REF, np.roll(LOGITS_REF, 1)])
    model = jax.vmap(lambda a: jax.nn.softmax(jnp.where(a > 0, a, -jnp.inf)) @ weights)
    attr = jaxlift.attribute(model, pairing="shared")
    found = jax.jit(lambda x, r: attr(x, reference=r))(rows, references)
    one = explained(lambda a: MASKED["softmax"](a[:, None], -np.inf))
    for row, scores in zip(rows, found, strict=True):
        expected = np.mean([one(row, r)[1] for r in references], 0)
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithmic_means_have_all_digits_however_near_the_reference(dtype):
    """Of two logits, one of which is `d` higher than at the reference: `tanh(d / 2) / (2 d)`."""
    d = np.geomspace(1e-7, 3, 400).astype(dtype)
    x = jnp.stack([d, np.zeros_like(d)], 1)
    _, pull = jaxlift.vjp(lambda x: jax.nn.softmax(x)[:, 0], x, jnp.zeros_like(x))
    exact = np.tanh(d.astype(np.longdouble) / 2) / (2 * d.astype(np.longdouble))
    np.testing.assert_allclose(pull(jnp.ones_like(x[:, 0]))[:, 0], exact, rtol=8 * np.finfo(dtype).eps)
