"""Keras applications, with JAX as the backend."""

import keras
import numpy as np
from keras.src.applications import densenet as sized_densenet
from keras.src.applications import efficientnet as sized_efficientnet
from keras.src.applications import resnet as sized_resnet

from .catalogue import Model

SHAPE = (32, 32, 3)  # the smallest that these take


def images(rng, shape):
    return rng.uniform(0, 255, shape)


def inferring(application, dtype, *sizes, **options):
    """Normalisations are computed in float32, whatever the dtype. They have the statistics of random images: initial
    ones would leave next to nothing of the input in the end.
    """
    keras.config.set_floatx(np.dtype(dtype).name)
    keras.config.set_dtype_policy(np.dtype(dtype).name)
    keras.utils.set_random_seed(0)
    model = application(*sizes, weights=None, input_shape=SHAPE, classes=5, classifier_activation=None, **options)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(np.asarray(variable) + 0.1 * rng.normal(size=variable.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images(rng, (8, *SHAPE)).astype(dtype), training=True)
    return Model(lambda x: model(x, training=False), SHAPE, images, single=True)


def mobilenet(dtype):
    return inferring(keras.applications.MobileNet, dtype, alpha=0.25)


def resnet(dtype):
    def stack(x):
        return sized_resnet.stack_residual_blocks_v1(x, 4, 1, stride1=1, name="conv2")

    return inferring(sized_resnet.ResNet, dtype, stack, preact=False, use_bias=True)


def resnet_v2(dtype):
    """Activations come before convolutions."""

    def stack(x):
        return sized_resnet.stack_residual_blocks_v2(x, 4, 2, stride1=1, name="conv2")

    return inferring(sized_resnet.ResNet, dtype, stack, preact=True, use_bias=True)


def densenet(dtype):
    return inferring(sized_densenet.DenseNet, dtype, [1, 1, 1, 1])


def efficientnet(dtype):
    """Squeeze and excitation, a gate by a mean over all positions."""
    shape = {"filters_in": 32, "filters_out": 32, "kernel_size": 3, "strides": 1, "expand_ratio": 2}
    blocks = [shape | {"repeats": 1, "id_skip": True, "se_ratio": 0.25}]
    return inferring(sized_efficientnet.EfficientNet, dtype, 1.0, 1.0, 32, blocks_args=blocks)
