"""The networks as JAX functions of weights and inputs `(N, ...)`, with outputs `(N,)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .networks import DILATIONS, HEADS, ZOO, Weights

Affine = tuple[Array, Array]


def dense(h: Array, layer: Affine) -> Array:
    kernel, bias = layer
    return h @ kernel + bias


def conv(h: Array, layer: Affine, **options: Any) -> Array:
    kernel, bias = layer
    return convolution(h, kernel, **options) + bias


def convolution(h: Array, kernel: Array, stride: int = 1, padding: str = "SAME", dilation: int = 1) -> Array:
    """Over one axis or two, channels last."""
    axes = h.ndim - 2
    numbers = ("NWC", "WIO", "NWC") if axes == 1 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        h, kernel, (stride,) * axes, padding, rhs_dilation=(dilation,) * axes, dimension_numbers=numbers
    )


def pool(h: Array, size: int) -> Array:
    return lax.reduce_window(h, -jnp.inf, lax.max, (1, size, 1), (1, size, 1), "VALID")


def classifier(h: Array, layers: Sequence[Affine]) -> Array:
    """Dense layers with ReLUs between, to one output."""
    for layer in layers[:-1]:
        h = jax.nn.relu(dense(h, layer))
    return dense(h, layers[-1])[:, 0]


def mlp(w: Weights, x: Array) -> Array:
    return classifier(x, w["dense"])


def mnist_cnn(w: Weights, x: Array) -> Array:
    for layer in w["conv"]:
        x = jax.nn.relu(conv(x, layer, stride=2, padding="VALID"))
    return classifier(x.reshape(len(x), -1), w["dense"])


def max_pooling(w: Weights, x: Array) -> Array:
    for layer in w["conv"]:
        x = pool(jax.nn.relu(conv(x, layer)), 4)
    return classifier(x.reshape(len(x), -1), w["dense"])


def bpnet(w: Weights, x: Array) -> Array:
    h = jax.nn.relu(conv(x, w["first"]))
    for dilation, layer in zip(DILATIONS, w["rest"], strict=True):
        h = h + jax.nn.relu(conv(h, layer, dilation=dilation))
    return dense(h.mean(1), w["dense"])[:, 0]


def layer_norm(h: Array) -> Array:
    return (h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)


def transformer(w: Weights, x: Array) -> Array:
    def split(h: Array) -> Array:
        return h.reshape(*h.shape[:2], HEADS, -1)

    h = dense(x, w["embed"])
    for layer in w["layers"]:
        q, k, v = (split(dense(h, each)) for each in layer["qkv"])
        attention = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", attention, v).reshape(h.shape)
        h = layer_norm(h + dense(mixed, layer["out"]))
        up, down = layer["ff"]
        h = layer_norm(h + dense(jax.nn.relu(dense(h, up)), down))
    return dense(h.mean(1), w["dense"])[:, 0]


def lstm(w: Weights, x: Array) -> Array:
    def step(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], None]:
        h, c = carry
        i, f, g, o = jnp.split(u + h @ w["state"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((len(x), len(w["state"])), x.dtype)
    (h, _), _ = lax.scan(step, (zeros, zeros), dense(x, w["input"]).swapaxes(0, 1))
    return dense(h, w["dense"])[:, 0]


def activations(w: Weights, x: Array) -> Array:
    *hidden, last = w["dense"]
    for name, layer in zip(ZOO, hidden, strict=True):
        x = ACTIVATIONS[name](dense(x, layer))
    return dense(x, last)[:, 0]


ACTIVATIONS = {name: getattr(jax.nn, name) for name in ZOO} | {"gelu": lambda h: jax.nn.gelu(h, approximate=False)}
MODELS = {f.__name__: f for f in (mlp, mnist_cnn, max_pooling, bpnet, transformer, lstm, activations)}
