"""Elementwise primitives, tracked as functions of one value, and the rule applied to such a function as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._function import PointwiseFunction, affine_ends
from jaxlift._multipliers import difference, slope_between, with_multipliers
from jaxlift._registry import family
from jaxlift._values import Node, Pending, Value, Varying, is_varying
from jaxlift.primitives.linear import broadcast, carrier_dtype, is_inexact, with_carrier
from jaxlift.primitives.operands import several
from jaxlift.rules import Place, Rescale, Rule

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter


def pointwise(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The rule of elementwise primitives: wait, and make a larger function of it.

    A function of one varying value waits. Where several vary, each for itself, the function is theirs together.
    """
    shape = _compat.shape(eqn.outvars[0])
    operands = [
        broadcast(interpreter.settle(o), shape) if is_varying(o) and o.shape != shape else o  # sizes of 1, and scalars
        for o in operands
    ]
    bases = [base for operand in operands if (base := _base(operand)) is not None]
    if any(base is not bases[0] for base in bases):
        return several(interpreter, eqn, [interpreter.settle(operand) for operand in operands])
    nodes = [o.node if isinstance(o, Pending) else None if isinstance(o, Varying) else o for o in operands]
    return [Pending(Node(eqn, tuple(nodes), interpreter.scope_of(eqn)), bases[0])]


def _base(operand: Value) -> Varying | None:
    """What an operand is a pointwise function of, if it varies."""
    match operand:
        case Pending(of=of):
            return of
        case Varying():
            return operand
    return None


def settle(interpreter: Interpreter, pending: Pending) -> Varying:
    """Apply the rule to a pointwise function: from here on it is a value like any other."""
    if pending.settled is None:
        pending.settled = _settle(interpreter, pending)
    return pending.settled


def _settle(interpreter: Interpreter, pending: Pending) -> Varying:
    node, of = pending.node, pending.of
    if of.is_discrete or not is_inexact(node.eqn.outvars[0]):
        return _step(PointwiseFunction.of(node), of)
    first, core = affine_ends(node)
    of = of if first is None else _affine(PointwiseFunction.of(first), of)
    if core is not None and core is not first:
        of = _nonlinearity(interpreter, PointwiseFunction.of(core, first), of, core.scope)
    return of if node is core else _affine(PointwiseFunction.of(node, core), of)


def _step(f: PointwiseFunction, of: Varying) -> Varying:
    """A function from or to integers and truth values: a step. Its multiplier is `(f(x) - f(r)) / (x - r)`, as under
    Rescale, and 0 where nothing differs.
    """
    value, reference = f(of.value), f(of.reference)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        y, y_ref, x, r = held
        return (cotangent * slope_between(y, y_ref, x, r, cotangent.dtype),)

    def carrier() -> Array:
        held = (value, reference, of.value, of.reference)
        return with_multipliers(lambda explained, held: held[0].astype(carrier_dtype(value)), pull, (of.carrier,), held)

    return with_carrier(lambda: value, reference, carrier, of.fed_by)


def _affine(f: PointwiseFunction, of: Varying) -> Varying:
    """A line `c x + b`, which is a linear map like others: `a_y = |c| a`. Parts change places where `c < 0`."""
    value, reference = f(of.value), f(of.reference)

    def variation() -> Array:
        return (jnp.abs(f.derivative(of.reference)) * of.variation).astype(reference.dtype)

    return Varying(value, reference, None if jnp.iscomplexobj(of.value) else variation, of.fed_by)


def _nonlinearity(interpreter: Interpreter, f: PointwiseFunction, of: Varying, scope: str) -> Varying:
    """The rule that holds here, applied."""
    if f.is_affine:
        return _affine(f, of)
    rule = interpreter.rule.at(Place(f, of.fed_by, scope))
    if jnp.iscomplexobj(of.value):  # complex differences have no positive and negative parts
        value, _ = _whole(Rescale() if rule.needs_variation else rule, f, of)
        return Varying(value, f(of.reference), None, of.fed_by)
    value, variation = (_by_parts if rule.needs_variation else _whole)(rule, f, of)
    return Varying(value, f(of.reference), variation, of.fed_by)


def _whole(rule: Rule, f: PointwiseFunction, of: Varying) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule with one multiplier `m` for both parts, and its variation `a_y = m a`."""
    f, constants = f.with_constants(()), f.constants

    def forward(explained: Any, held: Any) -> Array:
        return f.with_constants(held[-1])(*explained)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        (x,), (r, constants) = explained, held
        return (rule.pull(f.with_constants(constants), x, r, cotangent),)

    def multiplier(held: Any) -> Array:
        x, r, constants = held
        return rule.multiplier(f.with_constants(constants), x, r)

    def variation() -> Array:
        return with_multipliers(
            lambda explained, held: multiplier(held) * explained[0],
            lambda cotangent, explained, held: (multiplier(held) * cotangent,),
            (of.variation,),
            (of.value, of.reference, constants),
        )

    return with_multipliers(forward, pull, (of.value,), (of.reference, constants)), variation


def _by_parts(rule: Rule, f: PointwiseFunction, of: Varying) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule that tells positive from negative parts, and its variation.

    With `D+ = (D + a) / 2`, `D- = (D - a) / 2` and the parts' multipliers `m+`, `m-`,

        D_y = m+ D+ + m- D-        a_y = m+ D+ - m- D-

    are linear in `D+` and `D-`. So the cotangents of `y` and of `a_y` pull back apart, and `a_y` costs nothing where
    nobody asks for it: `ct_D = (m+ + m-) / 2 ct_y + (m+ - m-) / 2 ct_a`, and the other way round for `ct_a`.
    """
    f, constants = f.with_constants(()), f.constants

    def forward(explained: Any, held: Any) -> Array:
        return f.with_constants(held[-1])(explained[0])

    def halves(cotangent: Array | float, explained: Any, held: Any) -> tuple[Array, Array]:
        (x, a), (r, constants) = explained, held
        return rule.parts(f.with_constants(constants), x, r, a, cotangent / 2)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, Array]:
        plus, minus = halves(cotangent, explained, held)
        return plus + minus, plus - minus

    def forward_parts(explained: Any, held: Any) -> Array:
        (x, a), d = explained, difference(explained[0], held[0])
        plus, minus = halves(1.0, explained, held)
        return (plus * (d + a) - minus * (d - a)).astype(x.dtype)

    def pull_parts(cotangent: Array, explained: Any, held: Any) -> tuple[Array, Array]:
        of_value, of_variation = pull(cotangent, explained, held)
        return of_variation, of_value

    explained, held = (of.value, of.variation), (of.reference, constants)
    value = with_multipliers(forward, pull, explained, held)
    return value, lambda: with_multipliers(forward_parts, pull_parts, explained, held)


# fmt: off
ELEMENTWISE = frozenset(primitives(
    # Of one operand.
    "abs", "sign", "neg", "exp", "exp2", "expm1", "log", "log2", "log1p", "logistic", "tanh", "sin", "cos", "tan",
    "sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "sqrt", "rsqrt", "cbrt", "square",
    "one_minus_square", "integer_pow", "polynomial", "erf", "erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e",
    "bessel_i1e", "floor", "ceil", "round", "is_finite", "convert_element_type", "reduce_precision", "copy",
    # Of several.
    "add", "sub", "mul", "div", "pow", "max", "min", "rem", "atan2", "clamp", "select_n", "nextafter", "igamma",
    "igammac", "igamma_grad_a", "polygamma", "zeta", "regularized_incomplete_beta",
    # Conditions, integers and bits.
    "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to", "and", "or", "xor", "not", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "population_count", "clz", "mulhi",
))
# fmt: on
family(pointwise, ELEMENTWISE)
