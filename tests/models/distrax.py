"""distrax: a normalising flow."""

import distrax as dsx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .catalogue import Model, perturbed

SIZE, BINS = 4, 3


def spline_flow(dtype):
    """The density of an example under couplings by rational-quadratic splines."""

    def log_density(x):
        def conditioner(h):
            h = jax.nn.relu(hk.Linear(8)(h))
            return hk.Linear(SIZE * (3 * BINS + 1))(h).reshape(*h.shape[:-1], SIZE, 3 * BINS + 1)

        def spline(params):
            return dsx.RationalQuadraticSpline(params, range_min=-2.0, range_max=2.0)

        masks = [np.arange(SIZE) % 2 == i for i in range(2)]
        flow = dsx.Chain([dsx.MaskedCoupling(jnp.asarray(mask), conditioner, spline) for mask in masks])
        base = dsx.MultivariateNormalDiag(jnp.zeros(SIZE, dtype), jnp.ones(SIZE, dtype))
        return dsx.Transformed(base, flow).log_prob(x)

    model = hk.without_apply_rng(hk.transform(log_density))
    params = perturbed(jax.jit(model.init)(jax.random.key(0), np.zeros((1, SIZE), dtype)), dtype)
    return Model(lambda x: model.apply(params, x), (SIZE,))
