"""What is written for one compiler is in no program for another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

KERNEL = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


def model(x):
    h = lax.conv_general_dilated(x, KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    h = jax.nn.gelu(h, approximate=False)
    return jax.nn.relu(h.sum(1)).sum(1)


def lowered(rule, platform):
    attr = jaxlift.attribute(model, rule=rule, reference_batch_size=1)
    shapes = [jax.ShapeDtypeStruct((n, 9, 4), jnp.float32) for n in (2, 3)]
    traced = jax.jit(lambda x, r: attr(x, reference=r)).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def counts(program):
    """Divisions by a 1 that the compiler doesn't know, recognised by its NaN; transpositions; barriers."""
    unknown_ones = len(re.findall(r"compare\s+NE, %(\w+), %\1\b", program))
    return unknown_ones, program.count("stablehlo.transpose"), program.count("optimization_barrier")


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
def test_what_is_for_cpus_is_for_cpus_alone(rule):
    on_cpu, on_tpu, on_gpu = (counts(lowered(rule, platform)) for platform in ("cpu", "tpu", "cuda"))
    for ones, transpositions, _ in (on_tpu, on_gpu):
        assert (ones, transpositions) == (0, 0)
    assert on_tpu[2] == on_cpu[2] > 0
    assert on_gpu[2] == 0
    assert on_cpu[0] > 0
    assert on_cpu[1] > 0
