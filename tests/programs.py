"""Small programs of every family, for the tests that hold for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

RNG = np.random.default_rng(20170402)
W = RNG.normal(size=(6, 5))
V = RNG.normal(size=(5, 6))
B = RNG.normal(size=5)
K = RNG.normal(size=(3, 2, 4))
MASK = np.array([True, False, True, True, False])
NWC = ("NWC", "WIO", "NWC")


@dataclass(frozen=True)
class Program:
    """A function of an array of six numbers.

    Attributes:
        differentiable: whether its multipliers tend to `jax.grad` as the reference tends to the input.
        precision: the dtype that it computes in, if that is not its argument's.
    """

    name: str
    fun: Callable[[Any], Any]
    differentiable: bool = True
    precision: Any = None

    def __str__(self) -> str:
        return self.name


@jax.custom_jvp
def doubled_slope(x):
    """A pointwise function whose own derivative isn't its derivative."""
    return jnp.tanh(x)


doubled_slope.defjvp(lambda primals, tangents: (jnp.tanh(*primals), 2 * (1 - jnp.tanh(*primals) ** 2) * tangents[0]))


@jax.custom_vjp
def cut_cotangent(x):
    """A pointwise function that is known to reverse mode only."""
    return jnp.sin(x)


cut_cotangent.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (jnp.cos(x) * jnp.clip(ct, -1e30, 1e30),))


@jax.custom_vjp
def projected(x):
    """A custom derivative around more than a pointwise function."""
    return jnp.tanh(x @ W.astype(x.dtype))


projected.defvjp(
    lambda x: (jnp.tanh(x @ W.astype(x.dtype)), x),
    lambda x, ct: (((1 - jnp.tanh(x @ W.astype(x.dtype)) ** 2) * ct) @ W.T.astype(x.dtype),),
)


def dense(x):
    return x @ W.astype(x.dtype) + B.astype(x.dtype)


def back(h):
    return h @ V.astype(h.dtype)


def rows(x):
    """Three rows of two."""
    return x.reshape(3, 2)


def conv(x, **kwargs):
    options = {"window_strides": (1,), "padding": "SAME", "dimension_numbers": NWC} | kwargs
    return lax.conv_general_dilated(x.reshape(1, 3, 2), K.astype(x.dtype), **options)


def pool(x, windows, strides, padding="VALID", init=-np.inf, reducer=lax.max, **kwargs):
    return lax.reduce_window(
        jnp.outer(x, jnp.asarray([1, -2, 0.5, 3], x.dtype)), init, reducer, windows, strides, padding, **kwargs
    )


def layer_norm(h):
    return (h - h.mean()) * lax.rsqrt(h.var() + 1e-3)


def flip(x):
    return dense(x[::-1])


PROGRAMS = [
    Program(name, fun)
    for name, fun in {
        # Pointwise functions of any make.
        "relu": lambda x: jax.nn.relu(dense(x)).sum(),
        "relu twice": lambda x: jax.nn.relu(back(jax.nn.relu(dense(x)))).sum(),
        "maximum(., 0)": lambda x: jnp.maximum(dense(x), 0).sum(),
        "gelu": lambda x: jax.nn.gelu(dense(x)).sum(),
        "gelu erf": lambda x: jax.nn.gelu(dense(x), approximate=False).sum(),
        "gelu by hand": lambda x: (lambda h: h * (1 + lax.erf(h / np.sqrt(2).astype(h.dtype))) / 2)(dense(x)).sum(),
        "silu": lambda x: jax.nn.silu(dense(x)).sum(),
        "mish": lambda x: jax.nn.mish(dense(x)).sum(),
        "elu": lambda x: jax.nn.elu(dense(x)).sum(),
        "selu": lambda x: jax.nn.selu(dense(x)).sum(),
        "celu": lambda x: jax.nn.celu(dense(x)).sum(),
        "leaky relu": lambda x: jax.nn.leaky_relu(dense(x)).sum(),
        "softplus": lambda x: jax.nn.softplus(dense(x)).sum(),
        "log sigmoid": lambda x: jax.nn.log_sigmoid(dense(x)).sum(),
        "squareplus": lambda x: jax.nn.squareplus(dense(x)).sum(),
        "soft sign": lambda x: jax.nn.soft_sign(dense(x)).sum(),
        "hard swish": lambda x: jax.nn.hard_swish(dense(x)).sum(),
        "hard tanh": lambda x: jax.nn.hard_tanh(dense(x)).sum(),
        "relu6": lambda x: jax.nn.relu6(3 * dense(x)).sum(),
        "clip": lambda x: jnp.clip(dense(x), -0.5, 0.7).sum(),
        "where": lambda x: (lambda h: jnp.where(h > 0.1, h**2, jnp.sin(h)))(dense(x)).sum(),
        "snake": lambda x: (lambda h: h + jnp.sin(2 * h) ** 2 / 2)(dense(x)).sum(),
        "cube": lambda x: (dense(x) ** 3).sum(),
        "prelu": lambda x: (lambda h: jnp.where(h >= 0, h, h * jnp.asarray(B, h.dtype)))(dense(x)).sum(),
        "deep function": lambda x: _repeat(lambda h: jnp.sin(h) + h * 0.5, 20, dense(x)).sum(),
        "affine only": lambda x: (3 - 2 * dense(x) / 7).sum(),
        "custom_jvp": lambda x: jnp.asarray(B, x.dtype) @ jax.nn.relu(doubled_slope(dense(x))),
        "custom_vjp": lambda x: cut_cotangent(dense(x)).sum(),
        "custom_vjp around a layer": lambda x: projected(x).sum(),
        # Several operands.
        "gate": lambda x: (dense(x) * jax.nn.sigmoid(flip(x))).sum(),
        "glu": lambda x: jax.nn.glu(back(dense(x))).sum(),
        "square by product": lambda x: (dense(x) * dense(x)).sum(),
        "division": lambda x: (dense(x) / (1 + flip(x) ** 2)).sum(),
        "maximum of two": lambda x: jnp.maximum(dense(x), flip(x)).sum(),
        "minimum of three": lambda x: jnp.minimum(jnp.minimum(dense(x), flip(x)), dense(2 * x)).sum(),
        "power": lambda x: jnp.power(jnp.exp(dense(x) / 5), flip(x)).sum(),
        "atan2": lambda x: jnp.arctan2(dense(x), flip(x)).sum(),
        "logaddexp": lambda x: jnp.logaddexp(dense(x), flip(x)).sum(),
        "clamp by values": lambda x: lax.clamp(-jnp.abs(flip(x)), dense(x), jnp.abs(flip(x)) + 1).sum(),
        "masked choice": lambda x: jnp.where(MASK, dense(x), jnp.tanh(flip(x))).sum(),
        "residual": lambda x: jnp.tanh(x + back(jax.nn.relu(dense(x)))).sum(),
        "scalar times array": lambda x: (x[0] * dense(x) + x.sum()).sum(),
        "outer product": lambda x: jnp.tanh(x[:, None] * x[None, :]).sum(),
        # Normalisations.
        "layer norm": lambda x: layer_norm(dense(x)) @ jnp.asarray(B, x.dtype),
        "rms norm": lambda x: jnp.tanh(dense(x) / jnp.sqrt(jnp.mean(dense(x) ** 2) + 1e-3)).sum(),
        "batch norm": lambda x: jax.nn.relu((dense(x) - 0.3) * jnp.asarray(B, x.dtype) + 0.1).sum(),
        "l2 norm": lambda x: jnp.linalg.norm(dense(x)),
        # Linear and structural.
        "conv": lambda x: jax.nn.relu(conv(x)).sum(),
        "strided conv": lambda x: jnp.tanh(conv(x, window_strides=(2,))).sum(),
        "dilated conv": lambda x: jnp.tanh(conv(x, rhs_dilation=(2,))).sum(),
        "transposed conv": lambda x: jnp.tanh(conv(x, lhs_dilation=(2,), padding=((1, 1),))).sum(),
        "average pool": lambda x: jnp.tanh(pool(jax.nn.relu(x), (2, 2), (2, 2), init=0.0, reducer=lax.add)).sum(),
        "concatenate": lambda x: jnp.tanh(jnp.concatenate([dense(x), jnp.ones_like(x), x]) @ np.ones(17, x.dtype)),
        "pad, reverse, transpose": lambda x: jnp.tanh(
            rows(jnp.pad(x, (1, 5))[::-1][3:9]).T @ np.ones(3, x.dtype)
        ).sum(),
        "cumsum": lambda x: jax.nn.relu(jnp.cumsum(x)).sum(),
        "gather": lambda x: jax.nn.relu(dense(x)[np.array([0, 3, 3, 1])]).sum(),
        "scatter add": lambda x: jnp.tanh(jnp.zeros_like(x).at[np.array([0, 1, 1])].add(x[:3])).sum(),
        "scatter set": lambda x: jnp.tanh(dense(x).at[np.array([0, 4])].set(x[:2])).sum(),
        "dynamic slice": lambda x: jnp.tanh(lax.dynamic_slice(dense(x), (1,), (3,))).sum(),
        "dynamic update": lambda x: jnp.tanh(lax.dynamic_update_slice(dense(x), x[:2], (2,))).sum(),
        "split and stack": lambda x: jnp.tanh(jnp.stack(jnp.split(x, 3))).sum(),
        # Bilinear.
        "gram matrix": lambda x: jnp.tanh(rows(x) @ rows(x).T).sum(),
        "attention without softmax": lambda x: ((rows(x) @ rows(dense(x) @ V.astype(x.dtype)).T) @ rows(x)).sum(),
        "convolution by itself": lambda x: jnp.tanh(jnp.convolve(x, x[:3], precision="highest")).sum(),
        # Reductions.
        "max": lambda x: dense(x).max(),
        "min": lambda x: dense(x).min(),
        "max over an axis": lambda x: jnp.tanh(jnp.outer(x, x[:3]).max(1)).sum(),
        "max over two axes": lambda x: jnp.outer(x, x[:3]).max(),
        "max pool": lambda x: pool(x, (2, 2), (2, 2)).sum(),
        "max pool, ragged": lambda x: jnp.tanh(pool(x, (4, 3), (4, 3))).sum(),
        "max pool, overlapping": lambda x: jnp.tanh(pool(x, (3, 2), (1, 2), "SAME")).sum(),
        "max pool, gaps": lambda x: jnp.tanh(pool(x, (1, 2), (2, 3))).sum(),
        "min pool": lambda x: pool(x, (2, 1), (2, 1), init=np.inf, reducer=lax.min).sum(),
        # Calls.
        "jit": lambda x: jax.jit(lambda h: jnp.tanh(h) @ V.astype(h.dtype))(dense(x)).sum(),
        "checkpoint": lambda x: jax.checkpoint(lambda x: jax.nn.gelu(dense(x)))(x).sum(),
        "checkpoint between": lambda x: (lambda h: h * jax.checkpoint(jax.nn.sigmoid)(h))(dense(x)).sum(),
        "vmap": lambda x: jax.vmap(lambda row: jnp.tanh(row[0] * row).max())(rows(x)).sum(),
        "nested": lambda x: jax.jit(jax.checkpoint(jax.jit(lambda x: jnp.tanh(dense(x)).max())))(x),
    }.items()
] + [
    Program("cast", lambda x: jnp.tanh(dense(x).astype(jnp.float32)).sum(), False, jnp.float32),
    Program("stop_gradient", lambda x: (dense(x) * lax.stop_gradient(jax.nn.sigmoid(flip(x)))).sum(), False),
    # JAX itself has no derivative of dilated pooling.
    Program("max pool, dilated", lambda x: jnp.tanh(pool(x, (2, 2), (1, 1), window_dilation=(2, 1))).sum(), False),
    Program("step", lambda x: (dense(x) > 0).astype(x.dtype).sum(), False),
    Program("sign", lambda x: (jnp.sign(dense(x)) * 0.5).sum(), False),
    Program("floor", lambda x: jnp.floor(3 * dense(x)).sum(), False),
    Program(
        "round, straight through", lambda x: (lambda h: h + lax.stop_gradient(jnp.round(h) - h))(dense(x)).sum(), False
    ),
]


def _repeat(step, times, h):
    for _ in range(times):
        h = step(h)
    return h


def input_and_reference(dtype, seed=0):
    """An input and a reference for these programs; one entry doesn't differ."""
    x, r = np.random.default_rng(seed).normal(size=(2, 6))
    r[2] = x[2]
    return np.asarray(x, dtype), np.asarray(r, dtype)
