"""Against the numbers of the original implementation (`data/oracle`, made by deeplift 0.6.13.0 in float32).

Known differences, all of them the original's, and each reproduced below by a rule that does as it does:

- Max-pooling sends everything to the maximum of the input, so sums are lost where the reference's is elsewhere.
  `jaxlift.OriginalMaxPooling` does the same; all networks with pooling are compared under it.
- RevealCancel adds 1e-7 to a part that is 0. In float32 that makes the multiplier of a ReLU that is on 0, 0.894, 1.04
  or 1.19, by the size of its input, in place of 1. It shows where a part is exactly 0: in multipliers where input and
  reference are equal, and in contributions through hidden units whose difference is exactly 0
  (`PSEUDOCOUNT_IN_CONTRIBUTIONS`).
- Rescale takes the derivative at the output f(r) in place of r where the difference is below 1e-7 (`WRONG_DERIVATIVE`).
- Where an activation stands on the input itself, or on a sum with it, the original's multipliers are the mean of the
  two parts', which times the difference isn't the contribution (`MEAN_OF_PARTS`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from original import ORACLES

import jaxlift

PSEUDOCOUNT_IN_CONTRIBUTIONS = {"bn_mlp", "residual_concat_dense"}
WRONG_DERIVATIVE = {"zero_delta_all"}
MEAN_OF_PARTS = {"activation_on_input", "ext_residual_add"}
RULES = ["rescale", "revealcancel", "genomics_default"]


def same_as_revealcancel(oracle, rule):
    """Without a convolution the default for genomics is RevealCancel throughout."""
    convolves = any(layer["class"].startswith("Conv") for layer in oracle.spec["layers"])
    return rule == "genomics_default" and not convolves


CASES = [
    pytest.param(
        oracle,
        rule,
        id=f"{oracle.name}-{rule}",
        marks=[pytest.mark.slow] * same_as_revealcancel(oracle, rule),
    )
    for oracle in ORACLES
    for rule in RULES
    if rule in oracle.spec["rules"]
]


class OriginalRescale(jaxlift.Rescale):
    """With the derivative at f(r), where differences are below 1e-7."""

    def multiplier(self, f, x, r):
        d = x - r
        near = jnp.abs(d) < 1e-7
        return jnp.where(near, f.derivative(f(r)), (f(x) - f(r)) / jnp.where(near, 1, d))

    def pull(self, f, x, r, cotangent):
        return self.multiplier(f, x, r) * cotangent


class OriginalRevealCancel(jaxlift.RevealCancel):
    """With 1e-7 added to parts near 0, before the function is called."""

    def at(self, place):
        return self

    variation = jaxlift.Rule.variation  # what comes of the parts, not RevealCancel's own formula

    def parts(self, f, x, r, a):
        plus, minus = ((x - r + sign * a) / 2 for sign in (1, -1))
        # A part that is 0 there, a sum of no terms, is here 0 to rounding: half the sum of two numbers that cancel.
        plus, minus = (jnp.where(jnp.abs(p) <= 4e-7 * a, 0, p) for p in (plus, minus))
        plus, minus = (p + jnp.where(jnp.abs(p) < 0.5e-7, jnp.where(p >= 0, 1e-7, -1e-7), 0) for p in (plus, minus))
        # In the original's order of operations, which is what makes its noise.
        up = 0.5 * ((f(r + plus) - f(r)) + (f(r + minus + plus) - f(r + minus)))
        down = 0.5 * ((f(r + minus) - f(r)) + (f(r + plus + minus) - f(r + plus)))
        return up / plus, down / minus


AS_THE_ORIGINAL = {
    "rescale": OriginalRescale(),
    "revealcancel": OriginalRevealCancel(),
    "genomics_default": jaxlift.PerLayer(dense=OriginalRevealCancel(), conv=OriginalRescale()),
}


@functools.cache
def scores(oracle, what, rule):
    """Scores of the oracle's targets, shaped as its own. All are made of the multipliers, which are computed once."""
    x, r = oracle.inputs("x"), oracle.inputs("ref")
    if what == "mults":
        attr = jaxlift.attribute(
            oracle.model(),
            target="all",
            rule=jaxlift.OriginalMaxPooling(rule),
            pairing="paired",
            output="multipliers",
        )
        result = jax.jit(lambda x, r: attr(x, reference=r))(x, r)
        return jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf), 1, 0)[oracle.targets], result)
    multipliers = scores(oracle, "mults", rule)
    if what == "hypothetical":
        return multipliers - (multipliers * r).sum(-1, keepdims=True)
    return jax.tree.map(lambda m, x, r: m * (x - r), multipliers, x, r)


def largest_error(actual, expected):
    """The largest difference of any entry, over the largest entry."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs)


def equal_inputs(oracle):
    return any(
        (x == r).any() for x, r in zip(*(jax.tree.leaves(oracle.inputs(which)) for which in ("x", "ref")), strict=True)
    )


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.name)
def test_the_networks_are_the_same(oracle):
    model = jax.jit(oracle.model())
    for which, expected in (("x", "f_x"), ("ref", "f_ref")):
        np.testing.assert_allclose(model(oracle.inputs(which)), oracle.arrays[expected], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("oracle", "rule"), CASES)
@pytest.mark.sample(16)
def test_contributions(oracle, rule):
    expected = oracle.scores("contribs", rule)
    if oracle.name == "zero_delta_all":
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(scores(oracle, "contribs", rule)))
        return
    error = largest_error(scores(oracle, "contribs", rule), expected)
    if oracle.name in PSEUDOCOUNT_IN_CONTRIBUTIONS and rule != "rescale":
        assert 1e-4 < error < 0.1
        assert largest_error(scores(oracle, "contribs", AS_THE_ORIGINAL[rule]), expected) < 1e-5
    else:
        assert error < 1e-5


@pytest.mark.parametrize(("oracle", "rule"), CASES)
def test_multipliers(oracle, rule):
    expected = oracle.scores("mults", rule)
    ours = scores(oracle, "mults", rule)
    if oracle.name in MEAN_OF_PARTS and rule == "revealcancel":
        for x, r, mine, theirs, contributions in zip(
            *map(
                jax.tree.leaves,
                (oracle.inputs("x"), oracle.inputs("ref"), ours, expected, oracle.scores("contribs", rule)),
            ),
            strict=True,
        ):
            assert largest_error(mine * (x - r), contributions) < 1e-5
            assert largest_error(theirs * (x - r), contributions) > 1e-2
        return
    error = largest_error(ours, expected)
    if error < 2e-5:
        return
    assert equal_inputs(oracle) or oracle.name in PSEUDOCOUNT_IN_CONTRIBUTIONS
    assert rule != "rescale" or oracle.name in WRONG_DERIVATIVE
    if (
        oracle.name == "zero_delta_all"
    ):  # all differences are 0: multipliers are derivatives, the original's of tanh are noise
        model, reference = oracle.model(), oracle.inputs("ref")
        jacobian = jax.jit(jax.vmap(jax.jacobian(lambda r: model(r[None])[0])))(reference)
        assert largest_error(ours, np.moveaxis(np.asarray(jacobian), 1, 0)[oracle.targets]) < 1e-6
    if oracle.name != "zero_delta_all" or rule == "rescale":
        # The noise depends on the last bit of sums, which we take in another order: most of it must come out the same.
        assert largest_error(scores(oracle, "mults", AS_THE_ORIGINAL[rule]), expected) < max(2e-5, error / 8)


@pytest.mark.parametrize(
    ("oracle", "rule"), [case for case in CASES if any("hypothetical" in key for key in case.values[0].arrays)]
)
def test_hypothetical_contributions(oracle, rule):
    expected = oracle.scores("hypothetical", rule)
    if largest_error(scores(oracle, "hypothetical", rule), expected) > 1e-5:
        assert equal_inputs(oracle)
        assert rule != "rescale"
        assert largest_error(scores(oracle, "hypothetical", AS_THE_ORIGINAL[rule]), expected) < 1e-5


@pytest.mark.parametrize(("oracle", "rule"), [case for case in CASES if "x_single" in case.values[0].arrays])
def test_mean_over_references_of_each_example(oracle, rule):
    x = oracle.arrays["x_single"]
    references = oracle.arrays["ref"].reshape(len(x), -1, *x.shape[1:])
    attr = jaxlift.attribute(oracle.model(), target="all", rule=jaxlift.OriginalMaxPooling(rule))
    actual = np.moveaxis(np.asarray(jax.jit(lambda x, r: attr(x, reference=r))(x, references)), 1, 0)[oracle.targets]
    assert largest_error(actual, oracle.scores("multiref_contribs", rule)) < 1e-5


LOST_SUMS = {"cnn2d_avg_max_pool", "dna_conv1d_shuffled_refs"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("oracle", "rule"), [case for case in CASES if case.values[0].name in LOST_SUMS])
def test_with_complete_max_pooling_nothing_is_missing(oracle, rule):
    """What the original loses in its sums (spec, completeness_gap_maxabs) is not lost here."""
    x, r = oracle.inputs("x", np.float64), oracle.inputs("ref", np.float64)
    assert oracle.spec["completeness_gap_maxabs"][rule] > 0.01
    for pooled, complete in ((rule, True), (jaxlift.OriginalMaxPooling(rule), False)):
        attr = jaxlift.attribute(
            oracle.model(np.float64),
            target="all",
            rule=pooled,
            pairing="paired",
            full=True,
        )
        _, delta, *_ = jax.jit(lambda x, r: attr(x, reference=r))(x, r)  # noqa: B023
        assert np.abs(delta).max() < 1e-12 if complete else np.abs(delta).max() > 0.01
