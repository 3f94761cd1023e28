"""The metrics, beside figures of Quantus 0.6.0 that are stored: tests/data/metrics_quantus.json.

`test_metrics_peers.py` checks, where Quantus is installed, that the figures are what it computes from these arrays;
``python -m tests.test_metrics_peers`` writes them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlift import metrics

STORED = Path(__file__).parent / "data" / "metrics_quantus.json"
RNG = np.random.default_rng(31)
N, H, C = 4, 7, 3
SCORES = np.abs(RNG.normal(size=(N, 1, H, H)))
MASK = RNG.random((N, 1, H, H)) < 0.3
RANDOM = RNG.normal(size=(N, 1, H, H))
IMAGES = RNG.normal(size=(N, C, H, H))
WEIGHTS = RNG.normal(size=(C * H * H, 5)) / 4


def model(x):
    return x.reshape(len(x), -1) @ jnp.asarray(WEIGHTS)


def road(target):
    options = {"key": jax.random.key(0), "steps": 5, "noise": 0, "channel_axis": 0}
    return metrics.road(model, IMAGES, SCORES, target=target, **options)


CLASSES = np.array(WEIGHTS.T @ IMAGES.reshape(N, -1).T).argmax(0)
OURS = {
    "complexity": lambda: metrics.complexity(SCORES),
    "sparseness": lambda: metrics.sparseness(SCORES),
    "pointing game": lambda: metrics.pointing_game(SCORES, MASK),
    "relevance mass": lambda: metrics.relevance_mass(SCORES, MASK),
    "relevance rank": lambda: metrics.relevance_rank(SCORES, MASK),
    "discrete entropy": lambda: metrics.complexity_rise(SCORES, RANDOM, bins=20),
    "road": lambda: road(lambda y: (y.argmax(1) == CLASSES) * 1.0),
    "imputation": lambda: road(0),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OURS)
def test_stored(name):
    # Quantus adds 1e-7 to the scores of its sparseness, and 1e-12 within its complexity's logarithm.
    np.testing.assert_allclose(OURS[name](), json.loads(STORED.read_text())[name], rtol=1e-6)
