"""Quotients, and products with reciprocals: the rule written out by hand, for every way to write one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

RNG = np.random.default_rng(31)
V = np.array([0.9, 0.4, 0.7, 0.2])
OUT = np.array([1.0, -2.0, 0.5, 3.0])
SCALE = np.array([1.5, -2.0, 0.0, 0.3])
REFERENCES = {"zeros": np.zeros(4), "another": np.array([-0.3, 0.8, 0.1, -0.5]), "near": V + 1e-5 * OUT}
EPS = 1e-12
F32 = {"rtol": 2e-5, "atol": 2e-5}
F64 = {"rtol": 1e-9, "atol": 1e-9}


def squares(v):
    return (v * v).sum(keepdims=True)


def norm(v):
    return jnp.sqrt(squares(v))


def of_dtype(constant, v):
    return jnp.asarray(constant, v.dtype)


# All are `v / S` with `S = sqrt(sum(v^2) + eps^2)`, `|v| + eps` or `max(|v|, eps)`: the same but for rounding.
NORMALISED = {
    "div": lambda v: v / jnp.sqrt(squares(v) + EPS**2),
    "div by maximum": lambda v: v / jnp.maximum(norm(v), EPS),
    "linalg.norm": lambda v: v / jnp.maximum(jnp.linalg.norm(v, keepdims=True), EPS),
    "rsqrt": lambda v: v * lax.rsqrt(squares(v) + EPS**2),
    "rsqrt of a scalar": lambda v: v * lax.rsqrt((v * v).sum() + EPS**2),
    "rsqrt on the left": lambda v: lax.rsqrt(squares(v) + EPS**2) * v,
    "rsqrt of maximum": lambda v: v * lax.rsqrt(jnp.maximum(squares(v), EPS**2)),
    "minimum of rsqrt": lambda v: v * jnp.minimum(lax.rsqrt(squares(v)), 1 / EPS),
    "pow": lambda v: v * (squares(v) + EPS**2) ** -0.5,
    "integer_pow": lambda v: v * (norm(v) + EPS) ** -1,
    "second power": lambda v: v * (jnp.sqrt(norm(v) + EPS)) ** -2,
    "reciprocal": lambda v: v * jnp.reciprocal(jnp.maximum(norm(v), EPS)),
    "one over": lambda v: v * (1 / jnp.maximum(norm(v), EPS)),
    "number over": lambda v: v * (2 / jnp.maximum(norm(v), EPS)) / 2,
    "two roots": lambda v: v * (lax.rsqrt(norm(v) + EPS) * lax.rsqrt(norm(v[::-1]) + EPS)),
    "reshaped": lambda v: v * lax.rsqrt((v * v).sum() + EPS**2).reshape(1, 1).repeat(4, 1)[0],
    "jitted": lambda v: v * jax.jit(lambda u: lax.rsqrt(u + EPS**2))(squares(v)),
    "vmapped": lambda v: jax.vmap(lambda v: v * lax.rsqrt((v * v).sum() + EPS**2))(v[None])[0],
    "negative": lambda v: -(v * -lax.rsqrt(squares(v) + EPS**2)),
    "in two parts": lambda v: (lambda w: (v - v.mean(keepdims=True)) * w + v.mean(keepdims=True) * w)(
        lax.rsqrt(squares(v) + EPS**2)
    ),
}
# Their maximum with a number is an activation, to which RevealCancel applies.
GUARDED = (
    "div by maximum",
    "linalg.norm",
    "rsqrt of maximum",
    "minimum of rsqrt",
    "reciprocal",
    "one over",
    "number over",
)
SCALED = {
    "after": lambda v: v * lax.rsqrt(squares(v) + EPS**2) * of_dtype(SCALE, v),
    "before": lambda v: v * (lax.rsqrt(squares(v) + EPS**2) * of_dtype(SCALE, v)),
    "on the left": lambda v: v * (of_dtype(SCALE, v) * lax.rsqrt((v * v).sum() + EPS**2)),
    "above": lambda v: v * (of_dtype(SCALE, v) / jnp.maximum(norm(v), EPS)),
    "in two steps": lambda v: v * (lax.rsqrt(squares(v) + EPS**2) * of_dtype(SCALE / 2, v) / 2 * 4),
}


def pairs(fun, x, r, rule="rescale", dtype=np.float64):
    """Multipliers, and the difference of the outputs, of one program."""

    @jax.jit
    def of(x, r):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
        return pullback(jnp.ones_like(y)), y - y_ref

    return jax.device_get(of(np.asarray(x, dtype), np.asarray(r, dtype)))


def of_quotient(a, a_ref, s, s_ref, ct):
    """What a quotient's cotangent gives for its numerator and for its divisor, entry by entry."""
    q_mid, s_mid = (a / s + a_ref / s_ref) / 2, (s + s_ref) / 2
    return ct / s_mid, -ct * q_mid / s_mid


def by_norm(x, r, ct, mean=False):
    """Multipliers of `v / S` with `S = sqrt(u + eps)` and `u` the sum of squares, or their mean."""
    count = len(x) if mean else 1
    eps = 1e-5 if mean else EPS**2
    s, s_ref = (np.sqrt((v**2).sum() / count + eps) for v in (x, r))
    of_a, of_s = of_quotient(x, r, s, s_ref, ct)
    of_u = of_s.sum() / (s + s_ref)  # the secant of the root
    return of_a + of_u * (x + r) / count  # the secants of the squares


@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.usefixtures("x64")
@pytest.mark.sample(10)
def test_every_spelling(name, rule):
    """Whatever it is compared with, zeros included, in float64 and in float32.

    (Of two roots, of which each is a half of the divisor, the product has midpoints of its own.)
    """
    fun, references = NORMALISED[name], np.stack(list(REFERENCES.values()))

    @jax.jit
    def of(x, references):
        def one(r):
            (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
            return pullback(jnp.asarray(OUT, x.dtype)), y, y_ref

        return jax.vmap(one)(references)

    for dtype, tolerance in ((np.float64, F64), (np.float32, F32)):
        found, y, y_ref = jax.device_get(of(V.astype(dtype), references.astype(dtype)))
        for k, r in enumerate(references):
            x, r = V.astype(dtype).astype(np.float64), r.astype(dtype).astype(np.float64)
            if name != "two roots" and not (rule == "revealcancel" and name in GUARDED and r.any()):
                np.testing.assert_allclose(found[k], by_norm(x, r, OUT), **tolerance)
            assert np.abs(found[k] * (x - r)).max() < 4
            np.testing.assert_allclose(found[k] @ (x - r), (y[k] - y_ref[k]) @ OUT, **tolerance)
            np.testing.assert_array_max_ulp(y[k], jax.jit(fun)(V.astype(dtype)), maxulp=2)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.usefixtures("x64")
def test_scales_between(name):
    for r in REFERENCES.values():
        found, _ = pairs(lambda v: SCALED[name](v) @ OUT, V, r)
        np.testing.assert_allclose(found, by_norm(V, r, OUT * SCALE), **F64)


@pytest.mark.usefixtures("x64")
def test_layer_norm_and_rms_norm():
    def layer_norm(v):
        centred = v - v.mean(keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(keepdims=True) + 1e-5)

    def rms_norm(v):
        return v * lax.rsqrt((v**2).mean(keepdims=True) + 1e-5)

    for r in REFERENCES.values():
        found, _ = pairs(lambda v: rms_norm(v) @ OUT, V, r)
        np.testing.assert_allclose(found, by_norm(V, r, OUT, mean=True), **F64)
        found, _ = pairs(lambda v: layer_norm(v) @ OUT, V, r)
        of_centred = by_norm(V - V.mean(), r - r.mean(), OUT, mean=True)
        np.testing.assert_allclose(found, of_centred - of_centred.mean(), **F64)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.usefixtures("x64")
def test_against_zeros(dtype):
    """Contributions as large as the outputs, where products with reciprocals have thousands and more."""
    found, rise = pairs(lambda v: NORMALISED["rsqrt"](v) @ of_dtype(OUT, v), V, np.zeros(4), dtype=dtype)
    np.testing.assert_allclose(found * V, [1.007, -1.398, 0.291, 0.957], atol=1e-3)
    np.testing.assert_allclose((found * V).sum(), rise, rtol=1e-6)
    rms_norm = lambda v: v * lax.rsqrt((v * v).mean(keepdims=True) + 1e-6) @ of_dtype(OUT, v)  # noqa: E731
    found, rise = pairs(lambda v: rms_norm(v), V, np.zeros(4), dtype=dtype)
    np.testing.assert_allclose(found * V, [2.012, -2.791, 0.583, 1.911], atol=1e-3)
    np.testing.assert_allclose((found * V).sum(), rise, rtol=1e-6)


def test_quotients_near_the_largest_number():
    """The sum of two such is none."""
    x, r = np.float16([60000, 20000, 0.1]), np.float16([55000, 10000, 0.2])
    found = jaxlift.vjp(lambda v: v[:2] / jnp.sqrt(v[2:] * v[2:] + 1), jnp.asarray(x), jnp.asarray(r))[1]
    found = np.asarray(found(jnp.float16([1, 0])), np.float64)
    x, r = (a.astype(np.float64) for a in (x, r))
    s, s_ref = (np.sqrt(a[2] ** 2 + 1) for a in (x, r))
    middle, q = (s + s_ref) / 2, (x[0] / s + r[0] / s_ref) / 2
    np.testing.assert_allclose(found, [1 / middle, 0, -q / middle * (x[2] + r[2]) / (s + s_ref)], rtol=5e-3)


COSINES = {
    "div": lambda a, b: a @ b / (jnp.sqrt(a @ a) * jnp.sqrt(b @ b)),
    "reciprocals": lambda a, b: (a @ b) * (lax.rsqrt(a @ a) * (1 / jnp.sqrt(b @ b))),
    "with scales": lambda a, b: (a @ b) * ((2 * lax.rsqrt(a @ a)) * (lax.rsqrt(b @ b) * 3)) / 6,
}


@pytest.mark.parametrize("name", COSINES)
@pytest.mark.usefixtures("x64")
def test_cosine(name):
    """Of two vectors that vary: the product of norms is one divisor."""
    x, r = RNG.normal(size=(2, 6))
    found, rise = pairs(lambda v: COSINES[name](v[:3], v[3:]), x, r)
    (a, b), (a_ref, b_ref) = x.reshape(2, 3), r.reshape(2, 3)
    s, s_ref, t, t_ref = map(np.linalg.norm, (a, a_ref, b, b_ref))
    of_dot, of_norms = of_quotient(a @ b, a_ref @ b_ref, s * t, s_ref * t_ref, 1.0)
    of_s, of_t = of_norms * (t + t_ref) / 2, of_norms * (s + s_ref) / 2
    of_a = of_dot * (b + b_ref) / 2 + of_s * (a + a_ref) / (s + s_ref)
    of_b = of_dot * (a + a_ref) / 2 + of_t * (b + b_ref) / (t + t_ref)
    np.testing.assert_allclose(found, np.concatenate([of_a, of_b]), **F64)
    np.testing.assert_allclose(found @ (x - r), rise, **F64)


@pytest.mark.parametrize("name", ["reciprocal", "softplus"])
@pytest.mark.usefixtures("x64")
def test_shares_by_hand(name):
    """Values over their sum; `exp(v) / sum(exp(v))` is softmax, which has a rule of its own, and not by a product."""
    f, shares = {
        "reciprocal": (np.exp, lambda v: jnp.exp(v) * (1 / jnp.exp(v).sum(keepdims=True))),
        "softplus": (lambda v: np.log1p(np.exp(v)), lambda v: (lambda s: s / s.sum(keepdims=True))(jax.nn.softplus(v))),
    }[name]
    x, r = V * 10 - 5, REFERENCES["another"] * 9
    found, rise = pairs(lambda v: shares(v) @ OUT, x, r)
    e, e_ref = f(x), f(r)
    of_e, of_sum = of_quotient(e, e_ref, e.sum(), e_ref.sum(), OUT)
    np.testing.assert_allclose(found, (of_e + of_sum.sum()) * (e - e_ref) / (x - r), **F64)
    np.testing.assert_allclose(found @ (x - r), rise, **F64)


def linen(cls):
    nn = pytest.importorskip("flax.linen")
    model = getattr(nn, cls)(epsilon=1e-5)
    return lambda v: model.apply({"params": {"scale": SCALE + 1, "bias": np.ones(4)}}, v)


def haiku(cls):
    hk = pytest.importorskip("haiku")
    options = {"LayerNorm": {"create_scale": True, "create_offset": False}, "RMSNorm": {}}[cls]
    model = hk.transform(lambda v: getattr(hk, cls)(-1, **options)(v))
    name = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}[cls]
    return lambda v: model.apply({name: {"scale": SCALE + 1}}, None, v[None])[0]


def equinox(cls):
    eqx = pytest.importorskip("equinox")
    model = getattr(eqx.nn, cls)(4, eps=1e-5)
    return eqx.tree_at(lambda model: model.weight, model, SCALE + 1)


@pytest.mark.parametrize("cls", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("of", [linen, haiku, equinox])
@pytest.mark.usefixtures("x64")
def test_frameworks_norms(of, cls):
    """Flax computes the variance as a difference of means; scales come before the product, or after it."""
    fun = of(cls)
    found, rise = pairs(lambda v: fun(v) @ OUT, V, np.zeros(4))
    if cls == "RMSNorm":
        expected = by_norm(V, np.zeros(4), OUT * (SCALE + 1), mean=True)
    else:
        of_centred = by_norm(V - V.mean(), np.zeros(4), OUT * (SCALE + 1), mean=True)
        expected = of_centred - of_centred.mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found @ V, rise, **F64)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.usefixtures("x64")
def test_divisors_of_very_different_size(dtype):
    """The sum is kept where the terms of a Shapley value would be noise."""
    found, rise = pairs(lambda v: v[0] / v[1], [1e-5, 1e-5], [10.0, 10.0], dtype=dtype)
    np.testing.assert_allclose(found * (1e-5 - 10), [-2, 2], rtol=1e-5)
    assert rise == 0
    assert abs(found.sum() * (1e-5 - 10)) < 4 * np.finfo(dtype).eps


def of_signs(a, a_ref, s, s_ref):
    """By hand: the Shapley value where the divisor changes its sign."""
    same = s * s_ref > 0
    middle = jnp.where(same, (s + s_ref) / 2, 1)
    of_a = jnp.where(same, 1 / middle, (1 / s + 1 / s_ref) / 2)
    of_s = jnp.where(same, -(a / s + a_ref / s_ref) / 2 / middle, (a + a_ref) / 2 * (1 / s - 1 / s_ref) / (s - s_ref))
    return of_a, of_s


@pytest.mark.parametrize("name", ["div", "reciprocal"])
@pytest.mark.usefixtures("x64")
def test_divisors_that_change_their_sign(name):
    """Also where they change to their opposite, and the mean is 0; and so do derivatives of the scores."""
    x = np.array([[0.3, 1.2, -0.7, 2.0, 0.8], [2.0, 1.0, -1.0, -3.0, 0.25]])
    r = np.array([[1.1, -0.4, 0.6, 0.5, 0.0], [-0.5, -1.0, 2.5, -1.0, 1.25]])
    weights = np.arange(1.0, 6.0)
    quotient = {"div": lambda v: v[0] / v[1], "reciprocal": lambda v: v[0] * (1 / v[1])}[name]

    def found(x, r):
        _, pullback = jaxlift.vjp(lambda v: quotient(v) @ weights, x, r)
        return pullback(jnp.ones(()))

    def expected(x, r):
        return jnp.stack([m * weights for m in of_signs(x[0], r[0], x[1], r[1])])

    def with_derivatives(multipliers):
        def penalty(x, r):
            return (jnp.sin(multipliers(x, r)) ** 2).sum()

        return jax.jit(lambda x, r: (multipliers(x, r), jax.grad(penalty, (0, 1))(x, r)))(x, r)

    (m, of_penalty), (m_by_hand, by_hand) = with_derivatives(found), with_derivatives(expected)
    np.testing.assert_allclose(m, m_by_hand, **F64)
    np.testing.assert_allclose((m * (x - r)).sum(), (quotient(x) - quotient(r)) @ weights, **F64)
    np.testing.assert_allclose(of_penalty, by_hand, **F64)


def seen_lows(f, x, r):
    """What the divisors of a function are known not to lie below."""
    lows = []

    class Seeing(jaxlift.Rule):
        def elementwise(self, g, values, references):
            if g.name == "div":
                lows.append(g.lows[-1])
            return super().elementwise(g, values, references)

    (y, _), pullback = jaxlift.vjp(f, x, r, rule=Seeing())
    pullback(jnp.ones_like(y))
    return lows


@pytest.mark.parametrize(
    ("f", "low"),
    {
        "norm": (lambda x: x / jnp.linalg.norm(x), 0),
        "layer norm": (lambda x: (x - x.mean()) * lax.rsqrt(x.var() + 0.25), 0.5),
        "moved": (lambda x: x[:, None] * lax.rsqrt((x**2).sum(keepdims=True).reshape(1, 1).T + 1), 1),
        "scaled roots": (lambda x: x / (jnp.sqrt(x**2).mean() + 0.5), 0.5),
        "sums of exponentials": (lambda x: x / (1 + jnp.exp(x).sum()), 1),
        "of either sign": (lambda x: x / (x.sum() + 7), -np.inf),
        "a root's product": (lambda x: x / (x.mean() * jnp.sqrt((x**2).sum())), -np.inf),
    }.values(),
)
def test_divisors_that_are_known_not_to_be_negative(f, low):
    x, r = jnp.array([1.0, 2.0, -3.0]), jnp.array([0.5, 0.1, 0.2])
    assert seen_lows(f, x, r) == [pytest.approx(low)]


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize(
    ("f", "bound", "held"),
    [
        (lambda x: x.var(), 0, True),
        (lambda x: (x**2).sum() + 1, 0.5, True),
        (lambda x: jnp.abs(x).sum(), -1, True),
        (lambda x: jnp.exp(x), 0, True),
        (lambda x: x.var(), 0.5, False),
        (lambda x: (x**2).mean() - x.mean() ** 2, 0, False),  # rounding may make it less than 0
    ],
    ids=["variance", "more than 1", "magnitudes", "exponentials", "a larger bound", "a difference"],
)
def test_a_maximum_with_what_a_value_is_not_below(f, bound, held, rule):
    """Held above 0, as libraries write it, a variance is no other function: no more equations, and Rescale."""
    x, r = jnp.array([1.0, 2.0, -3.0]), jnp.array([0.5, 0.1, 0.2])

    def multipliers(value, x, r):
        (y, _), pullback = jaxlift.vjp(lambda x: x * lax.rsqrt(value(x) + 0.25), x, r, rule=rule)
        return pullback(jnp.ones_like(y))

    def written(value):
        return jax.make_jaxpr(lambda x, r: multipliers(value, x, r))(x, r)

    plain, bounded = f, lambda x: jnp.maximum(bound, f(x))
    assert (str(written(bounded)) == str(written(plain))) == held
    if held:
        np.testing.assert_array_equal(multipliers(bounded, x, r), multipliers(plain, x, r))


@pytest.mark.parametrize("name", ["div by maximum", "rsqrt", "one over", "pow"])
@pytest.mark.usefixtures("x64")
def test_near_the_reference(name):
    """Float32 multipliers tend to the derivative, and no digits are lost on the way."""
    steps = np.float32(10.0) ** -np.arange(1, 9)[:, None] * np.array([1.0, -1.0, 2.0, 0.5])
    r = V.astype(np.float32)
    x = np.concatenate([(r + steps).astype(np.float32), r[None]])

    @jax.jit
    def found(x, r):
        (y, _), pullback = jaxlift.vjp(lambda v: NORMALISED[name](v) @ of_dtype(OUT, v), x, r)
        return pullback(jnp.ones_like(y))

    m = jax.vmap(found, (0, None))(x, r)
    expected = [by_norm(each.astype(np.float64), r.astype(np.float64), OUT) for each in x]
    np.testing.assert_allclose(m, expected, rtol=1e-5, atol=2e-6)
    derivative = jax.grad(lambda v: NORMALISED[name](v) @ OUT)(r.astype(np.float64))
    np.testing.assert_allclose(m[-1], derivative, rtol=1e-5, atol=2e-6)


U, T = RNG.normal(size=(2, 4, 5))
WEIGHTS = RNG.normal(size=4)


def secant_of_relu(y_ref, d, a):
    """RevealCancel's multipliers of both parts of a difference; no part is 0 here."""

    def relu(z):
        return np.maximum(z, 0)

    plus, minus = (d + a) / 2, (d - a) / 2
    of_plus = (relu(y_ref + plus) - relu(y_ref) + relu(y_ref + d) - relu(y_ref + minus)) / 2
    of_minus = (relu(y_ref + minus) - relu(y_ref) + relu(y_ref + d) - relu(y_ref + plus)) / 2
    return of_plus / plus, of_minus / minus


@pytest.mark.parametrize("name", ["div", "reciprocal", "root", "scaled"])
@pytest.mark.usefixtures("x64")
def test_the_variation_starts_anew(name):
    """`a_q = |D_q|`, which a sum takes along with the parts of what it adds: `relu(a / S + a)`."""
    c, bias = np.array([2.0, -1.0, 0.5, -3.0]), 9.0
    fun = {
        "div": lambda a, s: a / s,
        "reciprocal": lambda a, s: a * (1 / s),
        "root": lambda a, s: a * lax.rsqrt(s),
        "scaled": lambda a, s: (c / s) * a,
    }[name]
    x, r = np.random.default_rng(1).normal(size=(2, 5))  # of which all parts have both signs
    found, _ = pairs(lambda v: jax.nn.relu(fun(U @ v, T @ v + bias) + U @ v) @ WEIGHTS, x, r, rule="revealcancel")
    d, scale = x - r, c if name == "scaled" else np.ones(4)
    a, a_ref, u, u_ref = scale * (U @ x), scale * (U @ r), T @ x + bias, T @ r + bias
    assert (u > 0).all()
    assert (u_ref > 0).all()
    s, s_ref = (np.sqrt(u), np.sqrt(u_ref)) if name == "root" else (u, u_ref)
    secant = (s - s_ref) / (u - u_ref)
    of_a, of_s = of_quotient(a, a_ref, s, s_ref, 1.0)
    of_a, of_u = of_a * scale, of_s * secant
    d_q = a / s - a_ref / s_ref
    variation = np.abs(d_q) + np.abs(U) @ np.abs(d)
    m_plus, m_minus = secant_of_relu(a_ref / s_ref + U @ r, d_q + U @ d, variation)
    ct, ct_variation = WEIGHTS * (m_plus + m_minus) / 2, WEIGHTS * (m_plus - m_minus) / 2
    of_q = ct + np.sign(d_q) * ct_variation
    expected = U.T @ (of_a * of_q) + T.T @ (of_u * of_q)
    expected += U.T @ ct + np.sign(d) * (np.abs(U).T @ ct_variation)
    np.testing.assert_allclose(found, expected, **F64)


@pytest.mark.usefixtures("x64")
def test_transformations():
    """Scores of one program, mapped over inputs and differentiated, are those of the formula."""
    r = REFERENCES["another"]

    def found(v):
        (y, _), pullback = jaxlift.vjp(lambda v: NORMALISED["rsqrt"](v) @ OUT, v, r)
        return pullback(jnp.ones_like(y))

    def by_hand(v):
        s, s_ref = jnp.sqrt((v**2).sum() + EPS**2), np.sqrt((r**2).sum() + EPS**2)
        s_mid, q_mid = (s + s_ref) / 2, (v / s + r / s_ref) / 2
        return OUT / s_mid - (OUT @ q_mid) / s_mid * (v + r) / (s + s_ref)

    x = np.stack([V, V[::-1], -V])

    def penalty(multipliers):
        return lambda v: (jnp.sin(multipliers(v)) ** 2).sum()

    def both(multipliers):
        return jax.jit(jax.vmap(lambda v: (multipliers(v), jax.grad(penalty(multipliers))(v))))(x)

    for one, other in zip(both(found), both(by_hand), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


GATES = {
    "logistic": lambda g: jax.nn.sigmoid(g),
    "written out": lambda g: 1 / (1 + jnp.exp(-g)),
    "by power": lambda g: (1 + jnp.exp(-g)) ** -1,
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.usefixtures("x64")
def test_gates_are_products(name):
    """A logistic function written out is a gate, in all products alike, also where it is shut and `exp` overflows."""
    x, r = np.array([2.0, -800.0]), np.array([0.5, 1.0])
    found, _ = pairs(lambda v: v[0] * GATES[name](v[1]), x, r)
    g, g_ref = (np.exp(z) / (1 + np.exp(z)) for z in (x[1], r[1]))
    expected = [(g + g_ref) / 2, (x[0] + r[0]) / 2 * (g - g_ref) / (x[1] - r[1])]
    np.testing.assert_allclose(found, expected, **F64)


@pytest.mark.parametrize("name", ["div", "rsqrt", "rsqrt of a scalar", "two roots"])
@pytest.mark.usefixtures("x64")
def test_check_sees_quotients(name):
    """Operation by operation: what enters a divisor leaves it, in the place of its reciprocal."""
    report = jaxlift.check(lambda v: NORMALISED[name](v) @ OUT, V, np.zeros(4))
    assert report.complete
    assert max(abs(line.residual) for line in report.lines) < 1e-9
    assert max(abs(line.entered) for line in report.lines) < 10


class Asked(jaxlift.Rescale):
    """Says for every function of several operands that all come to the first of them."""

    def elementwise(self, g, values, references):
        assert g.name == "div"
        rise = g(*values) - g(*references)
        return [rise / (values[0] - references[0]), jnp.zeros_like(rise)]


class AskedForCotangents(jaxlift.Rescale):
    """Says the same of cotangents."""

    def pull_elementwise(self, g, values, references, cotangent):
        return [m * cotangent for m in Asked().elementwise(g, values, references)]


class OfProducts(jaxlift.Rescale):
    """Gives nothing to the second factor of a product, here the reciprocal."""

    def bilinear(self, bilinear, values, references, cotangent):
        return bilinear.transpose(values, cotangent)[0], jnp.zeros_like(values[1])


@pytest.mark.parametrize("name", ["div", "rsqrt", "one over"])
@pytest.mark.usefixtures("x64")
def test_a_rules_own_answer_holds(name):
    """Of quotients `elementwise` is asked, unless they are written as products and the rule has an answer for these."""
    r = REFERENCES["another"]
    q, q_ref = V / np.linalg.norm(V), r / np.linalg.norm(r)
    for rule in (Asked(), AskedForCotangents()):
        found, _ = pairs(lambda v: NORMALISED[name](v) @ OUT, V, r, rule=rule)
        np.testing.assert_allclose(found, OUT * (q - q_ref) / (V - r), **F64)
    found, _ = pairs(lambda v: NORMALISED[name](v) @ OUT, V, r, rule=OfProducts())
    expected = by_norm(V, r, OUT) if name == "div" else OUT / np.linalg.norm(V)
    np.testing.assert_allclose(found, expected, **F64)


@pytest.mark.parametrize("name", ["div by maximum", "rsqrt", "minimum of rsqrt", "two roots"])
@pytest.mark.usefixtures("x64")
def test_derivatives_stay_derivatives(name):
    """A rule that compares with no reference has JAX's."""
    fun = lambda v: NORMALISED[name](v) @ OUT  # noqa: E731
    found, _ = pairs(fun, V, REFERENCES["another"], rule="gradient")
    np.testing.assert_allclose(found, jax.jit(jax.grad(fun))(V), rtol=1e-12)


@pytest.mark.parametrize("name", ["div", "reciprocal"])
@pytest.mark.usefixtures("x64")
def test_complex_quotients(name):
    """The same algebra; the divisors' directions are less than a right angle apart, and then more."""
    quotient = {"div": lambda a, s: a / s, "reciprocal": lambda a, s: a * (1 / s)}[name]
    x, r = np.array([[0.3, 1.2, -0.7, 0.4], [0.3, 1.2, 0.7, 0.4]]), np.array([1.0, -0.4, 0.2, 0.9])

    def fun(v):
        return (quotient(v[0] + 1j * v[1], v[2] + 1j * v[3]) * (2 - 1j)).real

    def one(x):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r)
        return pullback(jnp.ones_like(y)), y - y_ref

    for (m, rise), each in zip(zip(*jax.jit(jax.vmap(one))(x), strict=True), x, strict=True):
        (a, s), (a_ref, s_ref) = (v[::2] + 1j * v[1::2] for v in (each, r))
        q_mid, s_mid = (a / s + a_ref / s_ref) / 2, (s + s_ref) / 2
        of = [1 / s_mid, -q_mid / s_mid]
        if (s * s_ref.conj()).real < 0:
            of = [(1 / s + 1 / s_ref) / 2, -(a + a_ref) / 2 / s / s_ref]
        expected = [(w * (2 - 1j) * unit).real for w in of for unit in (1, 1j)]
        np.testing.assert_allclose(m, expected, **F64)
        np.testing.assert_allclose(m @ (each - r), rise, **F64)
