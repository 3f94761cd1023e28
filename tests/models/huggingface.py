"""Hugging Face's models in Flax, which its package has up to version 4."""

import numpy as np
import transformers

from .catalogue import Model, perturbed
from .embeddings import of_embeddings

LENGTH, CHANNELS, PIXELS = 5, 8, (3, 8, 8)
VISION = {"hidden_size": CHANNELS, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16} | {
    "image_size": 8,
    "patch_size": 4,
}


def of_tokens(model, path, output, dtype, *, also=None):
    def call(params, tokens):
        return getattr(model(tokens, params=params, **({also: tokens} if also else {})), output)

    return Model(of_embeddings(call, perturbed(model.params, dtype), path, LENGTH), (LENGTH, CHANNELS))


def bert(dtype):
    model = transformers.FlaxBertModel(transformers.BertConfig(LENGTH, CHANNELS, 1, 2, 16), dtype=dtype)
    return of_tokens(model, ("embeddings", "word_embeddings", "embedding"), "pooler_output", dtype)


def gpt2(dtype):
    config = transformers.GPT2Config(LENGTH, n_positions=LENGTH, n_embd=CHANNELS, n_layer=1, n_head=2)
    return of_tokens(transformers.FlaxGPT2Model(config, dtype=dtype), ("wte", "embedding"), "last_hidden_state", dtype)


def bart(dtype):
    """An encoder, and a decoder of the same tokens that attends to it."""
    sizes = {"d_model": CHANNELS, "max_position_embeddings": LENGTH, "vocab_size": LENGTH, "pad_token_id": 1}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    model = transformers.FlaxBartModel(transformers.BartConfig(**sizes), dtype=dtype)
    return of_tokens(model, ("shared", "embedding"), "last_hidden_state", dtype, also="decoder_input_ids")


def vit(dtype):
    """Pixels are taken to float32, as they are by CLIP."""
    model = transformers.FlaxViTForImageClassification(transformers.ViTConfig(**VISION), dtype=dtype)
    params = perturbed(model.params, dtype)
    return Model(lambda x: model(x, params=params).logits, PIXELS, single=True)


def clip(dtype):
    """Cosines of an image's embedding with those of two texts."""
    text = {**VISION, "vocab_size": 10, "max_position_embeddings": LENGTH, "eos_token_id": 9, "bos_token_id": 0}
    config = transformers.CLIPConfig(text, VISION, projection_dim=4)
    model = transformers.FlaxCLIPModel(config, dtype=dtype)
    params, texts = perturbed(model.params, dtype), np.array([[0, 1, 2, 3, 9], [0, 4, 5, 6, 9]])
    return Model(lambda x: model(texts, x, params=params).logits_per_image, PIXELS, single=True)
