"""The compilers of devices that this machine doesn't have, asked what they would make of a function.

They compile ahead of time for a device that is only described. Nothing runs, so there are no times; there is what
decides them: bytes moved, kernels started, copies, memory. Needs `jax[tpu]` or `jax[cuda12]`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would look for a TPU on the network
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # one process at a time may use a TPU, but none is used
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of versions, with the driver of a GPU that isn't there

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

SLICE = {"tpu": "v5e:2x2", "gpu": "1x1x1"}
PLATFORM = {"tpu": "tpu", "gpu": "cuda"}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 }
"""


def devices(target: str, slice_of: str = "") -> list[Any]:
    """The devices of a described slice: of ``"tpu"`` one of v5e, if not said otherwise, of ``"gpu"`` H100s."""
    name = slice_of or SLICE[target]
    if target == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=H100, topology=name
    ).devices


@dataclass(frozen=True)
class Kernel:
    """One thing that a program starts: a fusion, a call of a library, a copy."""

    bytes: int
    kind: str


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled program, and what it comes to."""

    executable: Any
    trace_seconds: float
    compile_seconds: float

    @cached_property
    def text(self) -> str:
        return self.executable.as_text()

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Largest first; those in a loop's body as often as it runs."""
        return kernels(self.text)

    @property
    def copies(self) -> int:
        return sum(kernel.kind in ("copy", "transpose") for kernel in self.kernels)

    @property
    def counted_bytes(self) -> int:
        """What kernels read and write, by the shapes of their operands and results; with padded tiles on TPUs."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def bytes(self) -> float:
        """Memory traffic by the compiler's own account where it has one, which counts a loop's body once."""
        once = sum(kernel.bytes for kernel in kernels(self.text, loops=False))
        return (self.executable.cost_analysis() or {}).get("bytes accessed", once) + self.counted_bytes - once

    @property
    def temporary_bytes(self) -> int:
        return self.executable.memory_analysis().temp_size_in_bytes

    @property
    def flops(self) -> float:
        return (self.executable.cost_analysis() or {}).get("flops", 0.0)

    def figures(self) -> dict[str, float]:
        return {
            "bytes": self.bytes,
            "counted_bytes": self.counted_bytes,
            "flops": self.flops,
            "kernels": len(self.kernels),
            "copies": self.copies,
            "temporary_bytes": self.temporary_bytes,
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
        }


def compiled(fun: Callable[..., Any], *args: Any, target: str, in_shardings: Any = None) -> Program:
    """A function of arguments of such shapes, compiled for a described device.

    Args:
        in_shardings: how arguments lie on a slice of several; on one device if left out.
    """
    one = in_shardings is None
    sharding = SingleDeviceSharding(devices(target)[0]) if one else in_shardings
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    jitted = jax.jit(fun, in_shardings=sharding, **({"out_shardings": sharding} if one else {}))
    start = time.perf_counter()
    traced = jitted.trace(*shapes)
    middle = time.perf_counter()
    executable = traced.lower(lowering_platforms=(PLATFORM[target],)).compile()
    return Program(executable, middle - start, time.perf_counter() - middle)


WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
WIDTHS |= {"s64": 8, "u64": 8, "f64": 8}
# What starts no kernel; and the second halves of what does.
FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "constant", "iota", "after-all", "opt-barrier"}
FREE |= {"copy-start", "copy-done", "async-start", "async-done", "slice-start", "slice-done"}
FREE |= {"partition-id", "replica-id"}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
LINE = re.compile(r"\s*(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


def size(shapes: str) -> int:
    """The bytes of the arrays in the text of a shape, in the tiles in which a TPU lays them out."""
    total = 0
    for dtype, dimensions, layout in ARRAY.findall(shapes):
        if dtype not in WIDTHS:
            continue
        lengths = [int(n) for n in dimensions.split(",") if n]
        order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]  # the fastest first
        tile = re.search(r"T\(([\d,]+)\)", layout)
        inner = [int(n) for n in tile.group(1).split(",")][::-1] if tile else []
        for axis, length in zip(order, inner, strict=False):
            lengths[axis] = -(-lengths[axis] // length) * length
        count = WIDTHS[dtype]
        for length in lengths:
            count *= length
        total += count
    return total


def kernels(text: str, loops: bool = True) -> list[Kernel]:
    """The kernels that the text of a compiled program starts, largest first.

    Args:
        loops: whether those in the body of a counted loop come as often as it runs.
    """
    parts = computations(text)

    def of(name: str, times: int) -> list[Kernel]:
        shapes: dict[str, str] = {}
        found: list[Kernel] = []
        for line in parts.get(name, []):
            match = LINE.match(line)
            if not match:
                continue
            value, shape, kind, rest = match.groups()
            shapes[value] = shape
            if kind == "while":
                body, condition = (_called(rest, key) for key in ("body", "condition"))
                # The GPU's compiler says how often it runs; the TPU's leaves the bound in the condition.
                bounds = re.findall(r"known_trip_count\D*(\d+)", rest)
                bounds = bounds or re.findall(r"constant\((\d+)\)", "".join(parts.get(condition, [])))
                found += of(body, times * (max(map(int, bounds)) if bounds and loops else 1))
            elif kind in ("conditional", "call"):
                found += [kernel for branch in _branches(rest) for kernel in of(branch, times)]
            elif kind not in FREE:
                operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
                moved = size(shape) + sum(size(shapes.get(operand, "")) for operand in operands)
                found += [Kernel(moved, kind)] * times
        return found

    return sorted(of("ENTRY", 1), key=lambda kernel: -kernel.bytes)


def _called(text: str, key: str) -> str:
    found = re.search(key + r"=%?([\w.\-]+)", text)
    return found.group(1) if found else ""


def _branches(text: str) -> list[str]:
    """The computations that a call or a conditional names, all branches of the latter."""
    lists = re.findall(r"branch_computations=\{([^}]*)\}", text)
    single = re.findall(r"(?:to_apply|true_computation|false_computation)=(\S+)", text)
    return re.findall(r"[\w.\-]+", " ".join(lists + single))


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program, by name; the first that runs is ``ENTRY``."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start and not line.startswith(" "):
            lines = found.setdefault("ENTRY" if start.group(1) else start.group(2), [])
        elif line.startswith(" "):
            lines.append(line)
    return found
