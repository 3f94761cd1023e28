"""Models of the JAX frameworks, as their users write them: explained unchanged, and left untouched."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlift

LENGTH, CHANNELS, HIDDEN, OUTPUTS = 8, 4, 6, 3
SHAPE = (LENGTH, CHANNELS)


@dataclass
class Model:
    """A model as a function of arrays, (N, 8, 4) to (N, 3).

    Attributes:
        variables: what it has of parameters and state, to be compared before and after.
        single: whether it computes in float32, whatever its parameters are.
    """

    fun: Callable[[Any], Any]
    variables: Callable[[], Any]
    single: bool = False


def randomised(tree):
    """Every parameter and statistic, drawn at random: initial ones are 0 and 1, which hides what is done with them.

    Of a tree of shapes, counters are 0.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        if "var" in jax.tree_util.keystr(path):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def linen(module):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return module(x)

    network = Network()
    variables = randomised(jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *SHAPE))))
    return Model(lambda x: network.apply(variables, x), lambda: variables)


def linen_convolution():
    def layers(x):
        h = nn.Conv(HIDDEN, (3,), param_dtype=float)(x)
        h = nn.BatchNorm(use_running_average=True, param_dtype=float)(h)
        h = nn.max_pool(nn.gelu(h), (3,), (2,))
        return nn.Dense(OUTPUTS, param_dtype=float)(nn.avg_pool(h, (2,), (1,)).reshape(len(h), -1))

    return linen(layers)


def linen_attention():
    def layers(x):
        h = x + nn.MultiHeadDotProductAttention(2, param_dtype=float)(nn.LayerNorm(param_dtype=float)(x))
        return nn.Dense(OUTPUTS, param_dtype=float)(nn.LayerNorm(param_dtype=float)(h).mean(1))

    return linen(layers)


def linen_recurrent():
    def layers(x):
        cell = nn.OptimizedLSTMCell(HIDDEN, param_dtype=float, carry_init=nn.initializers.zeros)
        return nn.Dense(OUTPUTS, param_dtype=float)(nn.RNN(cell)(x)[:, -1])

    return linen(layers)


def of_nnx(model, fun=None, **kwargs):
    model.eval()
    nnx.update(model, randomised(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return Model(fun or model, lambda: nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))), **kwargs)


def nnx_convolution():
    rngs = nnx.Rngs(0)

    class Network(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(CHANNELS, HIDDEN, (3,), param_dtype=float, rngs=rngs)
            self.norm = nnx.BatchNorm(HIDDEN, param_dtype=float, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(3 * HIDDEN, OUTPUTS, param_dtype=float, rngs=rngs)

        def __call__(self, x):
            h = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (3,), (2,))
            return self.out(self.dropout(h.reshape(len(h), -1)))

    return of_nnx(Network())


def nnx_attention():
    rngs = nnx.Rngs(0)

    class Network(nnx.Module):
        def __init__(self):
            self.attention = nnx.MultiHeadAttention(2, CHANNELS, decode=False, param_dtype=float, rngs=rngs)
            self.norm = nnx.LayerNorm(CHANNELS, param_dtype=float, rngs=rngs)
            self.out = nnx.Linear(CHANNELS, OUTPUTS, param_dtype=float, rngs=rngs)

        def __call__(self, x):
            return self.out(self.norm(x + self.attention(x)).mean(1))

    return of_nnx(Network(), single=True)


def nnx_recurrent():
    rngs = nnx.Rngs(0)

    class Network(nnx.Module):
        def __init__(self):
            cell = nnx.GRUCell(CHANNELS, HIDDEN, param_dtype=float, rngs=rngs)
            self.rnn = nnx.RNN(cell, rngs=rngs)
            self.out = nnx.Linear(HIDDEN, OUTPUTS, param_dtype=float, rngs=rngs)

        def __call__(self, x):
            return self.out(self.rnn(x)[:, -1])

    network = Network()
    # It draws its first carry, so it can't be closed over under a trace.
    return of_nnx(network, lambda x: nnx.merge(*nnx.split(network), copy=True)(x))


def of_equinox(eqx, model, apply):
    arrays, rest = eqx.partition(model, eqx.is_array)
    model = eqx.combine(randomised(arrays), rest)
    return Model(jax.vmap(lambda x: apply(model, x)), lambda: eqx.filter(model, eqx.is_array))


def equinox_convolution():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)

    class Network(eqx.Module):
        conv: eqx.nn.Conv1d
        norm: eqx.nn.BatchNorm
        pool: eqx.nn.MaxPool1d
        out: eqx.nn.Linear

        def __init__(self):
            self.conv = eqx.nn.Conv1d(CHANNELS, HIDDEN, 3, dtype=float, key=keys[0])
            self.norm = eqx.nn.BatchNorm(HIDDEN, "batch", mode="ema", dtype=float)
            self.pool = eqx.nn.MaxPool1d(3, 2)
            self.out = eqx.nn.Linear(2 * HIDDEN, OUTPUTS, dtype=float, key=keys[1])

        def __call__(self, x, state):
            h, state = self.norm(self.conv(x.T), state)
            return self.out(self.pool(jax.nn.elu(h)).ravel()), state

    model, state = eqx.nn.make_with_state(Network)()
    leaves, structure = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    leaves = [jnp.asarray(rng.uniform(0.5, 2, s.shape), s.dtype) if s.dtype == float else ~s for s in leaves]
    state = jax.tree.unflatten(structure, leaves)
    return of_equinox(eqx, eqx.nn.inference_mode(model), lambda model, x: model(x, state)[0])


def equinox_attention():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    layers = {
        "attention": eqx.nn.MultiheadAttention(2, CHANNELS, dtype=float, key=keys[0]),
        "norm": eqx.nn.LayerNorm(CHANNELS, dtype=float),
        "out": eqx.nn.Linear(CHANNELS, OUTPUTS, dtype=float, key=keys[1]),
    }

    def apply(layers, x):
        h = jax.vmap(layers["norm"])(x + layers["attention"](x, x, x))
        return layers["out"](h.mean(0))

    return of_equinox(eqx, layers, apply)


def equinox_recurrent():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    layers = {
        "cell": eqx.nn.LSTMCell(CHANNELS, HIDDEN, dtype=float, key=keys[0]),
        "out": eqx.nn.Linear(HIDDEN, OUTPUTS, dtype=float, key=keys[1]),
    }

    def apply(layers, x):
        carry = (jnp.zeros(HIDDEN), jnp.zeros(HIDDEN))
        (h, _), _ = jax.lax.scan(lambda carry, u: (layers["cell"](u, carry), None), carry, x)
        return layers["out"](h)

    return of_equinox(eqx, layers, apply)


def of_haiku(hk, layers):
    network = hk.without_apply_rng(hk.transform_with_state(layers))
    params, state = randomised(jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *SHAPE))))
    return Model(lambda x: network.apply(params, state, x)[0], lambda: (params, state))


def haiku_convolution():
    hk = pytest.importorskip("haiku")

    def layers(x):
        h = hk.BatchNorm(True, True, 0.9)(hk.Conv1D(HIDDEN, 3)(x), is_training=hk.running_init())
        h = hk.max_pool(jax.nn.leaky_relu(h), (3, 1), (2, 1), "VALID")
        return hk.Linear(OUTPUTS)(hk.Flatten()(h))

    return of_haiku(hk, layers)


def haiku_attention():
    hk = pytest.importorskip("haiku")

    def layers(x):
        attention = hk.MultiHeadAttention(2, 3, model_size=CHANNELS, w_init=hk.initializers.VarianceScaling())
        h = hk.LayerNorm(-1, True, True)(x + attention(x, x, x))
        return hk.Linear(OUTPUTS)(h.mean(1))

    return of_haiku(hk, layers)


def haiku_recurrent():
    hk = pytest.importorskip("haiku")

    def layers(x):
        h, _ = hk.dynamic_unroll(hk.GRU(HIDDEN), x, jnp.zeros((len(x), HIDDEN)), time_major=False)
        return hk.Linear(OUTPUTS)(h[:, -1])

    return of_haiku(hk, layers)


def of_keras(layers):
    keras = pytest.importorskip("keras")
    x = keras.Input(SHAPE)
    model = keras.Model(x, layers(keras.layers, x))
    rng = np.random.default_rng(0)
    for v in model.variables:
        if "seed" not in v.path:
            low, high = (0.5, 2) if "variance" in v.path else (-0.6, 0.6)
            v.assign(rng.uniform(low, high, v.shape))
    return Model(model, lambda: [v.value for v in model.variables], single=True)


def keras_convolution():
    def layers(kl, x):
        h = kl.BatchNormalization()(kl.Conv1D(HIDDEN, 3)(x))
        h = kl.MaxPooling1D(3, 2)(kl.Activation("silu")(h))
        h = kl.Dropout(0.5)(kl.Flatten()(h))
        return kl.Dense(OUTPUTS)(h)

    return of_keras(layers)


def keras_attention():
    def layers(kl, x):
        h = kl.MultiHeadAttention(2, 3, flash_attention=False)(x, x)
        h = kl.LayerNormalization()(kl.Add()([x, h]))
        return kl.Dense(OUTPUTS)(kl.GlobalAveragePooling1D()(h))

    return of_keras(layers)


def keras_recurrent():
    return of_keras(lambda kl, x: kl.Dense(OUTPUTS)(kl.LSTM(HIDDEN)(x)))


def keras_stateless():
    keras_model = keras_convolution()
    model = keras_model.fun
    trainable, other = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    return replace(keras_model, fun=lambda x: model.stateless_call(trainable, other, x, training=False)[0])


MODELS = [
    nnx_convolution,
    nnx_attention,
    nnx_recurrent,
    linen_convolution,
    linen_attention,
    linen_recurrent,
    equinox_convolution,
    equinox_attention,
    equinox_recurrent,
    haiku_convolution,
    haiku_attention,
    haiku_recurrent,
]
KERAS_MODELS = [keras_convolution, keras_stateless, keras_attention, keras_recurrent]


@pytest.fixture(autouse=True)
def promotion_in_keras(request):
    """Keras itself adds biases of lower rank."""
    make = getattr(request.node, "callspec", None) and request.node.callspec.params.get("make")
    with jax.numpy_rank_promotion("allow" if make in KERAS_MODELS else "raise"):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [*MODELS, *KERAS_MODELS], ids=lambda make: make.__name__)
def test_models(make, rule):
    model = make()
    before = jax.tree.map(np.array, model.variables())
    x, r = np.split(np.random.default_rng(1).normal(size=(4, *SHAPE)), [3])
    y, y_ref = np.split(jax.jit(model.fun)(np.concatenate([x, r])), [3])
    assert y.shape == (3, OUTPUTS)
    assert model.single or y.dtype == float

    attr = jax.jit(jaxlift.attribute(model.fun, target=1, rule=rule, full=True))
    contributions, delta, *_ = attr(x, reference=r[0])

    tolerance = 2e-5 if model.single else 1e-9
    scale = np.abs(contributions).sum((1, 2))
    difference = np.asarray(y - y_ref)[:, 1]
    assert np.abs(difference).min() > 1e-3  # the test would see nothing otherwise
    assert (np.abs(contributions.sum((1, 2)) - difference) <= tolerance * scale).all()
    # What the transformed program computed differs as the plain model's values do.
    assert (np.abs(delta + contributions.sum((1, 2)) - difference) <= tolerance * scale).all()
    jax.tree.map(np.testing.assert_array_equal, model.variables(), before)


class ScopedBlock(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.inner(x))


class ScopedNetwork(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([ScopedBlock(rngs), ScopedBlock(rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4, name="inner")(x))


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(LinenBlock(name="second")(LinenBlock(name="first")(x)))


def places(fun, x):
    """The scopes of the linear maps and nonlinearities of a model, as `PerLayer` sees them."""
    seen = []

    def see(place):
        seen.append((place.family, place.scope))
        return False

    jaxlift.lift(fun, rule=jaxlift.PerLayer(where=[(see, "gradient")]))(x, jnp.zeros_like(x))
    return seen


class TestScopes:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)

    def test_of_nnx_modules(self):
        model = ScopedNetwork(nnx.Rngs(0))
        before, copy = nnx.state(model), jaxlift.scoped(model)
        np.testing.assert_array_equal(copy(self.x), model(self.x))
        assert {scope for _, scope in places(model, self.x)} == {""}
        assert places(copy, self.x) == [
            *(("linear", "blocks/0/inner"), ("pointwise", "blocks/0")),
            *(("linear", "blocks/1/inner"), ("pointwise", "blocks/1")),
            ("linear", "head"),
        ]
        assert type(model.head) is nnx.Linear
        jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))

    def test_choose_the_rule_of_an_nnx_layer(self):
        model = ScopedNetwork(nnx.Rngs(0))
        others = {"dense": "gradient", "conv": "gradient", "default": "gradient"}
        by_scope = jaxlift.PerLayer(**others, scopes={"blocks/1": "guided_backprop"})
        found = jax.jit(jaxlift.attribute(jaxlift.scoped(model), rule=by_scope, target=0))(self.x)

        def kernel(layer):
            return np.asarray(layer.kernel[...])

        h = model.blocks[0](self.x)
        cotangent = np.maximum(kernel(model.head)[:, 0], 0) * (np.asarray(model.blocks[1].inner(h)) > 0)
        cotangent = cotangent @ kernel(model.blocks[1].inner).T * (np.asarray(model.blocks[0].inner(self.x)) > 0)
        np.testing.assert_allclose(found, self.x * (cotangent @ kernel(model.blocks[0].inner).T), rtol=1e-4, atol=1e-6)

    def test_of_linen_modules(self):
        model = LinenNetwork()
        params = model.init(jax.random.key(0), self.x)
        scopes = {scope for family, scope in places(lambda x: model.apply(params, x), self.x) if family == "linear"}
        assert scopes == {f"LinenNetwork/{name}" for name in ("first/inner", "second/inner", "head")}
