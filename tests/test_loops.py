"""Functions over many rows, some at a time: equal to all at once, and arranged for loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift
from jaxlift._batching.loops import map_over, mean_over
from jaxlift._core.compilers import with_channels_last

LAYOUTS = {
    "channels last": ("NWHC", "WHIO", "NWHC"),
    "channels first": ("NCWH", "OIWH", "NCWH"),
    "kernel turned": ("NWHC", "WHOI", "NWHC"),
    "batch last": ("CWHN", "IWHO", "WNHC"),
}
OPTIONS = {
    "plain": {},
    "strides and dilations": {"window_strides": (2, 1), "lhs_dilation": (1, 2), "rhs_dilation": (2, 1)},
    "groups of features": {"feature_group_count": 2},
    "groups of examples": {"batch_group_count": 2},
}


def arranged(numbers, sizes):
    """Random numbers whose axes have these names."""
    rng = np.random.default_rng(len(numbers))
    return jnp.asarray(rng.normal(size=[sizes[axis] for axis in numbers]), jnp.float32)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolutions_in_loops(layout, options):
    """The same numbers, forwards and backwards, with channels last."""
    options = {"window_strides": (1, 1), "padding": ((1, 2), (0, 1))} | OPTIONS[options]
    sizes = {"N": 4, "C": 6, "W": 9, "H": 8}
    x = arranged(LAYOUTS[layout][0], sizes)
    inputs = sizes["C"] // options.get("feature_group_count", 1)
    kernel = arranged(LAYOUTS[layout][1], {"W": 3, "H": 2, "I": inputs, "O": 4})

    def conv(x):
        return lax.conv_general_dilated(x, kernel, dimension_numbers=LAYOUTS[layout], **options)

    def backwards(x):
        return jax.vjp(conv, x)[1](jnp.cos(conv(x)))[0]

    for fun in (conv, backwards):
        turned = jax.jit(with_channels_last(fun))
        np.testing.assert_allclose(turned(x), jax.jit(fun)(x), rtol=1e-5, atol=1e-5)
        text = turned.lower(x).as_text()
        assert text.count("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]") == text.count("stablehlo.convolution") > 0


def test_layers_that_are_called_again():
    """Inside of what they call as well."""
    kernel = arranged("WIO", {"W": 3, "I": 4, "O": 4})

    @jax.jit
    def layer(x):
        return jnp.tanh(lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))

    def model(x):
        return layer(layer(x)).sum((1, 2))

    x, r = arranged("NWC", {"N": 6, "W": 8, "C": 4}), jnp.zeros((8, 4))
    attr = jax.jit(jaxlift.attribute(model, batch_size=2))
    text = attr.lower(x, reference=r).as_text()
    assert text.count("[b, 0, f]x[0, i, o]->[b, 0, f]") == text.count("stablehlo.convolution") > 0
    expected = jax.jit(jaxlift.attribute(model))(x, reference=r)
    np.testing.assert_allclose(attr(x, reference=r), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_chunks(size):
    xs = {"a": np.arange(14, dtype=np.float32).reshape(7, 2), "b": np.arange(7, dtype=np.int32)}

    def fun(x):
        return x["a"] * x["b"], x["b"] / 2

    @jax.jit
    def all_three(xs):
        return jax.vmap(fun)(xs), map_over(fun, xs, size), mean_over(fun, xs, size)

    every, chunked, mean = all_three(xs)
    jax.tree.map(np.testing.assert_array_equal, chunked, every)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.mean(b, 0), rtol=1e-6), mean, every)
