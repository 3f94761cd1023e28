"""Explain a network with a kernel of its own, of which JAX sees the outside only, by giving the kernel's multipliers.

The network classifies handwritten digits. Its gates, `a * sigmoid(b)`, are computed by a Pallas kernel that has its own
derivative. jaxlift cannot look into a kernel, and says so. A rule of four lines makes the explanation complete, equal
to that of the same network in plain JAX.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import pallas as pl
from sklearn.datasets import load_digits

import jaxlift


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


def train(images: np.ndarray, labels: np.ndarray, steps: int = 300) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    start = {"in": rng.normal(size=(64, 64)) / 8, "bias": np.zeros(64), "out": rng.normal(size=(32, 10)) / 6}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), start)
    optimizer = optax.adam(1e-2)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        logits = network(plain_gate, params, jnp.asarray(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))((params, optimizer.init(params)))[0]


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(pixels, np.float32) / 16, np.asarray(labels)
    params = train(images[:1400], labels[:1400])
    predicted = np.asarray(network(plain_gate, params, jnp.asarray(images[1400:]))).argmax(1)
    print(f"accuracy on digits that it hasn't seen: {(predicted == labels[1400:]).mean():.1%}")

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


if __name__ == "__main__":
    main()
