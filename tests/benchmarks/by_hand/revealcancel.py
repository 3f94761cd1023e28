"""RevealCancel by hand. A linear map begins a variation, `|L| |D|`, so each layer ends those of the layer after it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .. import in_jax
from ..networks import Weights
from .layers import Layer, Map, Pull, dense, flat, mean, run_lstm, transposed
from .secants import parts, variation

GATES = ("sigmoid", "sigmoid", "tanh", "sigmoid")


def pulled(name: str, x: Any, y: Any, a: Array, cotangent: Array, of_variation: Array | float = 0.0) -> list[Array]:
    """The cotangents of an activation's difference and of its variation, of pairs (N, R, ...)."""
    plus, minus = parts(name, *x, *y, a)
    plus, minus = plus * (cotangent + of_variation) / 2, minus * (cotangent - of_variation) / 2
    return [plus + minus, plus - minus]


def activated(affine: Map, name: str) -> Layer:
    """A linear map and the activation after it."""
    f = in_jax.ACTIVATIONS[name]

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        z, z_ref, pull_linear = affine.layer(x, r)
        y, y_ref = f(z), f(z_ref)

        def pull(cotangent: Array) -> Array:
            d = flat(x[:, None] - r)
            a = affine.absolute(jnp.abs(d))
            # Not before the cotangent is there: XLA would make, and keep, those of all layers.
            a = jnp.where(jnp.isnan(cotangent), 1, a).reshape(len(x), len(r), *a.shape[1:])
            of_z, of_a = pulled(name, (z, z_ref), (y, y_ref), a, cotangent.reshape(a.shape))
            return pull_linear(flat(of_z)) + jnp.sign(d) * transposed(affine.absolute, x, flat(of_a))

        return y, y_ref, pull

    return layer


def lstm(w: Weights) -> Layer:
    """From a sequence to the last hidden state: the variations of all steps forward, then back as under Rescale."""
    affine, state, absolute = dense(w["input"]), w["state"], jnp.abs(w["state"])
    functions = [in_jax.ACTIVATIONS[name] for name in GATES]

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        u, u_ref, pull_linear = affine.layer(x, r)
        (y, kept), (y_ref, kept_ref) = run_lstm(u, state), run_lstm(u_ref, state)
        n, m, width = len(x), len(r), len(state)
        d = flat(x[:, None] - r)

        def apart(rows: Array) -> list[Array]:
            return jnp.split(rows.reshape(n, m, -1), 4, -1)

        def forward(a_c: Array, step: Any) -> tuple[Array, Any]:
            """The variations of the gates' arguments and of the cell; a product takes each factor's midpoint."""
            a_u, both = step
            h, c, *sides = zip(*both, strict=True)
            z, (i, f, g, _, _, _) = sides[:4], sides[4:]
            a = apart(a_u + jnp.abs(flat(h[0][:, None] - h[1])) @ absolute)
            a_i, a_f, a_g = (variation(functions[k], *z[k], a[k]) for k in range(3))
            a_c = jnp.abs(mean(*f)) * a_c + jnp.abs(mean(*c)) * a_f + jnp.abs(mean(*i)) * a_g + jnp.abs(mean(*g)) * a_i
            return a_c, (a, a_c)

        def back(carry: tuple[Array, Array, Array], step: Any) -> tuple[Any, tuple[Array, Array]]:
            of_h, of_c, of_a_c = carry
            (a, a_c), both = step
            h, c, *sides = zip(*both, strict=True)
            z, (i, f, g, o, after, t) = sides[:4], sides[4:]

            through = pulled("tanh", after, t, a_c, of_h * mean(*o))
            of_c, of_a_c = of_c + through[0], of_a_c + through[1]
            factors = [mean(*other) for other in (g, c, i)]
            gates = [
                pulled(GATES[k], z[k], y, a[k], of_c * factors[k], of_a_c * jnp.abs(factors[k]))
                for k, y in enumerate((i, f, g))
            ]
            gates.append(pulled(GATES[3], z[3], o, a[3], of_h * mean(*t)))
            of_z, of_a = (flat(jnp.concatenate(each, -1)) for each in zip(*gates, strict=True))
            of_h = of_z @ state.T + jnp.sign(flat(h[0][:, None] - h[1])) * (of_a @ absolute.T)
            return (of_h.reshape(n, m, width), of_c * mean(*f), of_a_c * jnp.abs(mean(*f))), (of_z, of_a)

        def pull(cotangent: Array) -> Array:
            zeros, both = jnp.zeros((n, m, width), x.dtype), (kept, kept_ref)
            _, made = lax.scan(forward, zeros, (affine.absolute(jnp.abs(d)).swapaxes(0, 1), both))
            start = cotangent.reshape(zeros.shape), zeros, zeros
            _, of_both = lax.scan(back, start, (made, both), reverse=True)
            of_z, of_a = (each.swapaxes(0, 1) for each in of_both)
            return pull_linear(of_z) + jnp.sign(d) * transposed(affine.absolute, x, of_a)

        return y, y_ref, pull

    return layer
