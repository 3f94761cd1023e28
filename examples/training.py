"""How the networks of the examples on DNA are trained."""

import optax
from flax import nnx


def optimizer_of(model: nnx.Module, rate: float, steps: int) -> nnx.Optimizer:
    """Adam, with a learning rate that rises to this one, and falls to 0 as a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 15, steps)
    return nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
