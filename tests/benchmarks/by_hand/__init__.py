"""What an attribution must compute and nothing else, written by hand for each network. Results are jaxlift's.

`floor` is Rescale as plain as it can be: forward passes of N inputs and of R references, and a backward pass of the
N * R pairs, with quotients of differences for multipliers, good to rounding except very near the reference.
`exact_floor` is the same with secants that are good there too, and `revealcancel_floor` has a forward and a backward
pass of N * R variations besides.

`bare` is the passes of Rescale by plain derivatives, for the FLOPs of products: forward passes of N and of R, and a
backward pass of N * R cotangents. Its result means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import in_jax
from ..networks import DILATIONS, ZOO, Weights
from . import rescale, revealcancel
from .layers import Layer, Map, attention, chain, conv, dense, layer_norm, linear, pool, residual
from .secants import exact, plain


class Rule(NamedTuple):
    """A linear map with the activation after it, by the activation's name; and an LSTM."""

    activated: Callable[[Map, str], Layer]
    lstm: Callable[[Weights], Layer]


FLOORS = {
    "floor": Rule(partial(rescale.activated, plain), partial(rescale.lstm, plain)),
    "exact_floor": Rule(partial(rescale.activated, exact), partial(rescale.lstm, exact)),
    "revealcancel_floor": Rule(revealcancel.activated, revealcancel.lstm),
}

FLAT = linear(lambda h: h.reshape(len(h), -1))
MEAN = linear(lambda h: h.mean(1))
SUM = linear(lambda h: h.sum(1, keepdims=True))


def relu(rule: Rule, affine: Map) -> Layer:
    return rule.activated(affine, "relu")


def classifier(rule: Rule, layers: Sequence[tuple[Array, Array]]) -> list[Layer]:
    *hidden, last = layers
    return [*(relu(rule, dense(each)) for each in hidden), dense(last).layer]


LAYERS: dict[str, Callable[[Rule, Weights], list[Layer]]] = {
    "mlp": lambda rule, w: classifier(rule, w["dense"]),
    "mnist_cnn": lambda rule, w: [
        *(relu(rule, conv(each, stride=2, padding="VALID")) for each in w["conv"]),
        FLAT,
        *classifier(rule, w["dense"]),
    ],
    "max_pooling": lambda rule, w: [
        *(chain([relu(rule, conv(each)), pool(4)]) for each in w["conv"]),
        FLAT,
        *classifier(rule, w["dense"]),
    ],
    "bpnet": lambda rule, w: [
        relu(rule, conv(w["first"])),
        *(residual(relu(rule, conv(each, dilation=d))) for each, d in zip(w["rest"], DILATIONS, strict=True)),
        MEAN,
        dense(w["dense"]).layer,
    ],
    "transformer": lambda rule, w: [
        dense(w["embed"]).layer,
        *(
            chain([residual(chain(inner)), layer_norm])
            for layer in w["layers"]
            for inner in ([attention(layer), dense(layer["out"]).layer], classifier(rule, layer["ff"]))
        ),
        MEAN,
        dense(w["dense"]).layer,
    ],
    "lstm": lambda rule, w: [rule.lstm(w), dense(w["dense"]).layer],
    "activations": lambda rule, w: [
        *(rule.activated(dense(each), name) for each, name in zip(w["dense"][:-1], ZOO, strict=True)),
        dense(w["dense"][-1]).layer,
    ],
}


def attribution(rule: Rule, name: str) -> Callable[[Weights, Array, Array], Array]:
    """The contributions to a network's output, averaged over references."""
    return lambda w, x, r: contributions(LAYERS[name](rule, w), x, r)


def contributions(layers: Sequence[Layer], x: Array, r: Array) -> Array:
    y, y_ref, pull = chain(layers)(x, r)
    multipliers = pull(jnp.ones((len(y) * len(y_ref), 1), x.dtype)).reshape(len(x), len(r), *x.shape[1:])
    return (multipliers * (x[:, None] - r)).mean(1)


def bare(name: str, w: Weights, x: Array, r: Array) -> Array:
    """The same passes by plain derivatives. Cotangents depend on the references, so that nothing is left out."""
    model = in_jax.MODELS[name]
    y_ref = model(w, r)

    def of_one(x: Array) -> Array:
        _, pull = jax.vjp(lambda x: model(w, x[None])[0], x)
        return jax.vmap(lambda cotangent, r: pull(cotangent)[0] * (x - r))(1 + 0.1 * jnp.tanh(y_ref), r).mean(0)

    return jax.vmap(of_one)(x)
