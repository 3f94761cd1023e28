"""Blocks shaped as AlphaGenome's (Avsec et al. 2025), written after its published description, in Haiku as it is: a
tower of weight-standardised convolutions, attention with rotary positions and a bias from pairs of positions, and a
decoder with skips. Its own package brings parameters that may be used for research only.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .catalogue import Model, perturbed

LENGTH, CHANNELS, HEADS, SIZE = 32, 8, 2, 4


def gelu(x):
    return jax.nn.sigmoid(1.702 * x) * x


@hk.to_module
def norm(x):
    """Batch normalisation without means: in evaluation mode, a scale by a statistic and a learned one."""
    scale, offset, variance = (
        hk.get_parameter(name, x.shape[-1:], x.dtype, hk.initializers.Constant(1))
        for name in ("scale", "b", "variance")
    )
    return x * (scale * jax.lax.rsqrt(variance + 1e-5)) + offset


@hk.to_module
def layer_norm(x):
    return hk.LayerNorm(-1, True, True)(x)


@hk.to_module
def standardised_conv(x, channels, width):
    """The kernel's mean is taken away and its variance made 1."""
    shape = (width, x.shape[-1], channels)
    w = hk.get_parameter("w", shape, x.dtype, hk.initializers.RandomNormal())
    w = w - w.mean((0, 1), keepdims=True)
    w = w * jax.lax.rsqrt(jnp.maximum(shape[0] * shape[1] * w.var((0, 1), keepdims=True), 1e-4))
    return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))


def conv_block(x, channels, width=5):
    return standardised_conv()(gelu(norm()(x)), channels, width)


def down(x):
    """A residual block that adds channels, and pooling."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, CHANNELS // 2)))
    h = padded + conv_block(x, padded.shape[-1])
    h = h + conv_block(h, h.shape[-1])
    return hk.max_pool(h, (2, 1), (2, 1), "SAME")


def up(x, skip):
    """Upsampling by repetition onto the skip's resolution."""
    channels = skip.shape[-1]
    h = conv_block(x, channels) + x[:, :, :channels]
    h = jnp.repeat(h, 2, 1) * hk.get_parameter(f"residual_scale_{channels}", (), x.dtype, jnp.ones)
    h = h + conv_block(skip, channels, 1)
    return h + conv_block(h, channels)


def rotate(x):
    """Rotary embedding of positions, (N, S, H, C)."""
    angles = jnp.arange(x.shape[1])[:, None] / (100 ** jnp.linspace(0, 1, x.shape[-1] // 2))[None]
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


def attention(x, pair):
    """Heads of queries share keys and values; logits are bounded by tanh and biased by pairs."""
    n, s, channels = x.shape
    h = norm()(x)
    q = layer_norm()(hk.Linear(HEADS * SIZE, False)(h).reshape(n, s, HEADS, SIZE))
    k, v = (layer_norm()(hk.Linear(SIZE, False)(h)) for _ in range(2))
    logits = jnp.einsum("nshc,ntc->nhst", rotate(q), rotate(k[:, :, None])[:, :, 0]) / np.sqrt(SIZE)
    bias = hk.Linear(HEADS, False)(gelu(norm()(pair)))
    bias = jnp.repeat(jnp.repeat(bias, 2, 1), 2, 2).transpose(0, 3, 1, 2)
    weights = jax.nn.softmax(jnp.tanh((logits + bias) / 5) * 5, axis=-1)
    h = jnp.einsum("nhst,ntc->nshc", weights, v).reshape(n, s, -1)
    return norm()(hk.Linear(channels)(h))


def pairs(x):
    """Queries by keys over pooled positions, with features of their distance; then attention along rows, and an MLP."""
    pooled = norm()(x.reshape(x.shape[0], -1, 2, x.shape[-1]).mean(2))
    q, k = (hk.Linear(HEADS * SIZE, False)(pooled).reshape(*pooled.shape[:2], HEADS, SIZE) for _ in range(2))
    place = np.arange(pooled.shape[1])
    distance = (place[None] - place[:, None])[..., None]
    features = (np.abs(distance) <= np.array([0, 1, 2, 4])).astype(x.dtype)
    features = jnp.concatenate([features, features * np.sign(distance).astype(x.dtype)], -1)
    relative = hk.Linear(HEADS * SIZE)(features).reshape(*distance.shape[:2], HEADS, SIZE)
    logits = jnp.einsum("nshc,nthc->nsth", q, k) + jnp.einsum("nshc,sthc->nsth", q, relative)
    y_q, y_k = (hk.Linear(CHANNELS, False)(gelu(pooled)) for _ in range(2))
    pair = hk.Linear(CHANNELS)(logits) + y_q[:, :, None] + y_k[:, None]
    h = layer_norm()(pair)
    q, k, v = (hk.Linear(CHANNELS, False)(h) for _ in range(3))
    weights = jax.nn.softmax(jnp.einsum("nsic,nsjc->nsij", q, k) / np.sqrt(CHANNELS), axis=-1)
    pair = pair + jnp.einsum("nsij,nsjc->nsic", weights, v)
    return pair + hk.Linear(CHANNELS)(jax.nn.relu(hk.Linear(2 * CHANNELS)(layer_norm()(pair))))


def network(x):
    h = hk.Conv1D(CHANNELS, 15)(x)
    h = h + conv_block(h, CHANNELS)
    skips = []
    for _ in range(2):
        skips.append(h)
        h = down(h)
    pair = pairs(h)
    h = h + attention(h, pair)
    h = h + norm()(hk.Linear(h.shape[-1])(jax.nn.relu(hk.Linear(2 * h.shape[-1])(norm()(h)))))
    for skip in reversed(skips):
        h = up(h, skip)
    tracks = jax.nn.softplus(hk.Linear(3)(gelu(norm()(h))))
    contacts = hk.Linear(1)(gelu(norm()(pair + pair.swapaxes(1, 2))))
    return jnp.concatenate([tracks.reshape(len(x), -1), contacts.reshape(len(x), -1)], 1)


def one_hot(rng, shape):
    return np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]


def blocks(dtype):
    model = hk.without_apply_rng(hk.transform(network))
    params = perturbed(jax.jit(model.init)(jax.random.key(0), np.zeros((1, LENGTH, 4), dtype)), dtype)
    return Model(lambda x: model.apply(params, x), (LENGTH, 4), one_hot)
