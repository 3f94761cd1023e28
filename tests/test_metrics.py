"""The metrics, against slow loops over examples, features and samples; ties, NaN, transformations, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxlift
from jaxlift import metrics

RNG = np.random.default_rng(11)
W, V = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 3))
X = RNG.normal(size=(4, 6))
R = RNG.normal(size=6)
SCORES = RNG.normal(size=(4, 6))
MASK = RNG.random((4, 6)) < 0.5
KEY = jax.random.key(5)


def model(x):
    """Six features, three outputs, in the precision of the input."""
    return jnp.tanh(x @ W.astype(x.dtype)) @ V.astype(x.dtype)


def in_numpy(x):
    return np.tanh(x @ W) @ V


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def compiled(curve, fun, x, scores, *, reference, **options):
    """A curve, its arrays being arguments of one compiled program."""
    program = jax.jit(lambda x, scores, reference: curve(fun, x, scores, reference=reference, **options))
    return jax.device_get(program(x, scores, reference))


def slow_curve(f, start, end, scores, steps):
    """One example's outputs, feature by feature in descending order; an equal score comes in its turn."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    outputs = []
    for step in range(steps + 1):
        mixed = start.copy()
        for i in order[: step * len(scores) // steps]:
            mixed[i] = end[i]
        outputs.append(f(mixed))
    return outputs


@pytest.mark.usefixtures("x64")
class TestCurves:
    @pytest.mark.parametrize("steps", [1, 3, 4, 6])
    def test_against_loops(self, steps):
        deleted = compiled(metrics.deletion, model, X, SCORES, reference=R, steps=steps, target=1)
        inserted = compiled(metrics.insertion, model, X, SCORES, reference=R, steps=steps, target=1)
        assert deleted.shape == (4, steps + 1)
        for i in range(4):
            close(deleted[i], slow_curve(lambda x: in_numpy(x)[1], X[i], R, SCORES[i], steps))
            close(inserted[i], slow_curve(lambda x: in_numpy(x)[1], R, X[i], SCORES[i], steps))

    @pytest.mark.parametrize("scores", [np.zeros((4, 6)), np.array([[1.0, -0.0, 0, 1, 0, 1]] * 4), -np.abs(SCORES)])
    def test_ties_and_negative_scores(self, scores):
        deleted = compiled(metrics.deletion, model, X, scores, reference=R, steps=6, target=1)
        for i in range(4):
            close(deleted[i], slow_curve(lambda x: in_numpy(x)[1], X[i], R, scores[i], 6))

    def test_a_reference_of_each_example(self):
        deleted = metrics.deletion(model, X, SCORES, reference=X[::-1], steps=6, target=1)
        for i in range(4):
            close(deleted[i], slow_curve(lambda x: in_numpy(x)[1], X[i], X[3 - i], SCORES[i], 6))

    def test_targets(self):
        def of(target, fun=model):
            return compiled(metrics.deletion, fun, X, SCORES, reference=R, steps=3, target=target)

        every = np.stack([of(k) for k in range(3)])
        classes = [2, 0, -1, 1]
        for target in (classes, np.array(classes), jnp.array(classes)):
            close(of(target), every[classes, range(4)])
        weights = np.array([1.0, -2, 0])
        close(of(weights), np.einsum("k,knt->nt", weights, every))
        close(of(list(weights)), np.einsum("k,knt->nt", weights, every))
        close(of(SCORES[:, :3]), np.einsum("nk,knt->nt", SCORES[:, :3], every))
        close(of(lambda y: y[:, 0] * 3), 3 * every[0])
        close(of(None, fun=lambda x: model(x)[:, 0]), every[0])
        close(of(None, fun=lambda x: model(x)[:, :1]), every[0])
        close(of(0, fun=lambda x: model(x).at[:, 1].set(-jnp.inf)), every[0])

    def test_whole_pixels(self):
        image, reference = X.reshape(4, 3, 2), R.reshape(3, 2)
        of_pixels = SCORES.reshape(4, 3, 2).sum(2, keepdims=True)
        options = {"reference": reference, "steps": 3, "target": 0}
        deleted = compiled(metrics.deletion, lambda x: model(x.reshape(-1, 6)), image, of_pixels, **options)
        for i in range(4):
            order = np.argsort(-of_pixels[i, :, 0])
            for step in range(4):
                erased = image[i].copy()
                for pixel in order[:step]:
                    erased[pixel] = reference[pixel]
                close(deleted[i, step], in_numpy(erased.ravel())[0])

    def test_pytrees_are_ranked_together(self):
        def split(x):
            return {"a": x[..., :2], "rest": (x[..., 2:].reshape(*x.shape[:-1], 2, 2),)}

        def of_split(x):
            return model(jnp.concatenate([x["a"], x["rest"][0].reshape(-1, 4)], 1))

        for curve in (metrics.deletion, metrics.insertion):
            whole = compiled(curve, model, X, SCORES, reference=R, steps=6, target=2)
            found = compiled(curve, of_split, split(X), split(SCORES), reference=split(R), steps=6, target=2)
            close(found, whole)

    def test_tokens(self):
        tokens, scores = np.array([[3, 1, 2], [5, 4, 9]]), np.array([[0.1, 0.3, 0.2], [3, 1, 2.0]])
        deleted = metrics.deletion(lambda x: x.sum(1) * 1.0, tokens, scores, reference=np.zeros(3, int), steps=3)
        assert deleted.tolist() == [[6, 5, 3, 0], [18, 13, 4, 0]]

    @pytest.mark.parametrize("of", [list, np.array, jnp.array])
    def test_targets_under_jit(self, of):
        # JAX keeps the float64 copy that a loop under jit makes of a NumPy array, for later tests in float32 too.
        scores, reference = jnp.asarray(SCORES), jnp.asarray(R)

        def curve(x, target):
            return metrics.deletion(model, x, scores, reference=reference, steps=3, target=target)

        expected = curve(X, [2, 0, 1, 1])
        target, beyond = of([2, 0, 1, 1]), of([2, 0, 1, 3])
        close(jax.jit(lambda x: curve(x, target))(X), expected)
        close(jax.jit(curve)(X, jnp.array([2, 0, 1, 1])), expected)
        close(jax.jit(curve)(X, jnp.array([1.0, 0, 2])), curve(X, [1.0, 0, 2]))
        with pytest.raises(
            ValueError, match="between 0 and 2, or -3 and -1 from the end, but they are between 0 and 3"
        ):
            jax.jit(lambda x: curve(x, beyond))(X)
        # An index that only shows when the program runs can't raise.
        traced = jax.jit(curve)(X, jnp.array([2, 0, 1, 3]))
        assert np.isnan(traced).all(1).tolist() == [False, False, False, True]

    def test_not_a_number(self):
        spoilt = SCORES.copy()
        spoilt[2, 3] = np.nan
        deleted = metrics.deletion(model, X, spoilt, reference=R, steps=3, target=1)
        assert np.isnan(deleted).all(1).tolist() == [False, False, True, False]
        whole = metrics.deletion(model, X, SCORES, reference=R, steps=3, target=1)
        np.testing.assert_array_equal(np.delete(deleted, 2, 0), np.delete(whole, 2, 0))

    def test_area(self):
        curve = metrics.deletion(model, X, SCORES, reference=R, steps=5, target=1)
        for area, outputs in zip(metrics.area(curve), curve, strict=True):
            close(area, sum((outputs[s] + outputs[s + 1]) / 2 / 5 for s in range(5)))
        close(metrics.area(jnp.full((2, 4), 3.0)), [3, 3])


def perturbation(key, x):
    """Some features set to noise around the reference."""
    noise, chosen = jax.random.split(key)
    change = x - R[None] - 0.3 * jax.random.normal(noise, x.shape, x.dtype)
    return jnp.where(jax.random.bernoulli(chosen, 0.5, x.shape), change, 0)


@pytest.mark.usefixtures("x64")
class TestInfidelity:
    def slow(self, changes):
        """Definition 2.1, output 2."""
        errors = np.zeros((len(changes), 4))
        for s, change in enumerate(changes):
            for i in range(4):
                said = sum(change[i, j] * SCORES[i, j] for j in range(6))
                errors[s, i] = (said - (in_numpy(X[i])[2] - in_numpy(X[i] - change[i])[2])) ** 2
        return errors.mean(0)

    def test_perturbations_of_the_caller(self):
        keys = jax.random.split(KEY, 7)
        changes = np.stack([perturbation(key, jnp.asarray(X)) for key in keys])
        infidelity = metrics.infidelity(model, X, SCORES, perturbation=perturbation, key=KEY, samples=7, target=2)
        close(infidelity, self.slow(changes))

    def test_gaussian_noise(self):
        """Of a linear model of weights w, `E (I (m - w))^2 = sigma^2 |m - w|^2`."""
        weights, sigma = W[:, 0], np.array([[0.5], [1], [2], [0]])
        infidelity = metrics.infidelity(lambda x: x @ weights, X, SCORES, perturbation=sigma, key=KEY, samples=20_000)
        close(infidelity, sigma[:, 0] ** 2 * ((SCORES - weights) ** 2).sum(1), rtol=0.05)

    def test_pytrees(self):
        def of_split(x):
            return model(jnp.concatenate([x["a"], x["b"]], 1))

        def split(x):
            return {"a": x[:, :2], "b": x[:, 2:]}

        together = metrics.infidelity(model, X, SCORES, perturbation=perturbation, key=KEY, samples=3, target=0)
        apart = metrics.infidelity(
            of_split,
            split(X),
            split(SCORES),
            perturbation=lambda key, x: split(perturbation(key, jnp.concatenate([x["a"], x["b"]], 1))),
            key=KEY,
            samples=3,
            target=0,
        )
        close(apart, together)

    def test_multipliers_of_a_linear_model_are_faithful(self):
        attr = jax.jit(jaxlift.attribute(lambda x: x @ W, target=3, output="multipliers"))
        multipliers = attr(X, reference=R)
        assert metrics.infidelity(lambda x: x @ W, X, multipliers, perturbation=1, key=KEY, target=3).max() < 1e-24


@pytest.mark.usefixtures("x64")
class TestSensitivity:
    def test_against_loops(self):
        """Of the attribution x * x. Without compilation a scan is a loop in Python, and the inputs can be kept."""
        tried = []
        with jax.disable_jit():
            sensitivity = metrics.sensitivity(
                lambda x: tried.append(np.array(x)) or x * x, X, radius=0.2, key=KEY, samples=9
            )
        close(sensitivity, metrics.sensitivity(jnp.square, X, radius=0.2, key=KEY, samples=9))
        original, *moved = tried
        close(original, X)
        assert len(moved) == 9
        assert 0.19 < max(np.abs(y - X).max() for y in moved) <= 0.2
        relative = metrics.sensitivity(lambda x: x * x, X, radius=0.2, key=KEY, samples=9, relative=True)
        for i in range(4):
            norms = [np.sqrt(sum((y[i, j] ** 2 - X[i, j] ** 2) ** 2 for j in range(6))) for y in moved]
            close(sensitivity[i], max(norms))
            close(relative[i], max(norms) / np.sqrt((X[i] ** 4).sum()))

    def test_pytrees_and_references(self):
        """A pytree of one leaf draws what the leaf does."""

        def attr(x, *, reference):
            return {"x": (x["x"] - reference["x"][None]) ** 3}

        tree = metrics.sensitivity(attr, {"x": X}, reference={"x": R}, radius=0.1, key=KEY)
        close(tree, metrics.sensitivity(lambda x: (x - R[None]) ** 3, X, radius=0.1, key=KEY))

    def test_limits(self):
        """Of a linear attribution it tends to the radius times the length of the diagonal; of a constant it is 0."""
        radius = np.array([[1.0], [2], [3], [0]])
        linear = metrics.sensitivity(lambda x: 2 * x[:, :2], X, radius=radius, key=KEY, samples=5000)
        close(linear, 2 * radius[:, 0] * np.sqrt(2), rtol=0.05)
        assert (metrics.sensitivity(jnp.ones_like, X, radius=1, key=KEY) == 0).all()
        assert jnp.isnan(metrics.sensitivity(jnp.zeros_like, X, radius=1, key=KEY, relative=True)).all()

    def test_not_a_number(self):
        spoilt = metrics.sensitivity(lambda x: jnp.sqrt(x - X[:, :1] + 0.05), X[:, :1], radius=0.1, key=KEY)
        assert jnp.isnan(spoilt).all()


@pytest.mark.usefixtures("x64")
class TestLogOdds:
    def slow(self, x, scores, original, target, count):
        """The task of section 4.1, for one example."""
        erased = x.copy()
        for i in sorted(range(len(scores)), key=lambda i: -scores[i])[:count]:
            if scores[i] > 0:
                erased[i] = R[i]
        before, after = in_numpy(x), in_numpy(erased)
        return (before[original] - before[target]) - (after[original] - after[target])

    @pytest.mark.parametrize("count", [0, 1, 3, 6, 100])
    def test_against_loops(self, count):
        original, target = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 2])
        change = metrics.log_odds_change(model, X, SCORES, reference=R, original=original, target=target, count=count)
        expected = [self.slow(*example, count) for example in zip(X, SCORES, original, target, strict=True)]
        close(change, expected)
        same = metrics.log_odds_change(model, X, SCORES, reference=R, original=2, target=0, count=count)
        close(same, [self.slow(*example, 2, 0, count) for example in zip(X, SCORES, strict=True)])

    def test_nothing_positive_nothing_erased(self):
        change = metrics.log_odds_change(model, X, -np.abs(SCORES), reference=R, original=0, target=1, count=3)
        assert (change == 0).all()

    def test_not_a_number(self):
        spoilt = SCORES.copy()
        spoilt[1, 0] = np.nan
        change = metrics.log_odds_change(model, X, spoilt, reference=R, original=0, target=1, count=3)
        assert np.isnan(change).tolist() == [False, True, False, False]

    def test_contributions_of_a_linear_model_say_it(self):
        """Erasing what is positive takes its sum off the log-odds."""
        weights = np.eye(8)[2] - np.eye(8)[5]
        x = jnp.asarray(X)
        scores = jax.jit(jaxlift.attribute(lambda x: x @ W, target=weights))(x, reference=R)
        change = metrics.log_odds_change(lambda x: x @ W, x, scores, reference=R, original=2, target=5, count=6)
        close(change, np.maximum(scores, 0).sum(1))


@pytest.mark.usefixtures("x64")
class TestRankAgreement:
    compiled = staticmethod(jax.jit(metrics.rank_agreement))

    @pytest.mark.parametrize("levels", [2, 5, 1000])
    def test_against_scipy(self, levels):
        a, b = (RNG.integers(-levels, levels, (6, 3, 40)) / 7.0 for _ in range(2))
        agreement = self.compiled(a, b)
        close(agreement, [scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(a, b, strict=True)])

    def test_against_counts(self):
        """A rank is the number of smaller scores and half that of other equal ones."""

        def rank(scores, i):
            return sum(s < scores[i] for s in scores) + (sum(s == scores[i] for s in scores) - 1) / 2

        a, b = np.array([1.0, -0.0, 0, 2, -3, -3]), np.array([2.0, np.inf, -np.inf, 2, 2, 0])
        ranks = [[rank(scores, i) for i in range(6)] for scores in (a, b)]
        close(self.compiled(a[None], b[None])[0], np.corrcoef(ranks)[0, 1])

    def test_extremes(self):
        assert self.compiled(SCORES, SCORES**3).tolist() == [1] * 4
        assert self.compiled(SCORES, -SCORES).tolist() == [-1] * 4

    def test_no_order(self):
        spoilt = SCORES.copy()
        spoilt[0, 0] = np.nan
        spoilt[1] = 2
        assert np.isnan(metrics.rank_agreement(SCORES, spoilt)).tolist() == [True, True, False, False]

    def test_pytrees(self):
        together = metrics.rank_agreement(SCORES, X)
        close(metrics.rank_agreement((SCORES[:, :2], SCORES[:, 2:]), (X[:, :2], X[:, 2:])), together)


def test_ranks_of_many_scores_are_exact_in_float32():
    """A sum of 2e5 squared ranks is far beyond what float32 holds exactly."""
    a = RNG.normal(size=(1, 200_000)).astype(np.float32)
    b = a + RNG.normal(size=a.shape).astype(np.float32)
    agreement = jax.jit(metrics.rank_agreement)(a, b)
    assert agreement.dtype == jnp.float32
    close(agreement[0], scipy.stats.spearmanr(a[0], b[0]).statistic, rtol=1e-6)
    halves = jax.jit(metrics.rank_agreement)(a.astype(jnp.bfloat16), -a.astype(jnp.bfloat16))
    assert halves.dtype == jnp.bfloat16
    assert halves.tolist() == [-1]


METRICS = {
    "deletion": lambda x, s: metrics.deletion(model, x, s, reference=R, steps=4, target=1),
    "insertion": lambda x, s: metrics.insertion(model, x, s, reference=R, steps=4, target=[0, 1, 2, 0]),
    "area": lambda x, s: metrics.area(s),
    "infidelity": lambda x, s: metrics.infidelity(model, x, s, perturbation=0.3, key=KEY, samples=5, target=1),
    "sensitivity": lambda x, s: metrics.sensitivity(lambda x: x * s, x, radius=0.3, key=KEY, samples=5),
    "log_odds_change": lambda x, s: metrics.log_odds_change(model, x, s, reference=R, original=1, target=0, count=3),
    "rank_agreement": metrics.rank_agreement,
    "scaled infidelity": lambda x, s: metrics.infidelity(
        model, x, s, perturbation=metrics.noisy_baseline(R, noise=0.3), key=KEY, samples=5, target=1, scaled=True
    ),
    "removed squares": lambda x, s: metrics.infidelity(
        lambda x: model(x[..., 0]),
        x[..., None],
        s[..., None],
        perturbation=metrics.square_removal(R[:, None], sizes=[1, 2]),
        key=KEY,
        samples=5,
        target=1,
    ),
    "sensitivity_n": lambda x, s: metrics.sensitivity_n(
        model, x, s, reference=R, sizes=[1, 3], key=KEY, samples=5, target=1
    ),
    "road": lambda x, s: metrics.road(
        lambda x: model(x[..., 0]), x[..., None], s[..., None], key=KEY, steps=4, noise=0, target=1
    ),
    "complexity": lambda x, s: metrics.complexity(s),
    "sparseness": lambda x, s: metrics.sparseness(s),
    "complexity_rise": metrics.complexity_rise,
    "pointing_game": lambda x, s: metrics.pointing_game(s, MASK),
    "relevance_mass": lambda x, s: metrics.relevance_mass(s, MASK),
    "relevance_rank": lambda x, s: metrics.relevance_rank(s, MASK),
    "parameter_randomisation": lambda x, s: metrics.parameter_randomisation(
        lambda params, x: s * jnp.sin(params[0][None] * x + params[1][None]), [R, R / 2], x, fresh=[R / 3, -R]
    ),
    "logit_randomisation": lambda x, s: metrics.logit_randomisation(
        lambda x, target: s * jnp.sin(x + target[:, None]), x, target=0, classes=3, key=KEY
    ),
}
# Those whose samples are others in float64.
RANDOM = ["infidelity", "sensitivity", "scaled infidelity", "removed squares", "sensitivity_n", "logit_randomisation"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
class TestTransformations:
    def test_jit_and_float32(self, name):
        x, scores = np.float32(X), np.float32(SCORES)
        result = jax.jit(METRICS[name])(x, scores)
        assert result.dtype == jnp.float32
        assert result.shape[0] == 4
        with jax.enable_x64(True):
            if name not in RANDOM:
                exact = METRICS[name](X, SCORES)
                assert exact.dtype == jnp.float64
                close(result, exact, rtol=2e-5)
        close(result, METRICS[name](x, scores), rtol=1e-5)

    def test_vmap(self, name):
        xs, scores = (np.float32([a, a[::-1], a * 2]) for a in (X, SCORES))
        each = jax.vmap(METRICS[name])(xs, scores)
        for i in range(3):
            close(each[i], METRICS[name](xs[i], scores[i]), rtol=1e-5)

    def test_examples_do_not_depend_on_each_other(self, name):
        x, scores = np.float32(X), np.float32(SCORES)
        changed = METRICS[name](np.vstack([x[:3], 9 * x[3:]]), np.vstack([scores[:3], -scores[3:]]))
        np.testing.assert_array_equal(changed[:3], METRICS[name](x, scores)[:3])


deletion = functools.partial(metrics.deletion, model, X, SCORES, reference=R, steps=3, target=1)
infidelity = functools.partial(metrics.infidelity, model, perturbation=0.1, key=KEY, target=1)
log_odds = functools.partial(metrics.log_odds_change, reference=R, original=0, target=1, count=3)

CASES = {
    "empty batch": (
        lambda: metrics.deletion(model, X[:0], SCORES[:0], reference=R, steps=3),
        ValueError,
        r"batch is empty",
    ),
    "no steps": (lambda: deletion(steps=0), ValueError, r"steps=0 must be between 1 and .* 6"),
    "steps": (lambda: deletion(steps=7), ValueError, r"steps=7 must be between 1 and .* 6"),
    "target": (lambda: deletion(target=None), ValueError, r"outputs of shape \(3,\).*target="),
    "target range": (lambda: deletion(target=3), ValueError, r"target 3 is out of range"),
    "targets range": (
        lambda: deletion(target=[0, 1, 2, 3]),
        ValueError,
        r"between 0 and 2, .* but they are between 0 and 3",
    ),
    "all targets": (lambda: deletion(target="all"), ValueError, r"'all' must be None, an int"),
    "reference shape": (lambda: deletion(reference=R[:2]), ValueError, r"\(2,\) doesn't fit .* \(4, 6\)"),
    "several references": (lambda: deletion(reference=X[:2]), ValueError, r"one for all .* \(N, \.\.\.\)"),
    "reference structure": (lambda: deletion(reference=(R,)), ValueError, r"reference must be one too"),
    "score shape": (
        lambda: metrics.deletion(model, X, SCORES[:, :2], reference=R, steps=1),
        ValueError,
        r"\(4, 2\) don't fit .* \(4, 6\).*keepdims",
    ),
    "score rank": (
        lambda: metrics.deletion(model, X, SCORES[:, 0], reference=R, steps=1),
        ValueError,
        r"\(4,\) don't fit .* \(4, 6\)",
    ),
    "score of all": (
        lambda: metrics.deletion(model, X, SCORES[:1], reference=R, steps=1),
        ValueError,
        r"\(1, 6\) don't fit .* \(4, 6\)",
    ),
    "score structure": (
        lambda: metrics.deletion(model, X, (SCORES,), reference=R, steps=1),
        ValueError,
        r"the scores must have the structure",
    ),
    "score dtype": (
        lambda: metrics.deletion(model, X, SCORES > 0, reference=R, steps=1),
        TypeError,
        r"the scores .* bool",
    ),
    "outputs": (
        lambda: metrics.deletion(lambda x: (model(x), x), X, SCORES, reference=R, steps=1),
        ValueError,
        r"one array of 4 rows.*\(4, 3\), \(4, 6\)",
    ),
    "output dtype": (
        lambda: metrics.deletion(lambda x: x.argmax(1), X, SCORES, reference=R, steps=1),
        TypeError,
        r"dtype int32",
    ),
    "area": (lambda: metrics.area(jnp.ones((3, 1))), ValueError, r"two points.*\(3, 1\)"),
    "infidelity shape": (lambda: infidelity(X, SCORES[:, :1]), ValueError, r"multipliers .*\(4, 6\).*\(4, 1\)"),
    "infidelity input": (lambda: infidelity(X.astype(int), SCORES), TypeError, r"dtype int32"),
    "infidelity batch": (lambda: infidelity(X[:0], SCORES[:0]), ValueError, r"batch is empty"),
    "noise": (lambda: infidelity(X, SCORES, perturbation=-1.0), ValueError, r"perturbation=-1\.0 must be 0 or pos"),
    "noise shape": (
        lambda: infidelity(X, SCORES, perturbation=np.ones((2, 4, 6))),
        ValueError,
        r"perturbation must be a number, or broadcast .* \(4, 6\), .* \(2, 4, 6\)",
    ),
    "perturbation shape": (
        lambda: infidelity(X, SCORES, perturbation=lambda key, x: x[:, :1]),
        ValueError,
        r"what perturbation\(key, x\) returns .*\(4, 6\).*\(4, 1\)",
    ),
    "samples": (lambda: infidelity(X, SCORES, samples=0), ValueError, r"samples=0 must be an int, 1 at least"),
    "radius": (lambda: metrics.sensitivity(jnp.square, X, radius=jnp.nan, key=KEY), ValueError, r"radius=nan"),
    "sensitivity batch": (lambda: metrics.sensitivity(jnp.square, X[:0], radius=1, key=KEY), ValueError, r"empty"),
    "sensitivity scores": (
        lambda: metrics.sensitivity(lambda x: x.sum(), X, radius=1, key=KEY),
        ValueError,
        r"axis, of length 4, but have shape \(\)",
    ),
    "count": (lambda: log_odds(model, X, SCORES, count=-1), ValueError, r"count=-1 must be an int, 0 at least"),
    "classes": (lambda: log_odds(model, X, SCORES, original=[0, 1, 2, 3]), ValueError, r"between 0 and 2"),
    "logits": (lambda: log_odds(lambda x: x[:, 0], X, SCORES), ValueError, r"logits \(N, K\).*\(4,\)"),
    "agreement shape": (lambda: metrics.rank_agreement(X, X[:, :2]), ValueError, r"\(4, 6\).*\(4, 2\)"),
    "agreement structure": (lambda: metrics.rank_agreement(X, (X,)), ValueError, r"second scores .* structure"),
    "agreement dtype": (lambda: metrics.rank_agreement(X > 0, X), TypeError, r"the first scores .* bool"),
    "agreement batch": (lambda: metrics.rank_agreement(X[:0], X[:0]), ValueError, r"batch is empty"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
