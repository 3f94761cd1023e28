"""Settings of all tests. Warnings are errors (pyproject.toml); eight host devices, for the tests of sharding."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """Float64, where exactness is tested. Elsewhere the tests run as JAX does by default."""
    with jax.enable_x64(True):
        yield
