"""Infidelity with the best scaling, its perturbations, and Sensitivity-n: against slow loops and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift
from jaxlift import metrics

RNG = np.random.default_rng(17)
W, V = RNG.normal(size=(6, 8)), RNG.normal(size=8)
X, R = RNG.normal(size=(4, 6)), RNG.normal(size=6)
SCORES = RNG.normal(size=(4, 6))
KEY = jax.random.key(7)


def model(x):
    return jnp.tanh(x @ W.astype(x.dtype)) @ V.astype(x.dtype)


def in_numpy(x):
    return np.tanh(x @ W) @ V


@pytest.mark.usefixtures("x64")
class TestScaledInfidelity:
    def test_against_the_least_of_all_scales(self):
        """The scale that fits best, by hand; none that is near is better."""
        perturbation = metrics.noisy_baseline(R, noise=0.5)
        found = metrics.infidelity(model, X, SCORES, perturbation=perturbation, key=KEY, samples=9, scaled=True)
        changes = [np.array(perturbation(key, jnp.asarray(X))) for key in jax.random.split(KEY, 9)]
        for i in range(4):
            said = [sum(change[i, j] * SCORES[i, j] for j in range(6)) for change in changes]
            seen = [in_numpy(X[i]) - in_numpy(X[i] - change[i]) for change in changes]
            beta = np.dot(said, seen) / np.dot(said, said)
            errors = [np.mean([(b * s - o) ** 2 for s, o in zip(said, seen, strict=True)]) for b in (beta, beta + 0.01)]
            np.testing.assert_allclose(found[i], errors[0], rtol=1e-12)
            assert found[i] < errors[1]

    def test_only_the_direction_counts(self):
        """Down to multipliers whose squares are below what float32 holds."""
        x, multipliers = np.float32(X), np.float32(SCORES)

        @jax.jit
        def of(multipliers):
            return metrics.infidelity(model, x, multipliers, perturbation=0.3, key=KEY, samples=9, scaled=True)

        np.testing.assert_allclose(of(multipliers * np.float32(-1e-30)), of(multipliers), rtol=1e-5)
        unscaled = metrics.infidelity(model, x, 0 * multipliers, perturbation=0.3, key=KEY, samples=9)
        np.testing.assert_allclose(of(0 * multipliers), unscaled, rtol=1e-5)
        assert np.isnan(of(np.where(multipliers == multipliers[1, 2], np.nan, multipliers))).tolist() == [0, 1, 0, 0]


@pytest.mark.usefixtures("x64")
class TestPerturbations:
    def test_noisy_baseline(self):
        x, references = np.tile(X[:1], (4000, 1)), np.tile(RNG.normal(size=(4000, 1)), 6)
        noise = np.arange(1.0, 7)[None]
        drawn = x - metrics.noisy_baseline(references, noise=noise)(KEY, jnp.asarray(x)) - references
        np.testing.assert_allclose(drawn.mean(0) / noise[0], 0, atol=0.06)
        np.testing.assert_allclose(drawn.std(0), noise[0], rtol=0.05)

    def test_squares(self):
        """Each is one of all squares within the image; all of them come, as often as each other."""
        n, sizes = 8000, [2, 3]
        x, reference = RNG.normal(size=(n, 2, 5, 4)), RNG.normal(size=(2, 5, 4))
        drawn = np.array(metrics.square_removal(reference, sizes=sizes, channel_axis=0)(KEY, jnp.asarray(x)))
        corners = [(size, i, j) for size in sizes for i in range(6 - size) for j in range(5 - size)]
        masks = {}
        for size, i, j in corners:
            mask = np.zeros((5, 4), bool)
            mask[i : i + size, j : j + size] = True
            masks[mask.tobytes()] = 0
        for change, image in zip(drawn, x, strict=True):
            mask = (change != 0).any(0)
            masks[mask.tobytes()] += 1
            np.testing.assert_array_equal(change, np.where(mask, image - reference, 0))
        assert len(masks) == 12 + 6
        expected = n / len(masks)
        assert max(abs(count - expected) for count in masks.values()) < 5 * np.sqrt(expected)

    def test_intervals(self):
        drawn = metrics.square_removal(np.zeros((9, 4)), sizes=[3])(KEY, jnp.ones((50, 9, 4)))
        begins = set((drawn[:, :, 0] != 0).argmax(1).tolist())
        assert drawn.sum((1, 2)).tolist() == [12] * 50
        assert begins == set(range(7))


@pytest.mark.usefixtures("x64")
class TestSensitivityN:
    def of(self, fun, scores, samples, sizes=(1, 2, 5), x=X, reference=R):
        options = {"reference": reference, "sizes": sizes, "key": KEY, "samples": samples}
        return jax.jit(lambda x, scores: metrics.sensitivity_n(fun, x, scores, **options))(x, scores)

    def test_against_loops(self):
        found = self.of(model, SCORES, 7)
        orders = [np.array(jax.random.permutation(key, 6)) for key in jax.random.split(KEY, 7)]
        for i, (k, n) in itertools.product(range(4), enumerate((1, 2, 5))):
            subsets = [[j for j in range(6) if order[j] < n] for order in orders]
            said = [sum(SCORES[i, j] for j in subset) for subset in subsets]
            seen = [
                in_numpy(X[i]) - in_numpy([R[j] if j in subset else X[i, j] for j in range(6)]) for subset in subsets
            ]
            np.testing.assert_allclose(found[i, k], np.corrcoef(said, seen)[0, 1], rtol=1e-9)

    def test_against_all_subsets(self):
        found = self.of(model, SCORES, 3000, sizes=np.array([2]))
        for i in range(4):
            pairs = list(itertools.combinations(range(6), 2))
            said = [SCORES[i, list(pair)].sum() for pair in pairs]
            seen = [in_numpy(X[i]) - in_numpy(np.where(np.isin(range(6), pair), R, X[i])) for pair in pairs]
            np.testing.assert_allclose(found[i, 0], np.corrcoef(said, seen)[0, 1], atol=0.05)

    def test_contributions_of_a_linear_model_say_it(self):
        scores = jax.jit(jaxlift.attribute(lambda x: x @ V[:6]))(X, reference=R)
        np.testing.assert_allclose(self.of(lambda x: x @ V[:6], scores, 9), 1, rtol=1e-12)
        assert np.isnan(self.of(lambda x: x[:, 0] * 0, SCORES, 9)).all()

    def test_whole_pixels_in_a_pytree(self):
        """Three features: two pixels of two channels, and a number."""
        x, reference = {"a": X[:, :4].reshape(4, 2, 2), "b": X[:, 4:5]}, {"a": R[:4].reshape(2, 2), "b": R[4:5]}
        scores = {"a": SCORES[:, :2].reshape(4, 2, 1), "b": SCORES[:, 2:3]}
        found = self.of(lambda x: x["a"].prod((1, 2)) + x["b"][:, 0], scores, 2000, (1,), x, reference)
        for i in range(4):
            erased = [
                np.array([*R[:2], *X[i, 2:5]]),
                np.array([*X[i, :2], *R[2:4], X[i, 4]]),
                np.array([*X[i, :4], R[4]]),
            ]
            seen = [X[i, :4].prod() + X[i, 4] - (e[:4].prod() + e[4]) for e in erased]
            np.testing.assert_allclose(found[i, 0], np.corrcoef(SCORES[i, :3], seen)[0, 1], atol=0.05)

    def test_not_a_number(self):
        spoilt = np.where(SCORES[2, 3] == SCORES, np.nan, SCORES)
        assert np.isnan(self.of(model, spoilt, 9)).all(1).tolist() == [False, False, True, False]


def sensitivity_n(**options):
    return metrics.sensitivity_n(model, X, SCORES, **{"reference": R, "sizes": [1], "key": KEY, **options})


def squares(x, sizes=(2,), **options):
    return metrics.square_removal(np.zeros(x.shape[1:]), sizes=sizes, **options)(KEY, x)


IMAGES = np.zeros((2, 5, 4, 3))
CASES = {
    "noise": (lambda: metrics.noisy_baseline(R, noise=-1.0), ValueError, r"noise=-1\.0 must be 0 or positive"),
    "baseline": (
        lambda: metrics.infidelity(model, X, X, perturbation=metrics.noisy_baseline(R[:2], noise=1.0), key=KEY),
        ValueError,
        r"reference of shape \(2,\) doesn't fit .* \(4, 6\)",
    ),
    "no sizes": (lambda: squares(IMAGES, ()), ValueError, r"sizes is empty.*sizes=\[2, 3, 4\]"),
    "size": (lambda: squares(IMAGES, (0,)), ValueError, r"sizes=0 must be an int, 1 at least"),
    "size of image": (lambda: squares(IMAGES, (5,)), ValueError, r"sizes=\[5\] must fit .* shortest side is 4"),
    "no positions": (lambda: squares(X), ValueError, r"\(4, 6\) has no positions.*x\[\.\.\., None\]"),
    "channel axis": (lambda: squares(IMAGES, channel_axis=3), ValueError, r"channel_axis=3 must be an axis"),
    "images": (
        lambda: metrics.square_removal(np.zeros(3), sizes=[2])(KEY, (IMAGES,)),
        ValueError,
        r"one array of images, .* a tuple",
    ),
    "all features": (lambda: sensitivity_n(sizes=[6]), ValueError, r"sizes=\[6\] must be ints from 1 to 5"),
    "no n": (lambda: sensitivity_n(sizes=[]), ValueError, r"sizes=\[\] must be ints"),
    "one sample": (lambda: sensitivity_n(samples=1), ValueError, r"samples=1 must be an int, 2 at least"),
    "key": (lambda: sensitivity_n(key=3), TypeError, r"expected a PRNG key"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
