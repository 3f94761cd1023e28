"""A small BPNet (Avsec et al., Nature Genetics 53:354, 2021) in Flax NNX, for `jaxlift score chip_network:trained`.

From a window of one-hot bases it predicts how many reads lie in the window's middle, and where on each strand.
"""

from pathlib import Path

import jax
from flax import nnx
from network_files import read

INPUT, OUTPUT = 320, 200  # bases that the network sees, and those in their middle that it predicts
WEIGHTS = Path("network.npz")  # in the directory that the command is run in


class BPNet(nnx.Module):
    """A convolution, dilated ones that add to it, and two heads.

    `(N, 320, 4) -> {"counts": (N, 1), "profile": (N, 200, 2)}`: the logarithm of 1 and the reads of both strands, and
    the
    logits of a read's place among all positions of both strands.
    """

    def __init__(self, rngs: nnx.Rngs, filters: int = 32) -> None:
        self.first = nnx.Conv(4, filters, (21,), rngs=rngs)
        self.dilated = nnx.List(
            [nnx.Conv(filters, filters, (3,), kernel_dilation=(2**k,), rngs=rngs) for k in range(1, 5)]
        )
        self.profile = nnx.Conv(filters, 2, (25,), rngs=rngs)
        self.counts = nnx.Linear(filters, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        h = nnx.relu(self.first(x))
        for layer in self.dilated:
            h = h + nnx.relu(layer(h))
        edge = (INPUT - OUTPUT) // 2
        return {"counts": self.counts(h[:, edge:-edge].mean(1)), "profile": self.profile(h)[:, edge:-edge]}


def trained() -> BPNet:
    """The network with the weights that `chip.py` wrote."""
    model = BPNet(nnx.Rngs(0))
    read(WEIGHTS, model)
    return model
