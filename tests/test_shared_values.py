"""Values that a program reads more than once: each has one multiplier, under rules for which that changes nothing."""

import inspect
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gelu

import jaxlift
from jaxlift._pointwise.shared import steps_after
from jaxlift.primitives import pointwise

X, R = np.array([-2.5, -0.3, 0.2, 1.1, 3.0]), np.array([0.4, -0.3, 0.2 - 1e-9, -1.2, 2.9])
W = np.array([1.5, -2.0, 0.7, 0.3, -1.1])
EXACT_GELU = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731


def secant(f, slope):
    """For each input, in the plainest way; where input and reference are nearly the same, the slope."""
    near = [abs(x - r) < 1e-6 for x, r in zip(X, R, strict=True)]
    ends = zip(X, R, near, strict=True)
    return np.array([slope((x + r) / 2) if is_near else (f(x) - f(r)) / (x - r) for x, r, is_near in ends])


def of_gelu(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2 + x * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def multipliers(fun, rule="rescale", x=X, r=R):
    return jaxlift.vjp(fun, jnp.asarray(x), jnp.asarray(r), rule=rule)[1](1.0)


def erfcs(fun, rule="rescale"):
    """How often a program works out the exact GELU's erfc."""
    return str(jax.make_jaxpr(lambda x, r: jaxlift.vjp(fun, x, r, rule=rule)[1](1.0))(X, R)).count("= erfc ")


SHARED = {  # each with the function of GELU's value that it is, and its derivative
    "a square": (lambda h: (h**2).sum() + h @ W, lambda y, w: y * y + w * y, lambda y, w: 2 * y + w),
    "a later power": (lambda h: h @ W + (h**3).sum(), lambda y, w: w * y + y**3, lambda y, w: w + 3 * y * y),
    "two functions": (
        lambda h: jnp.tanh(h).sum() + jnp.cos(2 * h) @ W,
        lambda y, w: math.tanh(y) + w * math.cos(2 * y),
        lambda y, w: 1 - math.tanh(y) ** 2 - 2 * w * math.sin(2 * y),
    ),
    "a function of a function": (
        lambda h: (h**2).sum() + jnp.tanh(h**2) @ W,
        lambda y, w: y * y + w * math.tanh(y * y),
        lambda y, w: 2 * y + w * 2 * y * (1 - math.tanh(y * y) ** 2),
    ),
    "a diamond": (
        lambda h: (h * jnp.tanh(h)) @ W + h.sum(),
        lambda y, w: w * y * math.tanh(y) + y,
        lambda y, w: w * (math.tanh(y) + y * (1 - math.tanh(y) ** 2)) + 1,
    ),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.usefixtures("x64")
def test_multipliers_are_those_of_the_whole(name):
    fun, whole, slope = SHARED[name]
    found = multipliers(lambda x: fun(EXACT_GELU(x)))
    expected = [
        secant(lambda x, w=w: whole(gelu(x), w), lambda x, w=w: slope(gelu(x), w) * of_gelu(x))[i]
        for i, w in enumerate(W)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert erfcs(lambda x: fun(EXACT_GELU(x))) == 2  # of the input and of the reference


@pytest.mark.parametrize(
    ("fun", "values"),
    [
        (lambda x, h: (h**2).sum() + h.sum(), 1),
        (lambda x, h: (EXACT_GELU(x) ** 2).sum() + h.sum(), 1),  # the same value, computed again
        (lambda x, h: (h**2).sum(), 0),
        (lambda x, h: (h * jnp.tanh(h)).sum(), 0),  # what reads it twice is one function
        (lambda x, h: jnp.where(h > 1, h**2, h).sum(), 0),
        (lambda x, h: (x * h).sum() + h.sum(), 0),  # of which it is a part, and not the argument
        (lambda x, h: jnp.exp(h).sum() + h.sum(), 0),  # which need not be a number
    ],
)
def test_what_is_explained_apart(fun, values, monkeypatch):
    found = []
    monkeypatch.setattr(pointwise, "steps_after", lambda *steps: found.append(steps) or steps_after(*steps))
    multipliers(lambda x: fun(x, EXACT_GELU(x)))
    assert len(found) == values


@pytest.mark.usefixtures("x64")
def test_check_sees_both():
    def fun(x):
        h = EXACT_GELU(x)
        return (h**2).sum() + h @ W

    report = jaxlift.check(fun, X, R)
    assert report.complete
    assert max(abs(line.residual) for line in report.lines) < 1e-12


@pytest.mark.usefixtures("x64")
def test_revealcancel_takes_wholes():
    """The square of an activation is one function, and not the square of what the activation makes of parts."""
    w = np.random.default_rng(0).normal(size=(5, 5))

    def of(read):
        return multipliers(lambda x: read(EXACT_GELU(x @ w)), "revealcancel")

    both = of(lambda h: (h**2).sum() + h.sum())
    np.testing.assert_allclose(both, of(lambda h: (h**2).sum()) + of(lambda h: h.sum()), rtol=1e-9)
    apart = of(lambda h: (jnp.concatenate([h, h]) ** 2).sum() / 2 + h.sum())  # concatenated, it is a value of its own
    assert np.abs(both - apart).max() > 1e-3


def test_half_precision_is_kept_whole():
    """On its way a cotangent would lose digits."""
    x, r = X.astype(jnp.bfloat16), R.astype(jnp.bfloat16)

    def fun(x):
        h = jax.nn.silu(x)
        return (h.astype(jnp.float32) ** 2).sum() + 0 * h.astype(jnp.float32).sum()

    found = np.asarray(multipliers(fun, x=x, r=r), np.float64)
    x, r = (np.asarray(a, np.float64)[[0, 3, 4]] for a in (x, r))
    y, s = (a / (1 + np.exp(-a)) for a in (x, r))
    np.testing.assert_allclose(found[[0, 3, 4]], (y**2 - s**2) / (x - r), rtol=0.01)


def test_a_long_chain_of_values_that_are_all_read():
    """As a trajectory is, of which a loss reads all points, the last first."""

    def fun(x):
        points = [x]
        for _ in range(80):
            points.append(points[-1] + 0.1 * jnp.tanh(points[-1]))
        return (points[-1] ** 2).sum() + jnp.stack(points).sum()

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 250)
    try:
        found = jaxlift.vjp(fun, jnp.float32(X), jnp.float32(R))[1](1.0)
    finally:
        sys.setrecursionlimit(before)
    np.testing.assert_allclose((found * (X - R)).sum(), fun(jnp.float32(X)) - fun(jnp.float32(R)), rtol=1e-5)
