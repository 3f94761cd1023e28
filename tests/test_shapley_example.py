"""The example on distances to Shapley values: what it measures with, and that a quick run finds moments nearer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def game(example):
    """Six features in three groups, whose Shapley values are known: a product's are its halves."""
    groups = np.array([0, 0, 1, 1, 2, 2])

    def fun(x):
        return x[:, :2].sum(1) * x[:, 2:4].sum(1) + x[:, 4] - x[:, 5]

    x = np.float32([[1, 2, 3, -1, 5, 1], [2, 0, 1, 1, -1, 3]])
    return example("shapley_networks").Game(fun, x, np.zeros(6, np.float32), groups, None, "a product")


def test_truth_is_of_groups(example, game):
    shapley = example("shapley")
    enumerated, no_error = shapley.truth(game, None)
    np.testing.assert_allclose(enumerated, [[3, 3, 4], [2, 2, -4]], atol=1e-5)
    assert not no_error.any()
    drawn, error = shapley.truth(game, 20)
    assert (np.abs(drawn - enumerated) <= 4 * error + 1e-5).all()


def test_distance_is_relative_and_of_the_median_example(example):
    shapley = example("shapley")
    true = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    scores = true + np.array([[0.0, 5.0], [0.0, 0.5], [0.1, 0.0]])
    assert shapley.distance(scores, true) == pytest.approx(0.25)


def test_budget_at_equal_time(example):
    shapley = example("shapley")
    points = [[1.0, 0.9], [4.0, 0.5], [16.0, 0.2]]
    assert [shapley.at_equal_time(points, cost) for cost in (0.5, 4.0, 10.0, 99.0)] == [None, 0.5, 0.5, 0.2]


def test_kernel_shap_agrees_where_it_enumerates(example, game):
    pytest.importorskip("shap")
    shapley = example("shapley")
    np.testing.assert_allclose(shapley.kernel_shap(game, 6), shapley.truth(game, None)[0], atol=1e-4)


def test_motifs_are_planted_in_positives_alone(example):
    x, labels = example("shapley_networks").planted(np.random.default_rng(0), 100)
    text = ["".join("ACGT"[base] for base in sequence) for sequence in x.argmax(-1)]
    has_both = ["AGATAAGG" in sequence and "CAGCTGGT" in sequence for sequence in text]
    np.testing.assert_array_equal(has_both, labels == 1)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_write")
def test_networks_are_what_their_games_say(example):
    networks = example("shapley_networks")
    for name, make in networks.GAMES.items():
        if name in networks.FETCHED:
            continue
        game = make(2, 1)
        assert (game.players <= 16) == (game.orders is None), name
        assert game.groups.shape == game.reference.shape == game.x.shape[1:], name
        assert np.isfinite(np.asarray(jax.jit(game.fun)(game.x))).all(), name


@pytest.mark.slow
def test_quick_run(tmp_path):
    output = tmp_path / "shapley.png"
    command = [sys.executable, EXAMPLES / "shapley.py", "--quick", "--output", output]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"}, timeout=600
    ).stdout
    assert output.stat().st_size > 10_000
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert list(numbers) == ["diabetes", "ReLU MLP"]
    for name, of in numbers.items():
        assert name in printed
        assert of["standard error"] == 0  # enumerated
        assert of["sum"] < 1e-5
        far = {method: points[0][1] for method, points in of["methods"].items()}
        moments = far["shapley_moments, 3 nodes, 1 probe"]
        assert moments < far["integrated gradients, 10 steps"] < far["gradient x difference"]
        orders = of["methods"]["permutation sampling"]
        assert orders[-1][1] < orders[0][1]
