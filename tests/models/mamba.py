"""mamba2-jax: Mamba's second version, in Flax NNX."""

import mamba2_jax
from flax import nnx

from .catalogue import Model, perturbed


def forecaster(dtype):
    """A series and what follows it."""
    sizes = {"d_model": 8, "n_layers": 1, "d_state": 4, "headdim": 4, "chunk_size": 4, "forecast_horizon": 3}
    model = mamba2_jax.Mamba2Forecaster(2, output_dim=2, **sizes, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    state = perturbed(state, dtype)
    return Model(lambda x: nnx.merge(graph, state)(x), (8, 2), single=True)
