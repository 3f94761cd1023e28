"""Credit at ties: elements that attain a maximum together share its change, as in Shapley values and in `jax.grad`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles import shapley

import jaxlift

NEVER = -jnp.inf


def multipliers(fun, x, r, **options):
    @jax.jit
    def of_pair(x, r):
        y, pull = jaxlift.vjp(fun, x, r, **options)
        return pull(jnp.ones_like(y[0]))

    return of_pair(jnp.asarray(x, float), jnp.asarray(r, float))


def contributions(fun, x, r, **options):
    return multipliers(fun, x, r, **options) * (jnp.asarray(x, float) - jnp.asarray(r, float))


def plain_maximum(x, r):
    """The rule of a maximum, candidate by candidate: contributions, and the multipliers where nothing differs."""
    y, y_ref = max(x), max(r)
    side, best = (x, y) if y >= y_ref else (r, y_ref)
    winners = [i for i in range(len(x)) if side[i] == best]
    return np.array([(y - y_ref) / len(winners) if i in winners else 0.0 for i in range(len(x))])


def pooled(x, size, stride):
    return lax.reduce_window(x, NEVER, lax.max, (size,), (stride,), "VALID")


# Each is a function of four numbers that equals their maximum.
MAXIMA = {
    "max": lambda x: x.max(),
    "max over two axes": lambda x: x.reshape(2, 2).max(),
    "min": lambda x: -(-x).min(),
    "windows apart": lambda x: pooled(x, 4, 4)[0],
    "overlapping windows": lambda x: lax.reduce_window(x, NEVER, lax.max, (4,), (1,), "SAME")[1],
    "min pool": lambda x: -lax.reduce_window(-x, jnp.inf, lax.min, (4,), (4,), "VALID")[0],
    "cummax": lambda x: lax.cummax(x)[-1],
    "cummax, backwards": lambda x: lax.cummax(x, reverse=True)[0],
    "cummin": lambda x: -lax.cummin(-x)[-1],
    "scatter max": lambda x: jnp.full(2, -9.0, x.dtype).at[jnp.zeros(4, int)].max(x)[0],
    "scatter max onto one of them": lambda x: x[:1].at[jnp.zeros(3, int)].max(x[1:])[0],
    "scatter min": lambda x: -jnp.full(2, 9.0, x.dtype).at[jnp.zeros(4, int)].min(-x)[0],
}
OTHERS = {
    "last of a sort": lambda x: jnp.sort(x)[-1],
    "first of a descending sort": lambda x: jnp.sort(x, descending=True)[0],
    "top_k": lambda x: lax.top_k(x, 2)[0][0],
}
EVERY = MAXIMA | OTHERS
RNG = np.random.default_rng(0)
STATE = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """The same numbers for a test, whichever run before it."""
    RNG.bit_generator.state = STATE


TIES = RNG.choice([-1.0, 0.0, 2.0], size=(2, 40, 4))
# Elements that rise from -1, the level of all others, to 1; and those that fall from there.
RISEN = np.array(list(itertools.product((-1.0, 1.0), repeat=4)))
ALL_LOW = np.full_like(RISEN, -1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAXIMA)
def test_winners_share_the_change(name):
    x, r = TIES
    found = jax.jit(jax.vmap(lambda x, r: contributions(MAXIMA[name], x, r)))(x, r)
    np.testing.assert_allclose(found, [plain_maximum(*pair) for pair in zip(x, r, strict=True)], atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EVERY)
def test_those_that_tie_share_as_shapley_values_do(name):
    found = jax.jit(jax.vmap(lambda x, r: contributions(EVERY[name], x, r)))
    for x, r in ((RISEN, ALL_LOW), (ALL_LOW, RISEN)):
        expected = [shapley(np.max, *pair) for pair in zip(x, r, strict=True)]
        np.testing.assert_allclose(found(x, r), expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EVERY)
def test_multipliers_tend_to_the_derivative_at_a_tie(name):
    """From above, from below, and at the input itself, where all elements move alike. (JAX sorts equal elements as they
    stand, and has no such derivative of sorts; its derivative of `cummax` takes two at a time.)
    """
    x = np.array([1.0, -1, 1, 1])
    found = jax.jit(jax.vmap(lambda r: multipliers(EVERY[name], x, r)))(x + np.array([[-1e-3], [1e-3], [0]]))
    derivative = jax.jit(jax.grad(lambda x: x.max()))(x)
    np.testing.assert_allclose(derivative, [1 / 3, 0, 1 / 3, 1 / 3])
    np.testing.assert_allclose(found, [derivative] * 3, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fun", [jnp.maximum, lambda a, b: -jnp.minimum(-a, -b)], ids=["maximum", "minimum"])
def test_two_values_that_tie(fun):
    def of_both(x):
        return fun(x[0] * 1.0, x[1] * 1.0)

    pairs = np.array(list(itertools.product((-1.0, 0.0, 2.0), repeat=4))).reshape(-1, 2, 2)
    found = jax.vmap(lambda x, r: contributions(of_both, x, r))(pairs[:, 0], pairs[:, 1])
    np.testing.assert_allclose(found, [shapley(max, *pair) for pair in pairs], atol=1e-12)
    near = np.array([[1 - 1e-3] * 2, [1.0] * 2, [1 + 1e-3] * 2])
    found = jax.vmap(lambda r: multipliers(of_both, [1.0, 1.0], r))(near)
    np.testing.assert_allclose(found, np.full((3, 2), 0.5), atol=1e-9)


@pytest.mark.parametrize("name", ["any", "all"])
@pytest.mark.parametrize("count", [2, 3])
def test_quantifiers_have_shapley_values(name, count):
    """And agree with `a | b` and `a & b`. A truth value that doesn't change hands nothing on."""
    quantifier = {"any": jnp.any, "all": jnp.all}[name]
    sides = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
    x, r = (side.reshape(-1, count) for side in np.broadcast_arrays(sides[:, None], sides))
    found = jax.jit(jax.vmap(lambda x, r: contributions(lambda x: quantifier(x > 0) * 1.0, x, r)))(x, r)
    plain = {"any": lambda x: float((x > 0).any()), "all": lambda x: float((x > 0).all())}[name]
    expected = [shapley(plain, *pair) * (plain(pair[0]) != plain(pair[1])) for pair in zip(x, r, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if count == 2:
        both = {"any": lambda x: ((x[0] > 0) | (x[1] > 0)) * 1.0, "all": lambda x: ((x[0] > 0) & (x[1] > 0)) * 1.0}[
            name
        ]
        pairwise = jax.jit(jax.vmap(lambda x, r: contributions(both, x, r)))(x, r)
        np.testing.assert_allclose(found, pairwise, atol=1e-6)


def test_quantifiers_over_some_axes_of_several():
    x = jnp.array([[[1.0, -1], [1, 1]], [[-1, -1], [1, -1]]])
    found = contributions(lambda x: jnp.any(x > 0, (0, 2)) @ jnp.array([2.0, 3.0]), x, -jnp.ones_like(x))
    np.testing.assert_allclose(found, [[[2, 0], [1, 1]], [[0, 0], [1, 0]]], rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_place_changes_because_of_all_that_overtook(sign):
    """From one winner at 3 to three that tie, each of which rose by 1 while it fell by 1; and back."""
    places = jnp.argmax if sign > 0 else jnp.argmin
    few, many = sign * np.array([0.0, 0, 0, 1]), sign * np.array([1.0, 1, 1, 0])
    # Where two of them attain the other maximum, too, the place still changes by as much as is credited.
    also = sign * np.array([-1.0, 1, 1, -1])
    x, r = np.array([many, few, also, many]), np.array([few, many, many, also])
    there, back, *others = jax.vmap(lambda x, r: contributions(lambda x: places(x) * 1.0, x, r))(x, r)
    np.testing.assert_allclose(there, [-0.5, -0.5, -0.5, -1.5], rtol=1e-6)
    np.testing.assert_allclose(back, -there, rtol=1e-6)
    plainly = np.argmax if sign > 0 else np.argmin
    np.testing.assert_allclose(np.sum(others, 1), plainly(x[2:], 1) - plainly(r[2:], 1), rtol=1e-6)


def test_ties_of_integers():
    x = jnp.array([1.4, 1.2, 0.3])
    found = contributions(lambda x: jnp.floor(x).astype(int).max() * 1.0, x, jnp.array([-0.5, -0.2, -0.1]))
    np.testing.assert_allclose(found, [1, 1, 0], rtol=1e-6)
    found = contributions(lambda x: lax.cummax(jnp.floor(x).astype(int))[-1] * 1.0, x, jnp.array([-0.5, -0.2, -0.1]))
    np.testing.assert_allclose(found, [1, 1, 0], rtol=1e-6)


def test_half_precision_counts_ties_exactly():
    """In bfloat16 a sum of ones stops at 256."""
    x = jnp.ones(1024, jnp.bfloat16)
    _, pull = jaxlift.vjp(lambda x: x.max(), x, -x)  # not compiled as a whole, which might count more precisely
    np.testing.assert_array_equal(pull(jnp.ones((), x.dtype)).astype(float), np.full(1024, 1 / 1024))


def test_what_is_not_finite():
    """Padding and masked elements never win; NaN neither, and what it makes of the maximum is no number."""
    masked = contributions(lambda x: jnp.where(jnp.arange(3) < 2, x, NEVER).max(), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_allclose(masked, [0.5, 0.5, 0])
    nothing = multipliers(lambda x: jnp.where(jnp.arange(3) < 0, x, NEVER).max(), jnp.ones(3), jnp.zeros(3))
    assert jnp.isfinite(nothing).all()
    every = multipliers(lambda x: x.max(), jnp.full(3, jnp.nan), jnp.zeros(3))
    assert every.shape == (3,)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_maxima_along_any_axis(axis, reverse):
    x, r = (np.round(side, 1) for side in RNG.normal(size=(2, 2, 3, 4)))
    weights = RNG.normal(size=(2, 3, 4))
    found = contributions(lambda x: (weights.astype(x.dtype) * lax.cummax(x, axis, reverse)).sum(), x, r)
    expected = np.zeros((2, 3, 4))
    for at in np.ndindex(2, 3, 4):
        seen = range(at[axis], x.shape[axis]) if reverse else range(at[axis] + 1)
        places = [(*at[:axis], k, *at[axis + 1 :]) for k in seen]
        shares = plain_maximum([x[place] for place in places], [r[place] for place in places])
        for place, share in zip(places, shares, strict=True):
            expected[place] += weights[at] * share
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_medians_and_sorted_rows_share():
    x = jnp.array([1.0, 1, 1, 5])
    np.testing.assert_allclose(contributions(jnp.median, x, x - 1), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)
    rows = contributions(lambda x: jnp.sort(x, axis=0)[0].sum(), jnp.array([[1.0, 2], [1, 3]]), jnp.zeros((2, 2)))
    np.testing.assert_allclose(rows, [[0.5, 2], [0.5, 0]], atol=1e-6)


def test_sorting_keeps_what_revealcancel_knows_of_parts():
    """A sort that changes nothing's place: the scores are those without it, of whose sums the parts are."""
    x, r, weights = np.array([1.0, 2, 3]), np.array([-1.0, 0, 1]), np.array([[1.0, -2, 4], [-3, 5, 1]], np.float32).T

    def model(x, order):
        return jax.nn.relu(order(x @ weights * np.array([1, 100], np.float32))).sum()

    plain = contributions(lambda x: model(x, lambda h: h), x, r, rule="revealcancel")
    assert not np.allclose(plain, contributions(lambda x: model(x, lambda h: h), x, r))
    np.testing.assert_allclose(contributions(lambda x: model(x, jnp.sort), x, r, rule="revealcancel"), plain, rtol=1e-5)


MAXIMA_OF_LAYERS = {
    "max": lambda h: h.max(1),
    "max pooling": lambda h: lax.reduce_window(h, NEVER, lax.max, (1, 2, 1), (1, 2, 1), "VALID"),
    "overlapping": lambda h: lax.reduce_window(h, NEVER, lax.max, (1, 2, 1), (1, 1, 1), "VALID"),
    "cummax": lambda h: lax.cummax(h, 1),
    "sort": lambda h: jnp.sort(h, 1),
    "top_k": lambda h: lax.top_k(h, 2)[0],
    "scatter max": lambda h: h.at[:, 0].max(h[:, 1]),
    "gather from a place that varies": lambda h: jnp.take_along_axis(h, jnp.argmin(h, 1)[:, None], 1),
    "place alone": lambda h: jnp.zeros(4).at[jnp.argmax(h, 1)].add(1.0) - 0.5,
}


@pytest.mark.parametrize("name", MAXIMA_OF_LAYERS)
def test_what_feeds_a_maximum_feeds_what_comes_after(name):
    """A rule by layer: an activation after the maximum of a convolution's outputs has the convolution's rule."""
    kernel = jnp.asarray(RNG.normal(size=(3, 2, 4)), jnp.float32)
    x, r = (RNG.normal(size=(1, 8, 2)).astype(np.float32) for _ in range(2))

    def model(x):
        h = lax.conv_general_dilated(jnp.asarray(x), kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jnp.tanh(MAXIMA_OF_LAYERS[name](h)).sum()

    class Doubled(jaxlift.Rescale):
        def pull(self, f, x, r, cotangent):
            return 2 * super().pull(f, x, r, cotangent)

    plain = contributions(model, x, r)
    by_layer = contributions(model, x, r, rule=jaxlift.PerLayer(conv=Doubled(), dense="rescale"))
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_allclose(by_layer, 2 * plain, rtol=1e-4, atol=1e-6)


def test_the_originals_pooling_gives_all_to_the_first_that_ties():
    rule = jaxlift.OriginalMaxPooling("rescale")
    of_rows = jax.jit(lambda x, r: multipliers(lambda x: x.max(), x, r, rule=rule))
    np.testing.assert_array_equal(of_rows(np.array([1.0, 3, 3, 2, 3]), np.zeros(5)), [0, 1, 0, 0, 0])
