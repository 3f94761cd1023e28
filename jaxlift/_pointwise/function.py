"""Pointwise functions: what a nonlinearity is to a rule, and the secant that all rules of DeepLIFT are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import jaxprs_in_params

from jaxlift._core import versions
from jaxlift._core.compilers import once
from jaxlift._core.differences import is_finite, large, where
from jaxlift._core.values import Node, is_hashable, key_of, key_of_params, number_of, postorder
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._pointwise.chain import by_steps, pull_of
from jaxlift._pointwise.facts import ARGUMENT, CONSTANT, Facts, of_literal, of_step, rounds_away
from jaxlift._pointwise.secants import (
    THEOREMS,
    Ends,
    Identity,
    Sample,
    Theorem,
    by_identity,
    by_quotient_or_derivatives,
    by_theorem,
    identity_of,
    of_parabola,
    of_ramp,
    of_two_rays,
)

# By how much the last bit of a primitive's result may be off, in units of the dtype's epsilon. Elementary functions are
# taken to be good to two units, as XLA's are.
EXACT = frozenset(primitives("neg", "abs", "sign", "max", "min", "select_n", "clamp", "floor", "ceil", "round", "copy"))
ROUNDED = frozenset(primitives("add", "sub", "mul", "div", "sqrt", "square", "integer_pow", "convert_element_type"))

# What XLA writes out as polynomials of 40 to 80 operations, each of which it takes to be cheap.
WRITTEN_OUT = frozenset(primitives("erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e"))

# Those in which a function's steps may be explained one by one.
WITH_MANY_DIGITS = {jnp.dtype(name) for name in ("float32", "float64")}

CONVERSIONS = frozenset(primitives("convert_element_type", "reduce_precision"))
CUSTOM_VJP = frozenset(primitives("custom_vjp_call"))
CUSTOM = CUSTOM_VJP | frozenset(primitives("custom_jvp_call"))


@dataclass(frozen=True, eq=False)
class PointwiseFunction:
    """An elementwise function `y = f(x)` of one array, made of any number of primitives.

    Rules see nonlinearities as such functions: whole, be it a ReLU of one primitive or a GELU of nine.

    Attributes:
        steps: the primitives in order, each with the registers that it reads. Register 0 is the argument; the literals,
            the constants and the results of the steps follow.
        literals: the numbers that stand in the program: scalars, or arrays that are full of one.
        constants: the arrays that don't depend on the explained input, such as biases and learned slopes.
        known: arguments, each with the results that the steps in `kept` have there, which need no computing.
    """

    steps: tuple[tuple[JaxprEqn, tuple[int, ...]], ...]
    literals: tuple[Any, ...]
    constants: tuple[Array, ...]
    known: tuple[tuple[Array, tuple[Array, ...]], ...] = ()

    @classmethod
    def of(cls, node: Node, argument: Node | None = None) -> PointwiseFunction:
        """The function that leads from one node of the program's graph to another, or from the `Varying` (None)."""
        items = postorder([node], lambda item: () if item is argument else getattr(item, "operands", ()))
        nodes = [item for item in items if isinstance(item, Node) and item is not argument]
        constants = [item for item in items if isinstance(item, jax.Array)]
        literals = [item for item in items if not isinstance(item, Node | jax.Array | None)]
        register = {id(item): i for i, item in enumerate([argument, *literals, *constants, *nodes])}
        steps = [(node.eqn, tuple(register[id(operand)] for operand in node.operands)) for node in nodes]
        return cls(tuple(steps), tuple(literals), tuple(constants))

    @property
    def form(self) -> Form:
        """The function without its constants."""
        return Form(self.with_constants(()))

    def with_constants(
        self, constants: Sequence[Array], known: Iterable[tuple[Array, tuple[Array, ...]]] = ()
    ) -> PointwiseFunction:
        """The same function with other constants, of which nothing that is known of it depends."""
        other = replace(self, constants=tuple(constants), known=tuple(known))
        found = {"facts", "equations", "has_secants_of_steps", "kept"} & vars(self).keys()
        vars(other).update({name: vars(self)[name] for name in found})
        return other

    def __call__(self, x: Array) -> Array:
        return self._registers(x)[-1]

    def with_kept(self, x: Array) -> tuple[Array, tuple[Array, ...]]:
        """`f(x)`, and what to keep for secants with an end at `x`."""
        registers = self._registers(x)
        results = registers[-len(self.steps) :]
        return registers[-1], tuple(results[i] for i in self.kept)

    def _registers(self, x: Array) -> list[Any]:
        """The argument, what doesn't depend on it, and the results of the steps."""
        registers = [x, *self.literals, *self.constants]
        kept = next((kept for argument, kept in self.known if argument is x), ())
        known = dict(zip(self.kept, kept, strict=False))  # none, at other arguments
        for i, (eqn, operands) in enumerate(self.steps):
            registers += [known[i]] if i in known else _step(eqn, [registers[k] for k in operands])
        return registers

    def derivative(self, x: Array) -> Array:
        """`f'(x)`, the one that JAX takes: custom derivatives are the user's, and so is the choice at a kink.

        Of a square root of a ReLU it is 0 to the left, as JAX's is backwards. Forwards, 0 times the root's infinite
        slope is NaN.
        """
        slope = _value_and_slopes(self, self.equations, x)[1][0]
        if self.is_two_rays or self.is_ramp or self.is_parabola:
            return slope
        return where(jnp.isnan(slope) & ~jnp.isnan(x), 0, slope)

    def ends(self, x: Array, r: Array, with_rounding: bool = False) -> tuple[Sample, Sample]:
        """What a secant needs to know at inputs and at references, each by itself: for N and for R of them, not for
        pairs.

        Args:
            with_rounding: whether to give the rounding error of `f(x)` besides that of `f(r)`.
        """
        return self.sample(x, with_rounding), self.sample(r)

    def sample(self, x: Array, with_rounding: bool = True) -> Sample:
        """What a secant needs to know at `x`, in float32 at least: half precision has no room for differences.

        Args:
            with_rounding: whether to give the rounding error of `f(x)`, which a secant needs at one of its ends.
        """
        if self.theorem or self.identity:
            known = (self(x),)
        elif self.has_secants_of_steps:
            registers = self._registers(x)
            return Sample(x, registers[-1], registers=registers, made={})
        elif self.is_two_rays or self.is_ramp or self.is_parabola:
            slope = self.derivative(x)
            known = self(x), slope if self.is_total else _or_zero(slope)
        elif with_rounding:
            y, slope, rounding = self._value_slope_and_rounding(x)
            known = y, _or_zero(slope), _or_zero(self._curvature(x)), _or_zero(rounding)
        else:
            y, slopes = _value_and_slopes(self, self.equations, x)
            known = y, *map(_or_zero, slopes), _or_zero(self._curvature(x))
        return Sample(*(side.astype(_wide(x)) for side in (x, *known)))

    def _curvature(self, x: Array) -> Array:
        """`f''(x)`; 0 in the plane of complex numbers, where there is more than one.

        The derivative of a user's `custom_jvp` function may call a `custom_vjp` function, which has none forwards.
        """
        if not self.is_real:
            return jnp.zeros_like(x)
        backwards = not all(map(_has_known_derivative, self.equations))
        return _value_and_slopes(self.derivative, self.equations, x, backwards=backwards)[1][0]

    def _value_slope_and_rounding(self, x: Array) -> tuple[Array, Array, Array]:
        """`f(x)`, `f'(x)`, and a running bound on the rounding error of `f(x)`: each step's own, and what it makes of
        those before it.
        """
        registers, wide = [x, *self.literals, *self.constants], _wide(x)
        slopes: list[Array | None] = [None] * len(registers)  # None where there is none
        slopes[0] = jnp.ones_like(x, wide)
        errors: list[Array | None] = [None] * len(registers)
        for eqn, operands in self.steps:
            varied = [k for k, i in enumerate(operands) if slopes[i] is not None or errors[i] is not None]
            y, partials = _partial_derivatives(eqn, [registers[i] for i in operands], varied)
            paths = [(partial.astype(wide), operands[k]) for partial, k in zip(partials, varied, strict=False)]
            is_exact = eqn.primitive in EXACT or rounds_away(eqn)
            units = 0.0 if is_exact else 0.5 if eqn.primitive in ROUNDED else 2.0
            is_rounded = units > 0 and jnp.issubdtype(y.dtype, jnp.inexact)
            own = [units * float(jnp.finfo(y.dtype).eps) * jnp.abs(y.astype(wide))] if is_rounded else []
            inherited = [jnp.abs(partial) * error for partial, i in paths if (error := errors[i]) is not None]
            registers.append(y)
            slopes.append(_sum_or_none([partial * slope for partial, i in paths if (slope := slopes[i]) is not None]))
            errors.append(_sum_or_none(own + inherited))
        y, slope, error = registers[-1], slopes[-1], errors[-1]
        return y, jnp.zeros_like(y) if slope is None else slope, jnp.zeros_like(y) if error is None else error

    def secant(self, x: Array, r: Array, times: Array | float = 1.0) -> Array:
        """`(f(x) - f(r)) / (x - r) * times`, to rounding for all `x` and `r`, and with `f'(r)` where they are equal."""
        return self.mean_secant([self.ends(x, r)], times)

    def mean_secant(self, ends: Ends, times: Array | float = 1.0) -> Array:
        """The mean of secants over equal differences, times a factor."""
        if self.theorem:
            return by_theorem(self.theorem, ends, times)
        if self.identity:
            return by_identity(self.identity, ends, times)
        if self.is_two_rays:
            return of_two_rays(ends, times)
        if self.is_ramp:
            return of_ramp([bound for bound in (self.facts.low, self.facts.high) if abs(bound) < inf], ends, times)
        if self.is_parabola:
            return of_parabola(ends, times)
        found = (
            by_steps(self.steps, ends, times) if self.has_secants_of_steps else by_quotient_or_derivatives(ends, times)
        )
        # RevealCancel takes the sum and the difference of two such means. XLA's CPU compiler keeps results of divisions
        # for both; these don't end in one, and would be computed for each.
        return once(found) if len(ends) > 1 else found

    @cached_property
    def equations(self) -> tuple[JaxprEqn, ...]:
        """All equations in the function, those within custom derivatives and nested jits included."""
        return _with_nested(eqn for eqn, _ in self.steps)

    @cached_property
    def facts(self) -> Facts:
        """What is known of the function before it is evaluated."""
        return self._facts_of(ARGUMENT)

    def low(self, above: float) -> float:
        """What the function is known not to lie below, of arguments that don't lie below a number."""
        of_all = above == -inf
        return self._facts_of(ARGUMENT if of_all else replace(ARGUMENT, low=above, growth=None)).low

    def _facts_of(self, argument: Facts) -> Facts:
        registers = [argument, *map(of_literal, self.literals), *[CONSTANT] * len(self.constants)]
        for eqn, operands in self.steps:
            registers += of_step(eqn, [registers[i] for i in operands])
        return registers[-1]

    @property
    def is_relu(self) -> bool:
        """Whether the function is `max(x, 0)`, however it is written."""
        return self.facts.homogeneity == 1 and self.facts.at_ones == (1, 0)

    @property
    def theorem(self) -> Theorem | None:
        """The addition theorem of the function, if it has one."""
        return THEOREMS.get(step.primitive.name) if (step := self._only_step) else None

    @property
    def identity(self) -> Identity | None:
        """How secants follow from values, if that is known."""
        return identity_of(step.primitive.name, step.params) if (step := self._only_step) else None

    @property
    def _only_step(self) -> JaxprEqn | None:
        """The primitive that the function is, of real numbers; None if it is made of more."""
        [(eqn, operands), *more] = self.steps
        return eqn if self.is_real and operands == (0,) and not more else None

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The steps whose results secants are made of, and that cost much to compute again. That is a function with an
        identity itself, and in those that are explained step by step, what XLA writes out.
        """
        if self.theorem is not None or (self.identity is not None and self.identity.of_values):
            return (0,)
        if not self.has_secants_of_steps:
            return ()
        return tuple(i for i, (eqn, _) in enumerate(self.steps) if eqn.primitive in WRITTEN_OUT)

    @cached_property
    def has_secants_of_steps(self) -> bool:
        """Whether the secants of all steps are known, and finite wherever the argument is."""
        if self.is_two_rays or self.is_ramp or self.is_parabola or not self.is_total or not self.is_real:
            return False
        dtypes = {versions.dtype(atom) for eqn, _ in self.steps for atom in (*eqn.invars, *eqn.outvars)}
        return dtypes <= WITH_MANY_DIGITS and len(dtypes) == 1 and all(pull_of(eqn) for eqn, _ in self.steps)

    @property
    def is_two_rays(self) -> bool:
        """Whether `f(c x) = c f(x)` for all `c > 0`, as of ReLUs: two lines that meet at 0."""
        return self.is_real and self.facts.homogeneity == 1 and not self.facts.has_own_derivative

    @property
    def is_ramp(self) -> bool:
        """Whether it is the argument, held above a number, below one, or between two."""
        return self.is_real and self.facts.is_ramp and not self.facts.has_own_derivative

    @property
    def is_activation(self) -> bool:
        """Whether the function saturates or is piecewise, as activations are, unlike `exp`, `log`, powers and
        reciprocals: whether a comparison, a maximum, a tanh and the like is part of it; or else whether it exists for
        every real number and grows no faster than a line without being one, as `x / (1 + exp(-x))`.

        A mask is none: between two ends that aren't masked lies nothing but a difference as large as the mask.
        """
        return self.facts.is_activation and not any(map(_is_mask, self.literals))

    @property
    def dtype(self) -> Any:
        """The dtype of the argument."""
        return next(versions.dtype(eqn.invars[operands.index(0)]) for eqn, operands in self.steps if 0 in operands)

    @property
    def is_real(self) -> bool:
        return not jnp.issubdtype(self.dtype, jnp.complexfloating)

    @property
    def is_continuous(self) -> bool:
        """Whether the function is known to have no steps."""
        return self.facts.is_continuous

    @property
    def is_total(self) -> bool:
        """Whether `f` and `f'` are finite in floats wherever the argument is, but for overflow of sums and products."""
        return self.facts.is_total

    @property
    def is_rounding(self) -> bool:
        """Whether the function does nothing but quantise numbers, and perhaps take them back."""
        equations = [eqn for eqn, _ in self.steps]
        return all(eqn.primitive in CONVERSIONS for eqn in equations) and any(map(rounds_away, equations))

    @property
    def is_affine(self) -> bool:
        """Whether `f` is `c x + b` whatever `x` is, so that its plain derivative is exact."""
        return self.facts.degree <= 1

    @property
    def is_parabola(self) -> bool:
        return self.is_real and self.facts.degree == 2


@dataclass(frozen=True, eq=False)
class Form:
    """What functions that differ in their constants alone have in common; equal if their steps and literals are."""

    of_no_constants: PointwiseFunction

    def with_constants(
        self, constants: Sequence[Array], known: Iterable[tuple[Array, tuple[Array, ...]]] = ()
    ) -> PointwiseFunction:
        return self.of_no_constants.with_constants(constants, known)

    @property
    def may_recur(self) -> bool:
        """Whether the same function may come again: one with a user's derivative is made anew for each call."""
        return all(map(_has_known_derivative, self.of_no_constants.equations))

    @cached_property
    def key(self) -> Any:
        f = self.of_no_constants
        steps = tuple((eqn.primitive, key_of_params(eqn), operands) for eqn, operands in f.steps)
        dtypes = tuple(str(versions.dtype(atom)) for eqn, _ in f.steps for atom in (*eqn.invars, *eqn.outvars))
        key = steps, dtypes, tuple(map(key_of, f.literals))
        return key if is_hashable(key) else id(self)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and self.key == other.key


def _is_mask(literal: Any) -> bool:
    """Whether a literal is what stands for an infinite number."""
    number = number_of(literal)
    return isinstance(number, float) and abs(number) == large(literal.dtype)


def _step(eqn: JaxprEqn, operands: list[Any]) -> Sequence[Array]:
    """The outputs of an elementwise equation."""
    outputs = versions.bind(eqn, operands)
    return [once(y) for y in outputs] if eqn.primitive in WRITTEN_OUT else outputs


def _wide(x: Array) -> Any:
    """The dtype in which slopes and rounding errors at `x` are worked out."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _or_zero(of: Array) -> Array:
    """A derivative or an error where it is a number, and 0 where it is none, as of roots at 0, at infinite arguments,
    and where a step on the way overflows: there the quotient holds.
    """
    return where(is_finite(of), of, 0)


def _with_nested(eqns: Iterable[JaxprEqn]) -> tuple[JaxprEqn, ...]:
    """Equations, and those that they hold."""
    found, pending = list[JaxprEqn](), list(eqns)
    while pending:
        eqn = pending.pop()
        found.append(eqn)
        pending += [inner for jaxpr in jaxprs_in_params(eqn.params) for inner in jaxpr.eqns]
    return tuple(found)


def _has_known_derivative(eqn: JaxprEqn) -> bool:
    """Whether an equation's derivative is JAX's, and not one that a user wrote."""
    return eqn.primitive not in CUSTOM or versions.has_derivative_of_jax(eqn)


def _is_for_backwards(eqn: JaxprEqn) -> bool:
    """Whether an equation's derivative has to be taken backwards: there is no other, or, as of the modulus of complex
    numbers, along 1 it is not the whole of it.
    """
    atoms = (*eqn.invars, *eqn.outvars)
    return eqn.primitive in CUSTOM_VJP or any(jnp.issubdtype(versions.dtype(a), jnp.complexfloating) for a in atoms)


def _value_and_slopes(
    f: Callable[..., Array], equations: Iterable[JaxprEqn], *x: Array, backwards: bool = False
) -> tuple[Array, Sequence[Array]]:
    """`f(x)` and its elementwise derivatives; `equations` are all that `f` is made of. Forwards is traced in less time,
    where `f` has a derivative that way.

    JAX has none for some special functions in some arguments, and no second ones for some functions with a derivative
    of their own. What is missing counts as 0: there the secant is the quotient wherever that is more than rounding.
    """
    try:
        if len(x) == 1 and not backwards and not any(map(_is_for_backwards, equations)):
            y, slope = jax.jvp(f, x, (jnp.ones_like(*x),))
            return y, (slope,)
        y, pull = jax.vjp(f, *x)
        return y, pull(jnp.ones_like(y))
    except (NotImplementedError, TypeError, ValueError):
        return f(*x), [jnp.zeros_like(each) for each in x]


def _partial_derivatives(eqn: JaxprEqn, values: list[Any], which: list[int]) -> tuple[Array, Sequence[Array]]:
    """The result of an elementwise equation, and its derivative in some of its operands."""

    def step(*varied: Array) -> Array:
        replaced = dict(zip(which, varied, strict=True))
        return _step(eqn, [replaced.get(k, value) for k, value in enumerate(values)])[0]

    if not which or not jnp.issubdtype(versions.dtype(eqn.outvars[0]), jnp.inexact):
        return step(*(values[k] for k in which)), ()
    return _value_and_slopes(step, _with_nested([eqn]), *(values[k] for k in which))


def _sum_or_none(terms: Sequence[Array]) -> Array | None:
    return reduce(jnp.add, terms) if terms else None


def affine_ends(node: Node) -> tuple[Node | None, Node | None]:
    """Where the nonlinear core of a function begins and ends: the last affine node before it, and its own last node.

    Biases, scales and batch normalisation around an activation are linear maps, not part of the nonlinearity: where a
    scale is negative, positive and negative parts change places before the activation or after it. Both are the same
    node (None for the `Varying` itself) where there is no core.

    Numbers that stand next to the core may be part of how an activation is written, though. They are the core's where
    that makes it rise, as in `1 / (1 + exp(-x))` and `-log_sigmoid(-x)`, or a ReLU, as in `(x + abs(x)) / 2`.
    """
    after: list[Node | None] = [node]
    while after[0] is not None and (operand := _affine_operand(after[0])):
        after.insert(0, operand[0])
    core = after[0]
    users: dict[int, list[Node]] = {}
    for item in postorder([] if core is None else [core], lambda item: getattr(item, "operands", ())):
        if isinstance(item, Node):
            for operand in {id(operand): operand for operand in item.operands}:
                users.setdefault(operand, []).append(item)
    before: list[Node | None] = [None]
    while before[-1] is not core and len(users[id(before[-1])]) == 1 and _affine_operand(users[id(before[-1])][0]):
        before += users[id(before[-1])]
    first = before[-1]
    if first is core or core is None:
        return first, core
    # As far as steps by numbers go, where the function may begin and end; and which of these steps turn it around.
    starts, ends = [first], [core]
    turns: list[Node | None] = []
    turns_after: list[Node | None] = []
    while (start := starts[-1]) is not None and (direction := _direction(start)):
        starts.append(before[before.index(start) - 1])
        turns += [starts[-1]] if direction < 0 else []
    for end in after[1:]:
        if end is None or not (direction := _direction(end)):
            break
        ends.append(end)
        turns_after += [end] if direction < 0 else []
    facts = PointwiseFunction.of(core, first).facts
    if facts.homogeneity == 1 and facts.at_ones is not None and 0 in facts.at_ones and facts.at_ones != (1, 0):
        for start in starts:
            for end in ends:
                if PointwiseFunction.of(end, start).is_relu:
                    return start, end
    if facts.direction < 0:
        return (turns[0], core) if turns else (first, turns_after[0] if turns_after else core)
    if len(turns) % 2 and len(turns_after) % 2:  # turned twice, it is as it was
        return turns[0], turns_after[0]
    return first, core


def _direction(node: Node) -> int:
    """Whether an affine step by a number goes up or down with its operand; 0 of other steps."""
    varying = [operand is None or isinstance(operand, Node) for operand in node.operands]
    known = [
        ARGUMENT if varies else CONSTANT if isinstance(operand, jax.Array) else of_literal(operand)
        for varies, operand in zip(varying, node.operands, strict=True)
    ]
    return of_step(node.eqn, known)[0].direction


def _affine_operand(node: Node) -> tuple[Any, ...]:
    """The only operand of a step that varies, in a tuple, if the step is affine in it."""
    varying = [operand for operand in node.operands if operand is None or isinstance(operand, Node)]
    known = [ARGUMENT if operand is None or isinstance(operand, Node) else CONSTANT for operand in node.operands]
    return tuple(varying) if len(varying) == 1 and of_step(node.eqn, known)[0].degree <= 1 else ()
