r"""Moments of functions of normal variables.

Of `u ~ N(mu, v)`, with `sigma^2 = v` and `a = mu / sigma`,

.. math::
    E[\max(u, 0)] &= \mu \Phi(a) + \sigma \varphi(a) \\ E[\max(u, 0)^2] &= (\mu^2 + v) \Phi(a) + \mu \sigma \varphi(a)

which is all there is to functions of two lines that meet at 0. The rest is by quadrature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import pi, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._core.differences import where

NODES = 7


class Expected(NamedTuple):
    """The mean and the variance of a function, and its mean derivative."""

    mean: Array
    variance: Array
    slope: Array


def root(v: Array) -> Array:
    """The square root, whose derivative at 0 is 0."""
    return where(v > 0, jnp.sqrt(where(v > 0, v, 1)), 0)


@jax.custom_jvp
def distribution(a: Array) -> Array:
    """`Phi`, with its density for derivative. (That of `erfc` fails inside of `jax.shard_map` in JAX 0.12.)"""
    return lax.erfc(-a * sqrt(0.5)) / 2


@distribution.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    [a], [of_a] = primals, tangents
    return distribution(a), of_a * jnp.exp(-a * a / 2) / sqrt(2 * pi)


def standardised(mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """`sigma`, `Phi(mu / sigma)` and `phi(mu / sigma)`; in the limit where `sigma` is 0."""
    sigma = root(variance)
    varies = sigma > 0
    a = where(varies, mean / where(varies, sigma, 1), 0)
    cdf = where(varies, distribution(a), (1 + jnp.sign(mean)) / 2)
    return sigma, cdf, where(varies, jnp.exp(-a * a / 2) / sqrt(2 * pi), 0)


@jax.custom_jvp
def positive_part(mean: Array, variance: Array) -> Array:
    """`E max(u, 0)`."""
    sigma, cdf, density = standardised(mean, variance)
    return jnp.maximum(mean * cdf + sigma * density, 0)


@positive_part.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (mean, variance), (of_mean, of_variance) = primals, tangents
    sigma, cdf, density = standardised(mean, variance)
    by_variance = where(sigma > 0, density / where(sigma > 0, 2 * sigma, 1), 0)
    return positive_part(mean, variance), cdf * of_mean + by_variance * of_variance


def of_two_rays(up: Array, down: Array, mean: Array, variance: Array) -> Expected:
    """Of `up max(u, 0) + down max(-u, 0)`."""
    sigma, cdf, density = standardised(mean, variance)
    above = positive_part(mean, variance)
    square = (mean**2 + variance) * cdf + mean * sigma * density
    value = up * above + down * (above - mean)
    squares = up**2 * square + down**2 * (mean**2 + variance - square)
    return Expected(value, jnp.maximum(squares - value**2, 0), up * cdf - down * (1 - cdf))


def of_a_step(up: Array, down: Array, mean: Array, variance: Array) -> Expected:
    """Of `up` where `u > 0`, `down` elsewhere."""
    sigma, cdf, density = standardised(mean, variance)
    slope = where(sigma > 0, density / where(sigma > 0, sigma, 1), 0)
    return Expected(down + (up - down) * cdf, (up - down) ** 2 * cdf * (1 - cdf), (up - down) * slope)


def nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes and weights of a standard normal variable."""
    at, weights = np.polynomial.hermite_e.hermegauss(count)
    return at, weights / weights.sum()


def of_any(
    f: Callable[[Array], Array],
    mean: Array,
    variance: Array,
    *,
    is_positive: bool,
    is_total: bool,
    is_continuous: bool,
) -> Expected:
    """Of any function, by quadrature.

    Args:
        is_positive: whether `u` is known to be positive. Then, where the function isn't defined for every number, `u`
            is log-normal.
        is_total: whether the function is defined for every number. Where it isn't defined at all nodes it is taken at
            the mean.
        is_continuous: whether it has no steps. Of one with steps derivatives are those of the smoothed function.
    """
    # Node by node: compiled for CPUs, an axis of nodes takes 3 to 7 times as long, and one program crashed.
    z, weights = (each.tolist() for each in nodes(NODES))
    if is_positive and not is_total:
        level = where(mean > 0, mean, 1)
        log_variance = where(mean > 0, jnp.log1p(variance / level**2), 0)
        sigma = root(log_variance)
        at = [mean * jnp.exp(sigma * k - log_variance / 2) for k in z]
    else:
        sigma = root(variance)
        at = [mean + sigma * k for k in z]
    defined: Any = True
    if not is_total:
        defined = reduce(jnp.logical_and, [jnp.isfinite(f(lax.stop_gradient(u))) for u in at])
        at = [where(defined, u, mean) for u in at]
    y = [f(u if is_continuous else lax.stop_gradient(u)) for u in at]
    value = where(defined, weighted(weights, [where(defined, each, 0) for each in y]), y[NODES // 2])
    deviations = [where(defined, each - value, 0) for each in y]
    if not is_continuous:
        value = _smoothed(value, y, mean, variance, z, weights)
    slope = weighted([w * k for w, k in zip(weights, z, strict=True)], deviations)
    slope /= where(variance > 0, jnp.sqrt(where(variance > 0, variance, 1)), 1)
    return Expected(value, weighted(weights, [each**2 for each in deviations]), slope)


def weighted(weights: Sequence[float], values: Sequence[Array]) -> Array:
    """A weighted sum."""
    return reduce(jnp.add, [w * value for w, value in zip(weights, values, strict=True)])


def _smoothed(
    value: Array, y: Sequence[Array], mean: Array, variance: Array, z: Sequence[float], weights: Sequence[float]
) -> Array:
    """A mean with the derivatives of `E f` by parts: `E[f z] / sigma` in the mean, `E[f (z^2 - 1)] / 2 v` in the
    variance.
    """
    v = lax.stop_gradient(where(variance > 0, variance, 1))
    of_mean = weighted([w * k for w, k in zip(weights, z, strict=True)], y) / jnp.sqrt(v)
    of_variance = weighted([w * (k**2 - 1) for w, k in zip(weights, z, strict=True)], y) / (2 * v)
    change = of_mean * (mean - lax.stop_gradient(mean)) + of_variance * (variance - lax.stop_gradient(variance))
    return lax.stop_gradient(value) + where(variance > 0, change, 0)


def of_two(
    f: Callable[[Array, Array], Array],
    means: tuple[Array, Array],
    variances: tuple[Array, Array],
    correlation: Array,
    has_derivative: bool = True,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Mean, variance and mean derivatives of a function of two normal variables, by quadrature in both.

    Of a function without a derivative that of the mean is by parts.
    """
    z, weights = nodes(5)
    first, second = (each.ravel() for each in np.meshgrid(z, z))
    weight = np.outer(weights, weights).ravel()
    (a, b), (s, t) = means, map(root, variances)
    shape = (-1, *[1] * a.ndim)
    first, second, weight = (jnp.asarray(each, a.dtype).reshape(shape) for each in (first, second, weight))
    other = correlation * first + jnp.sqrt(1 - correlation**2) * second
    at = a[None] + s[None] * first, b[None] + t[None] * other
    defined = jnp.isfinite(jax.vmap(f)(*lax.stop_gradient(at))).all(0)
    at = where(defined[None], at[0], a[None]), where(defined[None], at[1], b[None])
    y = jax.vmap(f)(*(at if has_derivative else lax.stop_gradient(at)))
    value = (weight * y).sum(0)
    deviation = y - value[None]

    def slope(z: Array, sigma: Array) -> Array:
        return (weight * deviation * z).sum(0) / where(sigma > 0, sigma, 1)

    # By parts, E[df/du] = E[f z1'] / s with the other variable regressed out.
    independent = jnp.sqrt(jnp.maximum(1 - correlation**2, 1e-6))
    of_second = slope(second, t) / independent
    of_first = slope(first, s) - of_second * correlation * where(s > 0, t / where(s > 0, s, 1), 0)
    variance = (weight * deviation**2).sum(0)
    if not has_derivative:
        g, h = lax.stop_gradient((of_first, of_second))
        value = value + g * (a - lax.stop_gradient(a)) + h * (b - lax.stop_gradient(b))
    return value, variance, (of_first, of_second)


def of_maximum(
    means: tuple[Array, Array], variances: tuple[Array, Array], correlation: Array
) -> tuple[Array, Array, Array]:
    """Mean and variance of the larger of two normal variables, and the probability that it is the first (Clark 1961,
    doi 10.1287/opre.9.2.145): `max(a, b) = b + max(a - b, 0)`.
    """
    (a, b), (v, w) = means, variances
    covariance = correlation * root(v) * root(w)
    theta = jnp.maximum(v + w - 2 * covariance, 0)
    finite = jnp.isfinite(a) & jnp.isfinite(b)  # a masked candidate never wins
    gap = where(finite, a - b, 0)
    sigma, cdf, density = standardised(gap, theta)
    p = where(finite, cdf, (a > b).astype(a.dtype))
    mean = where(finite, where(finite, b, 0) + positive_part(gap, theta), jnp.maximum(a, b))
    # Second moments about b, so that little is lost where both are large.
    shift = where(finite, mean - b, 0)
    first = (v + gap**2) * cdf + w * (1 - cdf) + gap * sigma * density
    variance = where(finite, jnp.maximum(first - shift**2, 0), where(p > 0, v, w))
    return mean, variance, p
