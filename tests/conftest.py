"""Settings of all tests. Warnings are errors (pyproject.toml); eight host devices, for the tests of sharding."""

import importlib
import os
import shutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path

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
    """Later runs find what was compiled. Each process has a folder of its own, so that none waits for another's lock
    and looks at all files at each new one, as JAX does under a size limit.
    """
    cache = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
    if cache is None:
        return
    folder = cache.mkdir(f"compiled-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")
    if len(os.listdir(folder)) > 20_000:
        shutil.rmtree(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture
def x64():
    """Float64, where exactness is tested. Elsewhere the tests run as JAX does by default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """The command ``jaxlift`` in this process, in a folder of its own: gives the exit code, and what is printed."""
    from jaxlift.commands._main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def typed(text):
        code = main(text.split())
        return code, *capsys.readouterr()

    return typed


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the examples by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    return importlib.import_module


@pytest.fixture
def as_users_write():
    """The benchmarks' models add biases of lower rank, as models do."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def optimized():
    """Compiled as users compile, where the last bits are the claim."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
