"""Secants of activations, the multipliers of Rescale, for all pairs; and RevealCancel's.

`plain` is the difference of values by that of arguments, which is rounding noise where an input is near its reference.
`exact` is good to three digits at least wherever they are: what holds of an activation is written down for it, where a
library has to find it out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from .. import in_jax

# Of values at the inputs and at the references, and of the activation's there: multipliers of pairs (N, R, ...). Each
# ends with the choice of its formula: a multiplier that ends with a division XLA's CPU compiler keeps as two arrays.
Secant = Callable[[Array, Array, Array, Array], Array]

# Derivatives, by the argument and by the value.
SLOPES: dict[str, Callable[[Array, Array], Array]] = {
    "tanh": lambda x, y: 1 - y**2,
    "sigmoid": lambda x, y: y * (1 - y),
}


def derivative(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def slope_of(name: str) -> Callable[[Array, Array], Array]:
    return SLOPES.get(name, lambda x, y: derivative(in_jax.ACTIVATIONS[name])(x))


def quotient(rise: Array, run: Array, unless: Array, then: Array) -> Array:
    """`rise / run`, and something else where it isn't wanted, which may be where `run` is 0."""
    return jnp.where(unless, then, rise / jnp.where(unless, 1, run))


def plain(name: str) -> Secant:
    """The quotient of differences, and the slope at the reference where they are 0."""

    def secant(x: Array, r: Array, y: Array, y_ref: Array) -> Array:
        d = x[:, None] - r
        return quotient(y[:, None] - y_ref, d, d == 0, slope_of(name)(r, y_ref))

    return secant


def by_theorem(c: float, weight: Callable[[Array, Array], Array]) -> Secant:
    """`f(x) - f(r) = tanh(c d) / c * weight(f(x), f(r))`, and `tanh(d) / d` as a fraction."""

    def secant(x: Array, r: Array, y: Array, y_ref: Array) -> Array:
        d = x[:, None] - r
        z = (c * d) ** 2
        near = z < 0.25
        fraction = (105 + 10 * z) / (105 + z * (45 + z))
        return quotient(y[:, None] - y_ref, d, near, weight(y[:, None], y_ref) * fraction)

    return secant


def of_two_rays(name: str) -> Secant:
    """Of ReLUs and leaky ones: one sign, one line; two signs are `|x| + |r|` apart, with 0 between them."""

    def secant(x: Array, r: Array, y: Array, y_ref: Array) -> Array:
        sign, sign_ref, slope = jnp.sign(x), jnp.sign(r), slope_of(name)(x, y)
        same = sign[:, None] == sign_ref
        rise, run = (sign * y)[:, None] + sign_ref * y_ref, jnp.abs(x)[:, None] + jnp.abs(r)
        return quotient(rise, run, same, slope[:, None])

    return secant


def by_cubic(name: str) -> Secant:
    """The mean of `f'` by its values and slopes at both ends, where the quotient is no better than its rounding."""
    first = derivative(in_jax.ACTIVATIONS[name])
    second = derivative(first)

    def secant(x: Array, r: Array, y: Array, y_ref: Array) -> Array:
        d, rise = x[:, None] - r, y[:, None] - y_ref
        mean = first(x)[:, None] / 2 + first(r) / 2 - (second(x)[:, None] - second(r)) / 12 * d
        rounding = 8 * float(jnp.finfo(x.dtype).eps) * (jnp.abs(r) + jnp.abs(y_ref))
        near = jnp.abs(rise - mean * d) <= rounding
        return quotient(rise, d, near, mean)

    return secant


EXACT: dict[str, Secant] = {
    "relu": of_two_rays("relu"),
    "leaky_relu": of_two_rays("leaky_relu"),
    "tanh": by_theorem(1, lambda y, y_ref: 1 - y * y_ref),
    "sigmoid": by_theorem(0.5, lambda y, y_ref: (y * (1 - y_ref) + y_ref * (1 - y)) / 2),
}


def exact(name: str) -> Secant:
    return EXACT.get(name) or by_cubic(name)


def points(x: Array, r: Array, a: Array) -> tuple[Array, Array]:
    """The positive and the negative part of the differences, of which `a` is the variation, for pairs (N, R, ...)."""
    d = x[:, None] - r
    return (d + a) / 2, (d - a) / 2


def variation(f: Callable[[Array], Array], x: Array, r: Array, a: Array) -> Array:
    """RevealCancel's variation of `f`."""
    plus, minus = points(x, r, a)
    return f(r + plus) - f(r + minus)


def parts(name: str, x: Array, r: Array, y: Array, y_ref: Array, a: Array) -> tuple[Array, Array]:
    """RevealCancel's multipliers of both parts, by plain quotients."""
    (plus, minus), slope = points(x, r, a), slope_of(name)
    rise, half = (y[:, None] - y_ref) / 2, variation(in_jax.ACTIVATIONS[name], x, r, a) / 2
    limit = slope(x, y)[:, None] / 2 + slope(r, y_ref) / 2
    return quotient(rise + half, plus, plus == 0, limit), quotient(rise - half, minus, minus == 0, limit)
