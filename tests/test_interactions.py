"""Interactions of pairs of features: by enumeration against their formula, and by moments against enumeration."""

from itertools import combinations, pairwise
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracles import shapley

import jaxlift

RNG = np.random.default_rng(35)
WEIGHTS = [RNG.normal(size=sizes) / np.sqrt(sizes[0]) * 1.4 for sizes in pairwise((7, 24, 24, 3))]
X, R = RNG.normal(size=(3, 7)), RNG.normal(size=7)
OFF = ~np.eye(7, dtype=bool)


def model(x):
    first, second, last = (w.astype(x.dtype) for w in WEIGHTS)
    return jax.nn.relu(jax.nn.relu(x @ first) @ second) @ last


def matrix(fun, x, r, groups):
    """Halves of the index of each pair, set by set, and on the diagonal what they leave of the Shapley values."""
    n = max(groups) + 1

    def v(*present):
        return float(fun(np.where(np.isin(groups, present), x, r)))

    index = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        for size in range(n - 1):
            for s in combinations(set(range(n)) - {i, j}, size):
                weight = factorial(size) * factorial(n - size - 2) / factorial(n - 1)
                index[i, j] += weight * (v(*s, i, j) - v(*s, i) - v(*s, j) + v(*s))
    index += index.T
    values = shapley(lambda present: v(*np.flatnonzero(present)), np.ones(n), np.zeros(n))
    return index / 2 + np.diag(values - index.sum(1) / 2)


@pytest.mark.usefixtures("x64")
class TestEnumerated:
    def test_the_formula(self):
        fun = jax.jit(lambda x: model(x[None])[0, 1])
        groups = np.array([3, 9, 3, 4, 30, 9, 7])  # five, by the order of their numbers
        expected = [matrix(fun, x, R, np.array([0, 3, 0, 1, 4, 3, 2])) for x in X[:2]]
        attr = jaxlift.shapley(model, groups=groups, interactions=True, target=1, full=True, chunk=5)
        found = jax.jit(attr)(X[:2], reference=R)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.delta, 0, atol=1e-12)

    def test_rows_sum_to_shapley_values_of_each_output(self):
        pairs, values = (
            jax.jit(jaxlift.shapley(model, target="all", interactions=interactions))(X, reference=R)
            for interactions in (True, False)
        )
        assert pairs.shape == (3, 3, 7, 7)
        np.testing.assert_allclose(pairs.sum(-1), values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pairs, pairs.swapaxes(2, 3), atol=1e-12)

    def test_one_player(self):
        found = jaxlift.shapley(lambda x: jnp.exp(x[:, 0]), interactions=True)(np.ones((1, 1)), reference=np.zeros(1))
        np.testing.assert_allclose(found, [[[np.e - 1]]], rtol=1e-12)

    def test_drawn_orders_have_none(self):
        with pytest.raises(ValueError, match=r"interactions=True .* shapley_moments\(\.\.\., interactions=True\)"):
            jaxlift.shapley(model, interactions=True, samples=3)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.usefixtures("x64")
class TestByMoments:
    def test_products_of_two_are_exact(self):
        """A quadratic form of players has only pairs, and its second derivatives no approximation."""
        form = RNG.normal(size=(7, 7))
        attr = jaxlift.shapley_moments(lambda x: jnp.einsum("ni,ij,nj->n", x, form, x), interactions=True)
        found = np.asarray(jax.jit(attr)(X, reference=R))
        pairs = (form + form.T)[OFF] * (X - R)[:, :, None].repeat(7, 2)[:, OFF] * (X - R)[:, None].repeat(7, 1)[:, OFF]
        np.testing.assert_allclose(found[:, OFF], pairs / 2, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.sum((1, 2)), ((X @ form) * X).sum(1) - R @ form @ R, rtol=1e-6)

    def test_in_shard_map(self):
        """Each device has its own derivatives."""
        mesh = jax.make_mesh((2,), ("n",), (AxisType.Auto,), devices=jax.local_devices()[:2])
        attr = jaxlift.shapley_moments(lambda x: jnp.tanh(x.sum(1)), interactions=True)
        along = PartitionSpec("n")
        mapped = jax.shard_map(lambda x: attr(x, reference=R), mesh=mesh, in_specs=along, out_specs=along)
        np.testing.assert_allclose(jax.jit(mapped)(X[:2]), jax.jit(attr)(X[:2], reference=R), rtol=1e-9, atol=1e-12)

    @pytest.mark.slow
    def test_near_enumeration_where_relus_have_no_second_derivative(self):
        exact = np.asarray(jax.jit(jaxlift.shapley(model, interactions=True, target=0))(X, reference=R))
        values = jax.jit(jaxlift.shapley_moments(model, target=0, probes=2))(X, reference=R)
        attr = jaxlift.shapley_moments(model, interactions=True, target=0, probes=2)
        found = np.asarray(jax.jit(attr)(X, reference=R))
        np.testing.assert_allclose(found.sum(2), values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found, found.swapaxes(1, 2), atol=1e-12)
        assert distance(found[:, OFF], exact[:, OFF]) < 0.5
        assert np.corrcoef(found[:, OFF].ravel(), exact[:, OFF].ravel())[0, 1] > 0.85

    @pytest.mark.slow
    def test_groups_and_draws(self):
        groups = np.array(list("aabbccd"))
        exact = np.asarray(jax.jit(jaxlift.shapley(model, groups=groups, interactions=True, target=0))(X, reference=R))
        attr = jaxlift.shapley_moments(model, groups=groups, interactions=True, target=0, samples=4, full=True)
        found = jax.jit(attr)(X, reference=R)
        assert found.scores.shape == found.standard_error.shape == (3, 4, 4)
        np.testing.assert_allclose(found.delta, 0, atol=1e-12)
        assert distance(found.scores, exact) < 0.5
        assert 0 < found.standard_error.max() < 0.3 * np.abs(exact).max()
