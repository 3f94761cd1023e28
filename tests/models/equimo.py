"""Equimo: vision and audio models in Equinox."""

import equimo.audio.models.ast
import equimo.vision.models as vision
import jax

from .catalogue import Model, perturbed

KEY = jax.random.key(0)


def inferring(model, shape, dtype, single=True):
    """Softmax, normalisations and the steps of state spaces are computed in float32."""
    model = perturbed(model, dtype)
    return Model(jax.vmap(lambda x: model(x, key=KEY, inference=True)), shape, single=single)


def vit(dtype):
    model = vision.VisionTransformer(8, 3, 8, 4, 2, [1], num_classes=5, key=KEY)
    return inferring(model, (3, 8, 8), dtype)


def convnext(dtype):
    """With global response normalisation, as the second version has."""
    model = vision.ConvNeXt(3, depths=[1, 1], dims=[4, 8], use_grn=True, num_classes=5, key=KEY)
    return inferring(model, (3, 16, 16), dtype)


def mlla(dtype):
    """Linear attention with Mamba's gates."""
    model = vision.Mlla(8, 3, dim=4, depths=[1], num_heads=[2], num_classes=5, key=KEY)
    return inferring(model, (3, 8, 8), dtype, single=False)


def vssd(dtype):
    """Mamba's state spaces, without an order of positions."""
    mixers = ("mamba2mixer",)
    model = vision.Vssd(8, 3, dim=8, depths=[1], num_heads=[2], attentions_layers=mixers, num_classes=5, key=KEY)
    return inferring(model, (3, 8, 8), dtype)


def audio_spectrogram_transformer(dtype):
    model = equimo.audio.models.ast.AudioSpectrogramTransformer(8, 12, 8, 4, 4, 4, 2, [1], num_classes=5, key=KEY)
    return inferring(model, (12, 8), dtype)
