"""The wrappers of attribution functions, against loops over samples, references and channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

RNG = np.random.default_rng(12)
W = RNG.normal(size=(6, 8))
X, REFERENCES = RNG.normal(size=(4, 6)), RNG.normal(size=(3, 6))
KEY = jax.random.key(7)


def model(x):
    return jnp.tanh(x @ W.astype(x.dtype)).sum(1)


def close(actual, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), actual, expected)


def inputs_of(wrapped, x):
    """The inputs with which a wrapped attribution function calls the function that it was made of, in float32 at least:
    a callback may have a thread of its own, where float64 is not enabled.
    """
    inputs = []

    def attr(x):
        jax.debug.callback(lambda x: inputs.append(jax.tree.map(np.array, x)), x)
        return x

    jax.block_until_ready(jax.jit(wrapped(attr))(x))
    jax.effects_barrier()
    return inputs


@pytest.mark.usefixtures("x64")
class TestSmooth:
    def test_mean_over_independent_normal_noise(self):
        smooth = functools.partial(jaxlift.smooth, noise=0.3, key=KEY, samples=100)
        tried = np.stack(inputs_of(smooth, X))
        assert tried.shape == (100, 4, 6)
        close(jax.jit(smooth(lambda x: x**2))(X), sum(x**2 for x in tried) / 100, rtol=1e-6)
        # 2400 draws, whose moments vary by 2% to 7%.
        noise = (tried - X) / 0.3
        close([noise.mean(), (noise**2).mean(), (noise**4).mean() / 3], [0, 1, 1], rtol=0.15)
        assert np.abs(np.corrcoef(noise.reshape(100, -1).T) - np.eye(24)).max() < 0.5

    def test_pytrees_and_a_deviation_of_each_example(self):
        x = {"a": X[:, :2], "b": (X[:, 2:],)}
        smooth = functools.partial(jaxlift.smooth, noise=np.array([[0.0], [1], [2], [3]]), key=KEY, samples=100)
        inputs = inputs_of(smooth, x)
        scores = jax.jit(smooth(lambda x: x["a"] * x["b"][0][:, :2]))(x)
        close(scores, np.mean([tried["a"] * tried["b"][0][:, :2] for tried in inputs], axis=0), rtol=1e-6)
        noise = np.array([np.hstack([tried["a"], tried["b"][0]]) - X for tried in inputs])
        close(noise.std((0, 2)), [0, 1, 2, 3], rtol=0.15)
        assert np.abs(noise[:, 1:, 0] - noise[:, 1:, 2]).min() > 0  # the leaves have noise of their own

    def test_arguments(self):
        """Only what `argnums` names gets noise; the rest is passed on."""

        def attr(params, x, y, *, reference):
            return params * x - reference[None], y

        def smoothed(argnums):
            smoothing = jaxlift.smooth(attr, noise=1.0, key=KEY, samples=3, argnums=argnums)
            return jax.tree.map(np.asarray, jax.jit(smoothing)(2.0, X, X, reference=REFERENCES[0]))

        one = smoothed(1)
        assert np.abs((one[0] + REFERENCES[0]) / 2 - X).min() > 0
        close(one[1], X)
        both = smoothed((1, 2))
        assert np.abs(both[1] - X).min() > 0
        assert np.abs((both[0] + REFERENCES[0]) / 2 - both[1]).min() > 0

    def test_squares_and_variance(self):
        smooth = functools.partial(jaxlift.smooth, noise=np.array([[0.1], [1], [2], [3]]), key=KEY, samples=40)
        scores = np.stack(inputs_of(smooth, X)) ** 2
        for statistic, expected in (("squares", (scores**2).mean(0)), ("variance", scores.var(0))):
            close(jax.jit(smooth(jnp.square, statistic=statistic))(X), expected, rtol=1e-5)

    @pytest.mark.parametrize("statistic", ["squares", "variance"])
    def test_squares_and_variance_with_outputs(self, statistic):
        """Of the outputs there are means. Squares have no sum that something could be missing from."""
        attr, smooth = jaxlift.attribute(model, full=True), functools.partial(jaxlift.smooth, noise=0.2, key=KEY)
        found = jax.jit(smooth(attr, statistic=statistic))(X, reference=REFERENCES)
        alone = jax.jit(smooth(jaxlift.attribute(model), statistic=statistic))(X, reference=REFERENCES)
        mean = jax.jit(smooth(attr))(X, reference=REFERENCES)
        close(found.scores, alone)
        close(found[3:5], mean[3:5])
        assert found.delta is found.cancellation is found.standard_error is None

    def test_no_noise(self):
        attr = jaxlift.attribute(model, full=True)
        smoothed = jaxlift.smooth(attr, noise=0.0, key=KEY, samples=5)
        close(jax.jit(smoothed)(X, reference=REFERENCES), jax.jit(attr)(X, reference=REFERENCES))


@pytest.mark.usefixtures("x64")
class TestSumChannels:
    scores = RNG.normal(size=(2, 3, 4, 5))

    @pytest.mark.parametrize(("axis", "own"), [(-1, -1), (0, 1), ((0, 2), (1, 3)), ((-2, -1), (-2, -1)), (2, 3)])
    def test_against_numpy(self, axis, own):
        """Axes are counted in one example; NumPy's, `own`, in the batch."""

        def attr(x):
            return {"scores": x}

        for x in (self.scores, jnp.asarray(self.scores)):
            signed = jaxlift.sum_channels(attr, axis=axis)(x)
            close(signed, {"scores": self.scores.sum(own)})
            absolute = jaxlift.sum_channels(attr, axis=axis, absolute=True, keepdims=True)(x)
            close(absolute, {"scores": np.abs(self.scores).sum(own, keepdims=True)})

    def test_full(self):
        """Scores are summed and the rest stays; of sums the standard error isn't known."""
        attr = jaxlift.shapley(lambda x: x.prod((1, 2)), samples=4, full=True)

        @jax.jit
        def every(x, reference):
            summed = [jaxlift.sum_channels(attr, axis=axis)(x, reference=reference) for axis in (-1, 1)]
            smoothed = jaxlift.smooth(attr, noise=0.0, key=KEY, samples=2)
            return attr(x, reference=reference), summed, smoothed(x, reference=reference)

        found, summed, smoothed = every(X[:, None], REFERENCES[:1])
        close(summed, [found._replace(scores=np.sum(found.scores, 2), standard_error=None)] * 2)
        close(smoothed, found)

    def test_with_axes_of_references_and_outputs(self):
        attr = jaxlift.attribute(lambda x: jnp.tanh(x @ W), target="all", average=False)
        summed = jax.jit(jaxlift.sum_channels(attr))(X, reference=REFERENCES)
        close(summed, np.tanh(X @ W)[:, None] - np.tanh(REFERENCES @ W), rtol=1e-9)

    def test_keeps_the_sum(self):
        summed = jax.jit(jaxlift.sum_channels(jaxlift.attribute(model)))(X, reference=REFERENCES[0])
        close(summed, (np.tanh(X @ W) - np.tanh(REFERENCES[:1] @ W)).sum(1))


def test_low_precision_is_summed_in_more():
    """In bfloat16 a sum of ones ends at 256."""
    ones = jnp.ones((2, 3), jnp.bfloat16)
    mean = jax.jit(jaxlift.smooth(jnp.ones_like, noise=0.1, key=KEY, samples=1000))(ones)
    assert mean.dtype == jnp.bfloat16
    assert (mean == 1).all()


@pytest.mark.slow
class TestTransformations:
    x, references = np.float32(X), np.float32(REFERENCES)

    def attr(self, x):
        attr = jaxlift.attribute(model)
        smoothed = jaxlift.smooth(attr, noise=0.1, key=KEY, samples=4)
        return jaxlift.sum_channels(smoothed, absolute=True, keepdims=True)(x, reference=self.references)

    def test_jit(self):
        compiled = jax.jit(self.attr)(self.x)
        assert compiled.shape == (4, 1)
        close(compiled, self.attr(self.x), rtol=1e-5)

    def test_traced_key_and_noise(self):
        def scores(key, noise):
            return jaxlift.smooth(jnp.square, noise=noise, key=key, samples=4)(self.x)

        compiled, expected = jax.jit(scores), np.asarray(scores(KEY, 0.3))
        close(compiled(KEY, 0.3), expected, rtol=1e-6)
        close(compiled(jax.random.PRNGKey(7), 0.3), expected, rtol=1e-6)
        assert np.abs(compiled(jax.random.key(8), 0.3) - expected).min() > 0

    def test_vmap(self):
        xs = np.stack([self.x, self.x[::-1], 2 * self.x])
        attr = jax.jit(self.attr)
        for x, scores in zip(xs, jax.jit(jax.vmap(attr))(xs), strict=True):
            close(scores, attr(x), rtol=1e-5)


smooth = functools.partial(jaxlift.smooth, jnp.square, noise=0.1, key=KEY)

CASES = {
    "samples": (lambda: smooth(samples=0), ValueError, r"samples=0 must be an int, 1 at least"),
    "statistic": (lambda: smooth(statistic="median"), ValueError, r"statistic='median' must be one of 'mean', 'sq"),
    "noise": (lambda: smooth(noise=-0.5), ValueError, r"noise=-0\.5 must be 0 or positive"),
    "noise shape": (lambda: smooth(noise=np.ones(5))(X), ValueError, r"noise .*broadcast"),
    "larger noise": (
        lambda: smooth(noise=np.ones((2, 4, 6)))(X),
        ValueError,
        r"noise must be a number, or broadcast .* \(4, 6\), .* \(2, 4, 6\)",
    ),
    "integers": (lambda: smooth()(X.astype(int)), TypeError, r"dtype int32"),
    "integer scores": (
        lambda: jaxlift.smooth(lambda x: {"a": x > 0}, noise=0.1, key=KEY)(X),
        TypeError,
        r"returns\['a'\] has dtype bool",
    ),
    "no axis": (
        lambda: jaxlift.sum_channels(jnp.square, axis=1)(X),
        ValueError,
        r"axis=1 must be an axis of one example, .* 0 to 0, or -1 to -1",
    ),
    "batch axis from the end": (lambda: jaxlift.sum_channels(jnp.square, axis=-2)(X), ValueError, r"axis=-2 "),
    "scores without axes": (lambda: jaxlift.sum_channels(jnp.square)(X[:, 0]), ValueError, r"here these are none"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
