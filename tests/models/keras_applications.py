"""Keras applications, with JAX as the backend."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

import keras
import numpy as np
from keras.src.applications import convnext as sized_convnext
from keras.src.applications import densenet as sized_densenet
from keras.src.applications import efficientnet as sized_efficientnet
from keras.src.applications import resnet as sized_resnet

from .catalogue import Model

SHAPE = (32, 32, 3)  # the smallest that these take


def images(rng, shape):
    return rng.uniform(0, 255, shape)


def inferring(application, *sizes, **options):
    """Keras computes in its own default dtype, float32. Normalisations have the statistics of random images: of the
    input, initial ones would leave next to nothing in the end.
    """
    keras.utils.set_random_seed(0)
    model = application(*sizes, weights=None, input_shape=SHAPE, classes=5, classifier_activation=None, **options)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(np.asarray(variable) + 0.1 * rng.normal(size=variable.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(np.float32(images(rng, (8, *SHAPE))), training=True)
    return Model(lambda x: model(x, training=False), SHAPE, images, single=True)


def mobilenet(dtype):
    return inferring(keras.applications.MobileNet, alpha=0.25)


def resnet(dtype):
    def stack(x):
        return sized_resnet.stack_residual_blocks_v1(x, 4, 1, stride1=1, name="conv2")

    return inferring(sized_resnet.ResNet, stack, preact=False, use_bias=True)


def densenet(dtype):
    return inferring(sized_densenet.DenseNet, [1, 1, 1, 1])


def convnext(dtype):
    return inferring(sized_convnext.ConvNeXt, [1, 1, 1, 1], [4, 4, 8, 8])


def efficientnet(dtype):
    """Squeeze and excitation, a gate by a mean over all positions."""
    shape = {"filters_in": 32, "filters_out": 32, "kernel_size": 3, "strides": 1, "expand_ratio": 2}
    blocks = [shape | {"repeats": 1, "id_skip": True, "se_ratio": 0.25}]
    return inferring(sized_efficientnet.EfficientNet, 1.0, 1.0, 32, blocks_args=blocks)
