"""Layers that lead inputs and references on, and the cotangents of their pairs back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import in_jax
from ..networks import HEADS, Weights
from .secants import quotient

Pull = Callable[[Array], Array]
# From inputs and references to the same one layer on, and what pulls the cotangents of pairs (N * R, ...) back.
Layer = Callable[[Array, Array], tuple[Array, Array, Pull]]


@dataclass(frozen=True)
class Map:
    """A dense layer or a convolution, `of(h, kernel) + bias`."""

    of: Callable[[Array, Array], Array]
    kernel: Array
    bias: Array

    def linear(self, h: Array) -> Array:
        return self.of(h, self.kernel)

    def absolute(self, h: Array) -> Array:
        """The same with `|kernel|`."""
        return self.of(h, jnp.abs(self.kernel))

    def layer(self, x: Array, r: Array) -> tuple[Array, Array, Pull]:
        return linear(self.linear, self.bias)(x, r)


def dense(affine: tuple[Array, Array]) -> Map:
    return Map(jnp.matmul, *affine)


def conv(affine: tuple[Array, Array], **options: int | str) -> Map:
    return Map(lambda h, kernel: in_jax.convolution(h, kernel, **options), *affine)


def transposed(fun: Callable[[Array], Array], like: Array, cotangent: Array) -> Array:
    """What a linear function of rows like these makes of cotangents, which may be more of them."""
    rows = jax.ShapeDtypeStruct((len(cotangent), *like.shape[1:]), like.dtype)
    return jax.linear_transpose(fun, rows)(cotangent)[0]


def linear(fun: Callable[[Array], Array], bias: Array | float = 0.0) -> Layer:
    return lambda x, r: (fun(x) + bias, fun(r) + bias, lambda cotangent: transposed(fun, x, cotangent))


def of_pairs(fun: Callable[..., Array], *both: tuple[Array, Array]) -> Array:
    """A function of values at an input and at a reference, for all pairs of them: (N * R, ...)."""
    return flat(fun(*(value for x, r in both for value in (x[:, None], r))))


def flat(pairs: Array) -> Array:
    """The pairs (N, R, ...) as rows (N * R, ...)."""
    return pairs.reshape(-1, *pairs.shape[2:])


def mean(x: Array, r: Array) -> Array:
    """Of both, for pairs (N, R, ...)."""
    return (x[:, None] + r) / 2


def midpoint(x: Array, r: Array) -> Array:
    return flat(mean(x, r))


def pool(size: int) -> Layer:
    """A maximum over windows that don't overlap: the change goes to the elements that are the maximum on the larger
    side, in equal parts.
    """

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        windows, windows_ref = (h.reshape(len(h), -1, size, h.shape[-1]) for h in (x, r))
        y, y_ref = windows.max(2), windows_ref.max(2)

        def shares_of(h: Array) -> Array:
            ties = h == h.max(2, keepdims=True)
            return ties / ties.sum(2, keepdims=True)

        shares, shares_ref = lax.optimization_barrier((shares_of(windows), shares_of(windows_ref)))

        def pull(cotangent: Array) -> Array:
            rise = (y[:, None] - y_ref)[..., None, :]
            share = jnp.where(rise >= 0, shares[:, None], shares_ref)
            d = windows[:, None] - windows_ref
            both = (shares[:, None] > 0) & (shares_ref > 0)
            multiplier = jnp.where(both | (d == rise), 1, rise / jnp.where(d == 0, 1, d))
            of_outputs = cotangent.reshape(rise.shape)
            return jnp.where(share > 0, of_outputs * (share * multiplier), 0).reshape(len(cotangent), *x.shape[1:])

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
    """`y = c / s` of the centred values `c` and `s = sqrt(v + epsilon)` with `v = mean(c^2)`: exactly,

    y - y_ref = (c - c_ref - y_mid (s - s_ref)) / s_mid    and    s - s_ref = (v - v_ref) / (2 s_mid)
    """

    def parts(h: Array) -> tuple[Array, Array, Array]:
        centred = h - h.mean(-1, keepdims=True)
        root = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred, root, centred / root

    (c, s, y), (c_ref, s_ref, y_ref) = parts(x), parts(r)

    def pull(cotangent: Array) -> Array:
        scale = 1 / midpoint(s, s_ref)
        of_root = (cotangent * of_pairs(jnp.add, (y, y_ref))).sum(-1, keepdims=True) * scale / -2
        slope = of_root * scale / 2 / x.shape[-1]  # of the mean square, twice
        of_centred = cotangent * scale + slope * of_pairs(jnp.add, (c, c_ref))
        return of_centred - of_centred.mean(-1, keepdims=True)

    return y, y_ref, pull


def attention(w: Weights) -> Layer:
    """Bilinear maps at the other operand's midpoint, and softmax by the logarithmic mean."""

    def split(h: Array) -> Array:
        return h.reshape(*h.shape[:2], HEADS, -1)

    def layer(x: Array, r: Array) -> tuple[Array, Array, Pull]:
        projected = [dense(each).layer(x, r) for each in w["qkv"]]
        (q, q_ref), (k, k_ref), (v, v_ref) = [(split(h), split(h_ref)) for h, h_ref, _ in projected]
        scale = q.shape[-1] ** -0.5

        def log_weights(q: Array, k: Array) -> Array:
            return jax.nn.log_softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * scale)

        log_p, log_p_ref = log_weights(q, k), log_weights(q_ref, k_ref)
        p, p_ref = jnp.exp(log_p), jnp.exp(log_p_ref)

        def mixed(p: Array, v: Array) -> Array:
            return jnp.einsum("nhqk,nkhd->nqhd", p, v).reshape(len(p), p.shape[2], -1)

        def logarithmic_mean(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
            return quotient(p - q, log_p - log_q, log_p == log_q, q)

        def pull(cotangent: Array) -> Array:
            cotangent = split(cotangent)
            of_p = jnp.einsum("nqhd,nkhd->nhqk", cotangent, midpoint(v, v_ref))
            of_v = jnp.einsum("nhqk,nqhd->nkhd", midpoint(p, p_ref), cotangent)
            weights = of_pairs(logarithmic_mean, (p, p_ref), (log_p, log_p_ref))
            shares = weights * of_p
            of_logits = scale * (shares - weights * (shares.sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)))
            of_q = jnp.einsum("nhqk,nkhd->nqhd", of_logits, midpoint(k, k_ref))
            of_k = jnp.einsum("nhqk,nqhd->nkhd", of_logits, midpoint(q, q_ref))
            return sum(
                pull_one(of_one.reshape(*of_one.shape[:2], -1))
                for (_, _, pull_one), of_one in zip(projected, (of_q, of_k, of_v), strict=True)
            )

        return mixed(p, v), mixed(p_ref, v_ref), pull

    return layer


def run_lstm(u: Array, state: Array) -> tuple[Array, list[Array]]:
    """From a sequence of gates' inputs to the last hidden state, and for each step what is kept of it: the state and
    the cell before it, what the four gates are of, the input, forget, cell and output gates, the cell and its tanh.
    """

    def step(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], list[Array]]:
        h, c = carry
        z = jnp.split(u + h @ state, 4, -1)
        i, f, g, o = jax.nn.sigmoid(z[0]), jax.nn.sigmoid(z[1]), jnp.tanh(z[2]), jax.nn.sigmoid(z[3])
        after = f * c + i * g
        t = jnp.tanh(after)
        return (o * t, after), [h, c, *z, i, f, g, o, after, t]

    zeros = jnp.zeros((len(u), len(state)), u.dtype)
    (h, _), kept = lax.scan(step, (zeros, zeros), u.swapaxes(0, 1))
    return h, kept
