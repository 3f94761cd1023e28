"""The networks on which other implementations of DeepLIFT lose part of the sum: each is complete here.

Hooks on modules miss functions, products and modules called twice; tables of known modules miss whatever isn't in them.
The networks are the rows of a comparison of Captum 0.9.0, SHAP 0.51.0 and tangermeme 1.6.0, which explain 13, 17 and 32
of these 58 to rounding. A function transformation sees every operation, so none of the kinds should matter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

RNG = np.random.default_rng(9)
W, V, U = (RNG.normal(size=shape) / np.sqrt(shape[0]) for shape in [(12, 6), (6, 6), (6, 3)])
B, C, D = 0.3 * RNG.normal(size=(3, 1, 6))
KERNEL, KERNEL2D, HEAD = RNG.normal(size=(3, 1, 4)), RNG.normal(size=(3, 3, 1, 4)) / 2, RNG.normal(size=(4, 3))
QKV, FF = RNG.normal(size=(4, 3, 4)) / 2, RNG.normal(size=(2, 4, 4)) / 2
GATES = RNG.normal(size=(2, 4, 16)) / 2


# Every network takes (N, 12) to (N, 3), but for the one that has a single output.


def dense(x):
    return x @ W + B


def other(x):
    return x[:, ::-1] @ W + C


def mlp(act):
    """Two hidden layers, with the same activation after each."""
    return lambda x: act(act(dense(x)) @ V + D) @ U


def hidden(act):
    return lambda x: act(dense(x)) @ U


def prelu(x):
    return jnp.maximum(x, 0) + np.linspace(0.1, 0.6, 6)[None] * jnp.minimum(x, 0)


def softshrink(x):
    return jnp.where(x > 0.5, x - 0.5, jnp.where(x < -0.5, x + 0.5, 0))


def made_inside(x):
    def act(h):
        return jnp.maximum(h, 0)

    return act(dense(x)) @ U


def in_place(x):
    h = dense(x)
    h = h.at[:].set(jax.nn.relu(h))
    return h @ U


def residual_in_place(x):
    h = dense(x)
    h = h.at[:].add(jax.nn.relu(h @ V))
    return h @ U


def shared_block(x):
    def block(h):
        return jax.nn.relu(h @ V + C)

    return block(block(dense(x))) @ U


def minimum_by_relu(x):
    h = jax.nn.relu(dense(x))
    return h[:, :3] - jax.nn.relu(h[:, :3] - h[:, 3:])


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)


def rms_norm(h):
    return h * lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-5)


def group_norm(h):
    return layer_norm(h.reshape(-1, 2, 3)).reshape(h.shape)


def batch_norm(h):
    return (h - C) / np.sqrt(D**2 + 0.1) * V[:1] + V[1:2]


def attention(x):
    """Two heads over a sequence of four vectors of three numbers."""
    q, k, v = (jnp.einsum("nti,ij->ntj", x.reshape(-1, 4, 3), w).reshape(-1, 4, 2, 2) for w in QKV[:3])
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(2), -1)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(-1, 4, 4)


def encoder_layer(x):
    h = layer_norm(x.reshape(-1, 4, 3) @ QKV[3] + attention(x) @ FF[0])
    return layer_norm(h + jax.nn.relu(h @ FF[1]) @ FF[0]).mean(1) @ HEAD


def conv(x):
    return lax.conv_general_dilated(x[..., None], KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def conv2d(x):
    image = x.reshape(-1, 4, 3, 1)
    return lax.conv_general_dilated(image, KERNEL2D, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def max_pool(h, size, stride, padding="VALID", dilation=1):
    """Over all axes but the first and the last."""
    window, strides, dilations = ((1, *[n] * (h.ndim - 2), 1) for n in (size, stride, dilation))
    return lax.reduce_window(h, -np.inf, lax.max, window, strides, padding, window_dilation=dilations)


def head(h):
    """Sums over places, to three outputs."""
    return (jnp.tanh(h) @ HEAD).reshape(len(h), -1, 3).sum(1)


def recurrent(step, carry):
    def network(x):
        zeros = jnp.zeros((len(x), 4), x.dtype)
        steps = jnp.moveaxis(x.reshape(-1, 4, 3), 1, 0) @ QKV[0]
        return lax.scan(lambda c, u: (step(c, u), None), (zeros,) * carry, steps)[0][0] @ HEAD

    return network


def lstm(carry, u):
    h, c = carry
    i, f, g, o = jnp.split(u @ GATES[0] + h @ GATES[1], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(carry, u):
    (h,) = carry
    (r, z, n), (hr, hz, hn) = (jnp.split(a[:, :12], 3, -1) for a in (u @ GATES[0], h @ GATES[1]))
    z = jax.nn.sigmoid(z + hz)
    return ((1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h,)


ACTIVATIONS = {
    "ReLU": jax.nn.relu,
    "GELU": functools.partial(jax.nn.gelu, approximate=False),
    "SiLU": jax.nn.silu,
    "Mish": jax.nn.mish,
    "Softplus": jax.nn.softplus,
    "ELU": jax.nn.elu,
    "SELU": jax.nn.selu,
    "CELU": functools.partial(jax.nn.celu, alpha=0.7),
    "Tanh": jnp.tanh,
    "Sigmoid": jax.nn.sigmoid,
    "LogSigmoid": jax.nn.log_sigmoid,
    "LeakyReLU": jax.nn.leaky_relu,
    "PReLU": prelu,
    "ReLU6": lambda h: jax.nn.relu6(6 * h),
    "Hardtanh": jax.nn.hard_tanh,
    "Hardswish": jax.nn.hard_swish,
    "Hardsigmoid": lambda h: jax.nn.hard_sigmoid(3 * h),
    "Softsign": jax.nn.soft_sign,
    "Softshrink": softshrink,
    "Tanhshrink": lambda h: h - jnp.tanh(h),
    "Threshold": lambda h: jnp.where(h > 0.1, h, -0.2),
}

NETWORKS = {f"act {name}": mlp(act) for name, act in ACTIVATIONS.items()} | {
    "GLU": lambda x: jax.nn.glu(dense(x)) @ HEAD[:3],
    "functional relu": hidden(lambda h: jnp.maximum(h, 0)),
    "functional gelu": hidden(jax.nn.gelu),
    "reused relu module": mlp(jax.jit(jax.nn.relu)),
    "relu made in forward": made_inside,
    "inplace relu": in_place,
    "shared block twice": shared_block,
    "residual x+relu(Wx)": lambda x: (lambda h: h + jax.nn.relu(h @ V))(dense(x)) @ U,
    "residual x+=relu(Wx)": residual_in_place,
    "concat branches": lambda x: jnp.concatenate([jax.nn.relu(dense(x)), jnp.tanh(other(x))], -1) @ np.tile(U, (2, 1)),
    "gate a*sigmoid(b)": lambda x: (dense(x) * jax.nn.sigmoid(other(x))) @ U,
    "x**2": hidden(lambda h: h**2),
    "exp": hidden(jnp.exp),
    "division a/(1+b*b)": lambda x: (lambda a, b: a / (1 + b * b))(dense(x), other(x)) @ U,
    "max(a,b)": lambda x: jnp.maximum(dense(x), other(x)) @ U,
    "min via relu (o1-relu(o1-i3))": minimum_by_relu,
    "amax over dim": lambda x: jax.nn.relu(dense(x)).reshape(-1, 3, 2).max(-1) @ HEAD[:3],
    "LayerNorm": lambda x: jax.nn.relu(layer_norm(dense(x)) * C + D) @ U,
    "RMSNorm": lambda x: jax.nn.relu(rms_norm(dense(x)) * C) @ U,
    "GroupNorm": lambda x: jax.nn.relu(group_norm(dense(x)) * C + D) @ U,
    "BatchNorm eval": lambda x: jax.nn.relu(batch_norm(dense(x))) @ U,
    "Softmax hidden": hidden(jax.nn.softmax),
    "Softmax output": lambda x: jax.nn.softmax(jax.nn.relu(dense(x)) @ U),
    "log_softmax output": lambda x: jax.nn.log_softmax(jax.nn.relu(dense(x)) @ U),
    "MultiheadAttention": lambda x: attention(x).mean(1) @ HEAD,
    "TransformerEncoderLayer": encoder_layer,
    "maxpool 4/4": lambda x: head(max_pool(jax.nn.relu(conv(x)), 4, 4)),
    "maxpool 4/2 overlapping": lambda x: head(max_pool(jax.nn.relu(conv(x)), 4, 2)),
    "maxpool twice": lambda x: head(max_pool(max_pool(conv(x), 2, 2), 2, 2)),
    "maxpool dilated": lambda x: head(max_pool(jax.nn.relu(conv(x)), 3, 2, dilation=2)),
    "maxpool2d 3/2": lambda x: head(max_pool(jax.nn.relu(conv2d(x)), 3, 2, "SAME")),
    "F.max_pool1d": lambda x: head(max_pool(conv(x), 3, 3)),
    "AdaptiveMaxPool1d(1)": lambda x: head(conv(x).max(1)),
    "AdaptiveAvgPool1d(1)": lambda x: head(jax.nn.relu(conv(x)).mean(1)),
    "nn.LSTM": recurrent(lstm, 2),
    "nn.GRU": recurrent(gru, 1),
    "output (N,) not (N,K)": lambda x: jax.nn.relu(dense(x)) @ C[0],
}


@functools.partial(jax.jit, static_argnums=(0, 3))
def explain(network, x, r, rule):
    """The multipliers of all outputs and the values of input and reference, beside the plain values."""

    def pair(x, r):
        values, pullback = jaxlift.vjp(lambda x: network(x[None])[0], x, r, rule=rule)
        outputs = values[0]
        each = jnp.eye(outputs.size).reshape(outputs.size, *outputs.shape)
        return jax.vmap(pullback)(each), jnp.stack(values)

    multipliers, values = jax.vmap(pair, (0, None))(x, r)
    return multipliers, values, (network(x), network(r[None]))


@functools.partial(jax.jit, static_argnums=(0, 3))
def multipliers_of(network, x, r, rule):
    return jaxlift.attribute(network, target=1, rule=rule, output="multipliers")(x, reference=r)


def inputs(seed=0):
    x, r = np.split(np.random.default_rng(seed).normal(size=(5, 12)), [4])
    r[0, 3] = x[0, 3]
    return x, r[0]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.sample(16)
def test_complete(name, rule):
    x, r = inputs()
    multipliers, values, (y, y_ref) = explain(NETWORKS[name], x, r, rule)
    assert y.shape == ((4,) if name.startswith("output (N,)") else (4, 3))
    np.testing.assert_allclose(values[:, 0], y, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(values[:, 1], np.broadcast_to(y_ref, y.shape), rtol=1e-13, atol=1e-13)
    sums = (np.asarray(multipliers) * (x - r)[:, None]).sum(-1).reshape(y.shape)
    assert np.abs(sums - (y - y_ref)).max() <= 1e-12 * np.abs(y - y_ref).max()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("network", "share"),
    [
        pytest.param(lambda x: head(max_pool(conv(x), 4, 4)), True, id="conv-maxpool, ref shares most of x"),
        pytest.param(lambda x: head(jax.nn.relu(conv(x))), True, id="conv-relu, ref shares most of x"),
        pytest.param(NETWORKS["Softmax hidden"], False, id="softmax hidden"),
        pytest.param(NETWORKS["Softmax output"], False, id="softmax output"),
    ],
)
def test_multipliers_do_not_depend_on_the_batch(network, share, rule):
    """One example's fallback used for all of them, or a mean over the batch, changes the scores of its neighbours."""
    x, r = inputs()
    if share:
        r = np.where(np.arange(12) % 5 == 0, r, x[1])
    alone, together = (multipliers_of(network, batch, r, rule) for batch in (x[1:2], x))
    np.testing.assert_allclose(together[1], alone[0], rtol=0, atol=1e-12 * np.abs(alone).max())
