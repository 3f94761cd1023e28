"""The variation, written out by hand: RevealCancel through products, attention and choices, score by score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

RNG = np.random.default_rng(29)
X, R = RNG.normal(size=(2, 5))
U, V = RNG.normal(size=(2, 4, 5))
OUT = RNG.normal(size=4)
pytestmark = pytest.mark.usefixtures("x64")


def relu(z):
    return np.maximum(z, 0)


def parts_of_relu(y_ref, d, a):
    """RevealCancel's multipliers of both parts of a difference, by the paper's formula; no part is 0 here."""
    plus, minus = (d + a) / 2, (d - a) / 2
    of_plus = (relu(y_ref + plus) - relu(y_ref) + relu(y_ref + d) - relu(y_ref + minus)) / 2
    of_minus = (relu(y_ref + minus) - relu(y_ref) + relu(y_ref + d) - relu(y_ref + plus)) / 2
    return of_plus / plus, of_minus / minus


def cotangents(y_ref, d, a, ct):
    """Those of a difference and of its variation below a ReLU, for one above it."""
    m_plus, m_minus = parts_of_relu(y_ref, d, a)
    return ct * (m_plus + m_minus) / 2, ct * (m_plus - m_minus) / 2


def through_linear(weights, d, ct, ct_variation):
    """The cotangent of a linear map's input: `a_y = |W| |D|`."""
    return weights.T @ ct + np.sign(d) * (np.abs(weights).T @ ct_variation)


def multipliers(fun):
    @jax.jit
    def of_pair(x, r):
        (y, _), pullback = jaxlift.vjp(fun, x, r, rule="revealcancel")
        return pullback(jnp.ones_like(y))

    return of_pair(X, R)


def test_a_product_weighs_parts_with_midpoints():
    """`a_y = |v_mid| a_u + |u_mid| a_v`, where the midpoints weigh and get nothing for it."""
    found = multipliers(lambda x: jax.nn.relu((U @ x) * (V @ x)) @ OUT)
    d = X - R
    (u, u_ref), (v, v_ref) = (U @ X, U @ R), (V @ X, V @ R)
    u_mid, v_mid = (u + u_ref) / 2, (v + v_ref) / 2
    a = np.abs(v_mid) * (np.abs(U) @ np.abs(d)) + np.abs(u_mid) * (np.abs(V) @ np.abs(d))
    ct, ct_a = cotangents(u_ref * v_ref, u * v - u_ref * v_ref, a, OUT)
    expected = through_linear(U, d, v_mid * ct, np.abs(v_mid) * ct_a)
    expected += through_linear(V, d, u_mid * ct, np.abs(u_mid) * ct_a)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_matrix_product_weighs_sizes_with_midpoints():
    """Attention's products mix: `a_y = |z_mid| |D_x| + |x_mid| |D_z|`, summed as the product sums."""
    found = multipliers(lambda x: jax.nn.relu(jnp.outer(U @ x, x) @ jnp.outer(x[::-1], V @ x)).sum())
    d = X - R
    left, left_ref = np.outer(U @ X, X), np.outer(U @ R, R)
    right, right_ref = np.outer(X[::-1], V @ X), np.outer(R[::-1], V @ R)
    left_mid, right_mid = (left + left_ref) / 2, (right + right_ref) / 2
    d_left, d_right = left - left_ref, right - right_ref
    a = np.abs(d_left) @ np.abs(right_mid) + np.abs(left_mid) @ np.abs(d_right)
    y_ref = left_ref @ right_ref
    ct, ct_a = cotangents(y_ref, left @ right - y_ref, a, 1.0)
    of_left = ct @ right_mid.T + np.sign(d_left) * (ct_a @ np.abs(right_mid).T)
    of_right = left_mid.T @ ct + np.sign(d_right) * (np.abs(left_mid).T @ ct_a)
    # The outer products below are products of entries, under no activation: their cotangents are at the midpoints.
    x_mid = (X + R) / 2
    u_mid, v_mid = U @ x_mid, V @ x_mid
    expected = U.T @ (of_left @ x_mid) + of_left.T @ u_mid
    expected += (of_right @ v_mid)[::-1] + V.T @ (of_right.T @ x_mid[::-1])
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.abs(d).min() > 0


def test_a_choice_adds_what_was_chosen():
    """`a_y = sum |m_i| a_i` over the condition and the cases, of two that vary each for itself: a maximum."""
    found = multipliers(lambda x: jax.nn.relu(jnp.maximum(U @ x, V @ x) - 0.3) @ OUT)
    d = X - R
    (u, u_ref), (v, v_ref) = (U @ X, U @ R), (V @ X, V @ R)

    def shapley(u, u_ref, v, v_ref):
        """Of the first of two operands of a maximum, over its difference."""
        rise = np.maximum(u, v) - np.maximum(u_ref, v) + np.maximum(u, v_ref) - np.maximum(u_ref, v_ref)
        return rise / 2 / (u - u_ref)

    of_u, of_v = shapley(u, u_ref, v, v_ref), shapley(v, v_ref, u, u_ref)
    a = np.abs(of_u) * (np.abs(U) @ np.abs(d)) + np.abs(of_v) * (np.abs(V) @ np.abs(d))
    y_ref = np.maximum(u_ref, v_ref) - 0.3
    ct, ct_a = cotangents(y_ref, np.maximum(u, v) - 0.3 - y_ref, a, OUT)
    expected = through_linear(U, d, of_u * ct, np.abs(of_u) * ct_a)
    expected += through_linear(V, d, of_v * ct, np.abs(of_v) * ct_a)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_maximum_starts_anew():
    """After a maximum over elements the variation is `|D|` again."""
    found = multipliers(lambda x: jax.nn.relu((U @ x).max() + 0.1))
    u, u_ref = U @ X, U @ R
    y, y_ref = u.max(), u_ref.max()
    winner = u.argmax() if y >= y_ref else u_ref.argmax()
    secant = (relu(y + 0.1) - relu(y_ref + 0.1)) / (y - y_ref)
    share = (y - y_ref) / (u[winner] - u_ref[winner])
    np.testing.assert_allclose(found, secant * share * U[winner], rtol=1e-12)


def saturating(z):
    return np.tanh(np.log(z))


def secant(f, z, z_ref):
    return (f(z) - f(z_ref)) / (z - z_ref)


def test_where_a_part_alone_leaves_the_domain_it_is_rescale():
    """One unit for which the reference with the negative part alone is negative, where the logarithm isn't defined."""
    w, v = np.array([3.0, -2.0, 0.5]), np.array([1.0, -0.4])
    x, r = np.array([1.5, 1.2, 0.8]), np.array([0.5, 0.3, 0.6])

    def fun(x):
        z = x @ w
        h = jnp.stack([jnp.tanh(jnp.log(z)), x[2]])
        return jax.nn.relu(h @ v - 0.3)

    z, z_ref, a_z = x @ w, r @ w, np.abs(w) @ np.abs(x - r)
    assert z > 0 < z_ref
    assert z_ref + (z - z_ref - a_z) / 2 < 0
    m = secant(saturating, z, z_ref)
    h, h_ref = np.array([saturating(z), x[2]]), np.array([saturating(z_ref), r[2]])
    ct, ct_a = cotangents(h_ref @ v - 0.3, h @ v - h_ref @ v, np.abs(v) @ np.abs(h - h_ref), 1.0)
    ct_h = through_linear(v[None], h - h_ref, np.array([ct]), np.array([ct_a]))
    expected = ct_h[0] * m * w
    expected[2] += ct_h[1]
    found = jax.jit(lambda x, r: jaxlift.vjp(fun, x, r, rule="revealcancel")[1](1.0))(x, r)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_variation_where_a_part_alone_leaves_the_domain():
    """The same unit's variation, by way of a sum, which carries it: `a_y = m a`."""
    w = np.array([3.0, -2.0, 0.5])
    x, r = np.array([1.5, 1.2, 0.8]), np.array([0.5, 0.3, 0.6])

    def fun(x):
        z = x @ w
        return jax.nn.relu(jnp.tanh(jnp.log(jnp.stack([z, z]))).sum() / 2 - 0.2)

    z, z_ref, a_z = x @ w, r @ w, np.abs(w) @ np.abs(x - r)
    m = secant(saturating, z, z_ref)
    ct, ct_a = cotangents(saturating(z_ref) - 0.2, m * (z - z_ref), m * a_z, 1.0)
    expected = m * through_linear(w[None], x - r, np.array([ct]), np.array([ct_a]))
    found = jax.jit(lambda x, r: jaxlift.vjp(fun, x, r, rule="revealcancel")[1](1.0))(x, r)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_step_is_where_the_input_is_to_the_last_bit():
    """Where one part is all of the difference, the reference moved by it is the input, though `r + (x - r)` isn't."""
    r = np.random.default_rng(0).uniform(-3, 0, 400)
    x = np.full(400, 2.0)
    assert (r + (x - r) < x).any()
    contributions = jax.jit(
        jax.vmap(lambda x, r: jaxlift.vjp(lambda x: jnp.floor(x) + jnp.tanh(x), x, r, rule="revealcancel")[1](1.0))
    )(x, r) * (x - r)
    np.testing.assert_allclose(contributions, 2 + np.tanh(x) - np.floor(r) - np.tanh(r), rtol=1e-12)
