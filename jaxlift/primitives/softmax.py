r"""Softmax and logsumexp, recognised wherever exponentials are divided by their sum or the sum's logarithm is taken.

Let `e_i = A_i exp(u_i) + B_i` with constant `A` and `B` (masks make them 0), `s = sum_i e_i`, `l = log s`, and let
`p_i = A_i exp(u_i) / s` at the input, `q_i` the same at the reference. With the logarithmic mean

.. math:: M_i = L(p_i, q_i) = \frac{p_i - q_i}{\log p_i - \log q_i}, \qquad \log p_i - \log q_i = \Delta u_i - \Delta l

and `N_i = L(B_i / s, B_i / s_ref) = B_i L(1 / s, 1 / s_ref)` for what is constant in the sum, the shares add up to 1 on
both sides, so that

.. math:: 0 = \sum_i \Delta p_i + \Delta (B_i / s) = \sum_i M_i (\Delta u_i - \Delta l) - N_i \Delta l

and exactly

.. math::
    \Delta l = \sum_i \frac{M_i}{\sum_j M_j + N_j} \Delta u_i, \qquad
    \Delta (e_i / s) = M_i \Delta u_i - (M_i + N_i) \Delta l

It is the derivative of softmax with the logarithmic mean in the place of `p`. A shift of all `u_i`, by a maximum as JAX
subtracts it or by anything else, takes nothing: what is added to `l` for it is taken off through `u`. In a softmax of
nothing but exponentials it is not even asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import difference, large, where
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family
from jaxlift._core.values import Node, Pending, Value, Varying, is_varying, on_each_side
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.function import PointwiseFunction, affine_ends
from jaxlift.primitives.linear import Weighted, carrying
from jaxlift.primitives.normalisation import Moved, Repeated, Shifted, statistic_of_sum
from jaxlift.primitives.pointwise import FAMILIES as POINTWISE
from jaxlift.primitives.pointwise import pointwise
from jaxlift.primitives.reciprocals import moved as moved_fraction
from jaxlift.rules.families import Place, Softmax

EXP = frozenset(primitives("exp"))
# What doesn't change by how much the logarithm of a sum differs: its mean, for one, is a multiple.
PROPORTIONAL = frozenset({"abs", "convert_element_type", "copy", "mul", "div"})


@dataclass(frozen=True, eq=False)
class Exponential:
    """`A exp(u) + B`, where `exp(u)` is the result of one step of the program."""

    step: Node
    of: Varying
    outer: PointwiseFunction

    def exponent(self, interpreter: Interpreter) -> Varying:
        """`u`."""
        inner = _operand(self.step)
        return interpreter.settle(self.of if inner is None else Pending(inner, self.of))

    @property
    def is_bare(self) -> bool:
        """Whether it is `exp(u)`, or that in another dtype."""
        return all(eqn.primitive.name in ("exp", "convert_element_type") for eqn, _ in self.outer.steps)


@dataclass(frozen=True, eq=False)
class Total:
    """A sum of exponentials over some axes of their exponent.

    Attributes:
        along: for each axis of the sum, the axis of the exponent that it runs along; None for one along which it is
            constant.
    """

    exponential: Exponential
    axes: tuple[int, ...]
    along: tuple[int | None, ...]


def _operand(step: Node) -> Node | None:
    """What `exp` is taken of."""
    [inner] = step.operands
    assert inner is None or isinstance(inner, Node)
    return inner


def exponential(value: Value) -> Exponential | None:
    """How a value is an exponential, if it is one."""
    if not isinstance(value, Pending) or value.of.is_discrete or jnp.iscomplexobj(value.of.value):
        return None
    _, core = affine_ends(value.node)
    if core is None or core.eqn.primitive not in EXP:
        return None
    return Exponential(core, value.of, PointwiseFunction.of(value.node, _operand(core)))


def total(value: Value, up_to: frozenset[str] = frozenset({"convert_element_type", "copy"})) -> Total | None:
    """How a value is a sum of exponentials, if it is, up to functions made of some primitives."""
    if isinstance(value, Varying):
        return value.origin if isinstance(value.origin, Total) else None
    if not isinstance(value, Pending) or not isinstance(value.of.origin, Total):
        return None
    f = PointwiseFunction.of(value.node)
    return value.of.origin if {eqn.primitive.name for eqn in f.equations} <= up_to and _is_multiple(f) else None


def _is_multiple(f: PointwiseFunction) -> bool:
    """Whether each step's only varying operand is the one before it, and no number is divided by it."""
    constants = range(1, 1 + len(f.literals) + len(f.constants))
    for eqn, operands in f.steps:
        varying = [k for k, register in enumerate(operands) if register not in constants]
        if len(varying) != 1 or (eqn.primitive.name == "div" and varying != [0]):
            return False
    return True


def log_mean(p: Array, q: Array, log_ratio: Array) -> Array:
    """`(p - q) / (log p - log q)` for `p` and `q` of one sign, which is never more than the larger.

    Where their logarithms are `d` apart, `(p - q) / (p + q)` is `tanh(d / 2)`, so that the quotient is
    `(p + q) / 2 * tanh(d / 2) / (d / 2)`. For little `d` that is a fraction of polynomials, whose relative error is at
    most `z^4 / 99225` with `z = (d / 2)^2`.
    """
    limit = (99225 * float(jnp.finfo(log_ratio.dtype).eps)) ** (1 / 4)
    near = log_ratio**2 < 4 * limit
    z = where(near, log_ratio, 0) ** 2 / 4
    mean = (p + q) / 2 * ((105 + 10 * z) / (105 + z * (45 + z)))
    return where(near, mean, (p - q) / where(near, 1, log_ratio))


def _parts(f: PointwiseFunction, u: Array, is_bare: bool) -> tuple[Array, Array | None]:
    """`A exp(u)` and `B` of `f(u) = A exp(u) + B`. The first is the derivative."""
    y = f(u)
    wide = jnp.promote_types(y.dtype, jnp.float32)
    if is_bare:
        return y.astype(wide), None
    slope = f.derivative(u).astype(wide)
    return slope, y.astype(wide) - slope


def _shares(parts: Any, parts_ref: Any, sums: Any, log_ratio: Array) -> tuple[Array, Array]:
    """`M` and `M + N` of exponentials, for the exponents' `log_ratio` and the sums of both sides."""
    (t, b), (t_ref, b_ref), (s, s_ref) = parts, parts_ref, sums
    fall = jnp.log(jnp.abs(s)) - jnp.log(jnp.abs(s_ref))
    varying = log_mean(t / s, t_ref / s_ref, log_ratio - fall)
    if b is None:
        return varying, varying
    return varying, varying + log_mean(b / s, b_ref / s_ref, -fall)


def _exact(
    interpreter: Interpreter,
    eqn: JaxprEqn,
    of: Total,
    outputs: tuple[Array, Array],
    cotangents: Callable[[Array, Any], tuple[Array, Array]],
    numerator: Exponential | None = None,
) -> Varying:
    """A value whose multipliers are made of the shares of exponentials in their sum.

    Args:
        outputs: the value and its reference.
        cotangents: for a cotangent and the shares of the numerator, what it gives for `u_i` and for the sum's `l`.
    """
    exponentials = [of.exponential]
    if numerator is not None and not (numerator.is_bare and numerator.outer.form == of.exponential.outer.form):
        exponentials.append(numerator)
    u = of.exponential.exponent(interpreter)
    functions = [exponential.outer for exponential in exponentials]
    bare = [exponential.is_bare for exponential in exponentials]
    explained = u
    if numerator is not None and all(bare) and isinstance(u.origin, Shifted) and u.origin.along.issuperset(of.axes):
        explained = u.origin.of  # what the shift would be given is 0
    constants = tuple(f.constants for f in functions)
    functions = [f.with_constants(()) for f in functions]

    rule = interpreter.rule.at(Place("softmax", u.fed_by, interpreter.scope_of(eqn)))

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        (x, r), _, constants = held
        own = [f.with_constants(c) for f, c in zip(functions, constants, strict=True)]
        return (rule.softmax(Softmax(partial(exact, own)), x, r, cotangent),)

    def exact(own: Sequence[PointwiseFunction], x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangent of the exponents, by the equations above."""

        def side(u: Array) -> Any:
            parts = [_parts(f, u, is_bare) for f, is_bare in zip(own, bare, strict=True)]
            t, b = parts[0]
            return parts, (t if b is None else t + b).sum(of.axes, keepdims=True)

        (parts, s), (parts_ref, s_ref) = side(x), side(r)
        apart = difference(x, r).astype(s.dtype)
        each = [_shares(*pair, (s, s_ref), apart) for pair in zip(parts, parts_ref, strict=True)]
        of_u, of_l = cotangents(cotangent, each[-1])
        varying, every = each[0]
        if u.is_masked and numerator is None:
            # Of what is masked on either side not even the limit has finite shares of `l`, unless something else is in
            # both sums.
            tiny = every.sum(of.axes, keepdims=True) < large(u.value.dtype) ** -0.5
            of_l = where(tiny, jnp.nan, of_l)
        return of_u + of_l.sum(of.axes, keepdims=True) * varying / every.sum(of.axes, keepdims=True)

    held = ((u.value, u.reference), outputs[0], constants)
    value = with_multipliers(lambda explained, held: held[1], pull, (explained.value,), held)
    return Varying(value, outputs[1], None, u.fed_by)


def logarithm(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `log`: of a sum of exponentials it is logsumexp."""
    of = total(operands[0], PROPORTIONAL)
    along = [k for k in of.along if k is not None] if of else []
    if of is None or along != sorted(along) or not _is_as_small(operands[0], of):
        return pointwise(interpreter, eqn, operands)
    kept = [1 if k in of.axes else n for k, n in enumerate(of.exponential.of.shape)]

    def cotangents(cotangent: Array, shares: Any) -> tuple[Array, Array]:
        del shares
        return jnp.zeros((), cotangent.dtype), cotangent.reshape(kept)

    [outputs] = on_each_side(eqn, [interpreter.settle(operands[0])])
    return [_exact(interpreter, eqn, of, outputs, cotangents)]


def _is_as_small(value: Value, of: Total) -> bool:
    """Whether no element of a sum was repeated."""
    assert is_varying(value)
    return all(n == 1 for n, k in zip(value.shape, of.along, strict=True) if k is None)


def quotient(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `div`: of exponentials by their sum it is softmax."""
    above, of = exponential(operands[0]), total(operands[1])
    if above is None or of is None or above.step is not of.exponential.step or not _is_aligned(operands[1], of):
        return pointwise(interpreter, eqn, operands)
    [outputs] = on_each_side(eqn, [interpreter.settle(operand) for operand in operands])

    def cotangents(cotangent: Array, shares: Any) -> tuple[Array, Array]:
        varying, every = shares
        return cotangent * varying, -cotangent * every

    return [_exact(interpreter, eqn, of, outputs, cotangents, above)]


def _is_aligned(value: Value, of: Total) -> bool:
    """Whether each exponential stands over the sum that it is part of."""
    assert is_varying(value)
    along = of.along if value.shape else (None,) * len(of.exponential.of.shape)
    return len(along) == len(of.exponential.of.shape) and all(
        k in of.axes if own is None else own == k for k, own in enumerate(along)
    )


def subtraction(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `sub`, which remembers what it was that was shifted."""
    outputs = pointwise(interpreter, eqn, operands)
    [out] = outputs
    if isinstance(out, Varying) and not out.is_discrete:
        of, shift = map(interpreter.settle, operands)
        if isinstance(of, Varying) and of.shape == out.shape:
            sizes = shift.shape or (1,) * len(of.shape)
            out.origin = Shifted(of, frozenset(axis for axis, n in enumerate(sizes) if n < of.shape[axis]))
    return outputs


def summation(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `reduce_sum`, which remembers what it is a sum of."""
    [out] = carrying()(interpreter, eqn, operands)
    assert isinstance(out, Varying)
    if (each := exponential(operands[0])) is not None:
        axes = eqn.params["axes"]
        out.origin = Total(each, axes, tuple(k for k in range(len(each.of.shape)) if k not in axes))
    elif "normalisation" in interpreter.rule.families:
        out.origin = statistic_of_sum(operands[0])
    of = interpreter.settle(operands[0])
    assert isinstance(of, Varying)
    out.find_low = lambda: 0.0 if of.low >= 0 else -inf
    return [out]


def moving(
    along: Callable[[JaxprEqn, Sequence[int | None]], Sequence[int | None] | None], remember: type[Moved] = Moved
) -> Evaluation:
    """The evaluation of a primitive that puts the axes of a sum elsewhere; `remember` is what its result is of its
    operand.
    """

    move = carrying()

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        [out] = move(interpreter, eqn, operands)
        assert isinstance(out, Varying)
        operand = interpreter.settle(operands[0])
        assert isinstance(operand, Varying)
        if (of := total(operands[0])) is not None:
            moved = along(eqn, of.along)
            out.origin = None if moved is None else Total(of.exponential, of.axes, tuple(moved))
        elif isinstance(operand.origin, Weighted):
            out.origin = operand.origin.moved(operand, lambda y: versions.bind(eqn, [y])[0])
        else:
            out.origin = remember(operand)

        def of_divisor(divisor: Varying) -> Value:
            [moved] = move(interpreter, eqn, [divisor])
            assert isinstance(moved, Varying)
            moved.origin = remember(divisor)
            return moved

        out.make_fraction = moved_fraction(operand, of_divisor, lambda scale: versions.bind(eqn, [scale])[0])
        out.find_low = operand.find_low
        return [out]

    return evaluate


def after_broadcast(eqn: JaxprEqn, along: Sequence[int | None]) -> Sequence[int | None]:
    own = dict(zip(eqn.params["broadcast_dimensions"], along, strict=True))
    return [own.get(axis) for axis in range(len(eqn.params["shape"]))]


def after_squeeze(eqn: JaxprEqn, along: Sequence[int | None]) -> Sequence[int | None]:
    return [k for axis, k in enumerate(along) if axis not in eqn.params["dimensions"]]


def after_transpose(eqn: JaxprEqn, along: Sequence[int | None]) -> Sequence[int | None]:
    return [along[axis] for axis in eqn.params["permutation"]]


def after_reshape(eqn: JaxprEqn, along: Sequence[int | None]) -> Sequence[int | None] | None:
    """Where axes of size 1 come and go, and nothing else."""
    before, after = versions.shape(eqn.invars[0]), versions.shape(eqn.outvars[0])
    large = [k for k, n in zip(along, before, strict=True) if n != 1]
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    remaining = iter(large)
    return [next(remaining) if n != 1 else None for n in after]


FAMILIES = ("linear", "softmax", "normalisation")
family(logarithm, primitives("log"), POINTWISE)
family(quotient, primitives("div"), POINTWISE)
family(subtraction, primitives("sub"), POINTWISE)
family(summation, primitives("reduce_sum"), FAMILIES)
family(moving(after_broadcast, Repeated), primitives("broadcast_in_dim"), FAMILIES)
family(moving(after_squeeze), primitives("squeeze"), FAMILIES)
family(moving(after_transpose), primitives("transpose"), FAMILIES)
family(moving(after_reshape), primitives("reshape"), FAMILIES)
