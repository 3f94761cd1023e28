"""Settings of all tests. Warnings are errors (pyproject.toml); eight host devices, for the tests of sharding."""

import os
from importlib.metadata import version

import jax
import pytest

# Half of the suite's time is XLA's, much of it for polish that runs of a moment don't repay. (XLA stops at flags that
# it doesn't know, and after jaxlib 0.10 doesn't know the first; it compiles as fast without.)
if version("jaxlib").startswith("0.10."):
    faster = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {faster}"
jax.config.update("jax_disable_most_optimizations", True)

# Programs of ours say where axes come from.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Processes of one run, and later runs, share what was compiled (under a size limit, which takes filelock)."""
    cache = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
    if cache is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("compiled")))
    jax.config.update("jax_compilation_cache_max_size", 2**26)  # two runs; JAX looks at all files at each new one
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture
def x64():
    """Float64, where exactness is tested. Elsewhere the tests run as JAX does by default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized():
    """Compiled as users compile, where the last bits are the claim."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
