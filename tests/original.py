"""Networks and numbers of the original implementation (deeplift 0.6.13.0), from `tests/data/oracle`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

DIRECTORY = Path(__file__).parent / "data" / "oracle"


@dataclass(frozen=True, eq=False)
class Oracle:
    """One network with the original's numbers: arrays by key, and the description of the network."""

    name: str
    arrays: dict[str, np.ndarray]
    spec: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Oracle":
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files if key != "spec_json"}
            return cls(path.stem, arrays, json.loads(str(file["spec_json"])))

    @property
    def targets(self) -> list[int]:
        return self.arrays["targets"].tolist()

    def inputs(self, which: str, dtype: Any = np.float32) -> Any:
        """The arrays ``"x"`` or ``"ref"``: one array, or a dictionary for networks of several named inputs."""
        if which in self.arrays:
            return self.arrays[which].astype(dtype)
        return {name: self.arrays[f"{which}/{name}"].astype(dtype) for name in self.spec["inputs"]}

    def scores(self, what: str, rule: str) -> Any:
        """The original's ``"contribs"``, ``"mults"``, ... under a rule, shaped as `inputs` with targets first."""
        if f"{what}/{rule}" in self.arrays:
            return self.arrays[f"{what}/{rule}"]
        return {name: self.arrays[f"{what}/{rule}/{name}"] for name in self.spec["inputs"]}

    def hidden_layers(self) -> dict[str, str]:
        """The layers inside whose scores there are: what the arrays call them, and what the original's model does."""
        names = [name for name, _ in self.spec["deeplift_layers"]]
        return {key: names[int(key)] if key.isdigit() else key for key in self.spec["hidden_layers"]}

    def model(self, dtype: Any = np.float32, layer_named: str = "") -> Any:
        """The network as a function of its input, up to the layer that the original explains.

        The output of one layer may be named, as the original names it.
        """
        weights = {key: jnp.asarray(value, dtype) for key, value in self.arrays.items() if key.startswith("w/")}
        layers = self.spec["layers"]
        until_logits = self.spec["target_is_pre_activation"]
        numbered = self.spec["model_kind"] == "sequential"

        def named(y: jax.Array, name: str) -> jax.Array:
            return checkpoint_name(y, name) if name == layer_named else y

        def apply(inputs: Any) -> jax.Array:
            values = dict(inputs) if isinstance(inputs, dict) else {}
            y = inputs
            for i, layer in enumerate(layers):
                if layer["class"] == "InputLayer":
                    continue
                is_output = i == len(layers) - 1
                if is_output and until_logits and layer["class"] == "Activation":
                    break
                given = [values.get(name, inputs) for name in layer["inbound"]]
                mine = {k: weights[f"w/{layer['name']}/{k}"] for k in layer["weights"]}
                y = LAYERS[layer["class"]](given, layer["config"], mine)
                name = str(i) if numbered else f"{layer['name']}_0"
                activation = layer["config"].get("activation", "linear")
                if layer["class"] != "Activation" and activation != "linear" and not (is_output and until_logits):
                    y = ACTIVATIONS[activation](named(y, f"preact_{name}"))
                values[layer["name"]] = y = named(y, name)
            return y

        return apply


def _like(x, weight):
    """A weight of the last axes, with the axes before them."""
    return jnp.expand_dims(weight, range(x.ndim - weight.ndim))


def _dense(given, config, weights):
    y = given[0] @ weights["kernel"]
    return y + _like(y, weights["bias"])


def _conv(given, config, weights):
    rank = given[0].ndim - 2
    letters = "HWD"[:rank]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    y = lax.conv_general_dilated(
        given[0], weights["kernel"], config["strides"], config["padding"].upper(), dimension_numbers=numbers
    )
    return y + _like(y, weights["bias"])


def _max_pool(given, config, weights):
    windows, strides = (1, *config["pool_size"], 1), (1, *config["strides"], 1)
    return lax.reduce_window(given[0], -jnp.inf, lax.max, windows, strides, config["padding"].upper())


def _avg_pool(given, config, weights):
    windows, strides = (1, *config["pool_size"], 1), (1, *config["strides"], 1)
    sums, counts = (
        lax.reduce_window(x, 0.0, lax.add, windows, strides, config["padding"].upper())
        for x in (given[0], jnp.ones(given[0].shape, given[0].dtype))
    )
    return sums / counts


def _batch_norm(given, config, weights):
    [x] = given
    weights = {name: _like(x, weight) for name, weight in weights.items()}
    scale = weights["gamma"] / jnp.sqrt(weights["moving_variance"] + config["epsilon"])
    return (x - weights["moving_mean"]) * scale + weights["beta"]


def _prelu(given, config, weights):
    [x] = given
    return jnp.where(x > 0, x, _like(x, weights["alpha"]) * x)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
}

LAYERS = {
    "Dense": _dense,
    "Conv1D": _conv,
    "Conv2D": _conv,
    "MaxPooling1D": _max_pool,
    "MaxPooling2D": _max_pool,
    "AveragePooling1D": _avg_pool,
    "AveragePooling2D": _avg_pool,
    "GlobalAveragePooling1D": lambda given, config, weights: given[0].mean(1),
    "BatchNormalization": _batch_norm,
    "PReLU": _prelu,
    "Activation": lambda given, config, weights: ACTIVATIONS[config["activation"]](given[0]),
    "Flatten": lambda given, config, weights: given[0].reshape(given[0].shape[0], -1),
    "Dropout": lambda given, config, weights: given[0],
    "Concatenate": lambda given, config, weights: jnp.concatenate(given, config["axis"]),
    "Add": lambda given, config, weights: sum(given[1:], given[0]),
}

ORACLES = [Oracle.load(path) for path in sorted(DIRECTORY.glob("*.npz")) if not path.stem.startswith("dinuc_shuffle")]
