"""diffrax: a neural ordinary differential equation."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from .catalogue import Model, perturbed

SIZE = 3


def neural_ode(dtype):
    """Steps of one size, differentiated through the solver; the other adjoints have derivatives of their own."""
    field = perturbed(eqx.nn.MLP(SIZE, SIZE, 8, 1, jnp.tanh, key=jax.random.key(0)), dtype)

    def at_end(x):
        term = dfx.ODETerm(lambda t, y, args: field(y))
        return dfx.diffeqsolve(term, dfx.Tsit5(), 0.0, 1.0, 0.25, x, adjoint=dfx.DirectAdjoint(), max_steps=8).ys[-1]

    return Model(jax.vmap(at_end), (SIZE,))
