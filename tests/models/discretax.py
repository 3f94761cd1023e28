"""discretax: state-space models in Equinox."""

import equinox as eqx
import jax
from discretax.encoder import LinearEncoder
from discretax.heads import ClassificationHead
from discretax.models import LRU, S5, LinOSS

from .catalogue import Model, perturbed

CHANNELS, SHAPE = 4, (6, 2)
KEY = jax.random.key(0)


def classifier(architecture, dtype):
    def make():
        blocks = architecture(KEY, hidden_dim=CHANNELS, num_blocks=1, state_dim=4)
        head = ClassificationHead(in_features=CHANNELS, out_features=3, key=KEY)
        return eqx.nn.Sequential([LinearEncoder(in_features=SHAPE[1], out_features=CHANNELS, key=KEY), blocks, head])

    model, state = eqx.nn.make_with_state(make)()
    model = perturbed(eqx.nn.inference_mode(model), dtype)
    return Model(jax.vmap(lambda x: model(x, state, key=KEY)[0]), SHAPE)


def s5(dtype):
    return classifier(S5, dtype)


def lru(dtype):
    return classifier(LRU, dtype)


def linoss(dtype):
    return classifier(LinOSS, dtype)
