"""Rules of one's own: for a kernel, of which JAX sees the outside only, and for one family of maps, softmax.

Two networks classify handwritten digits. The gates of the first, `a * sigmoid(b)`, are computed by a Pallas kernel that
has its own derivative. jaxlift cannot look into a kernel, and says so. A rule of four lines makes the explanation
complete, equal to that of the same network in plain JAX.

The second attends to the rows of an image. A rule that holds the weights of attention constant says what came of the
rows themselves, and leaves out what came of a change in where the network looks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

import jaxlift

try:
    import optax
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error


def plain_gate(a: jax.Array, b: jax.Array) -> jax.Array:
    return a * jax.nn.sigmoid(b)


@jax.custom_vjp
def gate(a: jax.Array, b: jax.Array) -> jax.Array:
    """The same by a kernel, in one pass over memory."""

    def kernel(a_ref: Any, b_ref: Any, out_ref: Any) -> None:
        out_ref[...] = a_ref[...] * jax.nn.sigmoid(b_ref[...])

    on_accelerator = jax.default_backend() != "cpu"
    return pl.pallas_call(kernel, jax.ShapeDtypeStruct(a.shape, a.dtype), interpret=not on_accelerator)(a, b)


gate.defvjp(lambda a, b: (gate(a, b), (a, b)), lambda saved, cotangent: jax.vjp(plain_gate, *saved)[1](cotangent))


def gate_rule(cotangent: jax.Array, values: Any, references: Any) -> tuple[jax.Array, jax.Array]:
    """A product's difference is `s_mid (a - a_ref) + a_mid (s - s_ref)`, and `s = sigmoid(b)` passes it by Rescale."""
    (a, b), (a_ref, b_ref) = values, references
    s, s_ref, apart = jax.nn.sigmoid(b), jax.nn.sigmoid(b_ref), b - b_ref
    slope = jnp.where(jnp.abs(apart) < 1e-3, s * (1 - s), (s - s_ref) / jnp.where(apart == 0, 1, apart))
    return cotangent * (s + s_ref) / 2, cotangent * (a + a_ref) / 2 * slope


def network(gate: Any, params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Logits of digits, `(N, 64) -> (N, 10)`, through a gated layer."""
    a, b = jnp.split(images @ params["in"] + params["bias"], 2, axis=-1)
    return gate(a, b) @ params["out"]


@dataclasses.dataclass(frozen=True)
class ConstantAttention(jaxlift.Rescale):
    """Rescale, but no change passes the weights of attention."""

    def softmax(self, softmax: jaxlift.Softmax, x: jax.Array, r: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jnp.zeros_like(x)


def attention(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Logits of digits, `(N, 64) -> (N, 10)`: what a learned query finds in the eight rows of an image."""
    rows = images.reshape(-1, 8, 8) + params["places"]
    keys, values = jnp.split(jnp.tanh(rows @ params["in"]), 2, axis=-1)
    weights = jax.nn.softmax(jnp.einsum("nrd,qd->nqr", keys, params["queries"]))
    return jnp.einsum("nqr,nrd->nqd", weights, values).reshape(len(images), -1) @ params["out"]


GATED = {"in": (64, 64), "bias": (64,), "out": (32, 10)}
ATTENTION = {"places": (8, 8), "in": (8, 64), "queries": (4, 32), "out": (128, 10)}


def train(
    model: Callable[[Any, jax.Array], jax.Array],
    shapes: dict[str, tuple[int, ...]],
    images: np.ndarray,
    labels: np.ndarray,
    steps: int = 300,
) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5 * (len(shape) > 1), jnp.float32)
        for name, shape in shapes.items()
    }
    optimizer = optax.adam(1e-2)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        logits = model(params, jnp.asarray(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))((params, optimizer.init(params)))[0]


def explain_kernel(images: np.ndarray, labels: np.ndarray) -> None:
    params = train(functools.partial(network, plain_gate), GATED, images[:1400], labels[:1400])
    predicted = np.asarray(network(plain_gate, params, jnp.asarray(images[1400:]))).argmax(1)
    print(f"gates: accuracy on digits that it hasn't seen: {(predicted == labels[1400:]).mean():.1%}")

    model = functools.partial(network, gate, params)
    x, target, reference = jnp.asarray(images[1400:1420]), predicted[:20], jnp.zeros(64)
    try:
        jaxlift.attribute(model, target=target)(x, reference=reference)
    except jaxlift.MissingRuleError as error:
        print(f"\nwithout a rule:\n  {error}\n")

    jaxlift.register(gate)(gate_rule)
    scores, delta, *_ = jaxlift.attribute(model, target=target, full=True)(x, reference=reference)
    expected = jaxlift.attribute(functools.partial(network, plain_gate, params), target=target)(x, reference=reference)
    print(f"with the rule: largest summation-to-delta error {jnp.abs(delta).max():.1e}")
    print(f"largest difference from the same network in plain JAX: {jnp.abs(scores - expected).max():.1e}")
    print(jaxlift.check(lambda image: model(image[None])[0, target[0]], x[0], reference))


def explain_attention(images: np.ndarray, labels: np.ndarray) -> None:
    params = train(attention, ATTENTION, images[:1400], labels[:1400])
    model = functools.partial(attention, params)
    predicted = np.asarray(model(jnp.asarray(images[1400:]))).argmax(1)
    print(f"\nattention: accuracy on digits that it hasn't seen: {(predicted == labels[1400:]).mean():.1%}")
    x, target, reference = jnp.asarray(images[1400:1420]), predicted[:20], jnp.asarray(images[:1400].mean(0))
    for rule in (jaxlift.Rescale(), ConstantAttention()):
        delta = jaxlift.attribute(model, target=target, rule=rule, full=True)(x, reference=reference).delta
        print(
            f"{type(rule).__name__}: of the difference, what is not explained by the rows: {jnp.abs(delta).mean():.3g}"
        )


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(pixels, np.float32) / 16, np.asarray(labels)
    explain_kernel(images, labels)
    explain_attention(images, labels)


if __name__ == "__main__":
    main()
