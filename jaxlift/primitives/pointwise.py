"""Elementwise primitives, tracked as functions of one value, and the rule applied to such a function when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlift._compat import JaxprEqn, primitives
from jaxlift._function import PointwiseFunction, affine_ends, difference
from jaxlift._multipliers import with_multipliers
from jaxlift._registry import family
from jaxlift._values import Node, Pending, Value, Varying, is_varying
from jaxlift.primitives.linear import broadcast, discrete
from jaxlift.primitives.operands import several
from jaxlift.rules import Place, Rule

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter

Array = jax.Array


def pointwise(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of elementwise primitives: wait, and make a larger function of it.

    A function of one varying value waits. Where several vary, each for itself, the function is theirs together.
    """
    shape = eqn.outvars[0].aval.shape
    operands = [
        broadcast(interpreter.settle(o), shape) if is_varying(o) and o.shape != shape else o  # sizes of 1, and scalars
        for o in operands
    ]
    varying = [o.of if isinstance(o, Pending) else o for o in operands if is_varying(o)]
    of = varying[0]
    if any(other is not of for other in varying):
        return list(several(interpreter, eqn, [interpreter.settle(operand) for operand in operands]))
    nodes = [o.node if isinstance(o, Pending) else None if o is of else o for o in operands]
    return [Pending(Node(eqn, tuple(nodes), interpreter.scope_of(eqn)), of)]


def settle(interpreter: Interpreter, pending: Pending) -> Varying:
    """Apply the rule to a pointwise function: from here on it is a value like any other."""
    if pending.settled is None:
        pending.settled = _settle(interpreter, pending)
    return pending.settled


def _settle(interpreter: Interpreter, pending: Pending) -> Varying:
    node, of = pending.node, pending.of
    if not jnp.issubdtype(node.eqn.outvars[0].aval.dtype, jnp.inexact):
        f = PointwiseFunction.of(node)
        return discrete(f(of.value), f(of.reference))
    if of.is_discrete:
        raise interpreter.missing_rule(node.eqn, "makes numbers of integers that depend on the explained input")
    first, core = affine_ends(node)
    of = of if first is None else _affine(PointwiseFunction.of(first), of)
    if core is not first:
        of = _nonlinearity(interpreter, PointwiseFunction.of(core, first), of, core.scope)
    return of if node is core else _affine(PointwiseFunction.of(node, core), of)


def _affine(f: PointwiseFunction, of: Varying) -> Varying:
    """A line `c x + b`, which is a linear map like others: `a_y = |c| a`, parts changing places where `c` is negative."""
    value, reference = f(of.value), f(of.reference)

    def variation() -> Array:
        return (jnp.abs(f.derivative(of.reference)) * of.variation).astype(reference.dtype)

    return Varying(value, reference, variation, of.fed_by)


def _nonlinearity(interpreter: Interpreter, f: PointwiseFunction, of: Varying, scope: str) -> Varying:
    """The rule that holds here, applied."""
    if f.is_affine:
        return _affine(f, of)
    rule = interpreter.rule.at(Place(f, of.fed_by, scope))
    value, variation = (_by_parts if rule.needs_variation else _whole)(rule, f, of)
    return Varying(value, f(of.reference), variation, of.fed_by)


def _whole(rule: Rule, f: PointwiseFunction, of: Varying) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule with one multiplier `m` for both parts, and its variation `a_y = m a`."""
    f, constants = f.with_constants(()), f.constants

    def forward(explained: Any, held: Any, constants: Any) -> Array:
        return f.with_constants(constants)(*explained)

    def pull(cotangent: Array, explained: Any, held: Any, constants: Any) -> tuple[Array]:
        return (rule.pull(f.with_constants(constants), *explained, *held, cotangent),)

    def multiplier(ends: Any, constants: Any) -> Array:
        return rule.multiplier(f.with_constants(constants), *ends)

    def variation() -> Array:
        return with_multipliers(
            lambda explained, held, _: multiplier(*held) * explained[0],
            lambda cotangent, explained, held, _: (multiplier(*held) * cotangent,),
            (of.variation,),
            ((of.value, of.reference), constants),
        )

    return with_multipliers(forward, pull, (of.value,), (of.reference,), constants), variation


def _by_parts(rule: Rule, f: PointwiseFunction, of: Varying) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule that tells positive from negative parts, and its variation.

    With `D+ = (D + a) / 2`, `D- = (D - a) / 2` and the parts' multipliers `m+`, `m-`,

        D_y = m+ D+ + m- D-        a_y = m+ D+ - m- D-

    are linear in `D+` and `D-`. So the cotangents of `y` and of `a_y` pull back apart, and `a_y` costs nothing where nobody asks for
    it: `ct_D = (m+ + m-) / 2 ct_y + (m+ - m-) / 2 ct_a`, and the other way round for `ct_a`.
    """
    f, constants = f.with_constants(()), f.constants

    def forward(explained: Any, held: Any, constants: Any) -> Array:
        return f.with_constants(constants)(explained[0])

    def halves(cotangent: Array | float, explained: Any, held: Any, constants: Any) -> tuple[Array, Array]:
        x, a = explained
        return rule.parts(f.with_constants(constants), x, *held, a, cotangent / 2)

    def pull(cotangent: Array, *arguments: Any) -> tuple[Array, Array]:
        plus, minus = halves(cotangent, *arguments)
        return plus + minus, plus - minus

    def forward_parts(explained: Any, held: Any, constants: Any) -> Array:
        (x, a), d = explained, difference(explained[0], *held)
        plus, minus = halves(1.0, explained, held, constants)
        return (plus * (d + a) - minus * (d - a)).astype(x.dtype)

    def pull_parts(cotangent: Array, *arguments: Any) -> tuple[Array, Array]:
        return pull(cotangent, *arguments)[::-1]

    explained, held = (of.value, of.variation), (of.reference,)
    value = with_multipliers(forward, pull, explained, held, constants)
    return value, lambda: with_multipliers(forward_parts, pull_parts, explained, held, constants)


family(
    pointwise,
    primitives(
        # Of one operand.
        *("abs", "sign", "neg", "exp", "exp2", "expm1", "log", "log2", "log1p", "logistic", "tanh", "sin", "cos", "tan"),
        *("sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "sqrt", "rsqrt", "cbrt", "square"),
        *("one_minus_square", "integer_pow", "polynomial", "erf", "erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e"),
        *("bessel_i1e", "floor", "ceil", "round", "is_finite", "convert_element_type", "reduce_precision", "copy"),
        # Of several.
        *("add", "sub", "mul", "div", "pow", "max", "min", "rem", "atan2", "clamp", "select_n", "nextafter", "igamma"),
        *("igammac", "igamma_grad_a", "polygamma", "zeta", "regularized_incomplete_beta"),
        # Conditions, integers and bits.
        *("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to", "and", "or", "xor", "not", "shift_left"),
        *("shift_right_arithmetic", "shift_right_logical", "population_count", "clz", "mulhi"),
    ),
)
