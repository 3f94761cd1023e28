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
    (y, y_ref), pullback = jaxlift.vjp(fun, x, r, rule=rule)
    return y, y_ref, pullback(jnp.ones_like(y))


@pytest.mark.parametrize("rule", ["rescale", "revealcancel"])
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
class TestEveryProgram:
    @pytest.mark.usefixtures("x64")
    def test_in_float64(self, program, rule):
        for seed in range(3):
            x, r = input_and_reference(jnp.float64, seed)
            y, y_ref, m = explain(program.fun, x, r, rule)
            contributions = m * (x - r)
            scale = jnp.abs(contributions).sum() + jnp.abs(y) + jnp.abs(y_ref)
            assert (
                abs(contributions.sum() - (y - y_ref)) <= 500 * jnp.finfo(program.precision or jnp.float64).eps * scale
            )
            np.testing.assert_allclose((y, y_ref), (program.fun(x), program.fun(r)), rtol=1e-14)
        if program.differentiable:  # at the reference, multipliers are derivatives
            _, _, m = explain(program.fun, x, x, rule)
            np.testing.assert_allclose(m, jax.grad(program.fun)(x), rtol=1e-9, atol=1e-12)

    def test_in_float32(self, program, rule):
        x, r = input_and_reference(jnp.float32)
        y, y_ref, m = explain(program.fun, x, r, rule)
        assert m.dtype == jnp.float32
        contributions = m * (x - r)
        scale = jnp.abs(contributions).sum() + jnp.abs(y) + jnp.abs(y_ref)
        assert abs(contributions.sum() - (y - y_ref)) <= 2e-6 * scale


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_complete_to_its_precision(program, dtype):
    x, r = input_and_reference(dtype)
    y, y_ref, m = explain(program.fun, x, r, "rescale")
    assert m.dtype == dtype
    contributions = (m.astype(jnp.float32) * (x.astype(jnp.float32) - r.astype(jnp.float32))).sum()
    scale = jnp.abs(m * (x - r)).sum() + jnp.abs(y) + jnp.abs(y_ref)
    assert abs(contributions - (jnp.float32(y) - jnp.float32(y_ref))) <= 16 * jnp.finfo(dtype).eps * scale
