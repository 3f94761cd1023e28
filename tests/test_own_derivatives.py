"""Functions that can't be looked into, but have a derivative: the sum is kept, and linear ones have their own."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import ad, mlir

import jaxlift

A = np.array([[3.0, 0.4, 0.2], [0.1, 2.0, 0.3], [0.5, 0.2, 4.0]])
X, R = np.array([0.7, 1.3, -0.4]), np.array([0.2, 0.5, 1.0])
RULES = pytest.mark.parametrize("rule", ["rescale", "revealcancel"])


def repeated(step, start):
    """A loop without a derivative."""
    return lax.while_loop(lambda state: state[0] < 60, lambda state: (state[0] + 1, step(state[1])), (0, start))[1]


@jax.custom_jvp
def solved(a, b):
    """`A x = b` by a loop."""
    return repeated(lambda x: x + (b - a @ x) / 5, jnp.zeros_like(b))


@solved.defjvp
def _(primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    x = solved(a, b)
    return x, jnp.linalg.solve(a, b_dot - a_dot @ x)


@jax.custom_vjp
def doubled(x):
    """A kernel that JAX can't see into, and a count that it makes beside."""
    outside = jax.pure_callback(lambda x: (2 * x, np.int32((x > 0).sum())), (x, jax.ShapeDtypeStruct((), np.int32)), x)
    return tuple(outside)


doubled.defvjp(lambda x: (doubled(x), ()), lambda saved, cts: (2 * cts[0],))


def fixed_point(x):
    """`y = tanh(y / 3 + x)`."""
    return lax.custom_root(
        lambda y: y - jnp.tanh(y / 3 + x),
        jnp.zeros_like(x),
        lambda f, start: repeated(lambda y: y - f(y), start),
        lambda g, y: jnp.linalg.solve(jax.jacobian(g)(y), y),
    )


def counted(x):
    y, count = doubled(x)
    return jnp.tanh(y).sum() + count


FUNCTIONS = {
    "a solution": lambda x: jnp.tanh(solved(A, x)).sum(),
    "a solution, of the matrix too": lambda x: (solved(A + 0.3 * x[:, None] * jnp.tanh(x)[None], x) * R).sum(),
    "a fixed point": lambda x: (jax.nn.relu(fixed_point(x)) * X).sum(),
    "a kernel, and an integer": counted,
}


@RULES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_sum_is_kept(name, rule, x64):
    fun = FUNCTIONS[name]

    @jax.jit
    def both(x, r):
        (y, y_ref), pull = jaxlift.vjp(fun, x, r, rule=rule)
        return (pull(1.0) * (x - r)).sum(), y - y_ref

    np.testing.assert_allclose(*both(X, R), rtol=1e-9)


def test_linear_in_what_is_given(x64):
    """The multipliers of the solution of `A x = b` in `b` are those of the matrix `A^-1`."""
    weights = np.array([1.0, -2.0, 0.5])
    multipliers = jax.jit(lambda x, r: jaxlift.vjp(lambda x: (solved(A, x) * weights).sum(), x, r)[1](1.0))(X, R)
    np.testing.assert_allclose(multipliers, np.linalg.inv(A).T @ weights, rtol=1e-9)


def test_the_nearest_multipliers_that_keep_the_sum(x64):
    """Re-implemented in NumPy: the mean of the gradients at both ends, and the least change along the difference."""
    weights = np.array([1.0, -2.0, 0.5])

    def solution(x):
        y = np.zeros(3)
        for _ in range(100):
            y = np.tanh(y / 3 + x)
        return y

    def gradient(x):
        slope = np.diag(1 - solution(x) ** 2)
        return weights @ np.linalg.solve(np.eye(3) - slope / 3, slope)

    mean, d = (gradient(X) + gradient(R)) / 2, X - R
    expected = mean + (weights @ (solution(X) - solution(R)) - mean @ d) / (d @ d) * d
    multipliers = jax.jit(lambda x, r: jaxlift.vjp(lambda x: (fixed_point(x) * weights).sum(), x, r)[1](1.0))(X, R)
    np.testing.assert_allclose(multipliers, expected, rtol=1e-9)


@pytest.mark.slow
def test_examples_by_themselves(x64):
    """Under `jaxlift.attribute` an example's scores don't depend on the others'."""
    fun = jax.vmap(FUNCTIONS["a fixed point"])
    attr = jax.jit(lambda x: jaxlift.attribute(fun)(x, reference=R))
    np.testing.assert_allclose(attr(np.stack([X, 2 * X]))[:1], attr(X[None]), rtol=1e-9)


def test_a_primitive_that_keeps_some_operands_from_being_differentiated(x64):
    """As Lineax's `linear_solve`: what was prepared for the solver has no derivative, and the primitive says so."""
    primitive = jax.extend.core.Primitive("prepared_solve")

    def implementation(a, prepared, b):
        del a
        return repeated(lambda x: x + prepared @ (b - jnp.linalg.inv(prepared) @ x), jnp.zeros_like(b))

    def jvp(primals, tangents):
        (a, prepared, b), (a_dot, _, b_dot) = primals, map(ad.instantiate_zeros, tangents)
        assert isinstance(tangents[1], ad.Zero)
        x = primitive.bind(a, prepared, b)
        return x, jnp.linalg.solve(a, b_dot - a_dot @ x)

    primitive.def_impl(implementation)
    primitive.def_abstract_eval(lambda a, prepared, b: b)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp

    def fun(x):
        a = A + 0.3 * x[:, None] * jnp.tanh(x)[None]
        return (primitive.bind(a, lax.stop_gradient(jnp.linalg.inv(a)), x) * R).sum()

    multipliers, change = jax.jit(lambda x, r: (jaxlift.vjp(fun, x, r)[1](1.0), fun(x) - fun(r)))(X, R)
    np.testing.assert_allclose((multipliers * (X - R)).sum(), change, rtol=1e-9)


@jax.custom_jvp
def never_differentiated(x):
    return x


@never_differentiated.defjvp
def _(primals, tangents):
    raise RuntimeError("this can't be differentiated")


def test_what_is_handed_on_is_not_differentiated(x64):
    """As Equinox's `nondifferentiable`: differences pass it as they are."""
    multipliers = jax.jit(lambda x, r: jaxlift.vjp(lambda x: (never_differentiated(x) * A[0]).sum(), x, r)[1](1.0))(
        X, R
    )
    np.testing.assert_allclose(multipliers, A[0])
