"""torchax: a residual network of PyTorch, run by JAX."""

import jax
import torch
import torchax as tx

from .catalogue import Model, perturbed

SHAPE = (3, 8, 8)


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x):
        h = torch.relu(self.norms[0](self.convolutions[0](x)))
        return torch.relu(x + self.norms[1](self.convolutions[1](h)))


def resnet(dtype):
    torch.manual_seed(0)
    stem = [torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 1)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)]
    network = torch.nn.Sequential(*stem, Block(8), Block(8), *head).eval()
    params, call = tx.extract_jax(network)
    params = perturbed(params, dtype)
    return Model(jax.jit(lambda x: call(params, (x,))), SHAPE)
