"""jraph: graph networks, here on one graph with the features of its nodes as input."""

import jax
import jax.numpy as jnp
import jraph as jr
import numpy as np

from .catalogue import Model

NODES, FEATURES, HIDDEN = 4, 3, 4
SENDERS, RECEIVERS = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0], [0, 1, 2, 3, 1, 2, 3, 0, 2]], np.int32)


def on_nodes(network):
    def one(x):
        nodes, edges = (np.array([n], np.int32) for n in (NODES, len(SENDERS)))
        weights = jnp.ones((len(SENDERS), 1), x.dtype)
        zeros = jnp.zeros((1, 1), x.dtype)
        return network(jr.GraphsTuple(x, weights, RECEIVERS, SENDERS, zeros, nodes, edges))

    return Model(jax.vmap(one), (NODES, FEATURES))


def layers(dtype, *sizes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=size) / np.sqrt(size[0]), dtype) for size in sizes]


def attention(dtype):
    """Attention of each node over those that send to it, then a sum over nodes."""
    w, a, out = layers(dtype, (FEATURES, HIDDEN), (2 * HIDDEN, 1), (HIDDEN, 2))

    def logits(sent, received, edges):
        return jax.nn.leaky_relu(jnp.concatenate([sent, received], 1) @ a)

    network = jr.GAT(lambda nodes: nodes @ w, logits, jax.nn.elu)
    return on_nodes(lambda graph: network(graph).nodes.mean(0) @ out)


def messages(dtype):
    """Edges, nodes and the graph are updated from each other, by a mean, a maximum and a sum."""
    sizes = ((1 + 2 * FEATURES + 1, HIDDEN), (FEATURES + 2 * HIDDEN + 1, HIDDEN), (2 * HIDDEN + 1, 2))
    edge, node, out = layers(dtype, *sizes)
    network = jr.GraphNetwork(
        jr.concatenated_args(lambda h: jax.nn.relu(h @ edge)),
        jr.concatenated_args(lambda h: jax.nn.softplus(h @ node)),
        jr.concatenated_args(lambda h: h @ out),
        aggregate_edges_for_nodes_fn=jr.segment_max,
        aggregate_nodes_for_globals_fn=jr.segment_mean,
    )
    return on_nodes(lambda graph: network(graph).globals)
