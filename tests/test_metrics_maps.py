"""Complexity, sparseness and localisation of scores, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlift import metrics

RNG = np.random.default_rng(19)
SCORES = RNG.normal(size=(5, 4, 3)) ** 3
MASK = RNG.random((5, 4, 3)) < 0.4
RANDOM = RNG.normal(size=(5, 4, 3))


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("x64")
class TestComplexity:
    def test_entropy(self):
        found = jax.jit(metrics.complexity)(SCORES)
        for entropy, scores in zip(found, SCORES, strict=True):
            shares = [abs(score) / np.abs(scores).sum() for score in scores.ravel()]
            close(entropy, -sum(share * np.log(share) for share in shares))

    def test_gini(self):
        """Half of the mean difference of two magnitudes, by their mean."""
        found = jax.jit(metrics.sparseness)(SCORES)
        for gini, scores in zip(found, np.abs(SCORES.reshape(5, 12)), strict=True):
            difference = np.mean([abs(a - b) for a in scores for b in scores])
            close(gini, difference / 2 / scores.mean())

    @pytest.mark.parametrize("bins", [3, 100])
    def test_rise(self, bins):
        rise = jax.jit(metrics.complexity_rise, static_argnames="bins")(SCORES, RANDOM, bins=bins)
        for found, scores, random in zip(rise, SCORES, RANDOM, strict=True):
            before, after = (scipy.stats.entropy(np.histogram(each, bins)[0]) for each in (scores, random))
            close(found, (after - before) / before)

    def test_pytrees_and_extremes(self):
        for metric in (metrics.complexity, metrics.sparseness):
            whole = metric(SCORES)
            close(metric((SCORES[:, :1], SCORES[:, 1:])), whole)
            close(metric(np.float32(SCORES) * np.float32(1e-30)), whole, rtol=1e-4)
            close(metric(np.float32(SCORES / np.abs(SCORES).max()) * np.float32(3e37)), whole, rtol=1e-5)
            spoilt = np.where(SCORES[2, 0, 0] == SCORES, np.nan, SCORES)
            spoilt[3] = 0
            assert np.isnan(metric(spoilt)).tolist() == [False, False, True, True, False]
        rise = metrics.complexity_rise(np.ones((3, 4)), np.array([[1.0, 2, 3, 4], [2, 2, 2, 2], [np.nan, 1, 2, 3]]))
        assert rise[0] == np.inf
        assert np.isnan(rise).tolist() == [False, True, True]


@pytest.mark.usefixtures("x64")
class TestLocalisation:
    def test_against_loops(self):
        inside = [[i for i in range(12) if mask.ravel()[i]] for mask in MASK]
        hit, mass, rank = (
            jax.jit(metric)(SCORES, MASK)
            for metric in (metrics.pointing_game, metrics.relevance_mass, metrics.relevance_rank)
        )
        for i, scores in enumerate(SCORES.reshape(5, 12)):
            order = sorted(range(12), key=lambda j: -scores[j])
            assert hit[i] == (order[0] in inside[i])
            close(mass[i], sum(max(scores[j], 0) for j in inside[i]) / sum(max(score, 0) for score in scores))
            close(rank[i], len(set(order[: len(inside[i])]) & set(inside[i])) / len(inside[i]))
        assert set(hit.tolist()) == {0, 1}

    def test_ties(self):
        scores, mask = np.array([[2.0, 2, 1, 2]]), np.array([[False, True, False, True]])
        close(metrics.pointing_game(scores, mask), 2 / 3)
        close(metrics.relevance_rank(scores, mask), 1 / 2)

    def test_nothing_there(self):
        spoilt, mask = np.where(SCORES[2, 0, 0] == SCORES, np.nan, SCORES), MASK.copy()
        mask[1] = False
        for metric in (metrics.pointing_game, metrics.relevance_mass, metrics.relevance_rank):
            assert np.isnan(metric(spoilt, mask)).tolist() == [False, True, True, False, False]
        assert np.isnan(metrics.relevance_mass(-np.abs(SCORES), MASK)).all()

    def test_pytrees_and_float32(self):
        for metric in (metrics.pointing_game, metrics.relevance_mass, metrics.relevance_rank):
            apart = metric([np.float32(SCORES[:, :1]), np.float32(SCORES[:, 1:])], [MASK[:, :1], MASK[:, 1:]])
            assert apart.dtype == jnp.float32
            close(apart, metric(SCORES, MASK), rtol=1e-6)


CASES = {
    "empty": (lambda: metrics.complexity(SCORES[:0]), ValueError, r"batch is empty"),
    "dtype": (lambda: metrics.sparseness(MASK), TypeError, r"the scores must be floating-point.*bool"),
    "bins": (lambda: metrics.complexity_rise(SCORES, RANDOM, bins=0), ValueError, r"bins=0 must be an int, 1 at least"),
    "rise shape": (
        lambda: metrics.complexity_rise(SCORES, RANDOM[:, :2]),
        ValueError,
        r"randomised model's scores must have the shapes \(5, 4, 3\), but have \(5, 2, 3\)",
    ),
    "mask dtype": (lambda: metrics.pointing_game(SCORES, MASK * 1.0), TypeError, r"booleans.*write mask > 0"),
    "mask shape": (
        lambda: metrics.relevance_mass(SCORES, MASK[..., :1]),
        ValueError,
        r"the mask must have the shapes \(5, 4, 3\), but have \(5, 4, 1\)",
    ),
    "mask structure": (lambda: metrics.relevance_rank((SCORES,), MASK), ValueError, r"the mask must have the shapes"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
