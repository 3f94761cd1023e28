"""The rules of LRP: written out term by term, against zennit and LXT, and what they conserve."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxlift

RNG = np.random.default_rng(11)
X = RNG.normal(size=(2, 4))
W, B = RNG.normal(size=(4, 5)), RNG.normal(size=5)
V, C = RNG.normal(size=(5, 3)), RNG.normal(size=3)

pytestmark = pytest.mark.usefixtures("x64")


def relevances(fun, *, x=X, **options):
    """What `attribute` gives, as one program."""
    return np.asarray(jax.jit(jaxlift.attribute(fun, **options))(x))


# Relevance of one input `x_i` from one output `z_j = sum_i x_i w_ij + b_j`, as a share of that of the output.


def epsilon_share(i, j, x, w, b, epsilon):
    z = sum(x[k] * w[k, j] for k in range(len(x))) + b[j]
    return x[i] * w[i, j] / (z + (epsilon if z >= 0 else -epsilon))


def gamma_share(i, j, x, w, b, gamma):
    terms = [x[k] * w[k, j] for k in range(len(x))] + [b[j]]
    sign = 1 if sum(terms) > 0 else -1
    favoured = [t * (1 + gamma) if sign * t > 0 else t for t in terms]
    return favoured[i] / sum(favoured)


def alpha_beta_share(i, j, x, w, b, alpha, beta):
    terms = [x[k] * w[k, j] for k in range(len(x))] + [b[j]]
    positive, negative = sum(t for t in terms if t > 0), sum(t for t in terms if t < 0)
    if terms[i] > 0:
        return alpha * terms[i] / positive
    return -beta * terms[i] / negative if terms[i] < 0 else 0.0


def propagated(x, w, b, relevance, share, *parameters):
    """The relevance of a dense layer's inputs."""
    return np.array(
        [sum(share(i, j, x, w, b, *parameters) * relevance[j] for j in range(len(b))) for i in range(len(x))]
    )


RULES = {
    "epsilon": (jaxlift.EpsilonLRP(0.25), (epsilon_share, 0.25)),
    "gamma": (jaxlift.GammaLRP(0.25), (gamma_share, 0.25)),
    "gamma large": (jaxlift.GammaLRP(10.0), (gamma_share, 10.0)),
    "alpha_beta": (jaxlift.AlphaBetaLRP(2, 1), (alpha_beta_share, 2, 1)),
    "z_plus": (jaxlift.ZPlusLRP(), (alpha_beta_share, 1, 0)),
    "attn": (jaxlift.AttnLRP(0.25), (epsilon_share, 0.25)),
}
rules = pytest.mark.parametrize("name", RULES)


def written_out(x, activation, by):
    """Relevances of the first output of two dense layers."""
    h = activation(x @ W + B)
    top = np.eye(3)[0] * (h @ V + C)
    return propagated(x, W, B, propagated(h, V, C, top, *by), *by)


@rules
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, jax.nn.gelu])
def test_dense_layers(name, activation):
    rule, by = RULES[name]
    found = relevances(lambda x: activation(x @ W + B[None]) @ V + C[None], rule=rule, target=0)
    expected = [written_out(x, lambda h: np.asarray(activation(h)), by) for x in X]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def convolution(w, b, length):
    """The matrix and the bias of a convolution along `length` places, of width `len(w)`, as of a dense layer."""
    width, inputs, outputs = w.shape
    places = length - width + 1
    matrix = np.zeros((length, inputs, places, outputs))
    for place in range(places):
        matrix[place : place + width, :, place, :] = w
    return matrix.reshape(length * inputs, places * outputs), np.tile(b, places)


K, D = RNG.normal(size=(2, 2, 3)), RNG.normal(size=3)
S = RNG.normal(size=(2, 5, 2))  # two sequences of five places with two channels
E, F = RNG.normal(size=(12, 2)), RNG.normal(size=2)


def convolve(x):
    return jax.lax.conv_general_dilated(x, K, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def conv_net(x):
    return jnp.tanh(convolve(x) + D[None, None]).reshape(len(x), -1) @ E + F[None]


@pytest.mark.slow
@rules
def test_convolutions(name):
    rule, by = RULES[name]
    found = relevances(conv_net, rule=rule, target=1, x=S)
    np.testing.assert_allclose(found, conv_net_written_out(by, by), rtol=1e-9, atol=1e-12)


def conv_net_written_out(of_conv, of_dense):
    matrix, bias = convolution(K, D, 5)
    expected = []
    for x in S.reshape(2, -1):
        h = np.tanh(x @ matrix + bias)
        top = propagated(h, E, F, np.eye(2)[1] * (h @ E + F), *of_dense)
        expected.append(propagated(x, matrix, bias, top, *of_conv).reshape(5, 2))
    return expected


class TestComposites:
    """Rules by layer, as zennit's composites: of convolutions, of dense layers, and where a predicate holds."""

    def test_by_kind(self):
        rule = jaxlift.PerLayer(conv=jaxlift.GammaLRP(0.5), dense=jaxlift.EpsilonLRP(0.1), default="gradient")
        assert not rule.needs_reference
        found = relevances(conv_net, rule=rule, target=1, x=S)
        # Activations are fed by the convolution, so its rule holds there: all rules of LRP pass on what they are given.
        np.testing.assert_allclose(found, conv_net_written_out((gamma_share, 0.5), (epsilon_share, 0.1)), rtol=1e-9)

    def test_by_predicate_and_scope(self):
        def fun(x):
            with jax.named_scope("first"):
                h = jax.nn.relu(x @ W + B[None])
            return h @ V + C[None]

        by_scope = jaxlift.PerLayer(
            dense="epsilon_lrp", default="epsilon_lrp", conv="epsilon_lrp", scopes={"first": "z_plus_lrp"}
        )
        by_predicate = jaxlift.PerLayer(
            dense="epsilon_lrp",
            default="epsilon_lrp",
            conv="epsilon_lrp",
            where=[(lambda place: place.family == "linear" and place.scope == "first", "z_plus_lrp")],
        )
        expected = []
        for x in X:
            h = np.maximum(x @ W + B, 0)
            top = propagated(h, V, C, np.eye(3)[0] * (h @ V + C), epsilon_share, 1e-4)
            expected.append(propagated(x, W, B, top, alpha_beta_share, 1, 0))
        for rule in (by_scope, by_predicate):
            np.testing.assert_allclose(relevances(fun, rule=rule, target=0), expected, rtol=1e-9)


# Bias and map are one, however the layer is written.


def of_linen():
    params = {"params": {"kernel": jnp.asarray(W), "bias": jnp.asarray(B)}}
    return lambda x: linen.Dense(5).apply(params, x)


def of_nnx():
    layer = nnx.Linear(4, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer.kernel[...], layer.bias[...] = jnp.asarray(W), jnp.asarray(B)
    return layer


def of_equinox():
    layer = eqx.nn.Linear(4, 5, key=jax.random.key(0), dtype=jnp.float64)
    layer = eqx.tree_at(lambda own: (own.weight, own.bias), layer, (jnp.asarray(W.T), jnp.asarray(B)))
    return jax.vmap(layer)


def of_haiku():
    layer = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(5)(x)))
    return lambda x: layer.apply({"linear": {"w": jnp.asarray(W), "b": jnp.asarray(B)}}, x)


def of_jit():
    return jax.jit(lambda x: x @ W + B[None])


def of_transposed_operands():
    return lambda x: (W.T @ x.T + B[:, None]).T


LAYERS = [of_linen, of_nnx, of_equinox, of_haiku, of_jit, of_transposed_operands]


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_the_bias_belongs_to_the_layer(layer):
    layer = layer()
    found = relevances(lambda x: jax.nn.relu(layer(x)) @ V + C[None], rule=jaxlift.GammaLRP(0.25), target=0)
    expected = [written_out(x, lambda h: np.maximum(h, 0), (gamma_share, 0.25)) for x in X]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_what_comes_after_the_bias_does_not_belong_to_the_layer():
    """A batch normalisation after the layer is a line, which passes derivatives: its shift absorbs relevance."""
    scale, shift = RNG.normal(size=5), RNG.normal(size=5)
    found = relevances(lambda x: (x @ W + B[None]) * scale[None] + shift[None], rule="z_plus_lrp", target=0)
    expected = [propagated(x, W, B, np.eye(5)[0] * scale * (x @ W + B), alpha_beta_share, 1, 0) for x in X]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: jaxlift.EpsilonLRP(-1), r"EpsilonLRP\(epsilon=-1\): epsilon must be 0 or more"),
        (lambda: jaxlift.AttnLRP(-1), r"AttnLRP\(epsilon=-1\): epsilon must be 0 or more"),
        (lambda: jaxlift.GammaLRP(-0.5), r"GammaLRP\(gamma=-0.5\): gamma must be 0 or more"),
        (lambda: jaxlift.AlphaBetaLRP(2, 2), r"AlphaBetaLRP\(alpha=2, beta=2\): alpha - beta must be 1"),
        (lambda: jaxlift.AlphaBetaLRP(0.5, -0.5), "beta 0 or more"),
        (lambda: jaxlift.EpsilonLRP(float("nan")), "epsilon must be 0 or more"),
    ],
)
def test_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# Conservation.


def conserved(fun, rule, x=X):
    relevance, y = relevances(fun, rule=rule, target=0, x=x), jax.jit(fun)(x)[:, 0]
    np.testing.assert_allclose(relevance.reshape(len(x), -1).sum(1), y, rtol=1e-6)


U, Z = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 4))
PROGRAMS = {
    "layers": lambda x: jax.nn.gelu(x @ W) @ V,
    "gate": lambda x: jax.nn.silu(x @ W) * (x @ W[::-1]) @ V,
    "sigmoid gate": lambda x: jax.nn.sigmoid(x @ W) * (x @ W[::-1]) @ V,
    "powers": lambda x: (x @ W) ** 3 @ V + jnp.square(x @ W) @ V,
    "maximum": lambda x: jnp.maximum(x @ W, x @ W[::-1]) @ V,
    "products of matrices": lambda x: jnp.einsum("ni,nj->nij", x @ U, x @ Z).reshape(-1, 16)[:, :5] @ V,
    "rms norm": lambda x: (x @ W) * jax.lax.rsqrt(((x @ W) ** 2).mean(-1, keepdims=True) + 1e-6) @ V,
    "layer norm": lambda x: jax.nn.standardize(x @ W) @ V,
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxlift.EpsilonLRP(0), jaxlift.AttnLRP(1e-12), jaxlift.GammaLRP(0.3)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_conserved_without_biases(program, rule):
    conserved(PROGRAMS[program], rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxlift.ZPlusLRP(), jaxlift.AlphaBetaLRP(2, 1), jaxlift.AlphaBetaLRP(1.5, 0.5)])
def test_conserved_where_there_are_contributions_of_both_signs(rule):
    w, v = RNG.normal(size=(40, 30)), RNG.normal(size=(30, 1))
    conserved(lambda x: jnp.tanh(x @ w) * jax.nn.gelu(x @ w[::-1]) @ v, rule, RNG.normal(size=(2, 40)))


# Normalisations: as with the statistic under `stop_gradient`.


def deviations(x):
    return x - x.mean(-1, keepdims=True)


def layer_norm(x, hold=jax.lax.stop_gradient):
    return deviations(x) * hold(jax.lax.rsqrt((deviations(x) ** 2).mean(-1, keepdims=True) + 1e-6))


def rms_norm(x, hold=jax.lax.stop_gradient):
    return x * hold(jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6))


def of_transform(make):
    transformed = hk.without_apply_rng(hk.transform(lambda x: make()(x)))
    return lambda x: transformed.apply(transformed.init(jax.random.key(0), x), x)


def of_module(module):
    return lambda x: module.apply(module.init(jax.random.key(0), x), x)


LAYER_NORMS = {
    "by hand": lambda x: layer_norm(x, lambda s: s),
    "jnp.var": lambda x: deviations(x) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6),
    "jnp.std": lambda x: deviations(x) / jnp.sqrt(x.std(-1, keepdims=True) ** 2 + 1e-6),
    "reciprocal": lambda x: deviations(x) * (1 / jnp.sqrt(x.var(-1)[:, None] + 1e-6)),
    "power": lambda x: deviations(x) * (x.var(-1, keepdims=True) + 1e-6) ** -0.5,
    "scale first": lambda x: deviations(x) * (jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6) * np.ones((1, 4))),
    "standardize": lambda x: jax.nn.standardize(x, epsilon=1e-6),
    "after a bias": lambda x: layer_norm(x @ jnp.eye(4) + 0.0, lambda s: s),
    "after an activation": lambda x: layer_norm(jnp.sinh(jnp.arcsinh(x)), lambda s: s),
    "linen": of_module(linen.LayerNorm()),
    "linen slow": of_module(linen.LayerNorm(use_fast_variance=False)),
    "nnx": lambda x: nnx.LayerNorm(4, rngs=nnx.Rngs(0))(x),
    "haiku": of_transform(lambda: hk.LayerNorm(-1, True, True, eps=1e-6)),
    "equinox": lambda x: jax.vmap(eqx.nn.LayerNorm(4, eps=1e-6))(x),
}
RMS_NORMS = {
    "by hand": lambda x: rms_norm(x, lambda s: s),
    "einsum": lambda x: x / jnp.sqrt(jnp.einsum("ni,ni->n", x, x) / 4 + 1e-6)[:, None],
    "after an activation": lambda x: rms_norm(jnp.sinh(jnp.arcsinh(x)), lambda s: s),
    "linen": of_module(linen.RMSNorm()),
    "nnx": lambda x: nnx.RMSNorm(4, rngs=nnx.Rngs(0))(x),
    "haiku": of_transform(lambda: hk.RMSNorm(-1, eps=1e-6)),
    "equinox": lambda x: jax.vmap(eqx.nn.RMSNorm(4, eps=1e-6))(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [("layer", name) for name in LAYER_NORMS] + [("rms", name) for name in RMS_NORMS])
def test_statistics_are_held(name):
    kind, name = name
    norm, held = (LAYER_NORMS, layer_norm) if kind == "layer" else (RMS_NORMS, rms_norm)

    def above(y):
        return (y @ U)[:, 0].sum()

    found = jax.jit(jax.grad(lambda x: jaxlift.lift(lambda x: above(norm[name](x)), rule=jaxlift.AttnLRP(0))(x, x)[0]))(
        X
    )
    np.testing.assert_allclose(found, jax.jit(jax.grad(lambda x: above(held(x))))(X), rtol=1e-5, atol=1e-7)


class HeldStatistics(jaxlift.Gradient):
    """The gradient, but for the statistics of normalisations."""

    def normalisation(self, bilinear, values, references, cotangent):
        left, right = bilinear.transpose(values, cotangent)
        return (0 * left, right) if bilinear.statistic == 0 else (left, 0 * right)


@pytest.mark.slow
@pytest.mark.parametrize("divide", [True, False])
def test_a_rule_for_normalisations_alone(divide):
    def norm(x, hold=lambda s: s):
        s = jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return deviations(x) / hold(s) if divide else deviations(x) * hold(1 / s)

    def fun(x, hold=lambda s: s):
        return (jnp.tanh(norm(x @ U + 1.0, hold)) * x @ U)[:, 0].sum()

    found = jax.jit(jax.grad(lambda x: jaxlift.lift(fun, rule=HeldStatistics())(x, x)[0]))(X)
    np.testing.assert_allclose(found, jax.grad(fun)(X, jax.lax.stop_gradient), rtol=1e-9)


@pytest.mark.slow
def test_a_rule_for_linear_maps_alone():
    """Its layers have their biases though nothing else is asked of the rule."""

    class Square(jaxlift.Gradient):
        def linear(self, linear, x, r, cotangent):
            return linear.transpose(x, cotangent * (linear(x) + linear.bias))

    found = relevances(lambda x: jnp.tanh(x @ W + B[None]), rule=Square(), target=0, output="multipliers")
    z = X @ W + B
    np.testing.assert_allclose(found, ((1 - np.tanh(z) ** 2) * z)[:, :1] * W[:, 0], rtol=1e-9)


@pytest.mark.slow
def test_a_statistic_of_something_else_is_a_product():
    def fun(x):
        return (x @ U) * jax.lax.rsqrt(((x @ Z) ** 2).mean(-1, keepdims=True) + 1e-6)

    def halves(x):  # the product's halves; of the mean square and its root, the derivative
        u, s = x @ U, jax.lax.rsqrt(((x @ Z) ** 2).mean(-1, keepdims=True) + 1e-6)
        return (u * jax.lax.stop_gradient(s) + jax.lax.stop_gradient(u) * s) / 2

    found = relevances(fun, rule=jaxlift.AttnLRP(0), target=0)
    direct = X * jax.jit(jax.grad(lambda x: (x @ U * jax.lax.stop_gradient(fun(X) / (X @ U)))[:, 0].sum() / 2))(X)
    assert np.abs(found - 2 * direct).max() > 1e-3
    # Each square passes on what it is given, half of what its derivative would.
    whole = X * jax.jit(jax.grad(lambda x: halves(x)[:, 0].sum()))(X)
    np.testing.assert_allclose(found, direct + (whole - direct) / 2, rtol=1e-9)


@pytest.mark.parametrize("rule", [jaxlift.EpsilonLRP(1e-9), jaxlift.AttnLRP(0)])
def test_a_quotient_of_something_else_has_its_derivative(rule):
    """By the largest entry, which is no statistic that a rule of LRP holds."""
    kernel = np.array([1.0, -2.0, 3.0], np.float32)
    x = jnp.array([[1.0, 3.0, 2.0], [0.5, -1.0, 4.0]])

    def model(x):
        return (x / (2 + jnp.max(x, -1, keepdims=True))) @ kernel

    found = jaxlift.attribute(model, rule=rule)(x)
    np.testing.assert_allclose(found, x * jax.grad(lambda x: model(x).sum())(x), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("softmax", [jax.nn.softmax, lambda u: jnp.exp(u) / jnp.exp(u).sum(-1, keepdims=True)])
def test_softmax_has_its_derivative(softmax):
    def fun(x):
        return softmax(x @ W) @ V

    found = relevances(fun, rule=jaxlift.AttnLRP(0), target=0)
    np.testing.assert_allclose(
        found, X * jax.jit(jax.grad(lambda x: (jax.nn.softmax(x @ W) @ V)[:, 0].sum()))(X), rtol=1e-9
    )


# What `check` says.


def transformer(x):
    h = jax.nn.standardize(x)
    x = x + jax.nn.softmax(h @ U @ (h @ Z).T) @ (h @ U + B[None, :4])
    return (rms_norm(x, lambda s: s) @ W @ V)[0, 0]


@pytest.mark.slow
class TestCheck:
    @pytest.mark.parametrize("program", PROGRAMS)
    def test_conserved(self, program):
        report = jaxlift.check(lambda x: PROGRAMS[program](x)[0, 0], X, 0 * X, rule=jaxlift.AttnLRP(0))
        assert report.checked == "conservation"
        assert report.complete
        assert str(report).startswith("conserved: relevances sum to")
        assert report.difference == pytest.approx(float(jax.jit(PROGRAMS[program])(X)[0, 0]))

    @pytest.mark.parametrize("rule", [jaxlift.AttnLRP(0), jaxlift.GammaLRP(0.25), "gradient"])
    def test_what_is_absorbed_is_told_by_operation(self, rule):
        x = np.random.default_rng(0).normal(size=(3, 4))
        report = jaxlift.check(transformer, x, 0 * x, rule=rule)
        multipliers = jax.jit(jax.grad(lambda x: jaxlift.lift(transformer, rule=rule)(x, x)[0]))(x)
        assert report.contributions == pytest.approx(np.sum(multipliers * x))
        assert report.difference == pytest.approx(float(jax.jit(transformer)(x)))
        assert sum(line.residual for line in report.lines) == pytest.approx(report.difference - report.contributions)
        assert not report.complete
        assert str(report).startswith("NOT conserved: relevances sum to")
        if rule != "gradient":
            absorbing = {line.operation for line in report.lines if abs(line.residual) > 1e-6}
            assert absorbing == {"add", "div"}  # the bias, and softmax

    def test_what_is_masked_passes_nothing(self):
        def fun(x):
            logits = jnp.where(jnp.tri(2, dtype=bool), (x @ U) @ (x @ Z).T, -jnp.inf)
            return (jax.nn.softmax(logits) @ x)[0, 0]

        report = jaxlift.check(fun, X, 0 * X, rule=jaxlift.AttnLRP(0))
        assert all(np.isfinite([line.entered, line.left]).all() for line in report.lines)
        # The first token attends to itself alone: the weight is 1 whatever the logit, and absorbs its half.
        assert report.contributions == pytest.approx(report.difference / 2)


# The same however a program is put together.


def looped(layers):
    """Layers of one shape: one after the other, jitted, in a scan, and in checkpoints."""
    kernels, biases = np.stack([U, Z, U + Z]), np.stack([B[:4], C[[0, 1, 2, 0]], B[1:]])

    def layer(h, own):
        kernel, bias = own
        return jax.nn.gelu(rms_norm(h, lambda s: s) @ kernel + bias[None])

    if layers == "scan":
        return lambda x: jax.lax.scan(lambda h, own: (layer(h, own), None), x, (kernels, biases))[0]
    wrapped = {"plain": lambda f: f, "jit": jax.jit, "checkpoint": jax.checkpoint}[layers](layer)

    def fun(x):
        for own in zip(kernels, biases, strict=True):
            x = wrapped(x, own)
        return x

    return fun


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["jit", "scan", "checkpoint"])
def test_layers_called_again_and_again(layers):
    found, expected = (relevances(looped(by), rule="gamma_lrp", target=0) for by in (layers, "plain"))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxlift.AttnLRP(1e-3), jaxlift.GammaLRP(0.25), jaxlift.ZPlusLRP()])
def test_beside_rules_with_a_reference(rule):
    """Where a rule of DeepLIFT may be chosen too, inputs are compared with references, which LRP doesn't look at."""
    x, r = np.random.default_rng(2).normal(size=(2, 3, 4))
    everywhere = jaxlift.PerLayer(where=[(lambda place: True, rule)])
    assert everywhere.needs_reference
    found, expected = (
        jax.jit(jax.grad(lambda x, rule=rule: jaxlift.lift(transformer, rule=rule)(x, r)[0]))(x)
        for rule in (everywhere, rule)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


# Other implementations, on the same weights, where they are installed.


@pytest.mark.slow
@rules
@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
def test_against_zennit(name, activation):
    torch = pytest.importorskip("torch")
    pytest.importorskip("zennit")
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.rules import AlphaBeta, Epsilon, Gamma, Pass, ZPlus

    theirs = {
        "epsilon": Epsilon(0.25),
        "gamma": Gamma(0.25, stabilizer=1e-14),
        "gamma large": Gamma(10.0, stabilizer=1e-14),
        "alpha_beta": AlphaBeta(2.0, 1.0, stabilizer=1e-14),
        "z_plus": ZPlus(stabilizer=1e-14),
        "attn": Epsilon(0.25),
    }

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dense = torch.nn.Conv1d(2, 3, 2), torch.nn.Linear(12, 2)
            self.activation = getattr(torch.nn, activation)()
            for layer, w, b in ((self.conv, K.transpose(2, 1, 0), D), (self.dense, E.T, F)):
                layer.weight.data, layer.bias.data = torch.tensor(w.copy()), torch.tensor(b)

        def forward(self, x):
            return self.dense(self.activation(self.conv(x.transpose(1, 2))).transpose(1, 2).flatten(1))

    kinds = (torch.nn.Conv1d, torch.nn.Linear)
    composite = LayerMapComposite([(type(Network().activation), Pass()), (kinds, theirs[name])])
    with Gradient(Network(), composite) as attributor:
        _, expected = attributor(torch.tensor(S), lambda y: y * torch.tensor([0.0, 1.0]))

    def net(x):
        h = {"ReLU": jax.nn.relu, "Tanh": jnp.tanh}[activation](convolve(x) + D[None, None])
        return h.reshape(len(x), -1) @ E + F[None]

    found = relevances(net, rule=RULES[name][0], target=1, x=S)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_against_lxt(norm):
    torch = pytest.importorskip("torch")
    lxt = pytest.importorskip("lxt.explicit.functional")
    size, tokens, eps = 6, 5, 1e-14
    weights = {name: RNG.normal(size=(size, size)) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    biases = {name: RNG.normal(size=size) for name in weights}
    head, x = RNG.normal(size=(size, 3)), RNG.normal(size=(1, tokens, size))

    def block(x):
        def dense(name, h):
            return h @ weights[name] + biases[name][None, None]

        def normed(h):
            return jax.nn.standardize(h, epsilon=1e-5) if norm == "layer" else rms_norm(h, lambda s: s)

        h = normed(x)
        attention = jax.nn.softmax(dense("q", h) @ dense("k", h).mT / np.sqrt(size))
        x = x + dense("o", attention @ dense("v", h))
        h = normed(x)
        x = x + dense("down", jax.nn.gelu(dense("gate", h), approximate=False) * dense("up", h))
        return x.mean(1) @ head

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.gelu(x)

        @staticmethod
        def backward(ctx, relevance):
            return relevance

    def dense(name, h):
        return lxt.linear_epsilon(h, torch.tensor(weights[name].T.copy()), torch.tensor(biases[name]), eps)

    def normed(h):
        return lxt.layer_norm_grad_fn.apply(h, None, None, 1e-5, eps) if norm == "layer" else RMS.apply(h)

    class RMS(torch.autograd.Function):  # LXT's own computes in float32
        @staticmethod
        def forward(ctx, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

        @staticmethod
        def backward(ctx, relevance):
            return relevance

    inputs = torch.tensor(x, requires_grad=True)
    h = normed(inputs)
    scale = torch.tensor(size**-0.5, dtype=torch.float64)
    scores = lxt.mul2(lxt.matmul(dense("q", h), dense("k", h).transpose(1, 2), False, eps), scale)
    mixed = lxt.matmul(lxt.softmax(scores, -1), dense("v", h), False, eps)
    y = lxt.add2(inputs, dense("o", mixed), False, eps)
    h = normed(y)
    gated = lxt.mul2(Identity.apply(dense("gate", h)), dense("up", h))
    y = lxt.mean(lxt.add2(y, dense("down", gated), False, eps), 1, False, eps)
    y = lxt.linear_epsilon(y, torch.tensor(head.T.copy()), None, eps)
    y[0, 1].backward(y[0, 1].detach())

    np.testing.assert_allclose(jax.jit(block)(x), y.detach().numpy(), rtol=1e-9)
    found = relevances(block, rule=jaxlift.AttnLRP(0), target=1, x=x)
    np.testing.assert_allclose(found, inputs.grad.numpy(), rtol=1e-9, atol=1e-11)
