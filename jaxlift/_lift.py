"""The transformation: a function's jaxpr, evaluated jointly on an input and its reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxlift import primitives as primitives  # importing them fills the table
from jaxlift._arguments import check_model, check_option, checked_pair, some_of
from jaxlift._core.interpreter import Interpreter, MissingRule
from jaxlift._core.precision import Precision, products_at
from jaxlift._core.values import Varying, both_sides
from jaxlift.rules import Rule, as_rule


def lift(
    fun: Callable[[Any], Any],
    *,
    rule: Rule | str = "rescale",
    missing_rule: MissingRule = "raise",
    precision: Precision | None = "highest",
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
        rule: how a difference passes each operation: a rule or its name (see `jaxlift.rules`). Under one that doesn't
            compare with a reference, such as ``"gradient"``, the derivative is JAX's wherever the rule has no other.
        missing_rule: what happens where an operation has no rule that keeps the sum. ``"raise"``: an error.
            ``"derivative"``: a warning that names it, and its plain derivative, so that the sum isn't kept.
        precision: what matrix products and convolutions have at least, as `jax.default_matmul_precision` names it.
            ``"highest"`` is true float32 on every device, and what the sum needs: GPUs and TPUs would round to 11 and 8
            digits by themselves. None leaves it to the model. Products of bfloat16 numbers stay as they are.

    Returns:
        A function `(x, reference) -> (fun(x), fun(reference))`. It differs from the plain pair, at that precision, only
        in its derivative: the reverse-mode derivative of the first output in `x` is the multiplier (paper, eq. 2 and
        3). In anything else that `fun` closes over it means nothing; take that derivative of `fun`. `x` and `reference`
        have one structure and equal shapes; the reference is cast to `x`'s dtypes.

    Raises:
        ValueError: if the reference doesn't fit `x`, or an option has no such value.
        TypeError: if `x` has leaves that aren't real floating-point numbers.
        MissingRuleError: if `fun` has an operation that can't be explained; the error names it and the line.
    """
    check_model(fun)
    check_option("missing_rule", missing_rule, MissingRule)
    check_option("precision", precision, Precision, None)
    rule = as_rule(rule)

    def lifted(x: Any, reference: Any) -> tuple[Any, Any]:
        return evaluate_jointly(Interpreter(rule, missing_rule, precision=precision), fun, x, reference)

    return lifted


def evaluate_jointly(interpreter: Interpreter, fun: Callable[[Any], Any], x: Any, reference: Any) -> tuple[Any, Any]:
    """The outputs of a function on an input and on its reference, by an interpreter that is used for this alone."""
    x, reference = checked_pair(x, reference)
    with products_at(interpreter.precision):
        if interpreter.leaves_all_to_jax:
            return fun(x), fun(reference)  # the derivative is JAX's
        if not interpreter.is_joint:
            alone = evaluate_values(interpreter, fun, jax.tree.map(Varying.alone, x))
            _warn_of_scopes(interpreter)
            return jax.tree.map(value_of, alone), fun(reference)
        results = evaluate_values(interpreter, fun, jax.tree.map(Varying, x, reference))
        _warn_of_scopes(interpreter)
    structure = jax.tree.structure(results)
    values, references = both_sides(jax.tree.leaves(results))
    return jax.tree.unflatten(structure, values), jax.tree.unflatten(structure, references)


def _warn_of_scopes(interpreter: Interpreter) -> None:
    """Warn of name scopes for which the rule chooses, and which the program doesn't have."""
    named = sorted(filter(None, interpreter.scopes))
    for pattern in interpreter.rule.unmatched(interpreter.scopes):
        there_are = some_of(named, 9) or "none (of a Flax NNX module jaxlift.scoped makes a copy that has some)"
        warnings.warn(
            f"the scope {pattern!r} of PerLayer is that of nothing in this program, whose scopes are: {there_are}.",
            stacklevel=2,
        )


def evaluate_values(interpreter: Interpreter, fun: Callable[[Any], Any], inputs: Any) -> Any:
    """A function's outputs for a pytree of varying inputs, with all that rules know of them."""
    closed, outputs = jax.make_jaxpr(fun, return_shape=True)(jax.tree.map(value_of, inputs))
    results = interpreter.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(inputs))
    return jax.tree.unflatten(jax.tree.structure(outputs), map(interpreter.settle, results))


def value_of(result: Any) -> Array:
    """The value at the input."""
    return result.value if isinstance(result, Varying) else result


def vjp(
    fun: Callable[[Any], Any],
    x: Any,
    reference: Any,
    *,
    rule: Rule | str = "rescale",
    missing_rule: MissingRule = "raise",
    precision: Precision | None = "highest",
) -> tuple[tuple[Any, Any], Callable[[Any], Any]]:
    """`jax.vjp`, with multipliers for derivatives.

    >>> import jax.numpy as jnp, jaxlift
    >>> x, reference = jnp.array([1.0, 2.0]), jnp.zeros(2)
    >>> (y, y_ref), pullback = jaxlift.vjp(lambda x: jnp.tanh(x @ jnp.array([0.5, -1.0])), x, reference)
    >>> multipliers = pullback(jnp.ones(()))
    >>> bool(jnp.allclose(jnp.sum(multipliers * (x - reference)), y - y_ref))
    True

    Args:
        fun, rule, missing_rule, precision: as for `lift`.
        x, reference: the input and what it is compared with, pytrees of one structure with equal shapes.

    Returns:
        `((fun(x), fun(reference)), pullback)`, where `pullback` takes a cotangent like `fun(x)` and returns multipliers
        like `x`. It is linear under Rescale and RevealCancel, and can be called many times, or under `jax.vmap`.

    Raises:
        ValueError, TypeError, MissingRuleError: as `lift` does.
    """
    lifted = lift(fun, rule=rule, missing_rule=missing_rule, precision=precision)
    y, pullback, y_ref = jax.vjp(lambda x: lifted(x, reference), x, has_aux=True)
    return (y, y_ref), lambda cotangent: pullback(cotangent)[0]
