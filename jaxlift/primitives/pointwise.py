"""Elementwise primitives, tracked as functions of one value, and the rule applied to such a function as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.compilers import after
from jaxlift._core.custom_derivatives import Arrays, operation
from jaxlift._core.interpreter import Interpreter, literal_behind
from jaxlift._core.table import family, settled_by
from jaxlift._core.values import (
    Masked,
    Node,
    Pending,
    Settled,
    Value,
    Varying,
    broadcast,
    is_complex,
    is_hashable,
    is_inexact,
    is_varying,
    number_of,
    postorder,
)
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.facts import rounds_away
from jaxlift._pointwise.function import CONVERSIONS, WITH_MANY_DIGITS, Form, PointwiseFunction, affine_ends
from jaxlift._pointwise.shared import steps_after, value_on_the_way
from jaxlift.primitives.linear import Weighted, carrying, step
from jaxlift.primitives.normalisation import Repeated, inherited
from jaxlift.primitives.operands import several
from jaxlift.primitives.reciprocals import fraction_of, moved
from jaxlift.rules.families import Place
from jaxlift.rules.rule import Rule


def pointwise(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of elementwise primitives: wait, and make a larger function of it.

    A function of one varying value waits. Where several vary, each for itself, the function is theirs together.
    """
    ended = [_lacks_digits(operand) or becomes_complex(eqn, i) for i, operand in enumerate(operands)]
    settled = [interpreter.settle(o) if end else o for o, end in zip(operands, ended, strict=True)]
    return _waiting(interpreter, eqn, settled)


def becomes_complex(eqn: JaxprEqn, position: int) -> bool:
    """Whether an operand is real, or a truth value, and a result complex, as of conversions and of choices.

    There a pointwise function ends, and the next begins: a multiplier is a number of the argument's kind, and that of a
    function from real to complex numbers has an imaginary part. As a linear map to the complex numbers and a function
    of these it has both: the multiplier `m` of the latter is complex, and `Re(ct m)` the cotangent of the real number.
    """
    return any(map(is_complex, eqn.outvars)) and not is_complex(eqn.invars[position])


def _waiting(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """An elementwise step as the last of a larger function."""
    [out] = eqn.outvars
    shape = versions.shape(out)
    operands = [
        _broadcast(interpreter.settle(o), out) if is_varying(o) and o.shape != shape else o  # sizes of 1, and scalars
        for o in operands
    ]
    bases = [base for operand in operands if (base := _base(operand)) is not None]
    if any(base is not bases[0] for base in bases):
        settled = [interpreter.settle(operand) for operand in operands]
        varying = {id(operand) for operand in settled if isinstance(operand, Varying)}
        # Without a reference, conditions are constants: what they choose from may be a function of one value.
        return (several if len(varying) > 1 else _waiting)(interpreter, eqn, settled)
    if not bases:
        return versions.bind(eqn, operands)
    if (larger := _larger(interpreter, eqn, operands)) is not None:
        return [larger]
    return [Pending(Node(eqn, tuple(_node(o, interpreter) for o in operands), interpreter.scope_of(eqn)), bases[0])]


def _larger(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Pending | Varying | None:
    """What a maximum is of, if it is known not to be below the number that it is compared with: as of variances and 0,
    where nothing is piecewise.
    """
    if eqn.primitive not in MAXIMUM:
        return None
    for value, other in (operands, reversed(operands)):
        bound = None if is_varying(other) else number_of(literal_behind(other, interpreter.numbers))
        if bound is not None and isinstance(value, Pending | Varying) and _low(value) >= bound:
            return value
    return None


def _low(value: Pending | Varying) -> float:
    """What a value is known not to lie below."""
    return PointwiseFunction.of(value.node).low(value.of.low) if isinstance(value, Pending) else value.low


def _broadcast(operand: Varying, output: versions.Var) -> Varying:
    """An operand at a larger shape, which remembers what it was."""
    return replace(
        broadcast(operand, output),
        origin=Repeated(operand),
        is_alone=operand.is_alone,
        make_fraction=moved(
            operand, lambda divisor: _broadcast(divisor, output), lambda scale: versions.broadcast_to(scale, output)
        ),
        find_low=operand.find_low,
    )


def conversion(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """Numbers of another kind.

    Quantised ones are a value of their own: what comes after is no function of the digits that are lost. There and back
    is one function, for on the way cotangents would lose digits, too.

    So are complex ones made of real ones.
    """
    if becomes_complex(eqn, 0) and is_varying(settled := interpreter.settle(operands[0])):
        return carrying()(interpreter, eqn, [settled])
    if rounds_away(eqn):
        return _waiting(interpreter, eqn, [interpreter.settle(operand) for operand in operands])
    return (_waiting if is_inexact(eqn.outvars[0]) else pointwise)(interpreter, eqn, operands)


def _lacks_digits(value: Value) -> bool:
    """Whether a value was quantised by the last that was done to it, and perhaps taken back."""
    node = value.node if isinstance(value, Pending) else None
    while isinstance(node, Node) and node.eqn.primitive in CONVERSIONS:
        if rounds_away(node.eqn):
            return True
        [node] = node.operands
    return False


def bits(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """A bitcast, treated as a pointwise step function."""
    if versions.shape(eqn.outvars[0]) != operands[0].shape:
        raise interpreter.missing_rule(eqn, "has no rule: it joins the bits of several numbers or takes them apart")
    return pointwise(interpreter, eqn, operands)


def _node(operand: Value, interpreter: Interpreter) -> Node | Array | None:
    """An operand of a further step."""
    match operand:
        case Pending(node=node):
            return node
        case Varying():
            return None
    assert not isinstance(operand, Masked)  # the interpreter passes none on
    return literal_behind(operand, interpreter.numbers)


def _base(operand: Value) -> Varying | None:
    """What an operand is a pointwise function of, if it varies."""
    match operand:
        case Pending(of=of):
            return of
        case Varying():
            return operand
    return None


def settle(interpreter: Interpreter, pending: Pending) -> Settled:
    """Apply the rule to a pointwise function: from here on it is a value like any other."""
    if pending.settled is None:
        pending.settled = settled = _settle(interpreter, pending)
        if isinstance(settled, Varying):
            if interpreter.is_joint and not settled.is_discrete:
                settled.make_fraction = partial(fraction_of, interpreter, pending)
                settled.find_low = lambda: _low(pending)
            if "normalisation" in interpreter.rule.families:
                settled.origin = inherited(pending)
    return pending.settled


def _settle(interpreter: Interpreter, pending: Pending) -> Settled:
    node, of = pending.node, pending.of
    if of.is_discrete or not is_inexact(node.eqn.outvars[0]):
        f = PointwiseFunction.of(node)
        # Without a reference, integers and truth values are constants.
        return f(jax.lax.stop_gradient(of.value)) if of.is_alone else step(f(of.value), f(of.reference), of)
    if _lacks_digits(pending):
        return _nonlinearity(interpreter, PointwiseFunction.of(node), of, node.scope)
    if (inner := _explained_apart(interpreter, pending)) is not None:
        return interpreter.settle(Pending(steps_after(inner.node, node), interpreter.settle(inner)))
    first, core = affine_ends(node)
    start, of = _with_bias(node if core is None else first, of)
    if first is not None and first is not start:
        of = _affine(PointwiseFunction.of(first, start), of)
    if core is not None:
        of = _nonlinearity(interpreter, PointwiseFunction.of(core, first), of, core.scope)
    last = start if core is None else core
    return of if node is last else _affine(PointwiseFunction.of(node, last), of)


def _explained_apart(interpreter: Interpreter, pending: Pending) -> Pending | None:
    """A value on the way of a function, settled, if the rest may be explained as a function of it.

    Where multipliers are secants, that of a function of a function is both theirs multiplied; so what others read too
    has its multiplier once, and not once more in each function that begins with it. Under RevealCancel the whole is
    another thing than its parts, and nearer to Shapley.
    """
    values = [pending]
    while values[-1].settled is None and (inner := value_on_the_way(values[-1])) and _has_secant(interpreter, inner):
        values.append(inner)
    if len(values) == 1 or not _has_secant(interpreter, pending):
        return None
    for value in reversed(values[1:]):  # from the inside, so that none waits for a long chain of others
        interpreter.settle(value)
    return values[1]


def _has_secant(interpreter: Interpreter, pending: Pending) -> bool:
    """Whether a value is a nonlinear function whose multiplier is its secant, a number wherever the argument is."""
    first, core = affine_ends(pending.node)
    if core is None or core is first or versions.dtype(pending.node.eqn.outvars[0]) not in WITH_MANY_DIGITS:
        return False
    f = PointwiseFunction.of(core, first)
    rule = interpreter.rule.at(Place("pointwise", pending.of.fed_by, core.scope, f))
    return rule.takes_secants and f.is_total and f.is_continuous and f.is_real


def _with_bias(last: Node | None, of: Varying) -> tuple[Node | None, Varying]:
    """The value to which only a bias has been added, and where on the way to an affine function's last step it stands;
    for rules that take it as part of the linear map that the value comes from.
    """
    if last is None or not isinstance(of.origin, Weighted):
        return None, of
    steps = [item for item in postorder([last], lambda item: getattr(item, "operands", ())) if isinstance(item, Node)]
    added = steps[0]  # the first step, which has the value itself for an operand, and alone has it
    if added.eqn.primitive not in ADDITION or any(None in step.operands for step in steps[1:]):
        return None, of
    f = PointwiseFunction.of(added)
    bias = f(jnp.zeros_like(of.reference))
    return added, of.origin.with_bias(bias, replace(of, value=f(of.value), reference=f(of.reference)))


def _affine(f: PointwiseFunction, of: Varying) -> Varying:
    """A line `c x + b`, which is a linear map like others: `a_y = |c| a`. Parts change places where `c < 0`."""
    if of.is_alone:
        return Varying.alone(f(of.value), of.fed_by)
    value, reference = f(of.value), f(of.reference)

    def variation() -> Array:
        return jnp.abs(f.derivative(of.reference)) * of.variation

    return Varying(value, reference, variation, of.fed_by)


def _nonlinearity(interpreter: Interpreter, f: PointwiseFunction, of: Varying, scope: str) -> Varying:
    """The rule that holds here, applied."""
    if f.is_affine:
        return _affine(f, of)
    rule = interpreter.rule.at(Place("pointwise", of.fed_by, scope, f))
    is_real = not jnp.iscomplexobj(of.value)
    if of.is_alone:
        value = (
            _operations_whole(rule, f.form, of.value)[0]((of.value,), (of.value, f.constants))
            if _answers(rule)
            else f(of.value)
        )
        return Varying.alone(value, of.fed_by)
    # Differences of complex numbers have no positive and negative parts, and those that rounding makes have no use.
    in_parts = rule.needs_variation and is_real and not (f.is_rounding or of.is_masked)
    reference, kept = f.with_kept(of.reference)
    value, variation = (_by_parts if in_parts else _whole)(rule, f, of, kept)
    return Varying(value, reference, variation if is_real else None, of.fed_by)


def _answers(rule: Rule) -> bool:
    """Whether a rule has an answer of its own for pointwise functions."""
    return "pointwise" in rule.families


def _whole(rule: Rule, f: PointwiseFunction, of: Varying, kept: Arrays) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule with one multiplier `m` for both parts, and its variation `a_y = m a`."""
    of_value, of_variation = _operations_whole(rule, f.form, of.value)
    value = of_value((of.value,), (of.reference, f.constants, kept))
    return value, lambda: of_variation((of.variation,), (of.value, of.reference, f.constants))


def _by_parts(rule: Rule, f: PointwiseFunction, of: Varying, kept: Arrays) -> tuple[Array, Callable[[], Array]]:
    """A value under a rule that tells positive from negative parts, and its variation."""
    operation = _operation_by_parts(rule, f.form, of.value)
    value, variation = operation((of.value, of.variation), (of.reference, f.constants, kept))
    return value, lambda: variation


Operation = Callable[[Any, Any], Array]


def traced_once(make: Callable[[Rule, Form], Any]) -> Callable[[Rule, Form, Array], Any]:
    """The same operations for equal rules and forms, if the rule is a frozen dataclass: others may be equal and differ,
    or be changed. Others, too, for an argument whose type says how it is spread over devices: JAX 0.12 fails to batch
    loops with jitted functions of such arrays.

    Networks have the same few activations again and again: each is traced once for a shape. (`jax.jit` keeps what it
    has traced, and what was derived from that, as long as it is the same function.) A user's functions with a
    derivative of their own are new objects at each call, so caching would not hit.
    """

    @lru_cache(maxsize=1024)
    def known(rule: Rule, form: Form) -> Any:
        return jax.tree.map(jax.jit, make(rule, form))

    def of(rule: Rule, form: Form, argument: Array) -> Any:
        own = vars(type(rule)).get("__dataclass_params__")  # a subclass may have attributes that nothing compares
        is_value = own is not None and own.frozen and is_hashable(rule)
        may_recur = is_value and form.may_recur and not versions.is_spread_by_type(argument)
        return (known if may_recur else make)(rule, form)

    return of


@traced_once
def _operations_whole(rule: Rule, form: Form) -> tuple[Operation, Operation]:
    def forward(explained: Any, held: Any) -> Array:
        return form.with_constants(held[1])(*explained)

    def keeping(explained: Any, held: Any) -> tuple[Array, Arrays]:
        value, kept = form.with_constants(held[1]).with_kept(*explained)
        return value, (kept,)

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        (x,), (r, constants, *kept) = explained, held
        f = form.with_constants(constants, zip((r, x), kept, strict=False))
        if form.of_no_constants.is_rounding:
            cotangent = cotangent.astype(x.dtype)  # numbers of 8 bits mix with no others
        return (rule.pull(f, x, r, cotangent),)

    def multiplier(held: Any) -> Array:
        x, r, constants = held
        return rule.multiplier(form.with_constants(constants), x, r)

    def scale(explained: Any, held: Any) -> Array:
        return multiplier(held) * explained[0]

    def pull_scale(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        return (multiplier(held) * cotangent,)

    return operation(forward, pull, keeping), operation(scale, pull_scale)


@traced_once
def _operation_by_parts(rule: Rule, form: Form) -> Callable[[Any, Any], tuple[Array, Array]]:
    """With `D+ = (D + a) / 2`, `D- = (D - a) / 2` and the parts' multipliers `m+`, `m-`,

        D_y = m+ D+ + m- D-        a_y = m+ D+ - m- D-

    So `m+ (ct_y + ct_a)` and `m- (ct_y - ct_a)` are the cotangents of the parts; those of `D` and `a` are half their
    sum and half their difference.
    """

    def keeping(explained: Any, held: Any) -> tuple[tuple[Array, Array], Arrays]:
        (x, a), (r, constants, _) = explained, held
        f = form.with_constants(constants)
        value, kept = f.with_kept(x)
        return (value, rule.variation(f, x, r, a)), (kept,)

    def forward(explained: Any, held: Any) -> tuple[Array, Array]:
        return keeping(explained, held)[0]

    def pull(cotangents: tuple[Array, Array], explained: Any, held: Any) -> tuple[Array, Array]:
        (x, a), (r, constants, *kept), (of_value, of_variation) = explained, held, cotangents
        f = form.with_constants(constants, zip((r, x), kept, strict=True))
        a = after(of_value, a)
        plus, minus = rule.pull_parts(f, x, r, a, (of_value + of_variation) / 2, (of_value - of_variation) / 2)
        return plus + minus, plus - minus

    return operation(forward, pull, keeping)


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
ADDITION, MAXIMUM = (frozenset(primitives(name)) for name in ("add", "max"))
# Biases, softmax and normalisations are elementwise steps too, which wait until it is known what they are part of.
FAMILIES = ("pointwise", "elementwise", "linear", "softmax", "normalisation")
family(pointwise, ELEMENTWISE, FAMILIES)
family(pointwise, primitives("mul"), (*FAMILIES, "bilinear"))
family(conversion, CONVERSIONS, FAMILIES)
family(bits, primitives("bitcast_convert_type"), FAMILIES)
settled_by(settle, Pending)
