r"""Functions with a derivative of their own that can't be looked into: they solve by a loop, or call what isn't JAX.

Iterative solvers are such, whose derivative is that of the equation that they solve (the implicit function theorem),
and kernels with a derivative beside them. Let `G` be the mean of the derivatives at the input and at the reference. The
multipliers nearest to it that keep the sum are, for a cotangent `g`,

.. math:: G^T g + \frac{\langle g, \Delta y - G \Delta x \rangle}{\lVert \Delta x \rVert^2} \Delta x

(the least change that satisfies the secant equation: Broyden 1965, Mathematics of Computation 19). Of linear functions,
such as the solution of `A x = b` in `b`, they are the function's own. Of others, what is added is of third order in the
difference. What doesn't differ contributes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import operation
from jaxlift._core.differences import difference, where
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, MissingRuleError
from jaxlift._core.values import Value, Varying, carrier_dtype, feeds, is_inexact, with_carrier
from jaxlift._core.versions import JaxprEqn


def by_steps_or_own_derivative(evaluate: Evaluation) -> Evaluation:
    """The evaluation of a function by its steps; if one of these has no rule, by the derivative of the whole."""

    def tried(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
        try:
            return evaluate(interpreter, eqn, operands)
        except MissingRuleError:
            outputs = by_own_derivative(interpreter, eqn, operands) if interpreter.missing == "raise" else None
            if outputs is None:
                raise
            return outputs

    return tried


def by_own_derivative(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value] | None:
    """The evaluation of a function as a whole; None if it has no derivative.

    Integers and truth values have none: of these `G` is 0. So it is of operands in which the function is not made to be
    differentiated, as of factors of a matrix that only help to solve.
    """
    settled = [interpreter.settle(operand) for operand in operands]
    varying = {i: operand for i, operand in enumerate(settled) if isinstance(operand, Varying)}
    of, constants = list(varying.values()), [operand for operand in settled if not isinstance(operand, Varying)]
    has_derivative = [is_inexact(out) for out in eqn.outvars]

    def called(values: Sequence[Array], constants: Sequence[Array]) -> list[Array]:
        rest, given = iter(constants), dict(zip(varying, values, strict=True))
        return versions.bind(eqn, [given[i] if i in given else next(rest) for i in range(len(settled))])

    def derivative(
        chosen: Sequence[int], cotangents: Sequence[Array], values: Sequence[Array], constants: Sequence[Array]
    ) -> dict[int, Array]:
        """The derivatives in some of the varying operands."""
        given = dict(zip(varying, values, strict=True))

        def outputs(*operands: Array) -> list[Array]:
            found = called(list((given | dict(zip(chosen, operands, strict=True))).values()), constants)
            return [out for out, has in zip(found, has_derivative, strict=True) if has]

        ys, pull = jax.vjp(outputs, *(given[i] for i in chosen))
        own = [ct for ct, has in zip(cotangents, has_derivative, strict=True) if has]
        return dict(zip(chosen, pull([ct.astype(y.dtype) for ct, y in zip(own, ys, strict=True)]), strict=True))

    def is_differentiable(chosen: Sequence[int]) -> bool:
        try:
            jax.eval_shape(partial(derivative, chosen), references, ends[1], constants)
        except Exception:  # of any kind: it is the other library's
            return False
        return True

    ends = tuple(o.value for o in of), tuple(o.reference for o in of)
    references = called(ends[1], constants)
    numbers = [i for i, operand in varying.items() if not operand.is_discrete]
    if not is_differentiable(numbers):
        numbers = [i for i in numbers if is_differentiable([i])]
    if not numbers:
        return None

    def pull(cotangents: Any, explained: Any, held: Any) -> tuple[Array, ...]:
        ends, constants, references, *values = held
        at_input, at_reference = (derivative(numbers, cotangents, end, constants) for end in ends)
        d = [difference(x, r.astype(x.dtype)) for x, r in zip(explained, ends[1], strict=True)]
        slopes = [
            (at_input[i] + at_reference[i]) / 2 if i in at_input else jnp.zeros_like(x)
            for i, x in zip(varying, d, strict=True)
        ]
        changes = [
            difference(y.astype(ct.dtype), y_ref.astype(ct.dtype))
            for ct, y, y_ref in zip(cotangents, values, references, strict=True)
        ]
        size, missing = _product(d, [x.conj() for x in d]), _product(cotangents, changes) - _product(slopes, d)
        share = where(size == 0, 0, missing / where(size == 0, 1, size))
        return tuple(slope + share.astype(x.dtype) * x.conj() for slope, x in zip(slopes, d, strict=True))

    def forward(explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        ends, constants, _ = held
        return tuple(value.astype(carrier_dtype(value)) for value in called(ends[0], constants))

    def keeping(explained: Any, held: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        outputs = forward(explained, held)
        return outputs, outputs

    @cache
    def values() -> list[Array]:
        return called(jax.lax.stop_gradient(ends[0]), constants)

    apply = operation(forward, pull, keeping)
    carriers = apply(tuple(o.carrier for o in of), (ends, tuple(constants), tuple(references)))
    return [
        with_carrier(lambda k=k: values()[k], reference, lambda k=k: carriers[k], feeds(of))
        for k, reference in enumerate(references)
    ]


def _product(xs: Sequence[Array], zs: Sequence[Array]) -> Array:
    """The sum of all products, real as contributions are."""
    return sum(((x * z).sum().real for x, z in zip(xs, zs, strict=True)), start=jnp.zeros(()))
