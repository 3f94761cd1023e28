"""`attribute`: references by rank, targets, outputs, pytrees, arguments, and examples that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

RNG = np.random.default_rng(3)
W, V, B = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((6, 8), (8, 5), (1, 8)))
X = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
REFERENCES = jnp.asarray(RNG.normal(size=(3, 6)), jnp.float32)


def attribute(fun, **options):
    """`jaxlift.attribute`, compiled."""
    attr = jaxlift.attribute(fun, **options)
    return jax.jit(lambda *args, reference: attr(*args, reference=reference))


def model(x):
    """Four examples of six features, five outputs each."""
    return jnp.tanh(x @ W + B) @ V


def in_numpy(x):
    """The same."""
    return np.tanh(np.asarray(x) @ np.asarray(W) + np.asarray(B)) @ np.asarray(V)


@functools.partial(jax.jit, static_argnums=3)
def pair(x, r, weights, rule="rescale"):
    """Contributions of one example against one reference, for a weighted sum of outputs."""
    _, pullback = jaxlift.vjp(lambda x: model(x[None])[0], x, r, rule=rule)
    return pullback(weights) * (x - r)


def of_pairs(x, references, weights, rule="rescale"):
    """`(N, R, ...)`: contributions of each example against each of its references, `(N, R, ...)` or `(R, ...)`."""
    x, references, weights = map(np.asarray, (x, references, weights))
    own = np.broadcast_to(references, (len(x), *references.shape[-2:]))
    weights = np.broadcast_to(weights, (len(x), 5))
    return np.array([[pair(a, r, w, rule) for r in rs] for a, rs, w in zip(x, own, weights, strict=True)])


def close(actual, expected, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


class TestReferences:
    one_hot = np.eye(5, dtype=np.float32)[2]

    @pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
    def test_one_shared_and_of_each_example(self, rule):
        attr = attribute(model, target=2, rule=rule)
        each = attribute(model, target=2, rule=rule, average=False)
        expected = of_pairs(X, REFERENCES, self.one_hot, rule)
        close(attr(X, reference=REFERENCES[1]), expected[:, 1])
        close(attr(X, reference=REFERENCES), expected.mean(1))
        close(each(X, reference=REFERENCES), expected)
        own = np.asarray(REFERENCES) + np.arange(4, dtype=np.float32)[:, None, None]
        expected_own = of_pairs(X, own, self.one_hot, rule)
        close(attr(X, reference=own), expected_own.mean(1))
        close(each(X, reference=own), expected_own)

    def test_shape_of_the_input(self):
        r = np.asarray(X)[::-1] * 0.5
        shared = attribute(model, target=2, pairing="shared")(X, reference=r)
        paired = attribute(model, target=2, pairing="paired")(X, reference=r)
        pairs = of_pairs(X, r, self.one_hot)
        close(paired, pairs[range(4), range(4)])
        close(shared, pairs.mean(1))
        with pytest.warns(UserWarning, match=r"4 x 4 pairs.*pairing='paired'") as record:
            close(attribute(model, target=2)(X, reference=r), shared)
        assert record[0].filename == __file__

    def test_one_example_is_not_ambiguous(self):
        close(attribute(model, target=2)(X[:1], reference=X[1:2]), pair(X[0], X[1], self.one_hot)[None])

    def test_references_are_cast(self):
        whole = attribute(model, target=2)(X, reference=np.zeros(6, int))
        assert whole.dtype == jnp.float32
        close(whole, attribute(model, target=2)(X, reference=jnp.zeros(6)))


class TestTargets:
    def of(self, target, **options):
        return attribute(model, target=target, **options)(X, reference=REFERENCES)

    def expected(self, weights):
        return of_pairs(X, REFERENCES, np.asarray(weights, np.float32)).mean(1)

    def test_int(self):
        for target in (3, -1, np.int64(3)):
            close(self.of(target), self.expected(np.eye(5)[target]))

    def test_int_of_each_example(self):
        expected = self.expected(np.eye(5)[[0, 4, 1, 3]])
        close(self.of([0, 4, 1, -2]), expected)
        traced = jax.jit(lambda t: attribute(model, target=t)(X, reference=REFERENCES))
        close(traced(np.array([0, 4, 1, -2])), expected)
        assert np.isnan(traced(np.array([0, 9, 1, 2]))).all(1).tolist() == [False, True, False, False]

    def test_weights(self):
        contrast = np.array([1.0, -1, 0, 0, 0])
        close(self.of(contrast), self.expected(contrast))
        of_each = RNG.normal(size=(4, 5)).astype(np.float32)
        close(self.of(of_each), self.expected(of_each))

    def test_function(self):
        close(self.of(lambda outputs: outputs[:, 0] - outputs[:, 1]), self.expected([1.0, -1, 0, 0, 0]))
        scores, delta, *_ = self.of(lambda outputs: jnp.tanh(outputs[:, 2]), full=True)
        assert np.abs(delta).max() < 1e-6
        y, y_ref = (np.tanh(in_numpy(side)[:, 2]) for side in (X, REFERENCES))
        close(np.asarray(scores).sum(1), y - y_ref.mean())

    def test_all(self):
        every = self.of("all")
        assert every.shape == (4, 5, 6)
        for k in range(5):
            close(every[:, k], self.expected(np.eye(5)[k]))
        every_pair, delta, *_ = self.of("all", average=False, full=True)
        assert every_pair.shape == (4, 3, 5, 6)
        assert delta.shape == (4, 3, 5)

    def test_normalised(self):
        """Equation 5: what all outputs gain alike is taken off."""
        every = np.stack([self.expected(one) for one in np.eye(5)], 1)
        close(self.of(3, normalize_target=True), every[:, 3] - every.mean(1))
        close(self.of("all", normalize_target=True), every - every.mean(1, keepdims=True))
        contrast = np.array([1.0, -1, 0, 0, 0])
        close(self.of(contrast, normalize_target=True), self.expected(contrast))

    def test_single_output(self):
        for fun in (lambda x: model(x)[:, 3], lambda x: model(x)[:, 3:4]):
            close(attribute(fun)(X, reference=REFERENCES), self.expected(np.eye(5)[3]))

    def test_outputs_of_several_axes(self):
        def grid(x):
            return model(x)[:, :4].reshape(-1, 2, 2)

        close(attribute(grid, target=(1, 0))(X, reference=REFERENCES), self.expected(np.eye(5)[2]))
        every = attribute(grid, target="all")(X, reference=REFERENCES)
        assert every.shape == (4, 2, 2, 6)
        close(every[:, 1, 0], self.expected(np.eye(5)[2]))
        weights = np.array([[0.0, 1], [2, 0]])
        close(attribute(grid, target=weights)(X, reference=REFERENCES), self.expected([0, 1, 2, 0, 0]))


class TestTargetsOfTheCall:
    def test_they_take_the_place_of_the_one_before(self):
        attr = jaxlift.attribute(model, target=0)
        targets = (3, "all", [0, 4, 1, 2], lambda y: y[:, 0] * y[:, 1], jnp.arange(5.0))

        @jax.jit
        def both(x):
            found = [attr(x, reference=REFERENCES, target=target) for target in (*targets, None)]
            expected = [jaxlift.attribute(model, target=target)(x, reference=REFERENCES) for target in (*targets, 0)]
            return found, expected

        jax.tree.map(np.testing.assert_array_equal, *both(X))

    def test_labels_are_data(self):
        """Three label arrays are one trace, of the user's function and of the model."""
        traced = []

        def counted(x):
            traced.append("model")
            return model(x)

        attr = jaxlift.attribute(counted)

        @jax.jit
        def of_labels(x, t):
            traced.append("call")
            return attr(x, reference=REFERENCES, target=t)

        labels = np.array([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 0, 4]])
        found = [of_labels(X, labels[0])]
        once = len(traced)
        found += [of_labels(X, t) for t in labels[1:]]
        assert len(traced) == once
        for scores, t in zip(found, labels, strict=True):
            close(scores, of_pairs(X, REFERENCES, np.eye(5, dtype=np.float32)[t]).mean(1))
        assert np.isnan(of_labels(X, np.array([0, 5, -6, 4]))).all(1).tolist() == [False, True, True, False]

    def test_jitted_as_it_is(self):
        attr = jax.jit(jaxlift.attribute(model))
        one_hot = np.eye(5, dtype=np.float32)
        for target in (np.array([0, 4, 1, 2]), 2):
            expected = of_pairs(X, REFERENCES, one_hot[target]).mean(1)
            close(attr(X, reference=REFERENCES, target=target), expected)


class TestFull:
    def test_one_named_tuple(self):
        found = attribute(model, target="all", average=False, full=True)(X, reference=REFERENCES)
        assert found._fields == (
            "scores",
            "delta",
            "cancellation",
            "output",
            "output_reference",
            "standard_error",
        )
        assert isinstance(found, jaxlift.Attribution)
        close(found.scores, np.stack([of_pairs(X, REFERENCES, one) for one in np.eye(5, dtype=np.float32)], 2))
        # Examples, references, outputs, and then what is explained.
        assert found.scores.shape == (4, 3, 5, 6)
        for each in (found.delta, found.cancellation, found.output, found.output_reference):
            assert each.shape == (4, 3, 5)
        scores, delta, cancellation, output, output_reference, _ = map(np.asarray, found)
        close(output, np.broadcast_to(in_numpy(X)[:, None], (4, 3, 5)))
        close(output_reference, np.broadcast_to(in_numpy(REFERENCES), (4, 3, 5)))
        close(delta, output - output_reference - scores.sum(-1), atol=1e-5)
        close(cancellation, np.abs(scores).sum(-1) / np.abs(output - output_reference), rtol=1e-3)
        assert found.standard_error is None

    def test_order_of_axes(self):
        """Examples, then references if each has scores, then outputs if all are explained, then the input's axes."""

        def grid(x):
            return model(x)[:, :4].reshape(-1, 1, 4)

        for average, references in ((False, (3,)), (True, ())):
            for target, outputs in (("all", (1, 4)), ((0, 3), ())):
                attr = attribute(grid, target=target, average=average)
                scores = jax.eval_shape(lambda x: attr(x, reference=REFERENCES), X)  # noqa: B023
                assert scores.shape == (4, *references, *outputs, 6)


class TestIndependence:
    """Outside of `jax.jit`, a model that mixes its examples is refused."""

    @staticmethod
    def normalised(x):
        h = x @ W
        return jnp.tanh((h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)).sum(1)

    @pytest.mark.parametrize("n", [1, 2, 4])
    @pytest.mark.parametrize("reference", [REFERENCES[0], REFERENCES])
    def test_batch_statistics(self, n, reference):
        with pytest.raises(ValueError, match=r"depend on the other examples .* evaluation mode: model\.eval\(\)"):
            jaxlift.attribute(self.normalised)(X[:n], reference=reference)

    def test_dropout(self):
        def dropped(x):
            return (model(x) * jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 5))).sum(1)

        with pytest.raises(ValueError, match=r"draws random numbers.* evaluation mode"):
            jaxlift.attribute(dropped)(X, reference=REFERENCES)

    def test_rows_of_other_arguments(self):
        def fun(x, scale):
            return (x * scale).sum(1)

        def mixed(x, scale):
            return (x * scale.mean(0, keepdims=True)).sum(1)

        scale = RNG.normal(size=(4, 6)).astype(np.float32)
        assert jaxlift.attribute(fun, batch_argnums=(1,))(X, scale, reference=REFERENCES).shape == X.shape
        with pytest.raises(ValueError, match="depend on the other examples"):
            jaxlift.attribute(mixed, batch_argnums=(1,))(X, scale, reference=REFERENCES)

    def test_once_for_shapes_and_not_under_jit(self):
        calls = []

        def counted(x):
            calls.append(x.shape[0])
            return 2 * x

        attr = jaxlift.attribute(counted, target=0)
        jax.jit(attr)(X, reference=REFERENCES)
        jax.jit(lambda x: attr(X, reference=x))(REFERENCES)
        jax.vmap(lambda r: attr(X, reference=r))(REFERENCES)
        jax.grad(lambda x: attr(x, reference=REFERENCES).sum())(X)
        assert calls.count(2) == 0
        for _ in range(2):
            attr(X, reference=REFERENCES)
            attr(X, reference=REFERENCES[0], target=3)
        assert calls.count(2) == 1
        attr(X[:1], reference=REFERENCES)  # the shapes of examples are the same
        assert calls.count(2) == 1

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
    @pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
    def test_rounding_and_nan_are_let_through(self, dtype, scale):
        def fun(x):
            y = jnp.tanh(x.astype(dtype) @ W.astype(dtype)) @ V.astype(dtype)
            return jnp.concatenate([y * dtype(scale), jnp.full_like(y, jnp.nan), jnp.full_like(y, jnp.inf)], 1)

        assert jaxlift.attribute(fun, target=0, rule="gradient")(X).shape == X.shape

    def test_models_of_one_example_at_a_time_are_let_through(self):
        def fun(x):
            return x.reshape(1, 6)[:, 0] * 2

        close(jaxlift.attribute(fun)(X, reference=REFERENCES[0]), 2 * (X - REFERENCES[:1]) * np.eye(6)[:1])


class TestOutputs:
    def test_multipliers_times_difference(self):
        options = {"target": 1, "average": False}
        multipliers = attribute(model, output="multipliers", **options)(X, reference=REFERENCES)
        contributions = of_pairs(X, REFERENCES, np.eye(5, dtype=np.float32)[1])
        close(multipliers * (np.asarray(X)[:, None] - np.asarray(REFERENCES)), contributions)

    def test_hypothetical_contributions(self):
        """`m_i - sum_c r_c m_c`, as the original has it; for the observed channel, the sum of contributions there."""
        x, r = (np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (n, 5))] for n in (3, 2))
        w = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)

        def fun(x):
            return jnp.tanh(x.reshape(-1, 20) @ w).sum(1)

        def of(output):
            return np.asarray(attribute(fun, output=output, average=False)(x, reference=r))

        hypothetical, m, contributions = map(of, ("hypothetical", "multipliers", "contributions"))
        close(hypothetical, m - (m * r).sum(-1, keepdims=True))
        close((hypothetical * x[:, None]).sum(-1), contributions.sum(-1))
        moved = attribute(lambda x: fun(jnp.moveaxis(x, 1, 2)), output="hypothetical", channel_axis=0)
        close(moved(np.moveaxis(x, 2, 1), reference=np.moveaxis(r, 2, 1)), np.moveaxis(hypothetical.mean(1), 2, 1))

    @pytest.mark.parametrize("output", ["contributions", "multipliers", "hypothetical"])
    def test_convergence_delta(self, output):
        attr = attribute(model, target=0, output=output, full=True, average=False)
        _, delta, *_ = attr(X, reference=REFERENCES)
        assert delta.shape == (4, 3)
        assert np.abs(delta).max() < 2e-6

    def test_convergence_delta_is_what_is_missing(self):
        """Max-pooling as in the original misses much."""
        lossy = attribute(lambda x: x.max(1), full=True, rule=jaxlift.OriginalMaxPooling())
        scores, delta, *_ = map(np.asarray, lossy(X, reference=REFERENCES))
        close(scores.sum(1) + delta, np.max(X, 1) - np.max(REFERENCES, 1).mean())
        assert np.abs(delta).max() > 0.1


class TestArguments:
    def test_other_arguments_pass_through(self):
        def fun(params, x, key):
            return jax.nn.relu(x @ params["w"]).sum(1) + jax.random.normal(key, ())

        attr = attribute(fun, argnums=1)
        params = {"w": W}
        close(
            attr(params, X, jax.random.key(0), reference=REFERENCES),
            attribute(lambda x: jax.nn.relu(x @ W).sum(1))(X, reference=REFERENCES),
        )

    def test_rows_of_other_arguments(self):
        mask = jnp.asarray(RNG.integers(0, 2, (4, 6)), bool)

        def fun(x, mask):
            return jnp.tanh(jnp.where(mask, x, 0) @ W).sum(1)

        scores = attribute(fun, batch_argnums=(1,))(X, mask, reference=REFERENCES)

        @jax.jit
        def one(x, mask):
            return jaxlift.attribute(lambda x: fun(x, mask))(x, reference=REFERENCES)

        for i in range(4):
            close(scores[i], one(X[i : i + 1], mask[i : i + 1])[0])

    def test_several_explained_arguments(self):
        def fun(a, scale, b):
            return jnp.tanh(a @ W[:2] * scale + b @ W[2:]).sum(1)

        a, b = X[:, :2], X[:, 2:]
        ra, rb = REFERENCES[:, :2], REFERENCES[:, 2:]
        scores_a, scores_b = attribute(fun, argnums=(0, 2))(a, 1.0, b, reference=(ra, rb))
        whole = attribute(lambda x: jnp.tanh(x @ W).sum(1))(X, reference=REFERENCES)
        close(np.concatenate([scores_a, scores_b], 1), whole)

    def test_pytrees(self):
        def fun(inputs):
            return jnp.tanh(inputs["a"] @ W[:2] + inputs["rest"][0].reshape(-1, 4) @ W[2:]).sum(1)

        def split(x):
            x = np.asarray(x)
            return {"a": x[..., :2], "rest": (x[..., 2:].reshape(*x.shape[:-1], 2, 2),)}

        attr = attribute(fun, full=True)
        whole = attribute(lambda x: jnp.tanh(x @ W).sum(1))
        for r in (REFERENCES[0], REFERENCES, np.stack([REFERENCES] * 4)):
            scores, delta, *_ = attr(split(X), reference=split(r))
            assert jax.tree.structure(scores) == jax.tree.structure(split(X))
            expected = split(whole(X, reference=r))
            jax.tree.map(close, scores, expected)
            assert np.abs(delta).max() < 2e-6

    def test_features_that_are_scalars(self):
        x, r = jnp.array([1.0, -2.0, 3.0]), jnp.float32(0.5)
        close(attribute(lambda x: jax.nn.relu(x))(x, reference=r), jax.nn.relu(x) - 0.5)

    def test_a_model_that_ignores_its_input(self):
        scores, delta, *_ = attribute(lambda x: jnp.ones(x.shape[0]), full=True)(X, reference=REFERENCES)
        assert (scores == 0).all()
        assert (delta == 0).all()


class TestNotFinite:
    @pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
    @pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
    def test_an_input_spoils_its_own_scores_only(self, bad, rule):
        attr = jax.jit(lambda x: attribute(model, target=0, rule=rule)(x, reference=REFERENCES))
        spoilt = attr(X.at[1, 2].set(bad))
        assert jnp.isnan(spoilt[1]).all()
        np.testing.assert_array_equal(np.delete(spoilt, 1, 0), np.delete(attr(X), 1, 0))

    def test_a_reference_spoils_the_comparisons_with_it(self):
        attr = attribute(model, target=0, average=False)
        spoilt = attr(X, reference=REFERENCES.at[2, 0].set(jnp.nan))
        assert jnp.isnan(spoilt[:, 2]).all()
        np.testing.assert_array_equal(spoilt[:, :2], attr(X, reference=REFERENCES)[:, :2])


def test_examples_do_not_depend_on_their_batch():
    """Captum's and others' do (a max-pooling rule that reads the first example, a softmax rule that means over the
    batch).
    """

    def fun(x):
        h = jax.nn.relu(x @ W).reshape(-1, 8, 1)
        return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3, 1), (1, 2, 1), "SAME").sum((1, 2))

    attr = attribute(fun, output="multipliers")
    together = attr(X, reference=REFERENCES)
    for i in range(4):
        close(attr(X[i : i + 1], reference=REFERENCES)[0], together[i], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
class TestBatches:
    @pytest.mark.parametrize("average", [True, False])
    @pytest.mark.parametrize("references", ["one", "shared", "paired", "each"])
    def test_the_result_does_not_depend_on_them(self, references, average):
        rng = np.random.default_rng(3)
        x, w = rng.normal(size=(5, 4)), rng.normal(size=(4, 6))
        shapes = {"one": (4,), "shared": (7, 4), "paired": (5, 4), "each": (5, 7, 4)}
        reference = rng.normal(size=shapes[references])

        def model(scale, x):
            return jnp.tanh(x @ w * scale) @ w.T

        options = {
            "argnums": 1,
            "target": np.array([0, 1, 2, 3, 0]),
            "batch_argnums": (0,),
            "rule": "revealcancel",
            "full": True,
            "pairing": "paired" if references == "paired" else None,
        }
        scale = rng.normal(size=(5, 6))
        results = [
            jax.jit(jaxlift.attribute(model, average=average, batch_size=n, reference_batch_size=r, **options))(
                scale, x, reference=reference
            )
            for n, r in ((None, None), *([(None, 3), (2, None), (2, 9)] if average else [(2, 3)]))
        ]
        for other in results[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), other, results[0])

    @pytest.mark.parametrize("size", [0, -1, 2.0])
    def test_sizes_are_counts(self, size):
        with pytest.raises(ValueError, match=r"batch_size=.* must be an int, 1 at least"):
            jaxlift.attribute(lambda x: x.sum(1), batch_size=size)

    def test_too_little_memory(self):
        x = jnp.ones((4, 1000))
        with pytest.raises(ValueError, match="one example and one reference need"):
            jaxlift.within_memory(jaxlift.attribute(lambda x: jnp.tanh(x).sum(1)), x, reference=x[:2], memory=10)


@pytest.mark.parametrize("kind", [list, np.array, jnp.array])
def test_targets_that_are_known_are_checked_under_jit(kind):
    model = lambda x: x @ V[:6]  # noqa: E731
    good, bad = kind([0, 1, 2, 3]), kind([0, 1, 2, 9])
    found = jax.jit(lambda x: jaxlift.attribute(model, target=good)(x, reference=X[0]))(X)
    np.testing.assert_allclose(found, (X - X[:1]) * V[:6, :4].T, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="between 0 and 4, or -5 and -1 from the end, but they are between 0 and 9"):
        jax.jit(lambda x: jaxlift.attribute(model, target=bad)(x, reference=X[0]))(X)


def attending(x):
    """Attention: a softmax with an axis before its own."""
    weights = jax.nn.softmax(x @ x.swapaxes(1, 2))
    return jnp.einsum("nst,ntc->nsc", weights, x).reshape(len(x), -1)[:, :3]


@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("n", "shape", "pairing"),
    [
        (2, (5, 4), None),
        pytest.param(1, (3, 5, 4), "shared", marks=pytest.mark.slow),
        pytest.param(3, (2, 5, 4), "shared", marks=pytest.mark.slow),
    ],
    ids=["one", "one example", "shared"],
)
def test_all_targets_together_are_each_alone(rule, n, shape, pairing):
    """One reference or one example is a program of its own, in which nothing waits on accelerators."""
    rng = np.random.default_rng(2)
    x, reference = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((n, 5, 4), shape))
    together = jaxlift.attribute(attending, target="all", rule=rule, pairing=pairing)(x, reference=reference)
    for target in range(3):
        alone = jaxlift.attribute(attending, target=target, rule=rule, pairing=pairing)(x, reference=reference)
        np.testing.assert_allclose(together[:, target], alone, atol=1e-5)
