"""What accelerators make of products whose precision isn't said, shown on a CPU.

A float32 product on a TPU rounds its operands to bfloat16 by default, splits them into two bfloat16 numbers each and
makes three products of them at "high", and is exact at "highest"; on a recent NVIDIA GPU it rounds them to TF32 at
"default" and "high". Programs say the precision of each product, so it can be seen what a device would lose.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.inlining import evaluate_inlined

BFLOAT16, TF32 = 7, 10  # stored bits of mantissa
Product = Callable[..., Array]


def rounded(bits: int) -> Callable[[Product, Array, Array], Array]:
    def product(of: Product, x: Array, z: Array) -> Array:
        return of(*(lax.reduce_precision(each, 8, bits) for each in (x, z)))

    return product


def in_three(of: Product, x: Array, z: Array) -> Array:
    """`x z` of `x = x1 + x2` and `z = z1 + z2`, but for `x2 z2`."""
    (x1, x2), (z1, z2) = ((high, lax.reduce_precision(a - high, 8, BFLOAT16)) for a in (x, z) for high in [_high(a)])
    return of(x1, z1) + (of(x1, z2) + of(x2, z1))


def _high(x: Array) -> Array:
    return lax.reduce_precision(x, 8, BFLOAT16)


DEVICES = {
    "TPU": {lax.Precision.DEFAULT: rounded(BFLOAT16), lax.Precision.HIGH: in_three},
    "GPU": {lax.Precision.DEFAULT: rounded(TF32), lax.Precision.HIGH: rounded(TF32)},
}


def emulated(fun: Callable[..., Any], device: str) -> Callable[..., Any]:
    """`fun`, jitted, with its float32 products as the device would make them."""

    def product(eqn: Any, operands: Any) -> list[Array]:
        precision = (eqn.params["precision"] or (lax.Precision.DEFAULT,))[0]
        made = DEVICES[device].get(precision)
        if made is None or any(each.dtype != jnp.float32 for each in operands):
            return versions.bind(eqn, operands)
        return [made(lambda *each: versions.bind(eqn, each)[0], *operands)]

    def loop(eqn: Any, operands: Any) -> Any:
        jaxpr, consts = versions.inner_jaxpr(eqn)
        n, m = versions.scan_lengths(eqn)

        def body(carry: Any, xs: Any) -> Any:
            out = run(jaxpr, consts, [*operands[:n], *carry, *xs])
            return out[:m], out[m:]

        lengths = {name: eqn.params[name] for name in ("length", "reverse")}
        carry, ys = lax.scan(body, list(operands[n : n + m]), list(operands[n + m :]), **lengths)
        return [*carry, *ys]

    def branch(eqn: Any, operands: Any) -> Any:
        """Among them what is for one platform and what is for others."""
        index, *rest = operands
        closed = eqn.params["branches"]
        return lax.switch(index, [lambda *each, b=b: run(b.jaxpr, b.consts, each) for b in closed], *rest)

    instead = dict.fromkeys(versions.primitives("dot_general", "conv_general_dilated"), product)
    instead |= dict.fromkeys(versions.primitives("scan"), loop)
    instead |= dict.fromkeys(versions.primitives("cond"), branch)

    def run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
        return evaluate_inlined(jaxpr, consts, args, lambda eqn: eqn.primitive in versions.JIT, instead)

    @jax.jit
    def on_device(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), run(closed.jaxpr, closed.consts, jax.tree.leaves(args)))

    return on_device
