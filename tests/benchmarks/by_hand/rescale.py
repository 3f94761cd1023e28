"""Rescale by hand, with a secant for each pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .. import in_jax
from ..networks import Weights
from .layers import Layer, Map, Pull, chain, dense, flat, midpoint, run_lstm
from .secants import Secant

Secants = Callable[[str], Secant]


def activated(secants: Secants, affine: Map, name: str) -> Layer:
    """A linear map and the activation after it."""
    return chain([affine.layer, partial(activation, secants, name)])


def activation(secants: Secants, name: str, x: Array, r: Array) -> tuple[Array, Array, Pull]:
    f = in_jax.ACTIVATIONS[name]
    y, y_ref = f(x), f(r)
    return y, y_ref, lambda cotangent: cotangent * flat(secants(name)(x, r, y, y_ref))


def lstm(secants: Secants, w: Weights) -> Layer:
    """From a sequence to the last hidden state. What is kept is each side's gates and cells."""
    logistic, tanh = secants("sigmoid"), secants("tanh")
    state = w["state"]

    def layer(u: Array, u_ref: Array) -> tuple[Array, Array, Pull]:
        (y, kept), (y_ref, kept_ref) = run_lstm(u, state), run_lstm(u_ref, state)

        def back(carry: tuple[Array, Array], both: tuple[list[Array], list[Array]]) -> tuple[Any, Array]:
            of_h, of_c = carry
            _, c, *sides = zip(*both, strict=True)
            z, (i, f, g, o, after, t) = sides[:4], sides[4:]

            def pulled(cotangent: Array, secant: Secant, x: tuple[Array, Array], y: tuple[Array, Array]) -> Array:
                return cotangent * flat(secant(*x, *y))

            of_after = of_c + pulled(of_h * midpoint(*o), tanh, after, t)
            of_gates = [
                pulled(of_after * midpoint(*g), logistic, z[0], i),
                pulled(of_after * midpoint(*c), logistic, z[1], f),
                pulled(of_after * midpoint(*i), tanh, z[2], g),
                pulled(of_h * midpoint(*t), logistic, z[3], o),
            ]
            of_z = jnp.concatenate(of_gates, -1)
            return (of_z @ state.T, of_after * midpoint(*f)), of_z

        def pull(cotangent: Array) -> Array:
            _, of_u = lax.scan(back, (cotangent, jnp.zeros_like(cotangent)), (kept, kept_ref), reverse=True)
            return of_u.swapaxes(0, 1)

        return y, y_ref, pull

    return chain([dense(w["input"]).layer, layer])
