"""Sums hold on devices whose products have few digits by default."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from tests.benchmarks import in_jax
from tests.benchmarks.networks import data, weights_of
from tests.emulated import emulated

SMALL = ("mlp", "mnist_cnn", "max_pooling", "transformer", "lstm", "activations")
LARGEST = 1e-5  # of the sum of |contributions|


pytestmark = pytest.mark.usefixtures("as_users_write")


def missing(name, rule, device, precision):
    """What is missing from the sum, of the sum of |contributions|; and of the difference of the outputs."""
    w = jax.tree.map(jnp.asarray, weights_of(name))
    attr = jaxlift.attribute(
        lambda x: in_jax.MODELS[name](w, x), rule=rule, pairing="shared", average=False, full=True, precision=precision
    )
    x, refs = map(jnp.asarray, data(name, 2, 3))
    found = jax.device_get(emulated(lambda x, refs: attr(x, reference=refs), device)(x, refs))
    size = np.abs(found.scores.reshape(2, 3, -1)).sum(-1)
    difference = np.abs(found.output - found.output_reference)
    return (np.abs(found.delta) / size).max(), (np.abs(found.delta) / difference).max()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SMALL[2:])) for n in SMALL])
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("device", ["TPU", "GPU"])
@pytest.mark.sample(8)
def test_sum_holds_by_default(name, rule, device):
    assert missing(name, rule, device, "highest")[0] < LARGEST


@pytest.mark.parametrize("name", ["mlp", "mnist_cnn"])
@pytest.mark.parametrize(("device", "least"), [("TPU", 3e-4), ("GPU", 2e-5)])
def test_sum_is_lost_at_the_models_own(name, device, least):
    """What the default is there for; and the emulation would show it."""
    for precision in (None, "default"):
        assert missing(name, "rescale", device, precision)[0] > least


def test_three_products_are_nearly_enough():
    of_sum, _ = missing("mnist_cnn", "rescale", "TPU", "high")
    assert 1e-7 < of_sum < 3e-5


def precisions(fun, *args, platform="tpu"):
    """Those of the products in a program for a platform."""
    text = jax.jit(fun).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]
    return [set(re.findall(r"DEFAULT|HIGHEST|HIGH", line)) or {"DEFAULT"} for line in products]


KERNEL = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


def model(x, precision=None):
    h = lax.conv_general_dilated(x, KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), precision=precision)
    h = jnp.einsum("nlc,nmc->nlm", jax.nn.gelu(h), h, precision=precision)

    def step(carry, u):
        return jnp.tanh(jnp.matmul(carry, KERNEL[0], precision=precision) + u), None

    return lax.scan(step, h[:, 0, :4], KERNEL[:, 0])[0].sum(1)


X, REFS = jnp.ones((2, 9, 4)), jnp.zeros((3, 9, 4))


def program(precision="highest", own=None, **options):
    attr = jaxlift.attribute(lambda x: model(x, own), precision=precision, **options)
    return lambda x, refs: attr(x, reference=refs)


@pytest.mark.parametrize("rule", ["rescale", "revealcancel", "gradient", "epsilon_lrp"])
@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_all_products_of_a_program_have_it(rule, platform):
    found = precisions(program(rule=rule), X, REFS, platform=platform)
    assert len(found) >= 6
    assert all(each == {"HIGHEST"} for each in found)
    assert any(each != {"HIGHEST"} for each in precisions(program(None, rule=rule), X, REFS, platform=platform))


@pytest.mark.parametrize("options", [{"reference_batch_size": 1}, {"batch_size": 1}, {"target": "all"}])
def test_in_loops_too(options):
    assert all(each == {"HIGHEST"} for each in precisions(program(**options), X, REFS))


@pytest.mark.parametrize(
    "method", [jaxlift.integrated_gradients, jaxlift.occlusion, jaxlift.mutagenesis, jaxlift.grad_cam]
)
def test_other_methods(method):
    needed = {"layer": "h"} if method is jaxlift.grad_cam else {}

    def fun(x):
        return model(checkpoint_name(x, "h"))

    one_hot = jnp.eye(4)[jnp.zeros((2, 9), int)]
    compared = {} if method in (jaxlift.mutagenesis, jaxlift.grad_cam) else {"reference": jnp.zeros((9, 4))}
    for precision, expected in (("highest", {"HIGHEST"}), ("high", {"HIGH"})):
        attr = method(fun, precision=precision, **needed)
        found = precisions(lambda x, attr=attr: attr(x, **compared), one_hot)
        assert found
        assert all(each == expected for each in found)


@pytest.mark.parametrize("own", ["default", "high", lax.DotAlgorithmPreset.F32_F32_F32])
def test_a_model_that_asks_for_less_is_computed_with_more(own):
    def fun(x):
        return jnp.tanh(jnp.matmul(x, KERNEL[0], precision=own)).sum(1)

    for lifted in (jaxlift.lift(fun), lambda x, r: jaxlift.vjp(fun, x, r)[1](jnp.ones(2))):
        assert all(each == {"HIGHEST"} for each in precisions(lifted, X[:, 0], X[:, 1]))
    grad = jax.grad(lambda x, r: jaxlift.lift(fun)(x, r)[0].sum())  # its backward pass is traced outside
    assert all(each == {"HIGHEST"} for each in precisions(grad, X[:, 0], X[:, 1]))


def test_a_model_that_asks_for_more_keeps_it():
    assert all(each == {"HIGHEST"} for each in precisions(program("default", own="highest"), X, REFS))


def test_none_is_the_models_own():
    def fun(x):
        return jnp.tanh(jnp.matmul(x, KERNEL[0], precision="high") @ KERNEL[1]).sum(1)

    lifted = jaxlift.lift(fun, precision=None)
    assert sorted(map(min, precisions(lifted, X[:, 0], X[:, 1]))) == ["DEFAULT", "DEFAULT", "HIGH", "HIGH"]
    with jax.default_matmul_precision("highest"):
        assert {"HIGHEST"} in precisions(lifted, X[:, 0], X[:, 1])


def test_setting_of_jax_is_replaced():
    """Who sets it for training, where digits don't matter, still gets the sum."""
    with jax.default_matmul_precision("bfloat16"):
        assert all(each == {"HIGHEST"} for each in precisions(program(), X, REFS))


def test_matrices_that_jaxlift_multiplies():
    def solve(x):
        return jnp.linalg.solve(x[:, :4, :4] + 3 * jnp.eye(4), x[:, 4, :4, None]).sum((1, 2))

    attr = jaxlift.attribute(solve)
    found = precisions(lambda x, r: attr(x, reference=r), X, X[0] / 2, platform="cpu")
    assert found
    assert all(each == {"HIGHEST"} for each in found)


@pytest.mark.parametrize("on_left", [True, False])
def test_matrices_that_jaxlift_multiplies_where_a_backward_pass_is_traced_outside(on_left):
    def solve(x):
        return lax.linalg.triangular_solve(x[:, :4] + 3 * jnp.eye(4), x[:, 4:8], left_side=on_left, lower=True).sum()

    def factor(x):
        return lax.linalg.cholesky(x[:, :4] + 3 * jnp.eye(4), symmetrize_input=False).sum()

    for fun in (solve, factor):
        found = precisions(jax.grad(lambda x, r, fun=fun: jaxlift.lift(fun)(x, r)[0]), X, X / 2, platform="cpu")
        assert found
        assert all(each == {"HIGHEST"} for each in found)


@pytest.mark.filterwarnings("ignore:contributions cancel")  # as it should say
def test_bfloat16_stays():
    """In units of its rounding, whatever is asked for."""
    w = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weights_of("mlp"))
    x, refs = (jnp.asarray(each, jnp.bfloat16) for each in data("mlp", 2, 3))
    attr = jaxlift.attribute(lambda x: in_jax.MODELS["mlp"](w, x), pairing="shared", average=False, full=True)
    found = attr(x, reference=refs)
    assert found.scores.dtype == jnp.bfloat16
    size = np.abs(np.asarray(found.scores, np.float32).reshape(2, 3, -1)).sum(-1)
    assert (np.abs(np.asarray(found.delta, np.float32)) < 2 * float(jnp.finfo(jnp.bfloat16).eps) * size).all()


@pytest.mark.parametrize("given", ["float", "HIGHEST", 3])
def test_unknown(given):
    for use in (lambda: jaxlift.attribute(model, precision=given), lambda: jaxlift.lift(model, precision=given)):
        with pytest.raises(ValueError, match=r"precision=.*'highest', 'high', 'default', None"):
            use()


def test_it_is_written_down():
    assert jaxlift.attribute(model).described_options["precision"] == "highest"


@pytest.mark.filterwarnings("ignore:contributions cancel")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_mixed_precision(rule):
    """Flax's policy, float32 parameters and bfloat16 computation: products stay of bfloat16 numbers, and sums hold to
    its rounding.
    """
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (32, 32):
                x = nn.relu(nn.Dense(width, dtype=jnp.bfloat16, param_dtype=jnp.float32)(x))
            return nn.Dense(1, dtype=jnp.bfloat16, param_dtype=jnp.float32)(x)[:, 0].astype(jnp.float32)

    x, refs = jax.random.normal(jax.random.key(0), (4, 16)), jnp.zeros((1, 16))
    params = Network().init(jax.random.key(1), x)
    attr = jaxlift.attribute(lambda x: Network().apply(params, x), rule=rule, full=True)
    text = jax.jit(lambda x, r: attr(x, reference=r)).trace(x, refs).lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    if rule == "rescale":
        assert all(line.split(": (")[1].count("xbf16>") >= 2 for line in products)
    found = attr(x, reference=refs)
    size = np.abs(np.asarray(found.scores)).sum(1)
    assert (np.abs(np.asarray(found.delta)) < 2 * float(jnp.finfo(jnp.bfloat16).eps) * size).all()
