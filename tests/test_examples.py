"""The examples that compare methods: what they compute, and that they run on files that stand in for MNIST's."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def idx_files(tmp_path):
    """A folder of small images in MNIST's format: a bar for each class, at a height of its own."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6, 8:20] = rng.integers(100, 256, (3, 12))
        content = struct.pack(">4i", 0x803, *images.shape) + images.tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(content)
        content = struct.pack(">2i", 0x801, count) + labels.tobytes()
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


def run(script, folder, *options):
    """The numbers that an example saves, run as its command is."""
    output = folder / "output" / f"{script}.png"
    command = [sys.executable, EXAMPLES / f"{script}.py", "--quick", "--output", output, *options]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "MPLBACKEND": "agg"}, timeout=600)
    assert output.stat().st_size > 10_000
    return json.loads(output.with_suffix(".json").read_text())


@pytest.mark.slow
def test_figures(tmp_path):
    numbers = run("figures", tmp_path)
    for figure, expected in {
        "figure 1": {"gradient x input": [0, 0], "DeepLIFT Rescale": [0.5, 0.5], "integrated gradients": [0.5, 0.5]},
        "figure 2": {"gradient x input": [10.01], "DeepLIFT Rescale": [0.01], "occlusion": [0.01]},
        "figure 3": {"gradient x input": [0, 6], "DeepLIFT Rescale": [0, 6], "DeepLIFT RevealCancel": [3, 3]},
    }.items():
        for name, values in expected.items():
            np.testing.assert_allclose(numbers[figure]["contributions"][name], values, atol=1e-5)


@pytest.mark.slow
def test_mnist(idx_files):
    numbers = run("mnist", idx_files, "--data", idx_files)
    assert 0 <= numbers["test accuracy"] <= 1
    increase, wins = numbers["pairs"]["increase"], numbers["pairs"]["wins"]
    assert len(increase) == 90
    assert sum(wins.values()) == sum(numbers["pairs"]["wins among the paper's methods"].values()) == 90
    for title in ("8 to 3", "8 to 6"):
        rows = numbers["conversions"][title]
        assert rows["Shapley sampling"]["increase"]["images"] == 3
        for name in wins:
            row = rows[name]["increase"]
            assert row["images"] == 4
            assert row["low"] <= row["median"] <= row["high"]
            assert row["median"] == increase[title][name]["median"]
    assert all(row["median"] > 0 for row in numbers["beyond the paper"]["distance"].values())


@pytest.mark.slow
def test_methods(idx_files):
    numbers = run("methods", idx_files, "--data", idx_files, "--digit", "7")
    for name in ("DeepLIFT Rescale", "DeepLIFT RevealCancel", "DeepLIFT genomics default", "Shapley values"):
        np.testing.assert_allclose(numbers["sums"][name], numbers["change"], rtol=1e-3, atol=1e-5)
    assert len(numbers["sums"]) == 14


def network(images):
    """`(N, 28, 28, 1) -> (N, 10)`, with effects of pixels on each other."""
    weights = np.random.default_rng(1).normal(size=(2, 784, 10)) / 10
    flat = images.reshape(len(images), -1)
    return jnp.tanh(flat @ weights[0]) * (1 + jax.nn.relu(flat @ weights[1]))


def digits(count):
    rng = np.random.default_rng(2)
    return np.float32(rng.uniform(size=(count, 28, 28, 1)) * (rng.uniform(size=(count, 28, 28, 1)) < 0.3))


@pytest.mark.slow
def test_erased_pixels_are_the_157_of_greatest_positive_contrast(example):
    mnist = example("mnist")
    images, labels = digits(3), np.array([8, 0, 3])
    scores = np.float32(np.random.default_rng(3).normal(size=(3, 10, 28, 28, 1)))
    scores[2] *= np.random.default_rng(4).uniform(size=(28, 28, 1)) < 0.1  # fewer than 157 are positive

    expected = np.zeros((3, 10))
    for n, label in enumerate(labels):
        for target in range(10):
            contrast = (scores[n, label] - scores[n, target]).ravel()
            erased = images[n].copy().ravel()
            for place in sorted(range(784), key=lambda place, contrast=contrast: -contrast[place])[:157]:
                if contrast[place] > 0:
                    erased[place] = 0
            before, after = network(images[n][None])[0], network(erased.reshape(1, 28, 28, 1))[0]
            expected[n, target] = (after[target] - after[label]) - (before[target] - before[label])
    np.testing.assert_allclose(mnist.log_odds_change(network, images, scores, labels), expected, atol=1e-5)


@pytest.mark.slow
def test_pixels_that_differ_are_enough(example):
    compared = example("compared")
    images = digits(5)
    scores, _ = compared.explain_all(compared.on_ink(network, jaxlift.occlusion), images, 2)
    expected = jaxlift.occlusion(network, target="all", normalize_target=True)(images, reference=jnp.zeros((28, 28, 1)))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
