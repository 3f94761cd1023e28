"""`register`: rules for operations that jaxlift doesn't know, or that can't be looked into."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core import table, versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.values import Value, Varying, both_sides, feeds, is_inexact
from jaxlift._core.versions import JaxprEqn, Primitive

# Called with the cotangents of the outputs, the operands at the input, the operands at the reference, and the
# primitive's parameters by name.
Pullback = Callable[..., Any]


def register(operation: Primitive | str | Callable[..., Any]) -> Callable[[Pullback], Pullback]:
    """Give an operation its multipliers: for a primitive of your own, an FFI call, a kernel, a `jax.custom_vjp`.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> @jax.custom_vjp
    ... def product(x, z):                                   # as if a kernel computed it
    ...     return x * z
    >>> product.defvjp(lambda x, z: (x * z, (x, z)), lambda saved, ct: (ct * saved[1], ct * saved[0]))
    >>> @jaxlift.register(product)
    ... def _(cotangent, values, references):
    ...     (x, z), (r, s) = values, references
    ...     return cotangent * (z + s) / 2, cotangent * (x + r) / 2
    >>> (_, _), pullback = jaxlift.vjp(lambda x: product(x[0], x[1]), jnp.array([3.0, 2.0]), jnp.zeros(2))
    >>> pullback(1.0)
    Array([1. , 1.5], dtype=float32)

    Use it as a decorator of the rule, a function `(cotangents, values, references, **params) -> cotangents`:

    - `cotangents`: the cotangent of the output, or a tuple of them where there are several outputs (None for outputs
      of integers).
    - `values`, `references`: tuples of the operands at the input and at the reference, as the program has them, axes
      of a `jax.vmap` inside it included. Operands that don't depend on the explained input are equal in both.
    - `params`: the primitive's parameters; none for a function. A rule that has a parameter named `rule` is given the
      `jaxlift.Rule` in force besides.
    - It returns a cotangent of each operand, None where there is nothing to say; for one operand, it may return that
      alone.

    For the sum to hold, cotangents times differences must keep their sum: `sum(ct_x * (x - r))` over the operands equal
    `sum(ct_y * (y - y_ref))` over the outputs. `jaxlift.check` says whether it does. For a linear operation that is
    `jax.vjp`. The rule is called within transformations of JAX, so it must be made of JAX operations.

    Args:
        operation: a primitive; the name of one that JAX has no public name for; or a function decorated with
            `jax.custom_vjp` or `jax.custom_jvp`.

    Returns:
        a decorator, which returns the rule unchanged. A rule that was there before is replaced; `unregister` puts back
        what jaxlift does by itself.

    Raises:
        TypeError: if the operation is none of these.
        ValueError: if no primitive has the name.
    """

    key, is_function = _key_of(operation)

    def record(pull: Pullback) -> Pullback:
        before = table.register(key, by_pullback(pull, with_params=not is_function), is_function=is_function)
        _before.setdefault((key, is_function), before)
        return pull

    return record


def unregister(operation: Primitive | str | Callable[..., Any]) -> None:
    """Undo `register`: the operation is treated as jaxlift treats it by itself.

    >>> import jax, jaxlift
    >>> _ = jaxlift.register(jax.lax.tan_p)(lambda cotangent, values, references, **params: cotangent)
    >>> jaxlift.unregister(jax.lax.tan_p)

    Args:
        operation: what `register` was given.

    Raises:
        KeyError: if nothing is registered for it.
        TypeError, ValueError: as from `register`.
    """
    key, is_function = _key_of(operation)
    if (key, is_function) not in _before:
        raise KeyError(f"nothing is registered for {operation!r}.")
    table.restore(key, _before.pop((key, is_function)), is_function=is_function)


# What the table had for an operation before a user's rule took its place.
_before: dict[tuple[Primitive | str, bool], table.Entry | None] = {}


def _key_of(operation: Any) -> tuple[Primitive | str, bool]:
    """By what an operation is known to the table, and whether it is a function with a custom derivative."""
    if isinstance(operation, jax.custom_jvp | jax.custom_vjp):
        return versions.name_of_function(operation), True
    if not isinstance(operation, Primitive | str):
        raise TypeError(
            f"register takes a primitive, its name, or a function decorated with jax.custom_vjp, but got {operation!r}."
        )
    if isinstance(operation, str):
        known = table.known_names()
        if operation not in known:
            near = get_close_matches(operation, known, 1)
            raise ValueError(
                f"no primitive is named {operation!r}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + "For a primitive that jaxlift doesn't know by name, give the primitive itself: `eqn.primitive` of "
                "its equation in jax.make_jaxpr(fun)(x).eqns."
            )
    return operation, False


def by_pullback(pull: Pullback, *, with_params: bool) -> table.Evaluation:
    """The evaluation of an operation of which only the multipliers are given."""
    knows_rule = "rule" in inspect.signature(pull).parameters

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        varying = [k for k, o in enumerate(settled) if isinstance(o, Varying)]
        numbers = [k for k, var in enumerate(eqn.outvars) if is_inexact(var)]
        values, references = jax.tree.map(jnp.asarray, both_sides(settled))
        if not interpreter.is_joint:
            references = jax.lax.stop_gradient(references)  # they are the values, and JAX may have no derivative

        def forward(explained: Any, held: Any) -> tuple[Array, ...]:
            """The outputs, computed where nothing asks for JAX's derivative, which there may be none of."""
            del explained
            outputs = versions.bind(eqn, held[0])
            return tuple(outputs[k] for k in numbers)

        def pulled(cotangents: Any, explained: Any, held: Any) -> tuple[Array, ...]:
            values, references = held
            every: list[Any] = [None] * len(eqn.outvars)
            for k, cotangent in zip(numbers, cotangents, strict=True):
                every[k] = cotangent
            options = (eqn.params if with_params else {}) | ({"rule": interpreter.rule} if knows_rule else {})
            found = pull(tuple(every) if len(every) > 1 else every[0], values, references, **options)
            found = tuple(found) if isinstance(found, tuple | list) else (found,)
            if len(found) != len(values):
                raise ValueError(
                    f"the rule registered for {eqn.primitive.name} must return a cotangent of each operand: expected "
                    f"{len(values)}, got {len(found)}."
                )
            chosen = [found[k] for k in varying]
            chosen = [jnp.zeros_like(x) if ct is None else ct for ct, x in zip(chosen, explained, strict=True)]
            for ct, x in zip(chosen, explained, strict=True):
                if jnp.shape(ct) != x.shape:
                    raise ValueError(
                        f"the rule registered for {eqn.primitive.name} must return cotangents of the operands' shapes: "
                        f"expected {x.shape}, got {jnp.shape(ct)}."
                    )
            return tuple(map(jnp.asarray, chosen))

        explained = tuple(o.carrier for o in settled if isinstance(o, Varying))
        found = iter(with_multipliers(forward, pulled, explained, (values, references)))
        integers = versions.bind(eqn, jax.lax.stop_gradient(values)) if len(numbers) < len(eqn.outvars) else ()
        return [
            Varying(next(found), reference, None, feeds(settled))
            if k in numbers
            else Varying(integers[k], reference, make_carrier=interpreter.refusal(eqn, "has an output of integers"))
            for k, reference in enumerate(versions.bind(eqn, references))
        ]

    return evaluate
