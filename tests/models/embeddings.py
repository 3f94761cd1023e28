"""Models of Flax Linen that take token ids, as functions of the embeddings that they look up."""

import jax
import numpy as np
from flax import traverse_util


def of_embeddings(call, params, path, length):
    """The model in which the embeddings are the table, and each token looks up a row of its own."""
    params = traverse_util.flatten_dict(params)
    assert path in params, f"no {path} in {list(params)}"

    def one(x):
        return call(traverse_util.unflatten_dict(params | {path: x}), np.arange(length)[None])[0]

    return jax.vmap(one)
