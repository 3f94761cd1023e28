"""The network of AlphaGenome's shape that the example explains: sums hold to the precision that it computes in."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

EXAMPLES = Path(__file__).parent.parent / "examples"
LENGTH, HEADS = 32, ("bases", "bins", "contacts")
SHARES = {"bfloat16": 0.04, "float32": 1e-5, "float64": 1e-12}  # of the sum of magnitudes, that sums may miss


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("alphagenome")


@pytest.fixture(scope="module")
def network(example):
    """With parameters and statistics near the initial ones, which are often 0 or 1: that would hide their use."""
    sizes = example.Sizes(channels=8, growth=2, pools=(4, 2), layers=1, heads=2)
    model, rng = example.Network(sizes, nnx.Rngs(0)), np.random.default_rng(0)
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
@pytest.mark.parametrize(
    ("precision", "rule"),
    [
        pytest.param("float32", "rescale", marks=pytest.mark.slow),
        pytest.param("float64", "rescale", marks=pytest.mark.slow),
        pytest.param("bfloat16", "rescale", marks=pytest.mark.slow),
        pytest.param("bfloat16", "revealcancel", marks=pytest.mark.slow),
    ],
)
def test_every_head_is_complete_to_the_precision(example, network, precision, rule):
    rng = np.random.default_rng(1)
    x, reference = (np.eye(4)[rng.integers(4, size=LENGTH)] for _ in range(2))
    scores, missing = example.explain(numbers, network, precision, rule, x, reference)
    assert (missing < example.ROUNDINGS).all(), missing
    assert (missing * float(jnp.finfo(precision).eps) < SHARES[precision]).all(), missing
    assert (np.abs(scores).sum((1, 2)) > 0.1).all()
