"""The networks as PyTorch modules, and the peers: `python -m tests.benchmarks.in_torch PEER NETWORK N R`.

Runs in the peers' own environment. Each module is written as the peers want it: modules for activations, none of them
called twice, and products of two activations by tangermeme's `BilinearOp`. Inputs are channels first.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from tangermeme.deep_lift_shap import BilinearOp
from torch import nn

from .networks import DILATIONS, HEADS, NETWORKS, ZOO, Weights, data, weights_of
from .protocol import THREADS, serve


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def with_parameters(module: nn.Module, **parameters: np.ndarray) -> nn.Module:
    for name, value in parameters.items():
        setattr(module, name, nn.Parameter(tensor(value), requires_grad=True))
    return module


def dense(layer: tuple[np.ndarray, np.ndarray]) -> nn.Module:
    kernel, bias = layer
    return with_parameters(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias)


def conv(layer: tuple[np.ndarray, np.ndarray], **options: Any) -> nn.Module:
    kernel, bias = layer
    *window, n_in, n_out = kernel.shape
    kind = nn.Conv1d if len(window) == 1 else nn.Conv2d
    return with_parameters(
        kind(n_in, n_out, tuple(window), **options), weight=np.moveaxis(kernel, (-1, -2), (0, 1)), bias=bias
    )


def classifier(layers: list[tuple[np.ndarray, np.ndarray]]) -> nn.Sequential:
    *hidden, last = layers
    return nn.Sequential(*(module for layer in hidden for module in (dense(layer), nn.ReLU())), dense(last))


def channels_first(layers: list[tuple[np.ndarray, np.ndarray]], *shape: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Dense layers after a flattening of features of this shape, for features with their channels first."""
    (kernel, bias), *rest = layers
    moved = np.moveaxis(kernel.reshape(*shape, -1), len(shape) - 1, 0)
    return [(moved.reshape(kernel.shape), bias), *rest]


def mlp(w: Weights) -> nn.Module:
    return classifier(w["dense"])


def mnist_cnn(w: Weights) -> nn.Module:
    first, second = (conv(layer, stride=2) for layer in w["conv"])
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), classifier(channels_first(w["dense"], 5, 5, 64))
    )


def max_pooling(w: Weights) -> nn.Module:
    blocks = [m for layer in w["conv"] for m in (conv(layer, padding="same"), nn.ReLU(), nn.MaxPool1d(4))]
    return nn.Sequential(*blocks, nn.Flatten(), classifier(channels_first(w["dense"], 16, 128)))


class BPNet(nn.Module):
    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(w["first"], padding="same"), nn.ReLU())
        self.rest = nn.ModuleList(
            nn.Sequential(conv(layer, padding="same", dilation=dilation), nn.ReLU())
            for dilation, layer in zip(DILATIONS, w["rest"], strict=True)
        )
        self.dense = dense(w["dense"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for block in self.rest:
            h = h + block(h)
        return self.dense(h.mean(-1))


class EncoderLayer(nn.Module):
    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(map(dense, w["qkv"]))
        self.out = dense(w["out"])
        self.ff = classifier(w["ff"])
        self.logits, self.mix = BilinearOp(), BilinearOp()
        self.softmax = nn.Softmax(-1)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv)
        attention = self.softmax(self.logits(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5)
        h = self.norms[0](h + self.out(self.mix(attention, v).transpose(1, 2).flatten(2)))
        return self.norms[1](h + self.ff(h))


class Transformer(nn.Module):
    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.embed = dense(w["embed"])
        self.layers = nn.Sequential(*map(EncoderLayer, w["layers"]))
        self.dense = dense(w["dense"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layers(self.embed(x.transpose(1, 2))).mean(1))


class LSTM(nn.Module):
    def __init__(self, w: Weights) -> None:
        super().__init__()
        kernel, bias = w["input"]
        cell = nn.LSTM(len(kernel), len(w["state"]), batch_first=True)
        values = [kernel.T, w["state"].T, bias, np.zeros_like(bias)]
        for parameter, value in zip(cell.parameters(), values, strict=True):
            parameter.data.copy_(tensor(value))
        self.cell, self.dense = cell, dense(w["dense"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.cell(x.transpose(1, 2))[0][:, -1])


ACTIVATIONS = dict(
    zip(
        ZOO,
        (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.SELU, nn.Mish),
        strict=True,
    )
)


def activations(w: Weights) -> nn.Module:
    *hidden, last = w["dense"]
    layers = [m for name, layer in zip(ZOO, hidden, strict=True) for m in (dense(layer), ACTIVATIONS[name]())]
    return nn.Sequential(*layers, dense(last))


MODELS = {
    "mlp": mlp,
    "mnist_cnn": mnist_cnn,
    "max_pooling": max_pooling,
    "bpnet": BPNet,
    "transformer": Transformer,
    "lstm": LSTM,
    "activations": activations,
}


class Captum:
    """All pairs at once. `DeepLift` for one reference, as its documentation says, `DeepLiftShap` for several."""

    def __init__(self, name: str, model: nn.Module, x: torch.Tensor, r: torch.Tensor) -> None:
        from captum.attr import DeepLift, DeepLiftShap

        del name
        explainer = DeepLift(model) if len(r) == 1 else DeepLiftShap(model)
        self.call = lambda: explainer.attribute(x, r, target=0).detach().numpy()


class SHAP:
    """Without the assertion that contributions sum up, so that its error can be told."""

    def __init__(self, name: str, model: nn.Module, x: torch.Tensor, r: torch.Tensor) -> None:
        import shap

        del name
        explainer = shap.DeepExplainer(model, r)
        self.call = lambda: explainer.shap_values(x, check_additivity=False).reshape(x.shape)


class Tangermeme:
    """Its inputs have two axes besides the batch, and references are one set for each example."""

    def __init__(self, name: str, model: nn.Module, x: torch.Tensor, r: torch.Tensor) -> None:
        from tangermeme.deep_lift_shap import deep_lift_shap

        shape = x.shape[1:]
        two = shape if len(shape) == 2 else (1, shape.numel())
        model = nn.Sequential(nn.Unflatten(-1, shape), nn.Flatten(1, 2), model) if len(shape) == 3 else model
        model = nn.Sequential(nn.Flatten(), model) if len(shape) == 1 else model
        rows = x.reshape(len(x), *two)
        references = r.reshape(len(r), *two).expand(len(x), *[-1] * 3)
        options = {
            "batch_size": min(NETWORKS[name].peer_rows, len(x) * len(r)),
            "warning_threshold": float("inf"),
            "only_warn": True,
            "device": "cpu",
        }
        # Its own contributions are another quantity: at each place, what all channels contribute, in the input's.
        # Multipliers are compared here, each times its difference, as the other competitors'.
        self.call = lambda: (
            (
                deep_lift_shap(model, rows, references=references, raw_outputs=True, **options)
                * (rows[:, None] - references)
            )
            .mean(1)
            .reshape(x.shape)
            .numpy()
        )


PEERS = {"captum": Captum, "shap": SHAP, "tangermeme": Tangermeme}


class Peer:
    """A competitor that is a peer."""

    def __init__(self, peer: str, name: str, n: int, r: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(THREADS)
        warnings.simplefilter("ignore")
        self.model = MODELS[name](weights_of(name)).eval()
        self.x, self.r = (tensor(np.moveaxis(rows, -1, 1)) for rows in data(name, n, r))
        self.peer, self.name = peer, name

    def prepare(self) -> dict[str, Any]:
        self.explainer = PEERS[self.peer](self.name, self.model, self.x, self.r)
        return {}

    def call(self) -> np.ndarray:
        return np.moveaxis(self.explainer.call(), 1, -1)

    def outputs(self) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            return self.model(self.x)[:, 0].numpy(), self.model(self.r)[:, 0].numpy()


if __name__ == "__main__":
    peer, name, n, r = sys.argv[1:]
    serve(Peer(peer, name, int(n), int(r)))
