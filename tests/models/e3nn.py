"""e3nn-jax: networks that turn with their input, here a point cloud by its positions."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from .catalogue import Model

POINTS = 3


def point_cloud(dtype):
    """Messages of spherical harmonics and distances, multiplied with each other and gated; then what doesn't turn."""
    rng = np.random.default_rng(0)
    radial, mixed = (jnp.asarray(rng.normal(size=size), dtype) for size in ((4, 3), (4, 2)))
    pairs = np.array([(i, j) for i in range(POINTS) for j in range(POINTS) if i != j])

    def one(x):
        edges = x[pairs[:, 0]] - x[pairs[:, 1]]
        lengths = jnp.linalg.norm(edges, axis=1)
        harmonics = e3nn.spherical_harmonics("0e + 1o + 2e", e3nn.IrrepsArray("1o", edges), normalize=True)
        weights = jax.nn.silu(e3nn.bessel(lengths, 4, 4.0) @ radial)
        messages = e3nn.scatter_sum(harmonics * weights[:, :1], dst=pairs[:, 1], output_size=POINTS)
        products = e3nn.tensor_product(messages, messages, filter_ir_out=["0e", "1o"])
        gated = e3nn.norm(products, squared=True).array
        return jnp.tanh(gated[:, :4] @ mixed).sum(0)

    return Model(jax.vmap(one), (POINTS, 3))
