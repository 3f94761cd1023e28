"""Numbers that pass unchanged, in ways that XLA doesn't see through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlift._core.compilers import after, once

NUMBERS = [0.0, -0.0, 1.5, -3e4, 1e-3, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_values_are_the_same_to_the_last_bit(dtype):
    x = jnp.asarray(NUMBERS, dtype)
    for found in (once(x), jax.jit(once)(x), after(jnp.zeros(8), x), jax.jit(after)(jnp.asarray([np.inf] * 8), x)):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), x.astype(jnp.float32))
        np.testing.assert_array_equal(jnp.signbit(found[:-1]), jnp.signbit(x[:-1]))


def test_what_waits_for_no_number_is_none():
    assert jnp.isnan(jax.jit(after)(jnp.float32(np.nan), jnp.float32(1)))


def test_derivatives_are_those_of_the_number():
    ct = jnp.float32(2)

    @jax.jit
    @jax.vmap
    def every(x):
        value, tangent = jax.jvp(once, (x,), (ct,))
        after_something = jax.jvp(after, (ct, x), (ct, ct))[1], *jax.grad(after, (0, 1))(ct, x)
        return value, tangent, jax.grad(once)(x), *after_something

    x = np.float32(NUMBERS[:-1])
    value, *derivatives = every(x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(derivatives, np.repeat(np.array([[2], [1], [2], [0], [1]], np.float32), len(x), 1))
    assert jax.jit(jax.grad(jax.grad(lambda x: once(x) * once(x))))(jnp.float32(3)) == 2
