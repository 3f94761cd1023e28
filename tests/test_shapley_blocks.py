"""Shapley values by blocks, against loops over orders, blocks and players, and against the values themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlift
from jaxlift.methods.shapley_blocks import _orders
from tests.spread import collectives

RNG = np.random.default_rng(31)
W, V = RNG.normal(size=(6, 9)), RNG.normal(size=(9, 2))
X, R = RNG.normal(size=(3, 6)), RNG.normal(size=(2, 6))
GROUPS = np.array([0, 1, 1, 2, 3, 3])


def model(x):
    return jnp.tanh(jax.nn.relu(x @ W)) @ V


def orders(key, n, blocks, samples):
    """As a list of the players' blocks, each order before its reverse."""
    drawn = np.asarray(_orders(key, n, blocks, samples))
    return [each for block in drawn for each in (block, blocks - 1 - block)]


rules = {
    rule: jax.jit(jaxlift.attribute(model, rule=rule, target=1))
    for rule in ("rescale", "revealcancel", "local_shapley")
}


def by_hand(block, x, r, groups, rule):
    """Contributions in one order: DeepLIFT between what is there after a block and what was before."""
    attr = rules[rule]
    total = np.zeros(x.shape)
    for k in range(block.max() + 1):
        after, before = (np.where(block[groups] < end, x, r) for end in (k + 1, k))
        total += np.asarray(attr(after[None], reference=before))[0]
    return total


@pytest.mark.usefixtures("x64")
class TestValues:
    @pytest.mark.parametrize(
        ("blocks", "samples", "rule", "groups"),
        [
            (2, 3, "rescale", np.arange(6)),
            (3, 2, "rescale", np.arange(6)),
            (2, 2, "revealcancel", np.arange(6)),
            (6, 2, "rescale", np.arange(6)),
            (4, 1, "rescale", GROUPS),
            (2, 9, "local_shapley", GROUPS),
        ],
    )
    def test_by_loops(self, blocks, samples, rule, groups):
        key = jax.random.key(7)
        attr = jaxlift.shapley_blocks(
            model, blocks=blocks, samples=samples, rule=rule, groups=groups, key=key, target=1, average=False, chunk=4
        )
        found = jax.jit(attr)(X, reference=R)
        for (i, x), (j, r) in itertools.product(enumerate(X), enumerate(R)):
            drawn = [by_hand(block, x, r, groups, rule) for block in orders(key, groups.max() + 1, blocks, samples)]
            np.testing.assert_allclose(found[i, j], np.mean(drawn, 0), atol=1e-12)

    def test_one_block_is_the_rule(self):
        found = jax.jit(jaxlift.shapley_blocks(model, blocks=1, target=0, full=True))(X, reference=R[0])
        expected = jaxlift.attribute(model, target=0)(X, reference=R[0])
        np.testing.assert_allclose(found.scores, expected, atol=1e-12)
        np.testing.assert_array_equal(found.standard_error, 0)

    def test_blocks_of_one_player_are_what_it_adds(self):
        key = jax.random.key(3)
        found = jax.jit(jaxlift.shapley_blocks(model, blocks=6, samples=4, key=key, target=1))(X[:1], reference=R[0])[0]
        total = np.zeros(6)
        drawn = orders(key, 6, 6, 4)
        for block in drawn:
            assert sorted(block) == list(range(6))
            for player in range(6):
                after, before = (np.where(block < k, X[0], R[0]) for k in (block[player] + 1, block[player]))
                total[player] += model(after[None])[0, 1] - model(before[None])[0, 1]
        np.testing.assert_allclose(found, total / len(drawn), atol=1e-12)

    def test_no_more_blocks_than_players(self):
        several, one = (np.zeros(6, int) if one else GROUPS for one in (False, True))
        many, all_ = (
            jax.jit(jaxlift.shapley_blocks(model, blocks=b, groups=several, target=0))(X, reference=R[0])
            for b in (9, 4)
        )
        np.testing.assert_array_equal(many, all_)
        found = jax.jit(jaxlift.shapley_blocks(model, groups=one, target=0, full=True))(X, reference=R[0])
        np.testing.assert_allclose(found.scores, jaxlift.attribute(model, target=0)(X, reference=R[0]), atol=1e-12)

    def test_many_orders_of_single_players_are_shapley_values(self):
        exact = jax.jit(jaxlift.shapley(model, target=1))(X, reference=R[0])
        attr = jax.jit(jaxlift.shapley_blocks(model, blocks=6, samples=400, target=1, full=True))
        found = attr(X, reference=R[0])
        assert np.all(np.abs(found.scores - exact) < 4 * found.standard_error + 1e-12)
        assert found.standard_error.max() < 0.1 * np.abs(exact).max()

    def test_nearer_than_the_rule(self):
        """On networks whose units saturate and switch, over 40 examples."""
        x = np.random.default_rng(5).normal(size=(40, 6)) * 2
        exact = jax.jit(jaxlift.shapley(model, target=1))(x, reference=np.zeros(6))

        def distance(**options):
            found = jax.jit(jaxlift.shapley_blocks(model, target=1, **options))(x, reference=np.zeros(6))
            return np.median(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1))

        rule, one, four = distance(blocks=1), distance(samples=1), distance(samples=4)
        assert one < 0.8 * rule
        assert four < 0.6 * rule

    @pytest.mark.sample(6)
    @pytest.mark.parametrize("options", [{}, {"blocks": 3}, {"rule": "revealcancel"}, {"blocks": 1}, {"samples": 1}])
    @pytest.mark.parametrize("of", [{"target": "all"}, {"target": 1, "average": False}, {"target": 0}])
    def test_the_sum(self, options, of):
        found = jax.jit(jaxlift.shapley_blocks(model, full=True, **options, **of))(X, reference=R)
        assert np.max(np.abs(found.delta)) < 1e-12

    def test_the_error_is_that_of_the_orders_mean(self):
        key = jax.random.key(2)
        found = jax.jit(jaxlift.shapley_blocks(model, samples=5, key=key, target=1, full=True))(X, reference=R[0])
        for x, error in zip(X, found.standard_error, strict=True):
            drawn = [by_hand(block, x, R[0], np.arange(6), "rescale") for block in orders(key, 6, 2, 5)]
            pairs = np.reshape(drawn, (5, 2, 6)).mean(1)
            np.testing.assert_allclose(error, pairs.std(0, ddof=1) / 5**0.5, atol=1e-12)
        alone = jax.jit(jaxlift.shapley_blocks(model, samples=1, target=1, full=True))(X, reference=R[0])
        assert alone.standard_error is None

    def test_the_error_is_no_less_than_what_keys_differ_by(self):
        attr = jax.jit(
            jax.vmap(lambda key: jaxlift.shapley_blocks(model, target=1, key=key, full=True)(X, reference=R[0])[::5])
        )
        scores, error = attr(jax.random.split(jax.random.key(0), 300))
        spread = np.sqrt((np.std(scores, 0) ** 2).mean())
        said = np.sqrt((np.asarray(error) ** 2).mean())
        assert 0.9 * spread < said < 3 * spread

    def test_multipliers_and_hypothetical_contributions(self):
        x = np.eye(4)[RNG.integers(0, 4, (2, 5))]
        kernel = RNG.normal(size=(5, 4, 7))
        fun = lambda x: jnp.tanh(jnp.einsum("nlc,lck->nk", x, kernel)).sum(1)  # noqa: E731
        reference = np.full((5, 4), 0.25)
        groups = np.arange(5)[:, None]
        scores, multipliers, hypothetical = (
            jax.jit(jaxlift.shapley_blocks(fun, groups=groups, output=output, full=True))(x, reference=reference)
            for output in ("contributions", "multipliers", "hypothetical")
        )
        np.testing.assert_allclose(multipliers.scores * (x - reference[None]), scores.scores, atol=1e-12)
        expected = multipliers.scores - (multipliers.scores * reference[None]).sum(-1, keepdims=True)
        np.testing.assert_allclose(hypothetical.scores, expected, atol=1e-12)
        np.testing.assert_allclose(
            multipliers.standard_error * np.abs(x - reference[None]), scores.standard_error, atol=1e-12
        )
        assert hypothetical.standard_error is None
        np.testing.assert_allclose(scores.scores.sum((1, 2)), fun(x) - fun(reference[None]), atol=1e-12)


class TestOrders:
    @pytest.mark.parametrize(("n", "blocks"), [(16, 2), (10, 2), (7, 2), (9, 3), (11, 3), (5, 5), (8, 4), (1, 1)])
    def test_equal_sizes_in_all_and_in_each_cell(self, n, blocks):
        draw = jax.jit(lambda key: _orders(key, n, blocks, 6))
        for seed in range(20):
            cells = np.zeros(n, int)
            for block in np.asarray(draw(jax.random.key(seed))):
                for cell in (np.ones(n, bool), *(cells == c for c in np.unique(cells))):
                    sizes = np.bincount(block[cell], minlength=blocks)
                    assert sizes.max() - sizes.min() <= 1
                cells = np.unique(cells * blocks + block, return_inverse=True)[1]
                if len(np.unique(cells)) == n:
                    cells = np.zeros(n, int)

    @pytest.mark.parametrize(("n", "blocks"), [(5, 2), (7, 3), (4, 4)])
    def test_each_player_is_in_each_block_as_often(self, n, blocks):
        draw = jax.vmap(lambda key: _orders(key, n, blocks, 3))
        found = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
        for k in range(blocks):
            np.testing.assert_allclose((found == k).mean(0), 1 / blocks, atol=0.04)

    @pytest.mark.parametrize(("n", "blocks"), [(6, 2), (5, 2), (6, 3)])
    def test_each_pair_of_players_is_together_as_often(self, n, blocks):
        draw = jax.vmap(lambda key: _orders(key, n, blocks, 2))
        found = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
        sizes = np.bincount(np.arange(n) % blocks)
        expected = (sizes * (sizes - 1)).sum() / (n * (n - 1))
        for one, other in itertools.combinations(range(n), 2):
            np.testing.assert_allclose((found[..., one] == found[..., other]).mean(0), expected, atol=0.04)


class TestTransformations:
    x, r = X.astype(np.float32), R[0].astype(np.float32)
    fun = staticmethod(lambda x: jnp.tanh(jax.nn.relu(x @ W.astype(np.float32))).sum(1))

    @pytest.mark.parametrize("blocks", [2, 3])
    def test_jit_vmap_grad_scan(self, blocks):
        attr = jaxlift.shapley_blocks(self.fun, blocks=blocks)
        expected = attr(self.x, reference=self.r)
        each = jax.vmap(lambda x: attr(x[None], reference=self.r)[0])(self.x)
        _, in_turn = jax.lax.scan(lambda _, x: (None, attr(x[None], reference=self.r)[0]), None, self.x)
        for found in (jax.jit(attr)(self.x, reference=self.r), each, in_turn):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        of_sum = jax.jit(jax.grad(lambda x: attr(x, reference=self.r).sum()))(self.x)
        np.testing.assert_allclose(of_sum, jax.grad(lambda x: self.fun(x).sum())(self.x), atol=1e-4)

    def test_batches_and_pytrees(self):
        fun = lambda x: self.fun(jnp.concatenate([x["a"], x["b"]], 1))  # noqa: E731
        x = {"a": self.x[:, :2], "b": self.x[:, 2:]}
        r = {"a": self.r[:2], "b": self.r[2:]}
        expected = jaxlift.shapley_blocks(self.fun)(self.x, reference=self.r)
        for options in ({}, {"batch_size": 2}):
            found = jaxlift.shapley_blocks(fun, **options)(x, reference=r)
            np.testing.assert_allclose(np.concatenate([found["a"], found["b"]], 1), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "activation", [lambda h: h, jnp.tanh, jax.nn.gelu], ids=["relu and tanh", "another tanh", "gelu"]
    )
    def test_examples_over_devices(self, activation):
        def fun(x):
            return activation(self.fun(x))

        mesh = jax.make_mesh((2,), ("examples",))
        x = np.concatenate([self.x, self.x[:1]])
        attr = jax.jit(jaxlift.shapley_blocks(fun))
        spread = jax.device_put(x, NamedSharding(mesh, P("examples")))
        np.testing.assert_allclose(attr(spread, reference=self.r), attr(x, reference=self.r), atol=1e-5)
        text = attr.lower(spread, reference=self.r).compile().as_text()
        assert not collectives(text)

    def test_passes(self):
        """Two forward passes for each order besides those of both ends, and four backward: three gradients."""
        weights = [jnp.asarray(RNG.normal(size=(256, 256)) / 16, jnp.float32) for _ in range(4)]

        def deep(x):
            for w in weights:
                x = jax.nn.relu(x @ w)
            return x.sum(1)

        x, r = jnp.ones((16, 256)), jnp.zeros(256)
        flops = lambda f, *a, **k: jax.jit(f).lower(*a, **k).compile().cost_analysis()["flops"]  # noqa: E731
        gradient = flops(jax.grad(lambda x: deep(x).sum()), x)
        for samples in (1, 4):
            found = flops(jaxlift.shapley_blocks(deep, samples=samples), x, reference=r)
            assert found < (3.15 * samples + 0.7) * gradient


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"blocks": 0}, "blocks"),
            ({"samples": 0}, "samples"),
            ({"chunk": 0}, "chunk"),
            ({"rule": "gradient"}, r"needs a rule that compares with a reference, such as 'rescale'"),
            ({"rule": "nothing"}, "rule"),
            ({"key": 3}, "key"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises((ValueError, TypeError), match=message):
            jaxlift.shapley_blocks(model, **options)
