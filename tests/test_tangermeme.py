"""Scores of a BPNet beside tangermeme's 1.6.0, through bpnet-lite 1.1.0: the same network, weights and references.

Skipped where they aren't installed. `pytest tests/test_tangermeme.py -n 0 -s` prints the differences, relative to the
largest score; `-m slow` has the network of full size. In float32 the peer's plain quotients of differences round. For
its profile, quotients of each logit's product with its probability, they lose most digits, so bpnet-lite's command
takes float64 there, as the test does.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift
from jaxlift.genomics import targets
from tests.benchmarks.genomics import FULL, SMALL, in_jax, in_torch, weights_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    bpnet = pytest.importorskip("bpnetlite.bpnet")
    peer = pytest.importorskip("bpnetlite.attribute")
    ersatz = pytest.importorskip("tangermeme.ersatz")

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = [pytest.param(SMALL, id="small"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]


class HeldProfile(torch.nn.Module):
    """Centred logits, weighted by their softmax at the input. tangermeme gives a model both halves of each pair."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)[0].flatten(1)
        logits = logits - logits.mean(1, keepdims=True)
        held = torch.softmax(logits.chunk(2)[0], 1).detach()
        return (logits * torch.cat([held, held])).sum(1, keepdims=True)


@jax.custom_vjp
def scaled(logits):
    """Logits times their probabilities, as bpnet-lite has them in a module of its own."""
    return logits * jax.nn.softmax(logits)


scaled.defvjp(lambda h: (scaled(h), h), lambda h, cotangent: jax.vjp(lambda h: h * jax.nn.softmax(h), h)[1](cotangent))


@pytest.fixture
def quotients_of_products():
    """bpnet-lite's rule for that module: of each logit alone, though the softmax depends on all."""

    @jaxlift.register(scaled)
    def pull(cotangent, values, references):
        (h,), (r,) = values, references
        return cotangent * (scaled(h) - scaled(r)) / (h - r)

    yield
    jaxlift.unregister(scaled)


def profile_of_bpnet_lite(outputs):
    logits = outputs["profile"].reshape(len(outputs["profile"]), -1)
    return scaled(logits - logits.mean(1, keepdims=True)).sum(1)


TARGETS = {
    "counts": (bpnet.CountWrapper, targets.log_counts("counts")),
    "profile": (bpnet.ProfileWrapper, profile_of_bpnet_lite),
    "profile, held": (HeldProfile, targets.profile("profile", softmax="held")),
}


def examples(size):
    """Sequences `(N, 4, L)`, as torch has them."""
    letters = np.random.default_rng(2).choice(4, size=(2, size.width), p=[0.3, 0.2, 0.2, 0.3])
    return np.eye(4, dtype=np.float32)[letters].transpose(0, 2, 1)


def given(x, count):
    """Shuffles of each, `(N, R, 4, L)`."""
    rng = np.random.default_rng(3)
    return np.stack([[rng.permutation(each, axis=1) for _ in range(count)] for each in x])


def check(what, ours, theirs, tolerance):
    theirs = np.moveaxis(theirs.numpy(), -2, -1)
    difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    print(f"{what}: largest difference {difference:.1e} of the largest score")
    assert difference <= tolerance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn by tangermeme"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float64") for name in TARGETS), ("counts", "float32"), ("profile, held", "float32")],
)
@pytest.mark.usefixtures("quotients_of_products", "optimized")
def test_same_scores(size, drawn, name, dtype):
    wrapper, target = TARGETS[name]
    weights, count = weights_of(size), 3
    wrapped = wrapper(in_torch(weights, size)).to(getattr(torch, dtype))
    x = torch.from_numpy(np.ascontiguousarray(examples(size))).to(getattr(torch, dtype))
    explain = functools.partial(
        peer.deep_lift_shap, wrapped, x, n_shuffles=count, batch_size=2, device="cpu", warning_threshold=np.inf
    )
    if drawn:
        multipliers, r = explain(random_state=0, return_references=True, raw_outputs=True)
        hypothetical = explain(random_state=0, hypothetical=True)
    else:
        r = torch.from_numpy(given(x.numpy(), count))
        multipliers = explain(references=r, raw_outputs=True)
        hypothetical = explain(references=r, hypothetical=True)
    with jax.enable_x64(dtype == "float64"):
        attribute = functools.partial(jaxlift.attribute, in_jax(weights, size), target=target)
        of_each = jax.jit(attribute(output="multipliers", average=False))
        of_mean = jax.jit(attribute(output="hypothetical"))
        own, refs = (jnp.asarray(np.moveaxis(a.numpy(), -2, -1), dtype) for a in (x, r))
        tolerance = 1e-10 if dtype == "float64" else 1e-5
        check(f"{name}, {dtype}, multipliers", of_each(own, reference=refs), multipliers, tolerance)
        check(f"{name}, {dtype}, hypothetical", of_mean(own, reference=refs), hypothetical, tolerance)
