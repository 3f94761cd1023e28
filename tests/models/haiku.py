"""Haiku's own residual network."""

import haiku as hk
import jax
import numpy as np

from .catalogue import Model, perturbed

SHAPE = (32, 32, 3)


def resnet(dtype):
    def network(x):
        settings = {"blocks_per_group": [1] * 4, "channels_per_group": [8] * 4, "bottleneck": False}
        return hk.nets.ResNet(num_classes=5, resnet_v2=True, **settings)(x, is_training=hk.running_init())

    model = hk.without_apply_rng(hk.transform_with_state(network))
    images = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(dtype)
    params, state = jax.jit(model.init)(jax.random.key(0), images)  # the state: these images' statistics
    params = perturbed(params, dtype)
    return Model(lambda x: model.apply(params, state, x)[0], SHAPE)
