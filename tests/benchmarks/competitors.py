"""The competitors that run on JAX: `python -m tests.benchmarks.competitors COMPETITOR NETWORK N R`."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxprs_in_params

import jaxlift
from jaxlift._core.interpreter import needed

from . import by_hand, in_jax
from .networks import NETWORKS, Weights, data, weights_of
from .protocol import serve

Attribution = Callable[[Weights, Array, Array], Array]


def attribution(rule: str, name: str, **options: Any) -> Attribution:
    attr = jaxlift.attribute(in_jax.MODELS[name], argnums=1, rule=rule, pairing="shared", **options)
    return lambda w, x, r: attr(w, x, reference=r)


def in_batches(rule: str, name: str) -> Attribution:
    """The same, some pairs of an input and a reference at a time."""
    rows = NETWORKS[name].batch_rows

    def largest(count: int, pairs: int) -> int:
        """How many of so many are taken at once, if each brings so many pairs: a divisor, 1 at least."""
        return max((k for k in range(2, count + 1) if count % k == 0 and k * pairs <= rows), default=1)

    def of_all(w: Weights, x: Array, r: Array) -> Array:
        n, count = len(x), len(r)
        size = {"batch_size": largest(n, count)} if count <= rows else {"reference_batch_size": largest(count, n)}
        return attribution(rule, name, **size)(w, x, r)

    return of_all


def gradient(name: str) -> Attribution:
    """Gradient times difference, the mean over references: a forward and a backward pass of N * R rows."""

    def of_pairs(w: Weights, x: Array, r: Array) -> Array:
        rows = jnp.repeat(x, len(r), 0)
        gradients = jax.grad(lambda rows: in_jax.MODELS[name](w, rows).sum())(rows)
        return (gradients.reshape(len(x), len(r), *x.shape[1:]) * (x[:, None] - r)).mean(1)

    return of_pairs


COMPETITORS: dict[str, Callable[[str], Attribution]] = {
    "rescale": functools.partial(attribution, "rescale"),
    "revealcancel": functools.partial(attribution, "revealcancel"),
    "rescale_batches": functools.partial(in_batches, "rescale"),
    "revealcancel_batches": functools.partial(in_batches, "revealcancel"),
    "gradient": gradient,
    "bare": lambda name: functools.partial(by_hand.bare, name),
    **{name: functools.partial(by_hand.attribution, rule) for name, rule in by_hand.FLOORS.items()},
}


def matrix_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions that the outputs of a jaxpr need, padding included."""
    flops = 0
    for eqn in needed(jaxpr, jaxpr.outvars, effects=True):
        out = eqn.outvars[0].aval
        match eqn.primitive.name:
            case "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                flops += 2 * prod(out.shape) * prod(eqn.invars[0].aval.shape[i] for i in contracted)
            case "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape
                features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
                flops += 2 * prod(out.shape) * prod(kernel) // features
            case "cond":  # of the platforms' branches one is compiled
                flops += max(matrix_flops(branch.jaxpr) for branch in eqn.params["branches"])
            case name:
                inner = sum(matrix_flops(getattr(each, "jaxpr", each)) for each in jaxprs_in_params(eqn.params))
                flops += inner * (eqn.params["length"] if name == "scan" else 1)
    return flops


def stages(fun: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Any]]:
    """A compiled function, and what it costs. Seconds are those of the processor, which others disturb least."""
    # A new function each time: nothing that JAX remembers of it is found again.
    start = time.process_time()
    traced = jax.jit(lambda *args: fun(*args)).trace(*args)
    lowered = traced.lower()
    middle = time.process_time()
    compiled = lowered.compile()
    end = time.process_time()
    costs = {
        "trace_seconds": middle - start,
        "compile_seconds": end - middle,
        "flops": compiled.cost_analysis()["flops"],
        "matrix_flops": matrix_flops(traced.jaxpr.jaxpr),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "equations": len(traced.jaxpr.jaxpr.eqns),
    }
    return compiled, costs


class Compiled:
    """A competitor that is a compiled function."""

    def __init__(self, competitor: str, name: str, n: int, r: int) -> None:
        self.competitor, self.model = competitor, in_jax.MODELS[name]
        self.fun = COMPETITORS[competitor](name)
        self.args = jax.tree.map(jnp.asarray, (weights_of(name), *data(name, n, r)))

    def prepare(self) -> dict[str, Any]:
        self.compiled, costs = stages(self.fun, *self.args)
        costs["device"] = jax.devices()[0].device_kind
        if self.competitor == "bare":
            costs |= self.flops_by_parts(costs)
        return costs

    def flops_by_parts(self, bare: dict[str, Any]) -> dict[str, Any]:
        """FLOPs of what RevealCancel has besides: a forward and a backward pass of N * R variations."""
        w, x, r = self.args
        pairs = jnp.repeat(x, len(r), 0)
        on_x, on_r, on_pairs = (stages(self.model, w, rows)[1] for rows in (x, r, pairs))
        return {
            f"revealcancel_{key}": 2 * bare[key] - on_x[key] - on_r[key] + on_pairs[key]
            for key in ("flops", "matrix_flops")
        }

    def call(self) -> Array:
        return jax.block_until_ready(self.compiled(*self.args))

    def outputs(self) -> tuple[np.ndarray, np.ndarray]:
        w, x, r = self.args
        return np.asarray(self.model(w, x)), np.asarray(self.model(w, r))


if __name__ == "__main__":
    competitor, name, n, r = sys.argv[1:]
    serve(Compiled(competitor, name, int(n), int(r)))
