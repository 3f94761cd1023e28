"""Systems of equations and factorisations: bilinear equations between what is given and what is found.

Let `A x = b` and `A_r x_r = b_r`. Then with midpoints `A_mid`, `x_mid`, exactly

    A_mid (x - x_r) = (b - b_r) - (A - A_r) x_mid

so the solution's multipliers are its derivatives in a system with the matrix `A_mid`. Likewise `A = L L^T` gives `A -
A_r = (L - L_r) L_mid^T + L_mid (L - L_r)^T`, which is what the derivative of the Cholesky factor solves at `L_mid
L_mid^T`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxlift._core import versions
from jaxlift._core.custom_derivatives import with_multipliers
from jaxlift._core.differences import where
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import family
from jaxlift._core.values import Value, Varying, both_sides, feeds, is_varying, on_each_side
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.bilinear import midpoint
from jaxlift.primitives.linear import carrying


def triangular_solve(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of a system with a triangular matrix."""
    if not is_varying(operands[0]):
        return carrying(linear_in=lambda position: position == 1)(interpreter, eqn, operands)
    settled = [interpreter.settle(operand) for operand in operands]
    a, b = (o if isinstance(o, Varying) else Varying(jnp.asarray(o), jnp.asarray(o)) for o in settled)
    [(value, reference)] = on_each_side(eqn, [a, b])
    lower, on_left = eqn.params["lower"], eqn.params["left_side"]

    def applied(matrix: Array, x: Array) -> Array:
        """The system's left-hand side."""
        offset = int(eqn.params["unit_diagonal"])
        matrix = jnp.tril(matrix, -offset) if lower else jnp.triu(matrix, offset)
        matrix = matrix.conj() if eqn.params["conjugate_a"] else matrix
        matrix = jnp.swapaxes(matrix, -1, -2) if eqn.params["transpose_a"] else matrix
        return jnp.matmul(*((matrix, x) if on_left else (x, matrix)), precision="highest")

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array, Array]:
        (matrix, _), (matrix_ref, x, x_ref) = explained, held
        middle = midpoint(matrix, matrix_ref)
        [of_b] = jax.vjp(lambda b: versions.bind(eqn, [middle, b])[0], x)[1](cotangent)
        [of_a] = jax.vjp(lambda a: -applied(a, midpoint(x, x_ref)), matrix)[1](of_b)
        return of_a, of_b

    x = with_multipliers(lambda explained, held: held[1], pull, (a.value, b.value), (a.reference, value, reference))
    return [Varying(x, reference, None, feeds([a, b]))]


def cholesky(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of the factor of a symmetric matrix."""
    a = interpreter.settle(operands[0])
    assert isinstance(a, Varying)
    [(value, reference)] = on_each_side(eqn, [a])
    value, reference = jnp.tril(value), jnp.tril(reference)  # JAX leaves anything in the other half

    def pull(cotangent: Array, explained: Any, held: Any) -> tuple[Array]:
        del explained
        middle = midpoint(*held)
        between = jnp.matmul(middle, jnp.swapaxes(middle, -1, -2).conj(), precision="highest")
        return jax.vjp(lambda a: versions.bind(eqn, [a])[0], between)[1](cotangent)

    factor = with_multipliers(lambda explained, held: held[0], pull, (a.value,), (value, reference))
    return [Varying(factor, reference, None, a.fed_by)]


def held_constant(x: Array) -> Array:
    """`x`, to which no multipliers lead."""
    return with_multipliers(lambda explained, held: held[0], lambda cotangent, explained, held: (), (), (x,))


def linear_solve(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `custom_linear_solve`, whose matrix is a function, and may depend on the input too.

    Factors of the matrix, which only help to solve, are not looked at.
    """
    lengths, matvec = eqn.params["const_lengths"], eqn.params["jaxprs"].matvec
    constants = len(operands) - len(eqn.outvars)
    if not any(is_varying(operand) for operand in operands[:constants]):
        return carrying(linear_in=lambda position: position >= constants)(interpreter, eqn, operands)
    sides = on_each_side(eqn, [interpreter.settle(operand) for operand in operands])
    values, references = zip(*sides, strict=True)
    matrix = [interpreter.settle(operand) for operand in operands[: lengths.matvec]]
    b = [interpreter.settle(operand) for operand in operands[constants:]]
    inner, consts = versions.opened(matvec)

    middle = [held_constant(midpoint(*side)) for side in sides]
    applied = interpreter.evaluate(inner, consts, [*matrix, *middle])
    residuals = tuple(
        right - left
        for left, right in zip(both_sides(list(map(interpreter.settle, applied)))[0], both_sides(b)[0], strict=True)
    )

    unknowns, in_parts = ravel_pytree(values)

    def dense(own: Sequence[Array]) -> Array:
        """The matrix of one side, of all unknowns at once."""

        def on_vector(vector: Array) -> Array:
            return ravel_pytree(jax.core.eval_jaxpr(inner, consts, *own, *in_parts(vector)))[0]

        return jax.vmap(on_vector, out_axes=1)(jnp.eye(unknowns.size, dtype=unknowns.dtype))

    def pull(cotangents: Any, explained: Any, held: Any) -> tuple[Array, ...]:
        del explained
        between = midpoint(*(dense(own) for own in held[:2]))
        return in_parts(jnp.linalg.solve(between.T, ravel_pytree(cotangents)[0]))

    solutions = with_multipliers(lambda explained, held: held[2], pull, residuals, (*both_sides(matrix), values))
    return [
        Varying(x, reference, None, feeds([*matrix, *b])) for x, reference in zip(solutions, references, strict=True)
    ]


def decomposition(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    r"""The evaluation of eigenvalues, singular values and orthogonal factors, between which there is no such equation.

    Let `G` be the derivative at the midpoint. The multipliers nearest to it that keep the sum are, for a cotangent `g`,

    .. math:: G^T g + \frac{\langle g, \Delta y - G \Delta A \rangle}{\lVert \Delta A \rVert^2} \Delta A

    (the least change that satisfies the secant equation: Broyden 1965, Mathematics of Computation 19). What they change
    is of third order in the difference, and what doesn't differ contributes nothing.

    Where eigenvalues of the midpoint meet `G` is infinite, and where they nearly do it is so large that its rounding
    would be all of the sum. There `G` is left out: all of the change is shared along the difference.

    So it is where `G` gives and takes much more than the change, as of eigenvectors that turn among eigenvalues which
    are equal but for little, so that the rounding of `A` alone, times `G`, is not little beside the change.
    """
    a = interpreter.settle(operands[0])
    assert isinstance(a, Varying)
    batch = a.value.ndim - 2

    def product(x: Array, z: Array) -> Array:
        """For each matrix by itself, the sum of products."""
        products = x * z
        return products.sum(tuple(range(batch, products.ndim))).real

    def pull(cotangents: Any, explained: Any, held: Any) -> tuple[Array]:
        (x,), (r, y_ref) = explained, held
        y, d = versions.bind(eqn, [x]), x - r
        middle = midpoint(x, r)
        [derivative] = jax.vjp(lambda a: tuple(versions.bind(eqn, [a])), middle)[1](cotangents)
        changes = [(ct, a - b) for ct, a, b in zip(cotangents, y, y_ref, strict=True)]
        change = sum(product(*pair) for pair in changes)
        bound = 1e3 * sum(product(*map(jnp.abs, pair)) for pair in changes)
        moved, eps = product(jnp.abs(derivative), jnp.abs(d)), float(jnp.finfo(x.dtype).eps)
        noise = eps * product(jnp.abs(derivative), jnp.abs(middle))
        is_exact = (moved <= eps**-0.25 * jnp.abs(change)) | (noise <= eps**0.5 * jnp.abs(change))
        # Where all that it moves is rounding, as of equal sides that XLA rounds in two ways, nothing is missing.
        is_rounding = moved <= 64 * eps * sum(product(*map(jnp.abs, pair)) for pair in zip(cotangents, y, strict=True))
        is_small = (moved <= bound) & is_exact | is_rounding  # not if it is NaN
        derivative = where(is_small[..., None, None], derivative, 0)
        size = product(d, d.conj())
        missing = where(is_rounding, 0, change - product(derivative, d)) / where(size == 0, 1, size)
        return (derivative + missing[..., None, None] * d.conj(),)

    references = tuple(versions.bind(eqn, [a.reference]))
    values = with_multipliers(
        lambda explained, held: tuple(versions.bind(eqn, explained)), pull, (a.value,), (a.reference, references)
    )
    return [Varying(*sides, None, a.fed_by) for sides in zip(values, references, strict=True)]


family(decomposition, primitives("eigh", "eig", "svd", "qr"))
family(triangular_solve, primitives("triangular_solve"))
family(cholesky, primitives("cholesky"))
family(linear_solve, primitives("linear_solve"))
