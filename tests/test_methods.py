"""The methods that are no rules, against their formulas in plain NumPy loops and the original's numbers."""

from itertools import combinations, permutations
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from original import ORACLES

import jaxlift

RNG = np.random.default_rng(21)
W, V = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 3))
X, R = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 4))
METHODS = {
    "integrated_gradients": jaxlift.integrated_gradients,
    "occlusion": jaxlift.occlusion,
    "shapley": jaxlift.shapley,
    "shapley, drawn": lambda fun, **options: jaxlift.shapley(fun, samples=3, **options),
    "gradient_shap": lambda fun, **options: jaxlift.gradient_shap(fun, samples=3, **options),
    "shapley_blocks": jaxlift.shapley_blocks,
    "attribute": jaxlift.attribute,
}


def model(x):
    return jax.nn.silu(x @ W) @ V


def by_pairs(score):
    """Scores `(N, R, 4)` of output 1, pair by pair."""
    return np.stack([[score(x, r) for r in R] for x in X])


compiled_model = jax.jit(model)


def value(x):
    return float(compiled_model(x[None])[0, 1])


@pytest.mark.usefixtures("x64")
class TestIntegratedGradients:
    def test_the_midpoint_rule(self):
        gradient = jax.jit(jax.grad(lambda x: model(x[None])[0, 1]))

        def score(x, r):
            return sum(np.asarray(gradient(r + (k + 0.5) / 7 * (x - r))) for k in range(7)) / 7 * (x - r)

        attr = jaxlift.integrated_gradients(model, steps=7, target=1, average=False)
        np.testing.assert_allclose(jax.jit(attr)(X, reference=R), by_pairs(score), rtol=1e-10)

    def test_expected_gradients_are_the_mean_over_references(self):
        each, mean = (
            jax.jit(jaxlift.integrated_gradients(model, target=1, average=a))(X, reference=R) for a in (False, True)
        )
        np.testing.assert_allclose(mean, np.mean(each, 1), rtol=1e-12)

    def test_the_sum_is_missed_by_less_with_more_steps(self):
        def missed(steps):
            attr = jaxlift.integrated_gradients(model, steps=steps, target=1, full=True)
            return np.abs(jax.jit(attr)(X, reference=R).delta).max()

        assert missed(400) < missed(40) / 90  # the error of the midpoint rule falls with the square
        assert missed(400) < 1e-5

    def test_steps_take_no_more_memory(self):
        def memory(steps):
            attr = jax.jit(jaxlift.integrated_gradients(model, steps=steps, target=1))
            return attr.lower(X, reference=R).compile().memory_analysis().temp_size_in_bytes

        assert memory(100) <= memory(2) + 100 * 8  # the fractions themselves

    def test_stop_gradient_is_what_it_is_in_jax(self):
        attr = jaxlift.integrated_gradients(lambda x: (x * jax.lax.stop_gradient(x)).sum(1), steps=20)
        found = jax.jit(attr)(X, reference=R[0])
        np.testing.assert_allclose(found, (X - R[0]) * (X + R[0]) / 2, rtol=1e-12)


@pytest.mark.usefixtures("x64")
class TestGradientSHAP:
    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_draws_one_by_one(self, noise):
        """Each point, its contributions and their errors, with the randomness that each reference has."""
        gradient = jax.jit(jax.grad(lambda x: model(x[None])[0, 1]))

        def draws(x, number, r):
            for key in jax.random.split(jax.random.fold_in(jax.random.key(5), number), 6):
                of_point, of_noise = jax.random.split(key)
                [of_leaf] = jax.random.split(of_noise, 1)
                change = x + noise * np.asarray(jax.random.normal(of_leaf, (4,))) - r
                yield np.asarray(gradient(r + float(jax.random.uniform(of_point)) * change)) * change

        expected = np.array([[list(draws(x, i, r)) for i, r in enumerate(R)] for x in X])  # example, reference, draw
        attr = jaxlift.gradient_shap(model, samples=6, noise=noise, target=1, key=jax.random.key(5), full=True)
        found = jax.jit(attr)(X, reference=R)
        variance = expected.var(2, ddof=1) / 6
        np.testing.assert_allclose(found.scores, expected.mean((1, 2)), rtol=1e-9)
        np.testing.assert_allclose(found.standard_error, np.sqrt(variance.sum(1)) / 2, rtol=1e-7)
        change = model(X)[:, 1] - model(R)[:, 1].mean()
        np.testing.assert_allclose(found.delta, change - expected.mean((1, 2)).sum(1), atol=1e-12)
        each = jax.jit(attr.with_options(average=False, batch_size=2, reference_batch_size=1))(X, reference=R)
        np.testing.assert_allclose(each.scores, expected.mean(2), rtol=1e-9)
        np.testing.assert_allclose(each.standard_error, np.sqrt(variance), rtol=1e-7)
        own = jax.jit(attr)(X, reference=np.broadcast_to(R, (3, 2, 4)))
        np.testing.assert_allclose(own.standard_error, found.standard_error, rtol=1e-7)

    def test_tends_to_integrated_gradients_within_its_error(self):
        exact = jax.jit(jaxlift.integrated_gradients(model, target=1, steps=300))(X, reference=R)
        found = jax.jit(jaxlift.gradient_shap(model, target=1, samples=2000, full=True))(X, reference=R)
        assert (np.abs(found.scores - exact) < 4 * found.standard_error + 1e-4).all()
        assert found.standard_error.max() < 0.05

    def test_errors(self):
        for options, message in (({"samples": 1}, "samples=1"), ({"noise": -1.0}, "noise=-1")):
            with pytest.raises(ValueError, match=message):
                jaxlift.gradient_shap(model, target=0, **options)
        with pytest.raises(ValueError, match=r"noise must be a number, or broadcast to the input of shape \(4,\)"):
            jaxlift.gradient_shap(model, target=0, noise=np.ones(3))(X, reference=R)


@pytest.mark.parametrize(
    ("oracle", "steps"),
    [
        pytest.param(oracle, int(key.split("/")[1]), id=f"{oracle.name}-{key.split('/')[1]}")
        for oracle in ORACLES
        for key in oracle.arrays
        if key.startswith("integrated_gradients/")
    ],
)
def test_integrated_gradients_of_the_original(oracle, steps):
    attr = jaxlift.integrated_gradients(oracle.model(), steps=steps, target="all", pairing="paired")
    found = jax.jit(lambda x, r: attr(x, reference=r))(oracle.inputs("x"), oracle.inputs("ref"))
    found = np.moveaxis(np.asarray(found), 1, 0)[oracle.targets]
    expected = oracle.arrays[f"integrated_gradients/{steps}"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
class TestOcclusion:
    def test_one_feature_at_a_time(self):
        def score(x, r):
            return [value(x) - value(np.where(np.arange(4) == i, r, x)) for i in range(4)]

        attr = jax.jit(jaxlift.occlusion(model, target=1, average=False))
        np.testing.assert_allclose(attr(X, reference=R), by_pairs(score), rtol=1e-10)

    @pytest.mark.parametrize(
        ("window", "strides"), [((3, 2), None), ((2, 2), (2, 1)), ((4, 1), (3, 1)), ((5, 4), None), ((5, 3), (2, 2))]
    )
    def test_windows(self, window, strides):
        images, reference = RNG.normal(size=(2, 5, 4)), RNG.normal(size=(5, 4))
        weights = RNG.normal(size=(5, 4))
        fun = jax.jit(lambda x: jnp.tanh(x * weights[None]).sum((1, 2)) * x[:, 0, 0])

        def score(x):
            total, count = np.zeros((5, 4)), np.zeros((5, 4))
            (h, w), (sh, sw) = window, strides or (1, 1)
            for i in range(-(-max(5 - h, 0) // sh) + 1):
                for j in range(-(-max(4 - w, 0) // sw) + 1):
                    part = np.zeros((5, 4), bool)
                    part[i * sh : i * sh + h, j * sw : j * sw + w] = True
                    total[part] += float((fun(x[None]) - fun(np.where(part, reference, x)[None]))[0])
                    count[part] += 1
            return total / count

        attr = jaxlift.occlusion(fun, window=window, strides=strides, chunk=5)
        np.testing.assert_allclose(jax.jit(attr)(images, reference=reference), [score(x) for x in images], rtol=1e-10)

    def test_pytrees(self):
        fun = lambda x: (x["a"] * x["b"].sum((1, 2))[:, None]).sum(1)  # noqa: E731
        x = {"a": RNG.normal(size=(2, 3)), "b": RNG.normal(size=(2, 2, 2))}
        reference = jax.tree.map(lambda leaf: np.zeros_like(leaf[0]), x)
        found = jax.jit(jaxlift.occlusion(fun, window={"a": (1,), "b": (2, 2)}))(x, reference=reference)
        np.testing.assert_allclose(found["a"], x["a"] * x["b"].sum((1, 2))[:, None], rtol=1e-10)
        np.testing.assert_allclose(found["b"], np.broadcast_to(fun(x)[:, None, None], (2, 2, 2)), rtol=1e-10)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"window": (2, 2)},
                r"window=\(2, 2\) must give a positive int for each axis of an example, of shape \(4,\)",
            ),
            ({"window": (0,)}, "window"),
            ({"window": 2}, "window=2"),
            ({"window": (9,)}, r"window=\(9,\) is larger than an example, whose shape is \(4,\)"),
            ({"window": (2,), "strides": (3,)}, "strides of 3 leave gaps between windows of 2"),
            ({"output": "multipliers"}, "output='multipliers' needs a method that gives multipliers"),
            ({"chunk": 0}, "chunk=0 must be an int, 1 at least"),
            ({"groups": np.arange(4), "window": (2,)}, "groups= says which parts are occluded, and so does window="),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            jaxlift.occlusion(model, target=0, **options)(X, reference=R)

    def test_groups(self):
        """Segments over the arrays of a pytree: all elements of one have what the output loses without it."""
        x, r = ({"a": each[:, :2], "b": each[:, 2:]} for each in (X, R))
        groups = {"a": ["sky", "tree"], "b": np.array(["tree", "house"])}

        def score(x, r):
            names = np.array(["sky", "tree", "tree", "house"])
            return [value(x) - value(np.where(names == name, r, x)) for name in names]

        fun = lambda x: model(jnp.concatenate([x["a"], x["b"]], 1))  # noqa: E731
        found = jax.jit(jaxlift.occlusion(fun, groups=groups, target=1, average=False, chunk=2))(x, reference=r)
        np.testing.assert_allclose(np.concatenate([found["a"], found["b"]], -1), by_pairs(score), rtol=1e-9)

    def test_a_reference_is_needed(self):
        with pytest.raises(TypeError, match="reference="):
            jaxlift.occlusion(model, target=0)(X)


@pytest.mark.usefixtures("x64")
class TestMutagenesis:
    @pytest.mark.parametrize("channel_axis", [-1, 0])
    def test_all_single_changes(self, channel_axis):
        sequences = np.moveaxis(np.eye(3)[[[0, 2, 1, 0], [1, 1, 2, 0]]], -1, channel_axis % 2 + 1)
        weights = RNG.normal(size=sequences.shape[1:])
        fun = jax.jit(lambda x: jnp.tanh((x * weights[None]).sum((1, 2))))
        attr = jax.jit(jaxlift.mutagenesis(fun, channel_axis=channel_axis, chunk=7))
        expected = np.zeros_like(sequences)
        for n, sequence in enumerate(sequences):
            for i in range(4):
                for c in range(3):
                    changed = np.moveaxis(sequence.copy(), channel_axis, -1)
                    changed[i] = np.eye(3)[c]
                    gain = fun(np.moveaxis(changed, -1, channel_axis)[None]) - fun(sequence[None])
                    np.moveaxis(expected[n], channel_axis, -1)[i, c] = float(gain[0])
        np.testing.assert_allclose(attr(sequences), expected, rtol=1e-9, atol=1e-14)

    def test_pytrees_are_refused(self):
        with pytest.raises(ValueError, match="mutagenesis changes one array"):
            jaxlift.mutagenesis(lambda x: x["a"].sum(1))({"a": X})


def shapley_by_orders(v, n):
    """The mean effect over all orders, with `v` of the set of features that are in."""
    effects = np.zeros(n)
    for order in permutations(range(n)):
        for k, feature in enumerate(order):
            effects[feature] += v(set(order[: k + 1])) - v(set(order[:k]))
    return effects / factorial(n)


def shapley_by_sets(v, n):
    """The formula with all sets of others."""
    return [
        sum(
            factorial(k) * factorial(n - k - 1) / factorial(n) * (v({*others, i}) - v(set(others)))
            for k in range(n)
            for others in combinations([j for j in range(n) if j != i], k)
        )
        for i in range(n)
    ]


@pytest.mark.usefixtures("x64")
class TestShapley:
    @pytest.mark.parametrize("by_hand", [shapley_by_orders, shapley_by_sets])
    def test_enumerated(self, by_hand):
        def score(x, r):
            return by_hand(lambda present: value(np.where([i in present for i in range(4)], x, r)), 4)

        found = jaxlift.shapley(model, target=1, average=False, chunk=3)(X, reference=R)
        np.testing.assert_allclose(found, by_pairs(score), rtol=1e-8, atol=1e-12)

    def test_groups_are_features(self):
        groups = np.array([0, 1, 0, 1])

        def score(x, r):
            of_groups = shapley_by_orders(lambda present: value(np.where([g in present for g in groups], x, r)), 2)
            return np.asarray(of_groups)[groups] / 2

        found = jaxlift.shapley(model, groups=groups, target=1, average=False)(X, reference=R)
        np.testing.assert_allclose(found, by_pairs(score), rtol=1e-8, atol=1e-12)

    def test_groups_of_positions(self):
        x, r = RNG.normal(size=(2, 5, 4)), np.zeros((5, 4))
        fun = lambda x: jnp.tanh(x.sum(2)).prod(1)  # noqa: E731
        attr = jax.jit(jaxlift.shapley(fun, groups=np.arange(5)[:, None]))
        found = np.asarray(attr(x, reference=r))
        np.testing.assert_allclose(found[..., 0], found[..., 3], rtol=1e-12)
        np.testing.assert_allclose(found.sum((1, 2)), np.tanh(x.sum(2)).prod(1), rtol=1e-9)  # from 0

    def test_pytrees(self):
        fun = lambda x: x["a"][:, 0] * x["b"][:, 0, 1] + x["a"][:, 1]  # noqa: E731
        x = {"a": np.array([[2.0, 3.0]]), "b": np.array([[[1.0, 4.0]]])}
        reference = jax.tree.map(lambda leaf: np.zeros_like(leaf[0]), x)
        found = jax.jit(jaxlift.shapley(fun))(x, reference=reference)
        np.testing.assert_allclose(found["a"], [[4.0, 3.0]], rtol=1e-12)
        np.testing.assert_allclose(found["b"], [[[0.0, 4.0]]], atol=1e-12)

    def test_drawn_orders_tend_to_the_enumerated_values_within_their_error(self):
        exact = np.asarray(jax.jit(jaxlift.shapley(model, target=1))(X, reference=R[0]))
        previous = np.inf
        for samples in (20, 320):
            attr = jaxlift.shapley(model, target=1, samples=samples, full=True)
            drawn, delta, *_, error = map(np.asarray, jax.jit(attr)(X, reference=R[0]))
            np.testing.assert_allclose(delta, 0, atol=1e-12)
            off = np.abs(drawn - exact)
            assert (off <= 4 * error + 1e-12).all()
            assert error.mean() < previous / 3  # as the root of the number
            previous = error.mean()

    def test_the_standard_error_is_that_of_the_mean_of_draws(self):
        """Against draws one by one, each of two orders that are each other's reverse."""
        keys = jax.random.split(jax.random.key(5), 6)
        ranks = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.permutation(key, 4)))(keys))

        def effects(x, r, rank):
            features, v = np.argsort(rank), [value(np.where(rank < k, x, r)) for k in range(5)]
            found = np.zeros(4)
            found[features] = np.diff(v)
            return found

        draws = np.array([[(effects(x, R[0], k) + effects(x, R[0], 3 - k)) / 2 for k in ranks] for x in X])
        attr = jaxlift.shapley(model, target=1, samples=6, full=True, key=jax.random.key(5))
        drawn, *_, error = jax.jit(attr)(X, reference=R[0])
        np.testing.assert_allclose(drawn, draws.mean(1), rtol=1e-10)
        np.testing.assert_allclose(error, draws.std(1, ddof=1) / np.sqrt(6), rtol=1e-8)

    @pytest.mark.parametrize("samples", [None, 4])
    def test_one_feature(self, samples):
        fun = lambda x: jnp.exp(x[:, 0])  # noqa: E731
        found = jax.jit(jaxlift.shapley(fun, samples=samples))(np.ones((2, 1)), reference=np.zeros(1))
        np.testing.assert_allclose(found, np.full((2, 1), np.e - 1), rtol=1e-12)

    @pytest.mark.parametrize(
        ("options", "x", "message"),
        [
            ({}, np.zeros((1, 17)), r"17 features have 2\^17 coalitions.*samples=.*groups="),
            ({"groups": [0, -1, 3, 0]}, X, r"integers that aren't negative, or strings, but they are -1, 0, 3"),
            ({"groups": [0.5, 1, 1, 0]}, X, "of dtype float64"),
            ({"groups": {"a": [0, 1], "b": ["0", "1"]}}, {"a": X[:, :2], "b": X[:, 2:]}, "of dtype <U1, int64"),
            ({"groups": [0, 1, 2]}, X, r"must broadcast to an example of shape \(4,\)"),
            ({"samples": 1}, X, "samples=1 must be an int, 2 at least"),
        ],
    )
    def test_errors(self, options, x, message):
        reference = jax.tree.map(lambda x: x[0], x)
        with pytest.raises(ValueError, match=message):
            jaxlift.shapley(lambda x: jax.tree.leaves(x)[0].sum(1), **options)(x, reference=reference)


KERNELS = RNG.normal(size=(3, 3, 2, 5))


def cnn(x):
    maps = jax.lax.conv_general_dilated(x, KERNELS, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(checkpoint_name(jax.nn.relu(maps), "maps").mean((1, 2))) @ RNG_OUT


RNG_OUT = RNG.normal(size=(5, 4))
IMAGES = RNG.normal(size=(2, 8, 6, 2))


@pytest.mark.usefixtures("x64")
class TestGradCam:
    def test_against_a_direct_computation(self):
        maps = np.asarray(jax.jit(jaxlift.below(cnn, "maps"))(IMAGES))
        above = maps.mean((1, 2))
        importance = (1 - np.tanh(above @ np.eye(5)) ** 2) * RNG_OUT[:, 2] / (4 * 3)  # of the mean, at each place
        expected = np.maximum(np.einsum("nhwc,nc->nhw", maps, importance), 0)
        found = jax.jit(jaxlift.grad_cam(cnn, layer="maps", target=2))(IMAGES)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert found.shape == (2, 4, 3)
        assert (found > 0).any()

    @pytest.mark.parametrize("target", [2, "all", [0, 3]])
    def test_guided(self, target):
        target = np.array(target) if isinstance(target, list) else target
        found = jax.jit(jaxlift.guided_grad_cam(cnn, layer="maps", target=target))(IMAGES)

        @jax.jit
        def expected(images):
            maps = jaxlift.grad_cam(cnn, layer="maps", target=target)(images)
            details = jaxlift.attribute(cnn, rule="guided_backprop", output="multipliers", target=target)(images)
            return details * jax.image.resize(maps, details.shape[:-1], "linear")[..., None]

        np.testing.assert_allclose(found, expected(IMAGES), rtol=1e-10)

    def test_channels_elsewhere(self):
        fun = lambda x: checkpoint_name(jax.nn.relu(x), "maps").mean((2, 3)) @ RNG_OUT[:2]  # noqa: E731
        first = np.moveaxis(IMAGES, -1, 1)
        found = jax.jit(jaxlift.grad_cam(fun, layer="maps", target=0, channel_axis=0))(first)
        importance = RNG_OUT[:2, 0] / (8 * 6)
        expected = np.maximum((np.maximum(first, 0) * importance[None, :, None, None]).sum(1), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        guided = jax.eval_shape(jaxlift.guided_grad_cam(fun, layer="maps", target=0, channel_axis=0), first)
        assert guided.shape == first.shape

    def test_plus_plus(self):
        """The second and third derivatives written out, of a network whose places differ."""
        of_places = RNG.normal(size=(1, 8, 6, 2))

        def fun(x):
            maps = checkpoint_name(jax.nn.relu(x), "maps")
            return jnp.tanh(maps * of_places).sum((1, 2, 3))

        maps, expected = np.maximum(IMAGES, 0), np.zeros((2, 8, 6))
        slopes = (1 - np.tanh(maps * of_places) ** 2) * of_places
        for n, c in np.ndindex(2, 2):
            a, g = maps[n, ..., c], slopes[n, ..., c]
            weight = 0
            for i, j in np.ndindex(8, 6):
                alpha = g[i, j] ** 2 / (2 * g[i, j] ** 2 + sum(a[k] * g[i, j] ** 3 for k in np.ndindex(8, 6)))
                weight += alpha * max(g[i, j], 0)
            expected[n] += weight * a
        found = jax.jit(jaxlift.grad_cam_plus_plus(fun, layer="maps"))(IMAGES)
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-9)
        assert (found > 0).any()

    @pytest.mark.parametrize("reference", [None, RNG.normal(size=(8, 6, 2))])
    def test_score_cam(self, reference):
        fun = jax.jit(cnn)
        maps = np.array(jaxlift.below(cnn, "maps")(IMAGES))
        r, expected = np.zeros((8, 6, 2)) if reference is None else reference, []
        for x, channels in zip(IMAGES, np.moveaxis(maps, -1, 1), strict=True):
            large = [np.asarray(jax.image.resize(channel, (8, 6), "linear")) for channel in channels]
            masks = [(each - each.min()) / (each.max() - each.min()) for each in large]
            scores = np.array([fun((r + mask[..., None] * (x - r))[None])[0, 2] - fun(r[None])[0, 2] for mask in masks])
            weights = np.exp(scores) / np.exp(scores).sum()
            expected.append(np.maximum(sum(w * channel for w, channel in zip(weights, channels, strict=True)), 0))
        attr = jaxlift.score_cam(cnn, layer="maps", target=2, full=True, chunk=2)
        found = jax.jit(attr)(IMAGES, reference=reference)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
        np.testing.assert_allclose(found.output_reference, np.repeat(fun(r[None])[0, 2], 2), rtol=1e-9)

    def test_score_cam_without_channels_that_vary(self):
        def fun(x):
            kept = x * jnp.array([1.0, 0.0])[None, None, None]
            return checkpoint_name(kept, "maps").sum((1, 2, 3))

        attr = jax.jit(jaxlift.score_cam(fun, layer="maps"))
        np.testing.assert_allclose(attr(IMAGES), np.maximum(IMAGES[..., 0], 0), rtol=1e-9)  # one channel has all
        np.testing.assert_array_equal(attr(np.ones_like(IMAGES)), 0)

    def test_resized(self):
        maps = RNG.normal(size=(2, 3, 2, 4))
        found = jaxlift.resized(maps, (8,))
        for i in range(3):  # halfway points lie a quarter off the old ones
            np.testing.assert_allclose(found[..., 2 * i + 1], 0.75 * maps[..., i] + 0.25 * maps[..., i + 1], rtol=1e-9)
        assert jaxlift.resized(maps, (5, 4, 4), method="nearest").shape == (2, 5, 4, 4)
        for bad, shape in ((maps, (0,)), (maps[0, 0, 0], (2, 2)), ({"a": maps}, (2,))):
            with pytest.raises(ValueError, match=r"maps are one array, .* each 1 at least: got maps of shape"):
                jaxlift.resized(bad, shape)

    def test_full(self):
        """A map has outputs, but no sum."""
        output = jax.jit(cnn)(IMAGES)[:, 1]
        for method in (jaxlift.grad_cam, jaxlift.guided_grad_cam):
            found = jax.jit(method(cnn, layer="maps", target=1, full=True))(IMAGES)
            scores = jax.jit(method(cnn, layer="maps", target=1))(IMAGES)
            np.testing.assert_allclose(found.scores, scores, rtol=1e-12)
            np.testing.assert_allclose(found.output, output, rtol=1e-12)
            assert found.delta is found.cancellation is found.standard_error is None

    def test_errors(self):
        flat = lambda x: checkpoint_name(x.reshape(len(x), -1), "flat").sum(1)  # noqa: E731
        with pytest.raises(ValueError, match="as many axes as the value named 'flat'"):
            jaxlift.guided_grad_cam(flat, layer="flat")(IMAGES)
        with pytest.raises(ValueError, match=r"Score-CAM needs .* named 'flat', but for maps of shape \(96,\)"):
            jaxlift.score_cam(flat, layer="flat")(IMAGES)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
class TestOneSignature:
    """What `attribute` takes, all take."""

    def test_linear_models_have_one_explanation(self, name):
        attr = jax.jit(METHODS[name](lambda x: x @ W[:, :3], target=1))
        np.testing.assert_allclose(attr(X, reference=R[0]), (X - R[0]) * W[:, 1], rtol=1e-9)

    def test_targets(self, name):
        def scores(target):
            return np.asarray(jax.jit(METHODS[name](model, target=target))(X, reference=R[0]))

        every = scores("all")
        assert every.shape == (3, 3, 4)
        np.testing.assert_allclose(scores(np.array([2, 0, 1])), every[np.arange(3), [2, 0, 1]], rtol=1e-9)
        contrast = scores(np.array([1.0, -1.0, 0.0]))
        np.testing.assert_allclose(contrast, every[:, 0] - every[:, 1], rtol=1e-9, atol=1e-12)

    def test_transformations(self, name):
        attr = METHODS[name](model, target=1)
        expected = attr(X, reference=R[0])
        compiled = jax.jit(attr)
        np.testing.assert_allclose(compiled(X, reference=R[0]), expected, rtol=1e-9)
        mapped = jax.jit(jax.vmap(lambda r: attr(X, reference=r)))(R)
        np.testing.assert_allclose(mapped[0], expected, rtol=1e-9)
        slope = jax.jit(lambda x: jax.jvp(lambda x: attr(x, reference=R[0]), (x,), (np.ones_like(X),))[1])(X)
        near = [np.asarray(compiled(X + step, reference=R[0])) for step in (1e-5, -1e-5)]
        np.testing.assert_allclose(slope, (near[0] - near[1]) / 2e-5, rtol=1e-5, atol=1e-7)

    def test_pairs_and_what_is_not_finite(self, name):
        method = METHODS[name]
        paired = jax.jit(method(model, target=1, pairing="paired"))(X[:2], reference=R)
        alone = jax.jit(method(model, target=1))
        one = [alone(X[i : i + 1], reference=R[i])[0] for i in range(2)]
        np.testing.assert_allclose(paired, one, rtol=1e-9)
        broken = X.copy()
        broken[1, 2] = np.nan
        with pytest.warns(UserWarning, match=r"1 of 3 examples have a NaN.* example 1: their scores are NaN"):
            found = method(model, target=1)(broken, reference=R[0])
        assert np.isnan(found).all(1).tolist() == [False, True, False]

    def test_parameters_pass_through(self, name):
        attr = jax.jit(METHODS[name](lambda params, x: jnp.tanh(x @ params).sum(1), argnums=1))
        expected = jax.jit(METHODS[name](lambda x: jnp.tanh(x @ W).sum(1)))(X, reference=R[0])
        np.testing.assert_allclose(attr(W, X, reference=R[0]), expected, rtol=1e-9)
