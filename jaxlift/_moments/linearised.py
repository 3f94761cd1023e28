"""What has no formula: the map at the mean, and its derivative there for deviations (the delta method)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.values import is_inexact
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Interpreter, family, others_by, plain
from jaxlift._moments.values import Moments, Value, is_varying


def linearised(
    interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value], *, is_exact: bool = False
) -> list[Value]:
    """The outputs of an equation, linear where its operands are likely to be. Integers and truth values are held.

    The variance of the output, which no weights are at hand for, is the probes', averaged over the value.

    Args:
        is_exact: whether the map is linear, so that there is nothing to tell.
    """
    settled = [interpreter.moments(value) for value in operands]
    moving = [i for i, m in enumerate(settled) if isinstance(m, Moments) and m.dtype == m.mean.dtype]
    means = [plain(value) for value in settled]
    numbers = [k for k, out in enumerate(eqn.outvars) if is_inexact(out)]
    if not is_exact:
        interpreter.note(eqn, "linearised at the mean" if moving and numbers else "held as it is at the mean")
    if not moving or not numbers:
        return versions.bind(eqn, jax.lax.stop_gradient(means))

    def fun(*own: Array) -> list[Array]:
        given = dict(zip(moving, own, strict=True))
        outputs = versions.bind(eqn, [given.get(i, mean) for i, mean in enumerate(means)])
        return [outputs[k] for k in numbers]

    at = [means[i] for i in moving]
    try:
        jax.eval_shape(lambda at: jax.vjp(fun, *at)[1](fun(*at)), at)
        outputs, push = jax.linearize(fun, *at)
    except Exception as error:  # of any kind: it may be another library's
        raise interpreter.refusal(eqn, "has no formula, and no derivative") from error
    probes = jax.vmap(push)(*(settled[i].probes for i in moving))
    moved = {k: _with_pooled_variance(y, s) for k, y, s in zip(numbers, outputs, probes, strict=True)}
    if len(moved) == len(eqn.outvars):
        return list(moved.values())
    held = versions.bind(eqn, jax.lax.stop_gradient(means))
    return [moved.get(k, value) for k, value in enumerate(held)]


def is_differentiable(fun: Any, *at: Array) -> bool:
    """Whether JAX has a derivative of a function, both ways."""

    def derivative(*at: Array) -> Any:
        outputs, pull = jax.vjp(fun, *at)
        return jax.linearize(fun, *at)[1](*at), pull(outputs)

    try:
        jax.eval_shape(derivative, *at)
    except Exception:  # of any kind: the function may be another library's
        return False
    return True


def _with_pooled_variance(mean: Array, probes: Array) -> Moments:
    pooled = (jnp.abs(probes) ** 2).mean()
    zeros = jnp.zeros(mean.shape, pooled.dtype)
    return Moments(mean, zeros + jax.lax.stop_gradient(pooled), probes, zeros)


def in_some(*linear: int) -> Any:
    """The formula of what is linear in some operands, if the others don't vary."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
        is_exact = all(not is_varying(value) or i in linear for i, value in enumerate(operands))
        return linearised(interpreter, eqn, operands, is_exact=is_exact)

    return evaluate


def linear_solve(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """A system of equations, linear in its right-hand side."""
    constants = len(operands) - len(eqn.outvars)
    is_exact = not any(is_varying(value) for value in operands[:constants])
    return linearised(interpreter, eqn, operands, is_exact=is_exact)


others_by(linearised)
family(partial(linearised, is_exact=True), primitives("real", "imag", "conj", "complex", "fft"))
family(in_some(1), primitives("triangular_solve"))
family(in_some(3), primitives("tridiagonal_solve"))
family(linear_solve, primitives("linear_solve"))
