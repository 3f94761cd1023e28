r"""Softmax, wherever and however the program computes it: `exp(u)` over its sum.

With `q` the softmax of the means, the logit `u_k` stands against the logarithm `l_k` of the sum over the others, and
`p_k = 1 / (1 + exp(l_k - u_k))`. To second order, with `w_j = q_j / (1 - q_k)`, and taken for normal,

.. math::
    E[u_k - l_k] = \log\frac{q_k}{1 - q_k} - \tfrac12 \sum_{j \ne k} w_j (1 - w_j) v_j, \qquad
    \mathrm{var}(u_k - l_k) = v_k + \sum_{j \ne k} w_j^2 v_j

and the mean of a logistic function of a normal variable `(m, s^2)` is near to that of `m / \sqrt{1 + \pi s^2 / 8}`
(MacKay 1992, doi 10.1162/neco.1992.4.5.720). These means are then divided by their sum. Deviations pass by the
derivative there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, pi
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import where
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Formula, Interpreter, family, formula_of
from jaxlift._moments.values import Function, Moments, Shifted, Total, Value
from jaxlift.primitives.softmax import after_broadcast, after_reshape, after_squeeze, after_transpose

EXP = frozenset(primitives("exp"))


def summation(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`reduce_sum`, which remembers the exponentials that it is a sum of."""
    [out] = SUM(interpreter, eqn, operands)
    [each] = operands
    if isinstance(each, Function) and each.node.eqn.primitive in EXP:
        axes = eqn.params["axes"]
        out.origin = Total(each, axes, tuple(k for k in range(len(each.shape)) if k not in axes))
    return [out]


def subtraction(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`sub`, which remembers what it was that was shifted."""
    [out] = SUB(interpreter, eqn, operands)
    if isinstance(out, Moments):
        of, shift = map(interpreter.moments, operands)
        if isinstance(of, Moments) and of.shape == out.shape:
            sizes = shift.shape or (1,) * len(of.shape)
            out.origin = Shifted(of, frozenset(axis for axis, n in enumerate(sizes) if n < of.shape[axis]))
    return [out]


def moving(along: Any, move: Formula) -> Formula:
    """What puts the axes of a sum elsewhere."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        [out] = move(interpreter, eqn, operands)
        origin = getattr(interpreter.moments(operands[0]), "origin", None)
        if isinstance(origin, Total) and isinstance(out, Moments):
            moved = along(eqn, origin.along)
            out.origin = None if moved is None else Total(origin.exponential, origin.axes, tuple(moved))
        return [out]

    return evaluate


def quotient(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`div`: of exponentials by their sum it is softmax."""
    above, below = operands
    of = below.origin if isinstance(below, Moments) else None
    if not isinstance(of, Total) or of.exponential is not above or not _is_aligned(of, below.shape):
        return DIV(interpreter, eqn, operands)
    [inner] = above.node.operands
    u = above.of if inner is None else interpreter.moments(Function(inner, above.of))
    if isinstance(u.origin, Shifted) and u.origin.along.issuperset(of.axes):
        u = u.origin.of  # softmax doesn't depend on it
    return [softmax(u, of.axes)]


def _is_aligned(of: Total, shape: tuple[int, ...]) -> bool:
    """Whether each exponential stands over the sum that it is part of."""
    along = of.along if shape else (None,) * len(of.exponential.shape)
    return len(along) == len(of.exponential.shape) and all(
        k in of.axes if own is None else own == k for k, own in enumerate(along)
    )


def softmax(u: Moments, axes: tuple[int, ...]) -> Moments:
    """The moments of a softmax over some axes of its logits."""

    def total(x: Array) -> Array:
        return x.sum(axes, keepdims=True)

    is_in = jnp.isfinite(u.mean)  # what is masked stays so
    v = where(is_in, u.variance, 0)
    q = jax.nn.softmax(u.mean, axes)
    has = is_in & (q > 0)
    # Where a logit leads, beyond all others together, 1 - q has no digits. `w_j` and the logarithm of the sum are taken
    # over the others by themselves there; a logit without others is its own, which the last division makes a 1.
    leads = q > 0.5
    follows = is_in & ~leads
    followers = where(follows | ~jnp.any(follows, axes, keepdims=True), u.mean, -inf)
    w = jax.nn.softmax(followers, axes)
    others = where(leads, 1, 1 - q)
    first = where(leads, total(w * v), (total(q * v) - q * v) / others)
    second = where(leads, total(w**2 * v), (total(q**2 * v) - q**2 * v) / others**2)
    variance = v + jnp.maximum(second, 0)
    of_leading = u.mean - jax.nn.logsumexp(followers, axes, keepdims=True)
    odds = where(leads, of_leading, jnp.log(where(has, q, 1)) - jnp.log(others))
    level = where(has, odds - jnp.maximum(first - second, 0) / 2, 0)
    each = where(has, jax.nn.sigmoid(level / jnp.sqrt(1 + pi / 8 * variance)), 0)
    mean = each / total(each)
    p = jax.lax.stop_gradient(mean)

    def passed(s: Array, kept: Array, given: Array) -> Array:
        return kept * s + p * total(given * s)

    def deviations(s: Array) -> Array:
        return passed(where(is_in, s, 0), p, -p)

    def variances(v: Array) -> Array:
        return p * passed(where(is_in, v, 0), p * (1 - 2 * p), p**2)

    found = Moments(mean, variances(v), jax.vmap(deviations)(u.probes), variances(u.rest)).calibrated()
    found.low = 0.0
    return found


def formula(name: str) -> Formula:
    found = formula_of(primitives(name)[0])
    assert found is not None
    return found


SUM, SUB, DIV = map(formula, ("reduce_sum", "sub", "div"))
family(summation, primitives("reduce_sum"))
family(subtraction, primitives("sub"))
family(quotient, primitives("div"))
for _name, _along in {
    "broadcast_in_dim": after_broadcast,
    "squeeze": after_squeeze,
    "transpose": after_transpose,
    "reshape": after_reshape,
}.items():
    family(moving(_along, formula(_name)), primitives(_name))
