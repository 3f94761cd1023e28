"""The benchmarks run, agree in what they compute, and write down all that they promise. No figure is tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.benchmarks import in_jax
from tests.benchmarks.by_hand.secants import exact
from tests.benchmarks.competitors import COMPETITORS, matrix_flops
from tests.benchmarks.compiling import cases
from tests.benchmarks.measure import ON_JAX
from tests.benchmarks.networks import NETWORKS, ZOO, data, weights_of

ROOT = Path(__file__).parent.parent
EVERY = {"state", "seconds", "median", "spread", "first_seconds", "resident_before", "resident_peak"}
JUDGED = {"outputs_differ", "difference", "incompleteness"}
COMPILED = {"trace_seconds", "compile_seconds", "flops", "matrix_flops", "temporary_bytes", "equations"}


pytestmark = pytest.mark.usefixtures("as_users_write")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks") / "results.json"
    options = ["--quick", "--no-peers", "--compile", "--networks", "mlp", "max_pooling", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    subprocess.run([sys.executable, "-m", "tests.benchmarks", *options], cwd=ROOT, env=environment, check=True)
    return json.loads(out.read_text())


FLOORS = {"rescale": ("floor", "exact_floor"), "revealcancel": ("revealcancel_floor",)}
SLOW = {"rescale": ("activations", "transformer"), "revealcancel": ("activations", "bpnet", "lstm", "transformer")}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        pytest.param(name, own, marks=[pytest.mark.slow] * (name in SLOW[own]))
        for name in NETWORKS
        for own in ("rescale", "revealcancel")
    ],
)
def test_floors_are_attributions(name, own):
    """What is written by hand gives jaxlift's contributions, with as many products.

    Plain quotients lose digits where activations hardly differ.
    """
    args, floors = (weights_of(name), *data(name, 2, 3)), FLOORS[own]
    traced = {competitor: jax.jit(COMPETITORS[competitor](name)).trace(*args) for competitor in (own, *floors)}
    found = {competitor: each.lower().compile()(*args) for competitor, each in traced.items()}
    products = {competitor: matrix_flops(each.jaxpr.jaxpr) for competitor, each in traced.items()}
    for floor in floors:
        tolerance = 1e-5 if floor == "exact_floor" else 1e-4
        np.testing.assert_allclose(found[own], found[floor], rtol=0, atol=tolerance * np.abs(found[floor]).max())
        assert 0.99 * products[floor] <= products[own] <= products[floor]


@pytest.mark.parametrize("name", ["20 equations", "block called 1 times", "1 blocks of a transformer"])
def test_what_is_compiled_is_the_same(name):
    functions, args = cases(4, [])[name]
    args = jax.tree.map(np.float32, args)
    found = jax.device_get(jax.jit(lambda *args: {kind: fun(*args) for kind, fun in functions.items()})(*args))
    for floor, own, tolerance in (
        ("floor", "rescale", 1e-3),  # plain quotients
        ("exact_floor", "rescale", 1e-5),
        ("revealcancel_floor", "revealcancel", 1e-3),
    ):
        np.testing.assert_allclose(found[floor], found[own], rtol=0, atol=tolerance)
    assert np.abs(found["rescale"] - found["revealcancel"]).max() > 1e-3


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.usefixtures("x64")
def test_exact_secants_by_hand(name):
    """They are within 1e-3 of those in float64, however near input and reference are."""
    r = np.linspace(-4, 4, 81, dtype=np.float32)[:, None]
    x = (r + np.float32(10.0) ** -np.arange(8, dtype=np.float32)).ravel()
    r = np.repeat(r, 8)
    f, secant = in_jax.ACTIVATIONS[name], exact(name)

    @jax.jit
    def pairs(x, r):
        return jax.vmap(lambda x, r: secant(x[None], r[None], f(x[None]), f(r[None])))(x, r)[:, 0, 0]

    @jax.jit
    def values(x, r):
        return f(x), f(r), jax.vmap(jax.grad(f))((x + r) / 2)

    wide, wide_ref = x.astype(np.float64), r.astype(np.float64)
    y, y_ref, slope = jax.device_get(values(wide, wide_ref))
    d = wide - wide_ref
    is_near = np.abs(d) < 1e-5
    expected = np.where(is_near, slope, (y - y_ref) / np.where(is_near, 1, d))
    np.testing.assert_allclose(pairs(x, r), expected, rtol=1e-3, atol=1e-6)


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
    measured = {"mlp", "max_pooling", "40 equations", "block called 2 times", "1 blocks of a transformer"}
    assert {row["network"] for row in results["compile"]} == measured
    assert all(target["met"] in (True, False, None) for target in results["targets"])
    assert {target["target"] for target in results["targets"]} >= {
        "times faster than the fastest right peer",
        "time, of the floor's",
        "matrix FLOPs, of the floor's",
        "RevealCancel's time, of Rescale's",
        "RevealCancel's time, of Rescale's, by hand",
        "RevealCancel's time, of its floor's",
        "time, of the exact floor's",
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
        assert by["exact_floor"]["difference"] < 1e-5
        assert by["revealcancel_floor"]["difference"] == pytest.approx(by["revealcancel"]["difference"], rel=1e-3)
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
            (by["revealcancel"]["matrix_flops"], by["revealcancel_floor"]["matrix_flops"]),
            (by["revealcancel"]["matrix_flops"], by["bare"]["revealcancel_matrix_flops"]),
        ):
            assert 0.99 * floor <= flops <= floor
