"""What earlier attempts at such an evaluator met, one test each: each cost somebody a wrong or a slow result."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import jaxlift

X, R = jnp.array([1.0, -2.0, 0.5, 0.0]), jnp.array([0.0, 1.0, 0.5, -1.0])
W = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
V = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)


def multipliers(fun, x=X, r=R, rule="revealcancel"):
    """The outputs of a function, and multipliers of their sum, compiled as one program."""

    @jax.jit
    def of_pair(x, r):
        (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
        return y, y_ref, pullback(jnp.ones_like(y))

    return of_pair(x, r)


def contributions(fun, x=X, r=R, rule="revealcancel"):
    y, y_ref, m = multipliers(fun, x, r, rule)
    scores = np.asarray(m * (x - r))
    np.testing.assert_allclose(scores.sum(), (y - y_ref).sum(), rtol=1e-5, atol=1e-5)
    return scores


@pytest.mark.usefixtures("x64")
def test_1_the_derivative_of_a_difference_of_zero_is_zero():
    """The third input doesn't differ: its multiplier is the mean of both parts'. JAX's `abs` gives the positive one."""
    w = np.random.default_rng(0).normal(size=(4, 5))
    v = np.random.default_rng(1).normal(size=(5, 3))
    relu = oracles.RevealCancel(*oracles.FUNCTIONS["relu"])
    layers = [oracles.Dense(w, np.zeros(5)), relu, oracles.Dense(v, np.zeros(3)), relu]
    x, r = np.asarray(X, float), np.asarray(R, float)
    fun = lambda x: jax.nn.relu(jax.nn.relu(x @ w) @ v)  # noqa: E731
    np.testing.assert_allclose(
        contributions(fun, x, r),
        sum(oracles.deeplift(layers, x, r, k) for k in range(3)),
        rtol=1e-12,
    )
    *_, m = multipliers(fun, x, r)
    states = oracles.trace(layers, x, r, np.maximum(x - r, 0), np.minimum(x - r, 0))
    expected, _ = oracles.back(layers, states, np.ones(3), np.ones(3))
    np.testing.assert_allclose(m[2], expected[2], rtol=1e-12)


def test_1_midpoints_are_held_constant():
    """Where a product's variation is used, its weights are no path of contributions; scores differentiate them."""

    def fun(x):
        product = (x @ W) * jnp.tanh(x[::-1] @ W)
        return jax.nn.relu(product + 0.1).sum()

    contributions(fun)
    loss = jax.jit(lambda x: (contributions_unchecked(fun, x) ** 2).sum())
    direction = np.array([0.3, -0.2, 0.5, 0.1])
    with jax.enable_x64(True):
        x = np.asarray(X, np.float64) + 0.05
        along = jax.jit(jax.grad(loss))(x) @ direction
        step = 1e-6 * direction
        np.testing.assert_allclose(along, (loss(x + step) - loss(x - step)) / 2e-6, rtol=1e-6)


def contributions_unchecked(fun, x):
    w = jax.tree.map(lambda a: a.astype(x.dtype), R)
    (y, _), pullback = jaxlift.vjp(fun, x, w, rule="revealcancel")
    return pullback(jnp.ones_like(y)) * (x - w)


def test_1_normalisations_take_rescale():
    """`r + D-` may be a negative variance: RevealCancel must not go there."""

    def fun(x):
        h = x @ W
        return jax.nn.relu((h - h.mean()) * lax.rsqrt(h.var() + 1e-3)).sum() + jnp.log(jnp.exp(h).sum())

    scores = contributions(fun)
    assert np.isfinite(scores).all()
    assert np.abs(scores).sum() < 50


def test_1_a_unit_that_is_on_only_between_is_seen():
    """Off at input and reference, on between: its two parts cancel, and RevealCancel shows them, however large."""
    w, x, r = np.array([1e4, -1e4], np.float32), np.ones(2, np.float32), np.zeros(2, np.float32)
    scores = contributions(lambda x: jax.nn.relu(x @ w - 10), x, r)
    np.testing.assert_allclose(scores, [4995.0, -4995.0], rtol=1e-5)


def test_1_the_derivative_at_a_kink():
    zeros = np.zeros(2, np.float32)
    for relu, expected in ((jax.nn.relu, 0), (lambda x: jnp.maximum(x, 0), 0.5)):
        *_, m = multipliers(relu, zeros, zeros, "rescale")
        np.testing.assert_array_equal(m, expected)


def test_2_a_pointwise_function_is_a_graph():
    def fun(x):
        for _ in range(40):
            x = jnp.sin(x) + jnp.cos(x)
        return x.sum()

    jax.eval_shape(lambda x, r: jaxlift.vjp(fun, x, r)[0], X, R)


def test_3_constants_may_be_tracers_of_any_dtype():
    """Learned slopes, integer exponents and Boolean masks inside a pointwise function, under jit and grad."""

    def fun(x, slope, power, mask):
        return jnp.where(mask, jnp.where(x > 0, x, slope * x), jnp.abs(x) ** power).sum()

    def scores(slope, power, mask):
        return contributions_of(lambda x: fun(x, slope, power, mask))

    def contributions_of(fun):
        (y, _), pullback = jaxlift.vjp(fun, X, R)
        return pullback(jnp.ones_like(y)) * (X - R)

    arguments = jnp.float32(0.3), jnp.array([2, 3, 2, 2]), jnp.array([True, True, False, True])
    np.testing.assert_allclose(jax.jit(scores)(*arguments), scores(*arguments), rtol=1e-6)
    loss = jax.jit(jax.value_and_grad(lambda slope: (scores(slope, *arguments[1:]) ** 2).sum()))
    _, gradient = loss(arguments[0])
    step = loss(jnp.float32(0.31))[0] - loss(jnp.float32(0.29))[0]
    np.testing.assert_allclose(gradient, step / 0.02, rtol=1e-3)


def test_4_multipliers_wait_for_their_cotangent():
    """The residuals of each rule wait for the cotangent; `test_compilers` looks at what becomes of it."""

    def primitives(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for inner in jaxprs_in_params(eqn.params):
                yield from primitives(inner)

    program = jax.make_jaxpr(lambda x, r: jaxlift.vjp(lambda x: jnp.tanh(x @ W), x, r)[1](jnp.ones(5)))(X, R)
    assert "wait_for_cotangent" in set(primitives(program.jaxpr))


def test_5_residuals_of_revealcancel_are_the_arguments():
    """What `jax.vjp` keeps for the backward pass: `x`, `r` and `a`; and for tanh, whose secants are made of its values,
    these. Of what belongs to a pair, `a` alone.
    """

    def activations(x):
        return jnp.tanh(x @ W)

    def saved(rule):
        _, pullback = jaxlift.vjp(lambda x: activations(x), X, R, rule=rule)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))

    del saved  # the pullback of `jaxlift.vjp` is a function; jax.vjp's own is asked
    lifted = jaxlift.lift(activations, rule="revealcancel")
    _, pullback = jax.vjp(lambda x: lifted(x, R)[0], X)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert kept.count((5,)) == 5  # argument, its reference, its variation, value, its reference
    assert sorted(set(kept)) in ([(4,), (4, 5), (5,)], [(), (4,), (4, 5), (5,)])


def test_6_equal_infinities_differ_by_zero():
    mask = jnp.array([True, False, True, True])
    scores = contributions(lambda x: jnp.exp(jnp.where(mask, x, -jnp.inf)).sum())
    assert scores[1] == 0


def test_7_literals_have_the_dtype_of_the_program():
    def fun(x):
        return (x * 2 + 1.5).astype(jnp.bfloat16).sum() * 3

    with jax.enable_x64(True):
        y, _, m = multipliers(fun, rule="rescale")
        assert y.dtype == jnp.bfloat16
        assert m.dtype == jnp.float32
    assert multipliers(fun, rule="rescale")[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize(
    "fun",
    [
        lambda x: x[:, None] * jnp.ones(4)[:, None] * jnp.full((4, 3), 2.0),
        lambda x: jnp.tanh(x)[None] + jax.lax.broadcast_in_dim(jnp.full(2, 0.5), (2, 4), (0,)),
        lambda x: jnp.tanh(jnp.full((2, 0, 4), 1.5) * x[None, None]).sum(1) + x[None],
        lambda x: jnp.where(x > 0, x, jnp.full(4, 0, jnp.bfloat16).astype(jnp.float32)) * jnp.full(4, 1e30, x.dtype),
    ],
    ids=["column", "axis", "empty", "converted"],
)
def test_7_numbers_of_any_shape(fun, rule):
    """A number that is broadcast or converted is a literal still, and may be broadcast again, along any axis."""
    y, y_ref, m = multipliers(fun, rule=rule)
    plain = jax.jit(fun)
    np.testing.assert_array_equal(y, plain(X))
    np.testing.assert_array_equal(y_ref, plain(R))
    np.testing.assert_allclose((m * (X - R)).sum(), np.sum(y - y_ref), rtol=1e-5)


def test_8_two_activations_in_a_row_are_one_function():
    """RevealCancel of the whole is the Shapley value of the two parts; layer by layer, as in the original, it isn't."""
    x, r, w = np.array([2, 1], np.float32), np.zeros(2, np.float32), np.array([1, -1.5], np.float32)
    found = contributions(lambda x: jnp.tanh(jax.nn.relu(x @ w + 0.2)), x, r)
    np.testing.assert_allclose(found, oracles.shapley(lambda x: np.tanh(max(x @ w + 0.2, 0)), x, r), rtol=1e-5)


def test_9_the_derivative_of_a_custom_jvp_function_is_kept():
    @jax.custom_jvp
    def f(x):
        return jnp.tanh(x)

    f.defjvp(lambda primals, tangents: (f(*primals), 5 * tangents[0]))
    *_, m = multipliers(lambda x: jax.jit(f)(x), X, X, "rescale")
    np.testing.assert_array_equal(m, [5, 5, 5, 5])


def test_the_derivative_of_a_custom_jvp_function_with_conversions_is_kept():
    @jax.custom_jvp
    def quantised(x):
        return jnp.round(x.astype(jnp.float16) * 4).astype(x.dtype) / 4

    quantised.defjvp(lambda primals, tangents: (quantised(*primals), tangents[0]))
    *_, m = multipliers(quantised, np.array([0.3, 1, -2], np.float32), np.array([0.3, 0.2, 1], np.float32), "rescale")
    np.testing.assert_allclose(m, [1, 0.75 / 0.8, 1], rtol=1e-6)


def test_10_elementwise_work_is_lean():
    """FLOPs of one ReLU for each pair, cotangent included. `test_cost` has those of a network."""
    n, r, width = 16, 16, 4096

    def attribution(x, reference):
        one = lambda x, r: jaxlift.vjp(jax.nn.relu, x, r)[1](jnp.ones(width))  # noqa: E731
        return jax.vmap(lambda x: jax.vmap(lambda r: one(x, r))(reference))(x)

    x, reference = jax.ShapeDtypeStruct((n, width), jnp.float32), jax.ShapeDtypeStruct((r, width), jnp.float32)
    flops = jax.jit(attribution).lower(x, reference).compile().cost_analysis()["flops"]
    assert flops / (n * r * width) < 26
