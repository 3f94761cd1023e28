"""A network spread over devices as Flax's guides write it: kernels lie where shardings say, and constraints in the
model say how activations lie, those of a batch over the axis of the data.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, HIDDEN, LAYERS = 16, 40, 3
# How the kernels of a layer lie. Of a mesh, these are its axes' lengths for 8 devices.
LAYOUTS = {
    "tensor parallel": (P(None, "model"), P("model", None)),
    "fully sharded": (P("data", None), P(None, "data")),
    "both": (P("data", "model"), P("model", "data")),
}


def mesh_shape(layout, count):
    """The lengths of a mesh's axes, of the data and of the model."""
    return (count, 1) if layout == "fully sharded" else (count // 2, 2)


def weights(width=WIDTH, hidden=HIDDEN):
    rng = np.random.default_rng(0)
    shapes = [(width, hidden), (hidden, width)] * LAYERS
    return [rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for shape in shapes]


def shardings(mesh, layout):
    """Those of the kernels, and of a batch."""
    return [NamedSharding(mesh, spec) for spec in LAYOUTS[layout] * LAYERS], NamedSharding(mesh, P("data"))


def network(mesh, w, x):
    """With a mesh of None on one device."""

    def constrained(array, *spec):
        return array if mesh is None else jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(*spec)))

    for up, down in zip(w[::2], w[1::2], strict=True):
        hidden = constrained(jax.nn.relu(x @ up), "data", "model")
        x = constrained(x + hidden @ down, "data", None)
    return jnp.tanh(x).sum(1)


COLLECTIVE = r" = (.*) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def collectives(text):
    """What devices exchange in a compiled program: the kind, and the shapes of the arrays that come out."""
    return [
        (kind, [tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", shapes)])
        for shapes, kind in re.findall(COLLECTIVE, text)
    ]


def check_exchanges(text, layout, count, n, kernel):
    """Parameters are gathered, one kernel of so many numbers at a time, or not at all, and of so many examples each of
    the devices that share them knows its own.
    """
    found = collectives(text)
    assert found
    shapes = [(kind, shape) for kind, shapes in found for shape in shapes]
    assert {kind for kind, _ in shapes} <= {"all-reduce", "all-gather"}
    assert mesh_shape(layout, count)[0] == 1 or not [shape for _, shape in shapes if n in shape]
    gathered = [shape for kind, shape in shapes if kind == "all-gather" and np.prod(shape) > n]
    assert not gathered if layout == "tensor parallel" else gathered
    assert all(np.prod(shape) <= kernel for shape in gathered)
