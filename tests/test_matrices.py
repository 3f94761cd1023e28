"""Functions of matrices through their factors, where eigenvalues meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

pytestmark = pytest.mark.usefixtures("x64")
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3))


def with_equal_eigenvalues(v):
    return 0.6 * jnp.outer(v, v) + 1.3 * jnp.eye(3)


def logarithm(v):
    w, q = jnp.linalg.eigh(with_equal_eigenvalues(v))
    return (((q * jnp.log(w)[None, :]) @ q.T) * WEIGHTS).sum()


def root(v):
    u, s, vt = jnp.linalg.svd(with_equal_eigenvalues(v))
    return (((u * jnp.sqrt(s)[None, :]) @ vt) * WEIGHTS).sum()


def of_matrix(f, v):
    """The function without eigenvectors: `v` has the eigenvalue `1.3 + 0.6 v^2`, all else 1.3."""
    n = v @ v
    projection = np.outer(v, v) / n if n else np.zeros((3, 3))
    return ((f(1.3) * np.eye(3) + (f(1.3 + 0.6 * n) - f(1.3)) * projection) * WEIGHTS).sum()


PAIRS = {
    "reference a multiple of the identity": ([1.0, -0.5, 2.0], [0.0, 0.0, 0.0]),
    "both of rank 1": ([1.0, -0.5, 2.0], [0.3, 1.0, -0.7]),
    "reference nearly a multiple": ([1.0, -0.5, 2.0], [1e-9, 2e-9, -1e-9]),
    "in one direction": ([1.0, -0.5, 2.0], [0.5, -0.25, 1.0]),
    "input a multiple of the identity": ([0.0, 0.0, 0.0], [1.0, -0.5, 2.0]),
}


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize(("fun", "f"), [(logarithm, np.log), (root, np.sqrt)])
def test_the_sum_with_equal_eigenvalues(fun, f, rule):
    @jax.jit
    def run(x, r):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
        return y - y_ref, pullback(jnp.ones(())) * (x - r)

    for name, pair in PAIRS.items():
        x, r = map(np.array, pair)
        difference, contributions = run(x, r)
        np.testing.assert_allclose(difference, of_matrix(f, x) - of_matrix(f, r), rtol=1e-10, err_msg=name)
        np.testing.assert_allclose(contributions.sum(), difference, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("fun", [logarithm, root])
def test_the_sum_where_both_sides_nearly_have_equal_eigenvalues(fun):
    """The eigenvectors have nothing in common, and the matrices differ in their tenth digit."""

    def run(x, r):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r)
        return y - y_ref, pullback(jnp.ones(())) * (x - r)

    pairs = np.random.default_rng(2).normal(size=(2, 40, 3)) * 1e-5
    difference, contributions = jax.jit(jax.vmap(run))(*pairs)
    # Of the digits of the matrices' differences, which are of 1e-10, those remain that 1.3 leaves.
    size = np.abs(contributions).sum(1)
    np.testing.assert_allclose(contributions.sum(1) / size, difference / size, rtol=0, atol=1e-3)
    assert np.median(size / np.abs(difference)) < 3


@pytest.mark.parametrize("apart", [0.0, 1e-6])
def test_near_the_reference_multipliers_are_the_derivative(apart):
    def of_distinct_eigenvalues(v):
        w, q = jnp.linalg.eigh(with_equal_eigenvalues(v) + jnp.diag(jnp.arange(3.0)))
        return (((q * jnp.log(w)[None, :]) @ q.T) * WEIGHTS).sum()

    def run(x, r):
        multipliers = jaxlift.vjp(of_distinct_eigenvalues, x, r)[1](jnp.ones(()))
        return multipliers, jax.grad(of_distinct_eigenvalues)((x + r) / 2)

    x, change = np.random.default_rng(3).normal(size=(2, 20, 3))
    multipliers, expected = jax.jit(jax.vmap(run))(x, x + apart * change)
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6, atol=1e-7)
