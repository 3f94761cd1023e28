"""Gemma, of DeepMind's package, from embeddings of tokens."""

import jax
import numpy as np
from gemma import gm

from .catalogue import Model, perturbed
from .embeddings import of_embeddings

LENGTH, CHANNELS = 4, 8


def transformer(dtype):
    """A layer with local attention and one with global, as in the third generation, with soft caps of the second."""
    attention = gm.nn.AttentionType
    config = gm.nn.config.TransformerConfig(
        num_embed=LENGTH,
        embed_dim=CHANNELS,
        hidden_dim=16,
        num_heads=2,
        head_dim=4,
        num_kv_heads=1,
        final_logit_softcap=30.0,
        attn_logits_soft_cap=50.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        attention_types=(attention.LOCAL_SLIDING, attention.GLOBAL),
        sliding_window_size=2,
    )
    model = gm.nn.Transformer(config=config, dtype=dtype)
    params = jax.jit(model.init)(jax.random.key(0), np.arange(LENGTH)[None])["params"]

    def call(params, tokens):
        return model.apply({"params": params}, tokens, return_hidden_states=True).hidden_states

    path = ("embedder", "input_embedding")
    return Model(of_embeddings(call, perturbed(params, dtype), path, LENGTH), (LENGTH, CHANNELS))
