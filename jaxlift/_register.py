"""`register`: rules for operations that jaxlift doesn't know, or that can't be looked into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    - `params`: the primitive's parameters; none for a function.
    - It returns a cotangent of each operand, None where there is nothing to say; for one operand, it may return that
      alone.

    For the sum to hold, cotangents times differences must keep their sum: `sum(ct_x * (x - r))` over the operands equal
    `sum(ct_y * (y - y_ref))` over the outputs. `jaxlift.check` says whether it does. For a linear operation that is
    `jax.vjp`. The rule is called within transformations of JAX, so it must be made of JAX operations.

    Args:
        operation: a primitive; the name of one that JAX has no public name for; or a function decorated with
            `jax.custom_vjp` or `jax.custom_jvp`.

    Returns:
        a decorator, which returns the rule unchanged. A rule that was there before is replaced.

    Raises:
        TypeError: if the operation is none of these.
    """

    def record(pull: Pullback) -> Pullback:
        if isinstance(operation, Primitive):
            table.family(by_pullback(pull), [operation])
        elif isinstance(operation, str):
            table.family_by_name(by_pullback(pull), operation)
        else:
            rule = by_pullback(lambda ct, values, references, **params: pull(ct, values, references))
            table.family_of_functions(rule, versions.name_of_function(operation))
        return pull

    if not isinstance(operation, Primitive | str | jax.custom_jvp | jax.custom_vjp):
        raise TypeError(
            f"register takes a primitive, its name, or a function decorated with jax.custom_vjp, but got {operation!r}."
        )
    return record


def by_pullback(pull: Pullback) -> table.PrimitiveRule:
    """The rule of a primitive of which only the multipliers are given."""

    def rule(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        settled = [interpreter.settle(operand) for operand in operands]
        varying = [k for k, o in enumerate(settled) if isinstance(o, Varying)]
        numbers = [k for k, var in enumerate(eqn.outvars) if is_inexact(var)]
        values, references = jax.tree.map(jnp.asarray, both_sides(settled))

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
            found = pull(tuple(every) if len(every) > 1 else every[0], values, references, **eqn.params)
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

    return rule
