"""The networks as plain weights, their inputs and their references: NumPy, the same in every process.

`in_jax.py` makes functions of them, `in_torch.py` modules. Shapes are JAX's, channels last. Every network has one
output for each example, so that no competitor explains more than the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Weights = dict[str, Any]
SIZES = ((256, 1), (32, 20), (8, 20), (4, 100))
QUICK_SIZES = ((2, 5),)


def size(text: str) -> tuple[int, int]:
    """Numbers of inputs and of references, from text such as ``8x20``."""
    n, r = map(int, text.split("x"))
    return n, r


ZOO = ("relu", "gelu", "silu", "elu", "softplus", "tanh", "sigmoid", "leaky_relu", "selu", "mish")
DILATIONS = tuple(2**i for i in range(1, 9))
HEADS = 4


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        shape: of one example.
        one_hot: whether an example is DNA, one-hot along its last axis.
        weights: makes the weights of a random generator.
        pool: whether the network has max-pooling, for which other figures are aimed at.
        peer_rows: how many pairs tangermeme explains at once. Its default is 32; small networks are faster with more.
        batch_rows: how many pairs jaxlift explains at once in batches, or, where one row of them has more, one row.
    """

    shape: tuple[int, ...]
    weights: Callable[[np.random.Generator], Weights]
    one_hot: bool = False
    pool: bool = False
    peer_rows: int = 32
    batch_rows: int = 80


def weight(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Of a dense layer or a convolution, with outputs last; the variance keeps that of a ReLU network's activations."""
    return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)


def affine(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    return weight(rng, *shape), (0.1 * rng.normal(size=shape[-1])).astype(np.float32)


def dense_layers(rng: np.random.Generator, *sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [affine(rng, *pair) for pair in pairwise(sizes)]


def mlp(rng: np.random.Generator) -> Weights:
    return {"dense": dense_layers(rng, 784, 512, 512, 1)}


def mnist(rng: np.random.Generator) -> Weights:
    """The convolutional network of the paper (section 4.1): strides of 2 and no pooling."""
    return {
        "conv": [affine(rng, 4, 4, 1, 32), affine(rng, 4, 4, 32, 64)],
        "dense": dense_layers(rng, 1600, 128, 1),
    }


def max_pooling(rng: np.random.Generator) -> Weights:
    """Three convolutions, each with a pool of 4."""
    return {
        "conv": [affine(rng, 19, 4, 64), affine(rng, 11, 64, 96), affine(rng, 7, 96, 128)],
        "dense": dense_layers(rng, 16 * 128, 128, 1),
    }


def bpnet(rng: np.random.Generator) -> Weights:
    """Avsec et al. 2021, the head of total counts: a wide convolution and eight dilated ones with residuals."""
    return {
        "first": affine(rng, 21, 4, 64),
        "rest": [affine(rng, 3, 64, 64) for _ in DILATIONS],
        "dense": affine(rng, 64, 1),
    }


def transformer(rng: np.random.Generator) -> Weights:
    def layer() -> Weights:
        return {
            "qkv": [affine(rng, 64, 64) for _ in range(3)],
            "out": affine(rng, 64, 64),
            "ff": dense_layers(rng, 64, 128, 64),
        }

    return {"embed": affine(rng, 16, 64), "layers": [layer() for _ in range(2)], "dense": affine(rng, 64, 1)}


def lstm(rng: np.random.Generator) -> Weights:
    return {"input": affine(rng, 8, 256), "state": weight(rng, 64, 256), "dense": affine(rng, 64, 1)}


def zoo(rng: np.random.Generator) -> Weights:
    return {"dense": dense_layers(rng, *[128] * (len(ZOO) + 1), 1)}


NETWORKS = {
    "mlp": Network((784,), mlp, peer_rows=640, batch_rows=320),
    "mnist_cnn": Network((28, 28, 1), mnist, peer_rows=128, batch_rows=40),
    "max_pooling": Network((1024, 4), max_pooling, one_hot=True, pool=True, batch_rows=20),
    "bpnet": Network((2114, 4), bpnet, one_hot=True, batch_rows=2),
    "transformer": Network((32, 16), transformer, peer_rows=128),
    "lstm": Network((64, 8), lstm, peer_rows=640),
    "activations": Network((128,), zoo, peer_rows=640, batch_rows=320),
}


def weights_of(name: str) -> Weights:
    """The weights of a network: the same wherever they are made."""
    return NETWORKS[name].weights(np.random.default_rng(0))


def data(name: str, n: int, r: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` inputs and `r` references."""
    network = NETWORKS[name]
    rng = np.random.default_rng(n * 1000 + r)
    if network.one_hot:
        length, letters = network.shape
        rows = np.eye(letters, dtype=np.float32)[rng.integers(letters, size=(n + r, length))]
    else:
        rows = rng.normal(size=(n + r, *network.shape)).astype(np.float32)
    return rows[:n], rows[n:]
