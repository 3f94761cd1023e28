"""The network of AlphaGenome's shape that the example explains: sums hold to the precision that it computes in."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from alphagenome import DTYPES, ROUNDINGS, explain
from alphagenome_network import Network, Sizes

LENGTH, HEADS = 32, ("bases", "bins", "contacts")
SIZES = Sizes(channels=8, growth=2, pools=(4, 2), layers=1, heads=2)


@pytest.fixture(scope="module")
def network():
    """With parameters and statistics near the initial ones, which are often 0 or 1: that would hide their use."""
    model, rng = Network(SIZES, nnx.Rngs(0)), np.random.default_rng(0)
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), state)
    model = nnx.merge(graph, state)
    model.eval()
    return model


def numbers(model, x):
    """One number of each head, made of all that it gives."""
    outputs = model(x)
    flat = [outputs[head].reshape(len(x), -1) for head in HEADS]
    return jnp.stack([y @ jnp.cos(jnp.arange(1, 1 + y.shape[1], dtype=y.dtype)) for y in flat], 1)


@pytest.mark.usefixtures("as_users_write")
@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("precision", DTYPES)
def test_every_head_is_complete_to_the_precision(network, precision, rule):
    rng = np.random.default_rng(1)
    x, reference = (np.eye(4)[rng.integers(4, size=LENGTH)] for _ in range(2))
    scores, missing = explain(numbers, network, precision, rule, x, reference)
    assert (missing < ROUNDINGS).all(), missing
    assert ROUNDINGS * jnp.finfo(precision).eps < {"bfloat16": 0.2, "float32": 1e-5, "float64": 1e-12}[precision]
    assert (np.abs(scores).sum((1, 2)) > 0.1).all()
