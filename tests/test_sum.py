"""What holds for every program: the sum of contributions, the values, and the limit at the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PROGRAMS, input_and_reference

import jaxlift


@functools.partial(jax.jit, static_argnums=(0, 3))
def explain(fun, x, r, rule):
    """Values and multipliers, beside the plain values at the same precision of products; one compilation for all that a
    test asks.
    """
    (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
    with jax.default_matmul_precision("highest"):
        return (y, y_ref), pullback(jnp.ones_like(y)), (fun(x), fun(r))


@functools.partial(jax.jit, static_argnums=(0, 3))
def explain_by_all(fun, x, r, is_differentiable):
    """As `explain`, by each rule; and beside the multipliers at the reference the gradient there, if there is one."""
    by_rule = {rule: explain(fun, x, r, rule) for rule in ("rescale", "revealcancel")}
    return by_rule, jax.grad(fun)(x) if is_differentiable else None


def missing(values, multipliers, x, r):
    """What is missing from the sum of contributions, and the scale of what was summed, in float64."""
    y, y_ref, m, x, r = (np.asarray(a, np.float64) for a in (*values, multipliers, x, r))
    contributions = m * (x - r)
    return abs(contributions.sum() - (y - y_ref)), np.abs(contributions).sum() + abs(y) + abs(y_ref)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
@pytest.mark.usefixtures("x64")
@pytest.mark.sample(24)
def test_in_float64(program):
    for seed in range(3):
        x, r = input_and_reference(jnp.float64, seed)
        by_rule, _ = jax.device_get(explain_by_all(program.fun, x, r, program.differentiable))
        for rule, (values, multipliers, plain) in by_rule.items():
            error, scale = missing(values, multipliers, x, r)
            assert error <= 500 * jnp.finfo(program.precision or jnp.float64).eps * scale, rule
            np.testing.assert_allclose(values, plain, rtol=1e-13, err_msg=rule)
    if program.differentiable:  # at the reference, multipliers are derivatives
        by_rule, gradient = jax.device_get(explain_by_all(program.fun, x, x, True))
        for rule, (_, multipliers, _) in by_rule.items():
            np.testing.assert_allclose(multipliers, gradient, rtol=1e-9, atol=1e-12, err_msg=rule)


@pytest.mark.parametrize("rule", ["rescale", pytest.param("revealcancel", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "program",
    # Each is either here or in half precision among the tests that aren't slow, to spare compiling it once more.
    [pytest.param(p, id=str(p), marks=[pytest.mark.slow] * (i % 3 == 0)) for i, p in enumerate(PROGRAMS)],
)
@pytest.mark.sample(24)
def test_in_float32(program, rule):
    x, r = input_and_reference(jnp.float32)
    values, multipliers, _ = explain(program.fun, x, r, rule)
    assert multipliers.dtype == jnp.float32
    error, scale = missing(values, multipliers, x, r)
    assert error <= 2e-6 * scale


@pytest.mark.parametrize(
    ("program", "dtype"),
    # The two take turns, to spare compiling each program twice more.
    [
        pytest.param(p, (jnp.bfloat16, jnp.float16)[i % 2], id=str(p), marks=[pytest.mark.slow] * (i % 3 > 0))
        for i, p in enumerate(PROGRAMS)
    ],
)
@pytest.mark.sample(12)
def test_half_precision_is_complete_to_its_precision(program, dtype):
    x, r = input_and_reference(dtype)
    values, multipliers, _ = explain(program.fun, x, r, "rescale")
    assert multipliers.dtype == dtype
    error, scale = missing(values, multipliers, x, r)
    assert error <= 16 * jnp.finfo(dtype).eps * scale
