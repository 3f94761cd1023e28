"""A network of AlphaGenome's shape (Avsec et al. 2025), small, after its published description.

A tower of weight-standardised convolutions lowers the resolution step by step; a transformer, whose attention has
rotary positions, bounded logits and a bias from pairs of positions, works at the coarsest; a decoder goes back up, with
skips from the tower. Heads read tracks at both ends of it, and a map of contacts from the pairs. Parameters are float32
and most of the computation bfloat16.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

EPSILON = 1e-5


@dataclass(frozen=True)
class Sizes:
    """How large it is.

    Attributes:
        channels: at single bases.
        growth: channels that each step of the tower adds.
        pools: how many positions each step makes one. AlphaGenome has seven steps of two from 1 to 128 bases.
        layers: of the transformer.
        heads: of attention, each of 8 numbers.
        tracks: that each head for tracks has.
    """

    channels: int = 16
    growth: int = 4
    pools: tuple[int, ...] = (4, 4, 4, 2)
    layers: int = 1
    heads: int = 4
    tracks: int = 2


SIZE = 8  # numbers in a query, a key and a value


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(1.702 * x) * x


def product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of numbers that may have few digits, summed with more: of bfloat16 it is float32.

    The operands are widened first, which changes no number: not every layout of bfloat16 has products on CPUs.
    """
    if x.dtype != jnp.bfloat16:
        return jnp.einsum(equation, x, y)
    few = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    return jnp.einsum(equation, *(a.astype(jnp.float32) for a in (x, y)), precision=few)


class Norm(nnx.Module):
    """Batch normalisation by the root of the mean square; no mean is taken away."""

    def __init__(self, channels: int) -> None:
        self.scale, self.offset = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.square = nnx.BatchStat(jnp.ones(channels))
        self.use_running_average = False  # .eval() and .train() say so

    def __call__(self, x: jax.Array) -> jax.Array:
        square = self.square[...]
        if not self.use_running_average:
            square = jnp.square(x.astype(square.dtype)).mean(tuple(range(x.ndim - 1)))
            self.square[...] = 0.95 * self.square[...] + 0.05 * square
        factor = self.scale[...] * jax.lax.rsqrt(square + EPSILON)
        return x * factor.astype(x.dtype) + self.offset[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Over channels, computed in the parameters' dtype."""

    def __init__(self, channels: int) -> None:
        self.scale, self.offset = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.scale[...].dtype)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + EPSILON)
        return (h * self.scale[...] + self.offset[...]).astype(x.dtype)


class Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Conv(nnx.Module):
    """A convolution whose kernel is made of mean 0 and of one size, for each of its channels."""

    def __init__(self, inputs: int, outputs: int, width: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (width, inputs, outputs)))
        self.scale, self.bias = nnx.Param(jnp.ones(outputs)), nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        kernel = kernel - kernel.mean((0, 1))
        variance = jnp.square(kernel).mean((0, 1)) * kernel.shape[0] * kernel.shape[1]
        kernel = (kernel * self.scale[...] * jax.lax.rsqrt(jnp.maximum(variance, 1e-4))).astype(x.dtype)
        h = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
        return h + self.bias[...].astype(x.dtype)


class ConvBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, width: int = 5) -> None:
        self.norm, self.conv = Norm(inputs), Conv(inputs, outputs, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(gelu(self.norm(x)))


class Down(nnx.Module):
    """More channels, then a lower resolution."""

    def __init__(self, inputs: int, outputs: int, pool: int, rngs: nnx.Rngs) -> None:
        self.pool = pool
        self.blocks = nnx.List([ConvBlock(inputs, outputs, rngs), ConvBlock(outputs, outputs, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.blocks
        h = first(x)
        h = h + jnp.pad(x, ((0, 0), (0, 0), (0, h.shape[2] - x.shape[2])))
        h = h + second(h)
        return nnx.max_pool(h, (self.pool,), (self.pool,))


class Up(nnx.Module):
    """A higher resolution, and what the tower had there."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.narrow, self.last = ConvBlock(inputs, outputs, rngs), ConvBlock(outputs, outputs, rngs)
        self.skip = ConvBlock(outputs, outputs, rngs, width=1)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        h = self.narrow(x) + x[:, :, : skip.shape[2]]
        h = jnp.repeat(h, skip.shape[1] // h.shape[1], axis=1) * self.scale[...].astype(x.dtype) + self.skip(skip)
        return h + self.last(h)


def rotate(x: jax.Array) -> jax.Array:
    """Turn pairs of channels by angles that grow with the position: `(N, S, H, C)`."""
    angles = jnp.arange(x.shape[1])[:, None, None] / 100 ** jnp.linspace(0, 1, x.shape[3] // 2)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


class Attention(nnx.Module):
    """All heads share keys and values; logits stay between -5 and 5."""

    def __init__(self, channels: int, pairs: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm, self.norm_pairs, self.norm_out = Norm(channels), Norm(pairs), Norm(channels)
        self.query = Linear(channels, heads * SIZE, rngs)
        self.key, self.value = Linear(channels, SIZE, rngs), Linear(channels, SIZE, rngs)
        self.norms = nnx.List([LayerNorm(SIZE) for _ in range(3)])
        self.bias, self.out = Linear(pairs, heads, rngs), Linear(heads * SIZE, channels, rngs)

    def __call__(self, x: jax.Array, pairs: jax.Array) -> jax.Array:
        h = self.norm(x)
        query = self.query(h).reshape(*h.shape[:2], -1, SIZE)
        parts = query, self.key(h)[:, :, None], self.value(h)[:, :, None]
        query, key, value = (norm(part) for norm, part in zip(self.norms, parts, strict=True))
        logits = product("nshc,ntc->nhst", rotate(query), rotate(key)[:, :, 0]) / np.sqrt(SIZE)
        bias = self.bias(gelu(self.norm_pairs(pairs))).transpose(0, 3, 1, 2)
        logits = 5 * jnp.tanh((logits + bias) / 5)
        weights = jax.nn.softmax(logits).astype(x.dtype)
        mixed = product("nhst,ntc->nshc", weights, value[:, :, 0]).astype(x.dtype)
        return self.norm_out(self.out(mixed.reshape(*h.shape[:2], -1)))


class Perceptron(nnx.Module):
    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.norm, self.norm_out = Norm(channels), Norm(channels)
        self.wide, self.narrow = Linear(channels, 2 * channels, rngs), Linear(2 * channels, channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm_out(self.narrow(nnx.relu(self.wide(self.norm(x)))))


class Pairs(nnx.Module):
    """Pairs of positions, from products of both, either of them, and their distance; then attention along rows."""

    def __init__(self, channels: int, pairs: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm, self.norm_pairs = Norm(channels), LayerNorm(pairs)
        self.query, self.key = (Linear(channels, heads * SIZE, rngs) for _ in range(2))
        self.products = Linear(heads, pairs, rngs)
        self.first, self.second = (Linear(channels, pairs, rngs) for _ in range(2))
        self.distance = Linear(8, pairs, rngs)
        self.rows = nnx.List([Linear(pairs, pairs, rngs) for _ in range(3)])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x)
        query, key = (part(h).reshape(*h.shape[:2], -1, SIZE) for part in (self.query, self.key))
        between = product("nshc,nthc->nsth", query, key).astype(x.dtype)
        place = np.arange(h.shape[1])
        near = np.abs(place[:, None] - place)[..., None] <= np.array([0, 1, 2, 4])
        signed = near * np.sign(place[:, None] - place)[..., None]
        distance = self.distance(jnp.asarray(np.concatenate([near, signed], -1), x.dtype))
        pairs = self.products(between) + self.first(gelu(h))[:, :, None] + self.second(gelu(h))[:, None] + distance
        query, key, value = (row(self.norm_pairs(pairs)) for row in self.rows)
        logits = product("nsic,nsjc->nsij", query, key) / np.sqrt(query.shape[-1])
        return pairs + product("nsij,nsjc->nsic", jax.nn.softmax(logits).astype(x.dtype), value).astype(x.dtype)


class Head(nnx.Module):
    """Positive numbers, in the parameters' dtype."""

    def __init__(self, channels: int, tracks: int, rngs: nnx.Rngs) -> None:
        self.norm, self.linear = Norm(channels), Linear(channels, tracks, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.softplus(self.linear(gelu(self.norm(x)).astype(self.linear.kernel[...].dtype)))


class Network(nnx.Module):
    """From one-hot sequences to tracks at the finest and the coarsest resolution, and contacts at the coarsest.

    Args:
        dtype: of the computation between the input and the heads.
    """

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, dtype: DTypeLike = jnp.bfloat16) -> None:
        self.dtype = dtype
        widths = [sizes.channels + sizes.growth * n for n in range(len(sizes.pools) + 1)]
        steps = list(itertools.pairwise(widths))
        coarse, pairs = widths[-1], sizes.channels
        self.stem, self.first = Conv(4, widths[0], 15, rngs), ConvBlock(widths[0], widths[0], rngs)
        self.tower = nnx.List([Down(*step, pool, rngs) for step, pool in zip(steps, sizes.pools, strict=True)])
        self.pairs = Pairs(coarse, pairs, sizes.heads, rngs)
        self.attention = nnx.List([Attention(coarse, pairs, sizes.heads, rngs) for _ in range(sizes.layers)])
        self.perceptrons = nnx.List([Perceptron(coarse, rngs) for _ in range(sizes.layers)])
        self.decoder = nnx.List([Up(coarser, fine, rngs) for fine, coarser in reversed(steps)])
        self.fine, self.coarse = Head(widths[0], sizes.tracks, rngs), Head(coarse, sizes.tracks, rngs)
        self.contacts = Head(pairs, 1, rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """`(N, L, 4)` to `bases` `(N, L, tracks)`, and of B bins `bins` `(N, B, tracks)` and `contacts` `(N, B, B)`."""
        h = self.stem(x.astype(self.dtype))
        h = h + self.first(h)
        skips = []
        for down in self.tower:
            skips.append(h)
            h = down(h)
        pairs = self.pairs(h)
        for attention, perceptron in zip(self.attention, self.perceptrons, strict=True):
            h = h + attention(h, pairs)
            h = h + perceptron(h)
        bins = self.coarse(h)
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            h = up(h, skip)
        contacts = self.contacts(pairs + pairs.swapaxes(1, 2))[..., 0]
        return {"bases": self.fine(h), "bins": bins, "contacts": contacts}


def in_precision(model: Network, compute: DTypeLike, parameters: DTypeLike) -> Network:
    """The same network, with other precision."""
    graph, state = nnx.split(model)
    cast = jax.tree.map(lambda leaf: leaf.astype(parameters), state)
    other = nnx.merge(graph, cast)
    other.dtype = compute
    return other
