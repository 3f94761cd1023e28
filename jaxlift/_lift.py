"""The transformation: a function's jaxpr, evaluated jointly on an input and its reference."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, Literal, NoReturn, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift import _compat, _registry
from jaxlift._compat import JIT, Jaxpr, JaxprEqn, primitives
from jaxlift._values import Pending, Settled, Value, Varying, is_hashable, is_varying, key_of, number_of
from jaxlift.primitives import settle
from jaxlift.primitives.linear import both_sides, carrier_dtype, is_inexact, on_each_side
from jaxlift.rules import Rule, as_rule

OF_NUMBERS = frozenset(primitives("broadcast_in_dim", "convert_element_type"))
MaxPooling = Literal["complete", "original"]
MissingRule = Literal["raise", "derivative"]


@dataclass(frozen=True)
class Interpreter:
    """Evaluates jaxprs on values that may vary between input and reference.

    Attributes:
        rule: how a change passes a pointwise nonlinearity.
        max_pooling: how it passes a maximum over elements.
        missing: what happens where a primitive has no rule.
        scope: the name scopes around the jaxpr, joined by ``/``.
        where: the line of the user's code that the jaxpr comes from, for errors within library functions.
        known: the outputs of equations that were evaluated before. What is computed twice is one value: `exp(x) /
            exp(x).sum()` is a softmax, and `where(x @ w > 0, (x @ w) ** 2, 0)` a function of one value.
        calls: how often each jaxpr is called, as far as has been seen.
        lifted: those that were lifted for all of their calls.
    """

    rule: Rule
    max_pooling: MaxPooling = "complete"
    missing: MissingRule = "raise"
    scope: str = ""
    where: str = ""
    known: dict[Any, tuple[Any, Sequence[Value]]] = field(default_factory=dict, compare=False, repr=False)
    calls: Counter[Any] = field(default_factory=Counter, compare=False, repr=False)
    lifted: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr. What doesn't vary is computed once, as it stands."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {var: jnp.asarray(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> Any:
            if isinstance(atom, _compat.Literal):
                return np.asarray(atom.val, _compat.dtype(atom))  # a bare number's dtype would follow x64 mode
            return values[atom]

        eqns = needed(jaxpr, jaxpr.outvars, effects=True)
        self.calls.update(eqn.params["jaxpr"] for eqn in eqns if eqn.primitive in JIT)
        for eqn in eqns:
            inputs = [read(atom) for atom in eqn.invars]
            key = self._key(eqn, inputs)
            if key not in self.known:
                self.known[key] = inputs, self.outputs(eqn, inputs)  # the inputs stay alive, and so do their ids
            values.update(zip(eqn.outvars, self.known[key][1], strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """The outputs of one equation."""
        if not any(map(is_varying, inputs)):
            literal = literal_of(eqn, inputs)
            return _compat.bind(eqn, inputs) if literal is None else [literal]
        try:
            return _registry.rule_of(eqn, self.where)(self, eqn, inputs)
        except _registry.MissingRuleError as error:
            if self.missing == "raise":
                raise
            warnings.warn(f"{error} Its plain derivative is used.", stacklevel=2)
            return by_derivative(eqn, [self.settle(value) for value in inputs])

    def _key(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Any:
        """What two equations have in common that have the same outputs."""
        if eqn.effects:
            return object()
        key = (eqn.primitive, tuple(eqn.params.items()), self.scope_of(eqn), tuple(map(key_of, inputs)))
        return key if is_hashable(key) else object()

    def is_repeated(self, eqn: JaxprEqn) -> bool:
        """Whether what an equation calls is called elsewhere too."""
        return eqn.primitive in JIT and self.calls[eqn.params["jaxpr"]] > 1

    def inside(self, eqn: JaxprEqn) -> Interpreter:
        """The interpreter for the jaxpr that an equation holds."""
        return replace(self, scope=self.scope_of(eqn), where=_compat.location(eqn) or self.where)

    def afresh(self) -> Interpreter:
        """The same, for a jaxpr that is traced by itself, as the bodies of loops are."""
        return replace(self, known={})

    def scope_of(self, eqn: JaxprEqn) -> str:
        return "/".join(filter(None, (self.scope, str(eqn.source_info.name_stack))))

    @overload
    def settle(self, value: Varying | Pending) -> Varying: ...
    @overload
    def settle(self, value: Value) -> Settled: ...
    def settle(self, value: Value) -> Settled:
        """Apply the rule to a pending pointwise function; other values are returned as they are."""
        return settle(self, value) if isinstance(value, Pending) else value

    def missing_rule(self, eqn: JaxprEqn, reason: str) -> _registry.MissingRuleError:
        return _registry.missing_rule(eqn, self.where, reason)

    def refusal(self, eqn: JaxprEqn, reason: str) -> Callable[[], NoReturn]:
        """For what is refused only if something asks for it."""

        def refuse() -> NoReturn:
            raise self.missing_rule(eqn, reason)

        return refuse


def needed(
    jaxpr: Jaxpr, outputs: Sequence[Any], given: Sequence[_compat.Var] = (), *, effects: bool = False
) -> list[JaxprEqn]:
    """The equations of a jaxpr that some of its values need, beyond those that are given; and those with effects."""
    held = set(given)
    wanted = set(_compat.variables(outputs)) - held
    found: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars) or (effects and eqn.effects):
            found.append(eqn)
            wanted.update(var for var in _compat.variables(eqn.invars) if var not in held)
    return found[::-1]


def lift(
    fun: Callable[[Any], Any],
    *,
    rule: Rule | str = "rescale",
    max_pooling: MaxPooling = "complete",
    missing_rule: MissingRule = "raise",
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Evaluate a function jointly on an input and a reference, so that its derivative is DeepLIFT's multiplier.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> lifted = jaxlift.lift(jax.nn.relu)
    >>> y, y_ref = lifted(jnp.float32(3.0), jnp.float32(-1.0))
    >>> float(y), float(y_ref)
    (3.0, 0.0)
    >>> float(jax.grad(lambda x: lifted(x, jnp.float32(-1.0))[0])(jnp.float32(3.0)))
    0.75

    Args:
        fun: any function of one argument, a pytree of arrays, that JAX can trace. Its output is a pytree of arrays too.
        rule: how a difference passes nonlinearities: a rule or its name (see `jaxlift.rules`).
        max_pooling: how it passes a maximum. ``"complete"`` keeps the sum; ``"original"`` is what the original
            implementation does, which sends everything to the maximum of the input and loses the sum where the
            reference's is elsewhere.
        missing_rule: what happens where an operation has no rule that keeps the sum. ``"raise"``: an error.
            ``"derivative"``: a warning that names it, and its plain derivative, so that the sum isn't kept.

    Returns:
        A function `(x, reference) -> (fun(x), fun(reference))`. It differs from the plain pair only in its derivative:
        the reverse-mode derivative of the first output in `x` is the multiplier (paper, eq. 2 and 3). In anything else
        that `fun` closes over it means nothing; take that derivative of `fun`. `x` and `reference` have one structure
        and equal shapes; the reference is cast to `x`'s dtypes.

    Raises:
        ValueError: if the reference doesn't fit `x`, or an option has no such value.
        TypeError: if `x` has leaves that aren't real floating-point numbers.
        MissingRuleError: if `fun` has an operation that can't be explained; the error names it and the line.
    """
    check_option("max_pooling", max_pooling, MaxPooling)
    check_option("missing_rule", missing_rule, MissingRule)
    rule = as_rule(rule)

    def lifted(x: Any, reference: Any) -> tuple[Any, Any]:
        return evaluate_jointly(Interpreter(rule, max_pooling, missing_rule), fun, x, reference)

    return lifted


def evaluate_jointly(interpreter: Interpreter, fun: Callable[[Any], Any], x: Any, reference: Any) -> tuple[Any, Any]:
    """The outputs of a function on an input and on its reference, by an interpreter that is used for this alone."""
    results = evaluate_values(interpreter, fun, jax.tree.map(Varying, *checked_pair(x, reference)))
    structure = jax.tree.structure(results)
    values, references = both_sides(jax.tree.leaves(results))
    return jax.tree.unflatten(structure, values), jax.tree.unflatten(structure, references)


def evaluate_values(interpreter: Interpreter, fun: Callable[[Any], Any], inputs: Any) -> Any:
    """A function's outputs for a pytree of varying inputs, with all that rules know of them."""
    closed, outputs = jax.make_jaxpr(fun, return_shape=True)(jax.tree.map(lambda varying: varying.value, inputs))
    results = interpreter.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(inputs))
    return jax.tree.unflatten(jax.tree.structure(outputs), map(interpreter.settle, results))


def vjp(
    fun: Callable[[Any], Any],
    x: Any,
    reference: Any,
    *,
    rule: Rule | str = "rescale",
    max_pooling: MaxPooling = "complete",
    missing_rule: MissingRule = "raise",
) -> tuple[tuple[Any, Any], Callable[[Any], Any]]:
    """`jax.vjp`, with multipliers for derivatives.

    >>> import jax.numpy as jnp, jaxlift
    >>> x, reference = jnp.array([1.0, 2.0]), jnp.zeros(2)
    >>> (y, y_ref), pullback = jaxlift.vjp(lambda x: jnp.tanh(x @ jnp.array([0.5, -1.0])), x, reference)
    >>> multipliers = pullback(jnp.ones(()))
    >>> bool(jnp.allclose(jnp.sum(multipliers * (x - reference)), y - y_ref))
    True

    Args:
        fun, rule, max_pooling, missing_rule: as for `lift`.
        x, reference: the input and what it is compared with, pytrees of one structure with equal shapes.

    Returns:
        `((fun(x), fun(reference)), pullback)`, where `pullback` takes a cotangent like `fun(x)` and returns multipliers
        like `x`. It is linear under Rescale and RevealCancel, and can be called many times, or under `jax.vmap`.

    Raises:
        as `lift` does.
    """
    lifted = lift(fun, rule=rule, max_pooling=max_pooling, missing_rule=missing_rule)
    y, pullback, y_ref = jax.vjp(lambda x: lifted(x, reference), x, has_aux=True)
    return (y, y_ref), lambda cotangent: pullback(cotangent)[0]


def literal_of(eqn: JaxprEqn, inputs: Sequence[Any]) -> Any:
    """What an equation only converts or broadcasts of a number: a literal still, of which it is known what number it
    is. None of other equations.
    """
    number = number_of(inputs[0]) if eqn.primitive in OF_NUMBERS and is_inexact(eqn.outvars[0]) else None
    if number is None:
        return None
    [out] = eqn.outvars
    with np.errstate(over="ignore"):
        return np.broadcast_to(np.asarray(number, _compat.dtype(out)), _compat.shape(out))


def by_derivative(eqn: JaxprEqn, operands: Sequence[Settled]) -> list[Value]:
    """The outputs of an equation without a rule, with derivatives for multipliers; integers have none."""
    sides = on_each_side(eqn, operands)
    return [
        Varying(value, reference)
        if is_inexact(value)
        else Varying(value, reference, make_carrier=partial(jnp.zeros, value.shape, carrier_dtype()))
        for value, reference in sides
    ]


def summed(tree: Any) -> Array:
    """The sum over all arrays of a pytree."""
    return reduce(jnp.add, (jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))


def check_option(name: str, value: Any, options: Any, *more: Any) -> None:
    """Raise the error that says which values an option may have."""
    allowed = (*get_args(options), *more)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.")


def checked_pair(x: Any, reference: Any) -> tuple[Any, Any]:
    """The input and its reference as arrays of equal shapes and dtypes, or the error that says how they don't fit."""
    x = checked_input(x)
    check_structure(x, reference)
    reference = jax.tree.map(lambda value, ref: jnp.asarray(ref, value.dtype), x, reference)
    for (path, value), ref in zip(jax.tree.leaves_with_path(x), jax.tree.leaves(reference), strict=True):
        if value.shape != ref.shape:
            raise ValueError(
                f"the reference{jax.tree_util.keystr(path)} must have the shape of the input: expected {value.shape}, "
                f"got {ref.shape}. Broadcast it, as in jnp.broadcast_to(reference, x.shape)."
            )
    return x, reference


def check_structure(x: Any, reference: Any) -> None:
    """Raise the error for a reference that isn't a pytree as the input is."""
    structure, other = jax.tree.structure(x), jax.tree.structure(reference)
    if structure != other:
        raise ValueError(f"the reference must have the structure of the input: expected {structure}, got {other}.")


def checked_input(x: Any) -> Any:
    """The explained input as arrays, or the error that says which leaf can't be explained."""
    x = jax.tree.map(jnp.asarray, x)
    for path, leaf in jax.tree.leaves_with_path(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"the input{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, but only real floating-point numbers "
                "have differences to explain. Cast numbers with x.astype(jnp.float32). For token ids, explain the "
                "embeddings: make them first, and pass the function that goes on from there."
            )
    return x
