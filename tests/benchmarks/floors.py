"""What an attribution must compute and nothing else, written by hand.

`rescale` is Rescale for networks that are chains of layers: forward passes of N inputs and of R references, and a
backward pass of the N * R pairs, multipliers and all. Its result is jaxlift's. It is as plain as it can be: the
multiplier is the quotient of differences, good to rounding except very near the reference.

For attention and loops that would be an implementation of DeepLIFT. `bare` is for any network: forward passes of N and
of R, and a backward pass of N * R cotangents by plain derivatives. Its result means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from . import in_jax
from .networks import DILATIONS, ZOO, Weights

Pull = Callable[[Array], Array]
# From inputs and references to the same one layer on, and what pulls the cotangents of pairs (N * R, ...) back.
Layer = Callable[[Array, Array], tuple[Array, Array, Pull]]


def linear(fun: Callable[[Array], Array], bias: Array | float = 0.0) -> Layer:
    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        def pull(cotangent: Array) -> Array:
            rows = jax.ShapeDtypeStruct((len(cotangent), *x.shape[1:]), x.dtype)
            return jax.linear_transpose(fun, rows)(cotangent)[0]

        return fun(x) + bias, fun(r) + bias, pull

    return layer


def dense(affine: tuple[Array, Array]) -> Layer:
    kernel, bias = affine
    return linear(lambda h: h @ kernel, bias)


def conv(affine: tuple[Array, Array], **options: int | str) -> Layer:
    kernel, bias = affine
    return linear(lambda h: in_jax.convolution(h, kernel, **options), bias)


def activation(f: Callable[[Array], Array]) -> Layer:
    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        y, y_ref = f(x), f(r)

        def pull(cotangent: Array) -> Array:
            d = x[:, None] - r
            slope = jax.jvp(f, (r,), (jnp.ones_like(r),))[1]
            m = jnp.where(d == 0, slope, (y[:, None] - y_ref) / jnp.where(d == 0, 1, d))
            return cotangent * m.reshape(cotangent.shape)

        return y, y_ref, pull

    return layer


def pool(size: int) -> Layer:
    """A maximum over windows that don't overlap: the change goes to the element that is the maximum on the larger
    side.
    """

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        windows, windows_ref = (h.reshape(len(h), -1, size, h.shape[-1]) for h in (x, r))
        (y, first), (y_ref, first_ref) = ((h.max(2), h.argmax(2)) for h in (windows, windows_ref))

        def pull(cotangent: Array) -> Array:
            winner = jnp.where(y[:, None] >= y_ref, first[:, None], first_ref)[..., None, :]
            rise = (y[:, None] - y_ref)[..., None, :]
            d = windows[:, None] - windows_ref
            share = jnp.where(d == rise, 1, rise / jnp.where(d == 0, 1, d))
            won = winner == jnp.arange(size)[:, None]
            of_outputs = cotangent.reshape(rise.shape)
            return jnp.where(won, of_outputs * share, 0).reshape(len(cotangent), *x.shape[1:])

        return y, y_ref, pull

    return layer


def chain(layers: Sequence[Layer]) -> Layer:
    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        pulls = []
        for each in layers:
            x, r, pull = each(x, r)
            pulls.append(pull)

        def pull_all(cotangent: Array) -> Array:
            for pull in reversed(pulls):
                cotangent = pull(cotangent)
            return cotangent

        return x, r, pull_all

    return layer


def residual(inner: Layer) -> Layer:
    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        y, y_ref, pull = inner(x, r)
        return x + y, r + y_ref, lambda cotangent: cotangent + pull(cotangent)

    return layer


RELU = activation(jax.nn.relu)
FLAT = linear(lambda h: h.reshape(len(h), -1))


def classifier(layers: Sequence[tuple[Array, Array]]) -> list[Layer]:
    *hidden, last = layers
    return [*(chain([dense(each), RELU]) for each in hidden), dense(last)]


LAYERS: dict[str, Callable[[Weights], list[Layer]]] = {
    "mlp": lambda w: classifier(w["dense"]),
    "mnist_cnn": lambda w: [
        *(chain([conv(each, stride=2, padding="VALID"), RELU]) for each in w["conv"]),
        FLAT,
        *classifier(w["dense"]),
    ],
    "max_pooling": lambda w: [
        *(chain([conv(each), RELU, pool(4)]) for each in w["conv"]),
        FLAT,
        *classifier(w["dense"]),
    ],
    "bpnet": lambda w: [
        conv(w["first"]),
        RELU,
        *(residual(chain([conv(w["rest"][i], dilation=d), RELU])) for i, d in enumerate(DILATIONS)),
        linear(lambda h: h.mean(1)),
        dense(w["dense"]),
    ],
    "activations": lambda w: [
        *(chain([dense(w["dense"][i]), activation(in_jax.ACTIVATIONS[name])]) for i, name in enumerate(ZOO)),
        dense(w["dense"][-1]),
    ],
}


def rescale(name: str, w: Weights, x: Array, r: Array) -> Array:
    """The contributions, averaged over references."""
    y, y_ref, pull = chain(LAYERS[name](w))(x, r)
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
