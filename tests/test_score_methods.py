"""`score` of every method: what it stores is what the method gives for each example alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from jax.ad_checkpoint import checkpoint_name
from test_scoring import ONE, compiled_once

import jaxlift
from jaxlift import rules
from jaxlift.scoring import StoreError
from jaxlift.scoring._device import Program
from jaxlift.scoring._examples import open_examples
from jaxlift.scoring._reference import read_reference

__all__ = ["compiled_once"]
_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(7, 6)).astype(np.float32)
FIRST, SECOND = (jnp.asarray(_RNG.normal(size=shape), jnp.float32) for shape in ((6, 5), (5, 3)))
SHARED = _RNG.normal(size=(4, 6)).astype(np.float32)
KEY = jax.random.key(11)


def model(x):
    """`(N, 6) -> (N, 3)`."""
    return jnp.tanh(checkpoint_name(jax.nn.relu(x @ FIRST), "hidden")) @ SECOND


# Each with the reference that it is compared with.
METHODS = {
    **{f"rule {name}": (jaxlift.attribute(model, target=1, rule=name), "zeros") for name in rules.NAMED},
    "rule of an object": (jaxlift.attribute(model, target=1, rule=jaxlift.AlphaBetaLRP(2.0, 1.0)), "zeros"),
    "rule for each layer": (jaxlift.attribute(model, target=1, rule=jaxlift.PerLayer(dense="revealcancel")), "zeros"),
    "gradients": (jaxlift.attribute(model, target=1, rule="gradient", output="multipliers"), None),
    "integrated gradients": (jaxlift.integrated_gradients(model, target=1, steps=5), "zeros"),
    "expected gradients": (jaxlift.integrated_gradients(model, target=1, steps=5), SHARED),
    "a layer": (jaxlift.attribute(model, target=1, layer="hidden"), "zeros"),
    "each output and reference": (jaxlift.attribute(model, target="all", average=False), SHARED),
    "weights": (jaxlift.attribute(model, target=jnp.array([1.0, -1.0, 0.0])), "mean"),
    "a held target": (jaxlift.attribute(model, target=jaxlift.Held(jax.nn.softmax)), "mean"),
    "a target by a function": (jaxlift.attribute(model, target=lambda y: y.max(-1)), "mean"),
    "occlusion": (jaxlift.occlusion(model, target=1, window=(2,)), "zeros"),
    "occlusion of groups": (jaxlift.occlusion(model, target=1, groups=np.array(list("aabbcc"))), "zeros"),
    "interactions": (jaxlift.shapley(model, target=1, interactions=True), "zeros"),
    "conductance": (jaxlift.conductance(model, target=1, layer="hidden", steps=5), "zeros"),
    "GradientSHAP": (jaxlift.gradient_shap(model, target=1, samples=3, key=KEY), SHARED),
    "Shapley values by enumeration": (jaxlift.shapley(model, target=1), "zeros"),
    "Shapley values of groups": (jaxlift.shapley(model, target=1, groups=np.array([0, 0, 1, 1, 2, 2])), "zeros"),
    "Shapley values by samples": (jaxlift.shapley(model, target=1, samples=3, key=KEY), "zeros"),
    "Shapley values by an old key": (jaxlift.shapley(model, target=1, samples=3, key=jax.random.PRNGKey(5)), "mean"),
    "Shapley values with many references": (jaxlift.shapley(model, target=1, samples=3, key=KEY), SHARED),
    "Shapley values by blocks": (jaxlift.shapley_blocks(model, target=1, key=KEY), "zeros"),
    "multipliers by blocks": (jaxlift.shapley_blocks(model, target=1, samples=1, output="multipliers"), SHARED),
    "compiled": (jax.jit(jaxlift.attribute(model, target=1)), "zeros"),
    "in batches": (jaxlift.attribute(model, target=1, batch_size=2, reference_batch_size=3), SHARED),
}


def score(attr, out, reference="zeros", examples=X, **options):
    options = {"batch_size": 4, "devices": ONE, "progress": "none"} | options
    jaxlift.score(attr, examples, out=out, reference=reference, **options)
    group = zarr.open_group(out, mode="r")
    [name] = [name for name in group if name in ("contributions", "multipliers", "hypothetical")]
    return group[name][...]


@pytest.mark.parametrize("name", METHODS)
def test_as_for_each_example_alone(tmp_path, name):
    attr, reference = METHODS[name]
    found = score(attr, tmp_path / "s", reference)
    given = {"zeros": np.zeros(6, np.float32), "mean": X.mean(0)}.get(reference) if reference is not SHARED else SHARED
    alone = jax.jit(attr)
    for x, scores in zip(X, found, strict=True):
        np.testing.assert_allclose(scores, alone(x[None], reference=given)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Shapley values by samples", "Shapley values with many references"])
@pytest.mark.slow
def test_random_draws_depend_on_the_key_alone(tmp_path, name):
    """All examples see the same orders, whichever batch they are in, and whichever run scores them."""
    attr, reference = METHODS[name]
    x = _RNG.normal(size=(40, 6)).astype(np.float32)
    whole = score(attr, tmp_path / "whole", reference, x, batch_size=1)
    for shard in ("1/2", "0/2"):
        in_parts = score(attr, tmp_path / "parts", reference, x, batch_size=1, shard=shard)
    np.testing.assert_array_equal(in_parts, whole)
    again = score(attr, tmp_path / "again", reference, x[::-1], batch_size=1)
    np.testing.assert_array_equal(again[::-1], whole)
    np.testing.assert_allclose(
        score(attr, tmp_path / "batches", reference, x, batch_size=3), whole, rtol=1e-4, atol=1e-6
    )
    other = jaxlift.shapley(model, target=1, samples=3, key=jax.random.key(12))
    with pytest.raises(StoreError, match=r"attribution\.key"):
        score(other, tmp_path / "whole", reference, x, batch_size=1)
    assert np.abs(score(other, tmp_path / "other", reference, x, batch_size=1) - whole).max() > 1e-3


attr = METHODS["rule gradient"][0]
NOT_SCORED = {
    "a model": (model, "score_methods:model"),
    "score-cam": (jaxlift.score_cam(model, target=1, layer="hidden"), "methods whose scores sum to something"),
    "grad-cam": (jaxlift.grad_cam(model, target=1, layer="hidden"), "methods whose scores sum to something"),
    "mutagenesis": (jaxlift.mutagenesis(model, target=1), "methods whose scores sum to something"),
    "guided grad-cam": (jaxlift.guided_grad_cam(model, target=1, layer="hidden"), "expected what jaxlift.attribute"),
    "smooth": (jaxlift.smooth(attr, noise=0.1, key=KEY), "expected what jaxlift.attribute"),
    "sum of channels": (jaxlift.sum_channels(attr), "expected what jaxlift.attribute"),
    "a function of it": (lambda x, reference=None: 2 * attr(x), "expected what jaxlift.attribute"),
    "what wraps it": (functools.wraps(attr)(lambda x, reference=None: 2 * attr(x)), "expected what jaxlift.attribute"),
    "vmap": (jax.vmap(attr), "expected what jaxlift.attribute"),
    "several arguments": (jaxlift.attribute(model, argnums=(0, 1)), "models of one array"),
}


@pytest.mark.parametrize("name", NOT_SCORED)
def test_what_is_not_scored(tmp_path, name):
    given, message = NOT_SCORED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        score(given, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def program(attr, devices=ONE):
    examples = open_examples(X)
    reference = read_reference("zeros", examples, paired=False, shuffles=2, seed=0, stored=None)
    return Program(attr, examples, reference, devices)


class Scaled(jaxlift.Rescale):
    """A rule of which a number is written in its code."""

    def multiplier(self, f, x, r):
        return super().multiplier(f, x, r) * self.scale


def test_checksum_of_the_program():
    """It knows a rule's code, and neither devices nor batches."""
    of = {scale: type("Scaled", (Scaled,), {"scale": scale}) for scale in (2.0, 3.0)}
    attrs = {scale: jaxlift.attribute(model, target=1, rule=rule()) for scale, rule in of.items()}
    assert program(attrs[2.0]).checksum == program(attrs[2.0], jax.local_devices()[:2]).checksum
    batches = program(attrs[2.0])
    batches.compile(4)
    assert batches.checksum == program(attrs[2.0]).checksum
    assert program(attrs[2.0]).checksum != program(attrs[3.0]).checksum
    assert program(attrs[2.0]).model.description == program(attrs[3.0]).model.description
