"""Sums hold in models that other people wrote, to rounding, under both rules."""

from pathlib import Path

import jax
import numpy as np
import pytest

from .catalogue import CATALOGUE, DTYPES, NAMES, RULES, make, measure

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TOLERANCE = 200  # roundings of the sum of magnitudes: networks are tens of operations deep, with larger values inside


HEAVY = {("distrax", "spline_flow"), ("equimo", "vssd")}  # a minute each to compile


@pytest.mark.models
@pytest.mark.filterwarnings("ignore")  # of their packages
@pytest.mark.parametrize(
    "dtype",
    # CI runs them in float64, where a sum says most.
    [pytest.param(dtype, marks=[pytest.mark.slow] * (dtype is np.float32), id=dtype.__name__) for dtype in DTYPES],
)
@pytest.mark.parametrize(
    ("framework", "name"), [pytest.param(*name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in NAMES]
)
def test_contributions_sum_to_the_difference(framework, name, dtype):
    with jax.enable_x64(dtype is np.float64), jax.numpy_rank_promotion("allow"):
        try:
            model = make(framework, name, dtype)
        except ImportError as error:
            pytest.skip(str(error))
        for rule in RULES:
            figures = measure(model, rule, dtype)
            assert figures.error <= TOLERANCE, rule
            assert figures.cancellation < 1e5, rule  # of a smaller difference the test would see nothing


@pytest.mark.parametrize("framework", CATALOGUE)
def test_the_page_has_the_models_of(framework):
    assert all(f"| {framework} | {name}" in PAGE.read_text() for name in CATALOGUE[framework].models)
