"""What an attribution must compute and nothing else, written by hand.

`rescale` is Rescale: forward passes of N inputs and of R references, and a backward pass of the N * R pairs, with their
multipliers. Its result is jaxlift's. It is as plain as it can be: the multiplier is the quotient of differences, good
to rounding except very near the reference.

`bare` is the same passes by plain derivatives, for the FLOPs of products: forward passes of N and of R, and a backward
pass of N * R cotangents. Its result means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import in_jax
from .networks import DILATIONS, HEADS, ZOO, Weights

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


def of_pairs(fun: Callable[[Array, Array], Array], x: Array, r: Array) -> Array:
    """A function of an input and a reference, for all pairs of them: (N * R, ...)."""
    both = fun(x[:, None], r)
    return both.reshape(-1, *both.shape[2:])


def midpoint(x: Array, r: Array) -> Array:
    return of_pairs(lambda x, r: (x + r) / 2, x, r)


def secant(y: Array, y_ref: Array, x: Array, r: Array, slope: Array) -> Array:
    """`(y - y_ref) / (x - r)` for all pairs, and the slope at the reference where they don't differ."""
    d = x[:, None] - r
    m = jnp.where(d == 0, slope, (y[:, None] - y_ref) / jnp.where(d == 0, 1, d))
    return m.reshape(-1, *m.shape[2:])


def activation(f: Callable[[Array], Array]) -> Layer:
    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        y, y_ref = f(x), f(r)

        def pull(cotangent: Array) -> Array:
            slope = jax.jvp(f, (r,), (jnp.ones_like(r),))[1]
            return cotangent * secant(y, y_ref, x, r, slope)

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


def layer_norm(x: Array, r: Array) -> tuple[Array, Array, Pull]:
    """`c s` of the centred values `c` and `s = rsqrt(mean(c^2) + epsilon)`: a product takes each factor's midpoint, and

    (s - s_ref) / (v - v_ref) = -(s s_ref)^2 / (s + s_ref)
    """

    def parts(h: Array) -> tuple[Array, Array]:
        centred = h - h.mean(-1, keepdims=True)
        return centred, lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    (c, s), (c_ref, s_ref) = parts(x), parts(r)

    def pull(cotangent: Array) -> Array:
        centre, scale = midpoint(c, c_ref), midpoint(s, s_ref)
        of_scale = (cotangent * centre).sum(-1, keepdims=True)
        of_variance = of_scale * of_pairs(lambda s, t: -((s * t) ** 2) / (s + t), s, s_ref)
        of_centred = cotangent * scale + of_variance * 2 * centre / x.shape[-1]
        return of_centred - of_centred.mean(-1, keepdims=True)

    return c * s, c_ref * s_ref, pull


def attention(w: Weights) -> Layer:
    """Bilinear maps at the other operand's midpoint, and softmax by the logarithmic mean."""

    def split(h: Array) -> Array:
        return h.reshape(*h.shape[:2], HEADS, -1)

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        projected = [dense(each)(x, r) for each in w["qkv"]]
        (q, q_ref), (k, k_ref), (v, v_ref) = [(split(h), split(h_ref)) for h, h_ref, _ in projected]
        scale = q.shape[-1] ** -0.5

        def log_weights(q: Array, k: Array) -> Array:
            return jax.nn.log_softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * scale)

        log_p, log_p_ref = log_weights(q, k), log_weights(q_ref, k_ref)
        p, p_ref = jnp.exp(log_p), jnp.exp(log_p_ref)

        def mixed(p: Array, v: Array) -> Array:
            return jnp.einsum("nhqk,nkhd->nqhd", p, v).reshape(len(p), p.shape[2], -1)

        def pull(cotangent: Array) -> Array:
            cotangent = split(cotangent)
            of_p = jnp.einsum("nqhd,nkhd->nhqk", cotangent, midpoint(v, v_ref))
            of_v = jnp.einsum("nhqk,nqhd->nkhd", midpoint(p, p_ref), cotangent)
            mean = secant(p, p_ref, log_p, log_p_ref, p_ref)
            shares = mean * of_p
            of_logits = scale * (shares - mean * (shares.sum(-1, keepdims=True) / mean.sum(-1, keepdims=True)))
            of_q = jnp.einsum("nhqk,nkhd->nqhd", of_logits, midpoint(k, k_ref))
            of_k = jnp.einsum("nhqk,nqhd->nkhd", of_logits, midpoint(q, q_ref))
            return sum(
                pull_one(of_one.reshape(*of_one.shape[:2], -1))
                for (_, _, pull_one), of_one in zip(projected, (of_q, of_k, of_v), strict=True)
            )

        return mixed(p, v), mixed(p_ref, v_ref), pull

    return layer


def lstm(state: Array) -> Layer:
    """From a sequence of gates' inputs to the last hidden state. What is kept is each side's gates and cells."""

    def one_side(u: Array) -> tuple[Array, list[Array]]:
        def step(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], list[Array]]:
            h, c = carry
            z = jnp.split(u + h @ state, 4, -1)
            i, f, g, o = jax.nn.sigmoid(z[0]), jax.nn.sigmoid(z[1]), jnp.tanh(z[2]), jax.nn.sigmoid(z[3])
            after = f * c + i * g
            t = jnp.tanh(after)
            return (o * t, after), [*z, i, f, g, o, c, after, t]

        zeros = jnp.zeros((len(u), len(state)), u.dtype)
        (h, _), kept = lax.scan(step, (zeros, zeros), u.swapaxes(0, 1))
        return h, kept

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        (y, kept), (y_ref, kept_ref) = one_side(x), one_side(r)

        def back(carry: tuple[Array, Array], both: tuple[list[Array], list[Array]]) -> tuple[Any, Array]:
            of_h, of_c = carry
            sides = list(zip(*both, strict=True))
            z, (i, f, g, o, c, after, t) = sides[:4], sides[4:]

            def by_tanh(y: tuple[Array, Array], x: tuple[Array, Array]) -> Array:
                return secant(*y, *x, 1 - y[1] ** 2)

            def by_sigmoid(y: tuple[Array, Array], x: tuple[Array, Array]) -> Array:
                return secant(*y, *x, y[1] * (1 - y[1]))

            of_after = of_c + of_h * midpoint(*o) * by_tanh(t, after)
            of_gates = [
                of_after * midpoint(*g) * by_sigmoid(i, z[0]),
                of_after * midpoint(*c) * by_sigmoid(f, z[1]),
                of_after * midpoint(*i) * by_tanh(g, z[2]),
                of_h * midpoint(*t) * by_sigmoid(o, z[3]),
            ]
            of_z = jnp.concatenate(of_gates, -1)
            return (of_z @ state.T, of_after * midpoint(*f)), of_z

        def pull(cotangent: Array) -> Array:
            _, of_u = lax.scan(back, (cotangent, jnp.zeros_like(cotangent)), (kept, kept_ref), reverse=True)
            return of_u.swapaxes(0, 1)

        return y, y_ref, pull

    return layer


RELU = activation(jax.nn.relu)
FLAT = linear(lambda h: h.reshape(len(h), -1))


MEAN = linear(lambda h: h.mean(1))


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
        MEAN,
        dense(w["dense"]),
    ],
    "transformer": lambda w: [
        dense(w["embed"]),
        *(
            chain([residual(chain(inner)), layer_norm])
            for layer in w["layers"]
            for inner in (
                [attention(layer), dense(layer["out"])],
                [dense(layer["ff"][0]), RELU, dense(layer["ff"][1])],
            )
        ),
        MEAN,
        dense(w["dense"]),
    ],
    "lstm": lambda w: [dense(w["input"]), lstm(w["state"]), dense(w["dense"])],
    "activations": lambda w: [
        *(chain([dense(w["dense"][i]), activation(in_jax.ACTIVATIONS[name])]) for i, name in enumerate(ZOO)),
        dense(w["dense"][-1]),
    ],
}


def rescale(name: str, w: Weights, x: Array, r: Array) -> Array:
    """The contributions to a network's output, averaged over references."""
    return contributions(LAYERS[name](w), x, r)


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
