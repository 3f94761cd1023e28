"""The benchmarks run, agree in what they compute, and write down all that they promise. No figure is tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.competitors import COMPETITORS, matrix_flops
from tests.benchmarks.measure import ON_JAX
from tests.benchmarks.networks import NETWORKS, data, weights_of

ROOT = Path(__file__).parent.parent
EVERY = {"state", "seconds", "median", "spread", "first_seconds", "resident_before", "resident_peak"}
JUDGED = {"outputs_differ", "difference", "incompleteness"}
COMPILED = {"trace_seconds", "compile_seconds", "flops", "matrix_flops", "temporary_bytes", "equations"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks") / "results.json"
    options = ["--quick", "--no-peers", "--compile", "--networks", "mlp", "max_pooling", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    subprocess.run([sys.executable, "-m", "tests.benchmarks", *options], cwd=ROOT, env=environment, check=True)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_floors_are_attributions(name):
    """What is written by hand gives jaxlift's contributions, with as many products.

    Its quotients lose digits where activations hardly differ.
    """
    args = jax.tree.map(jnp.asarray, (weights_of(name), *data(name, 2, 3)))
    both = [COMPETITORS[competitor](name) for competitor in ("rescale", "floor")]
    own, floor = (jax.jit(fun)(*args) for fun in both)
    np.testing.assert_allclose(own, floor, rtol=0, atol=1e-4 * np.abs(floor).max())
    products, least = (matrix_flops(jax.make_jaxpr(fun)(*args).jaxpr) for fun in both)
    assert 0.99 * least <= products <= least


@pytest.mark.slow
def test_every_figure_is_there(results):
    assert results.keys() == {"machine", "settings", "cells", "compile", "growth", "targets"}
    assert [cell["network"] for cell in results["cells"]] == ["mlp", "max_pooling"]
    for cell in results["cells"]:
        by = cell["competitors"]
        for name in ON_JAX:
            assert by[name].keys() >= EVERY | JUDGED | COMPILED, name
            assert len(by[name]["seconds"]) >= 1
        assert by["bare"].keys() >= {"revealcancel_flops", "revealcancel_matrix_flops"}
        for name in ("captum", "shap", "tangermeme"):
            assert by[name] == {"state": "not installed: --no-peers", "seconds": []}
    measured = {"mlp", "max_pooling", "40 equations", "block called 2 times"}
    assert {row["network"] for row in results["compile"]} == measured
    assert all(target["met"] in (True, False, None) for target in results["targets"])
    assert {target["target"] for target in results["targets"]} >= {
        "times faster than the fastest right peer",
        "time, of the floor's",
        "matrix FLOPs, of the floor's",
        "RevealCancel's time, of Rescale's",
        "temporary memory, of the leanest right peer's",
        "times faster than the fastest right peer, in batches",
    }


@pytest.mark.slow
def test_the_floor_computes_what_jaxlift_computes(results):
    for cell in results["cells"]:
        by = cell["competitors"]
        for name in set(ON_JAX) - {"gradient", "bare"}:
            assert by[name]["state"] == "right"
            assert by[name]["outputs_differ"] == 0
            assert by[name]["incompleteness"] < 1e-5
        assert by["floor"]["difference"] < 1e-5
        assert by["rescale_batches"]["difference"] < 1e-5
        assert by["revealcancel"]["difference"] > 1e-2
        assert by["revealcancel_batches"]["difference"] == pytest.approx(by["revealcancel"]["difference"], rel=1e-3)
        assert by["gradient"]["state"] == "no DeepLIFT"


@pytest.mark.slow
def test_products_are_the_floors(results):
    """No more than the floor's; less by the products with the single output, which may be spared."""
    for cell in results["cells"]:
        by = cell["competitors"]
        for flops, floor in (
            (by["rescale"]["matrix_flops"], by["floor"]["matrix_flops"]),
            (by["rescale"]["matrix_flops"], by["bare"]["matrix_flops"]),
            (by["rescale_batches"]["matrix_flops"], by["bare"]["matrix_flops"]),
            (by["revealcancel"]["matrix_flops"], by["bare"]["revealcancel_matrix_flops"]),
        ):
            assert 0.99 * floor <= flops <= floor
