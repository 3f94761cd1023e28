"""Settings of all tests. Warnings are errors (pyproject.toml); eight host devices, for the tests of sharding."""

import gc
import importlib
import os
import shutil
import signal
import sys
import zlib
from collections import defaultdict
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

# Programs are large graphs that live on in JAX's caches. Python looks through all of them again and again.
gc.set_threshold(100_000, 50, 100)


def pytest_addoption(parser):
    parser.addoption(
        "--cases", type=int, help="at most so many cases of each test; 0: all, of those marked `sample` too"
    )


@pytest.hookimpl(trylast=True)  # of those that -m and -k leave
def pytest_collection_modifyitems(config, items):
    """Where all cases take too long, a sample of them is run, as of JAX's own tests: the same one each time."""
    asked, cases = config.getoption("cases"), defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    drawn = set()
    for of_one in cases.values():
        mark = of_one[0].get_closest_marker("sample")
        limit = asked if asked is not None else mark.args[0] if mark else 0
        drawn |= {item.nodeid for item in sorted(of_one, key=_by_name)[: limit or None]}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in drawn])
    items[:] = [item for item in items if item.nodeid in drawn]


def _by_name(item):
    """A number as good as random, and the same at each run and in each process."""
    return zlib.crc32(item.nodeid.encode())


def pytest_collection_finish(session):
    gc.freeze()  # what is imported by now stays


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
