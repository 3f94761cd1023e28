"""The one program of a run: compiled once, for all local devices, in a batch size that fits."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlift._arguments import is_own
from jaxlift._core.precision import products_at
from jaxlift._explainer import Explainer
from jaxlift._targets import Held, is_of_each
from jaxlift.scoring._examples import Examples
from jaxlift.scoring._identity import Model, program_checksum
from jaxlift.scoring._reference import Reference

CALLED = "The model was called"
LARGEST_BATCH = 1024
PROBE = 8
WORK_ENOUGH = 32 * 2**20  # bytes that a step takes in which one example comes after the other
CHUNK = 16 * 2**20  # bytes of scores in a chunk: enough that its files cost little, and little to lose


class Program:
    """Scores of batches of examples, each device's on its own.

    A device computes `batch` examples at a time, whatever the number of devices, and no two devices talk to each other
    (`jax.shard_map`). So the scores are the same bits on one device and on eight.

    Attributes:
        batch: how many examples a device is given for a step.
        in_turn: whether it computes them one after the other.
    """

    def __init__(
        self,
        attr: Explainer,
        examples: Examples,
        reference: Reference,
        devices: Sequence[Any],
    ) -> None:
        self.examples, self.reference = examples, reference
        native = examples.dtype.newbyteorder("=")
        native = np.dtype(np.float64) if native == np.longdouble else native  # which JAX doesn't have
        is_float = jnp.issubdtype(native, jnp.floating)
        self.dtype = jax.dtypes.canonicalize_dtype(native if is_float else float)
        # What is small travels small: bytes and half precision become what the model takes on the device.
        small = not is_float and native.itemsize <= 2
        self.wire = native if small else self.dtype
        self.mesh = Mesh(np.array(devices), ("examples",))
        self.split, self.whole = (
            NamedSharding(self.mesh, spec) for spec in (PartitionSpec("examples"), PartitionSpec())
        )
        pairing = "shared" if reference.constant is not None else "paired" if reference.count else None
        example = jax.ShapeDtypeStruct((1, *examples.shape), self.dtype)
        target = attr.options.target
        try:
            with products_at(attr.options.precision):
                self.model = Model(attr.fun, target, example)
        except Exception as error:
            if not is_own(error):
                error.add_note(
                    f"{CALLED} with an example of {examples.source}, in a batch of shape {example.shape}. "
                    f"{examples.hint}"
                )
            raise
        self.aims = _of_each_example(target, self.model.outputs, examples)
        self.targets = _names_of(target, self.model.outputs)
        self.attr = replace(attr, fun=self.model).with_options(
            argnums=0, full=True, pairing=pairing, target=None if callable(target) or self.aims is not None else target
        )
        self.batch, self.in_turn = 0, False
        self.compiled: Any = None
        self.constant = None
        if reference.constant is not None:
            self.constant = jax.device_put(np.asarray(reference.constant, self.dtype), self.whole)

    def scores(self, x: Array, numbers: Array, given: Any, aims: Any) -> tuple[Array, ...]:
        """What one device computes: scores, convergence delta, outputs at input and at reference."""
        x = x.astype(self.dtype)
        if self.reference.shuffled is not None:
            given = self.reference.shuffled(x, numbers)
        attr = self.attr.with_options(batch_size=1) if self.in_turn else self.attr
        found = attr(x, reference=given, target=aims)
        return found.scores, found.delta, found.output, found.output_reference

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Shapes and dtypes of what all devices are given for a step."""
        n = batch * self.mesh.size
        if self.constant is not None:
            given = jax.ShapeDtypeStruct(self.constant.shape, self.dtype)
        elif self.reference.count and self.reference.shuffled is None:
            given = jax.ShapeDtypeStruct((n, self.reference.count, *self.examples.shape), self.dtype)
        else:
            given = None
        return (
            jax.ShapeDtypeStruct((n, *self.examples.shape), self.wire),
            jax.ShapeDtypeStruct((n,), np.uint32),
            given,
            jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), canonical(a.dtype)), self.aims),
        )

    @functools.cached_property
    def of_one(self) -> tuple[Any, Any]:
        """What a device computes of one example, as a program, and shapes and dtypes of the results."""
        x, numbers, given, aims = self.inputs(1)  # for all devices
        x, numbers, aims = jax.tree.map(_first, (x, numbers, aims))
        if self.constant is None:
            given = jax.tree.map(_first, given)
        return jax.make_jaxpr(self.scores, return_shape=True)(x, numbers, given, aims)

    @property
    def checksum(self) -> str:
        """Of the method with its rule and its target, whose code may change while their names stay.

        Neither devices nor batches are part of it.
        """
        return program_checksum(self.of_one[0])

    @functools.cached_property
    def rows(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of one example's results."""
        return [(out.shape[1:], storable(out.dtype)) for out in self.of_one[1]]

    @property
    def row_bytes(self) -> int:
        """What one example's results take."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.rows)

    @property
    def mapped(self) -> Callable[..., Any]:
        along = PartitionSpec("examples")
        given = PartitionSpec() if self.constant is not None else along
        # Without the check, for it asks of every derivative to say which device has what; here each has its own.
        return jax.shard_map(
            self.scores, mesh=self.mesh, in_specs=(along, along, given, along), out_specs=along, check_vma=False
        )

    def compile(self, batch: int, in_turn: bool = False) -> None:
        """Compile the step for so many examples on each device, at once or one after the other."""
        self.batch, self.in_turn = batch, in_turn
        self.compiled = jax.jit(self.mapped).lower(*self.inputs(batch)).compile()

    def use(self, batch_size: int, in_turn: bool) -> None:
        """Take the batches of a store that is there already."""
        if (self.batch, self.in_turn) != (batch_size, in_turn):
            self.batch, self.in_turn, self.compiled = batch_size, in_turn, None

    def ready(self) -> None:
        """Compile, if that isn't done yet."""
        if self.compiled is None:
            self.compile(self.batch, self.in_turn)

    def bytes(self) -> int:
        """What the compiled step takes of one device, with a second batch of inputs and outputs on their way."""
        memory: Any = self.compiled.memory_analysis()
        moving = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + 2 * moving

    def fit(self, budget: int, limit: int = LARGEST_BATCH) -> None:
        """Compile with the largest batch that fits in so many bytes on each device, of `limit` examples at most."""
        largest = min(LARGEST_BATCH, *(_power_of_two(max(1, each)) for each in (limit, CHUNK // self.row_bytes)))
        if self.examples.count is not None:
            largest = min(largest, _power_of_two(max(1, -(-self.examples.count // self.mesh.size)), up=True))
        batch = min(PROBE, largest)
        options = self.attr.options
        is_free = options.batch_size is None and options.reference_batch_size is None
        if is_free and batch > 1 and self.mesh.devices.flat[0].platform == "cpu":
            # XLA's CPU client takes a step's memory anew from the system, and each page costs time where it is first
            # written: a fifth of the time, for BPNet and 20 shuffles of 2114 bp. One example after the other writes to
            # the same pages, and is as fast where it is work enough. Accelerators keep their memory.
            self.compile(batch, in_turn=True)
            size = self.bytes()
            if WORK_ENOUGH < size <= budget:
                return
            wanted = min(largest, _power_of_two(max(1, budget // size)))
        else:
            self.compile(batch)
            wanted = min(largest, _power_of_two(max(1, batch * budget // self.bytes())))
        if wanted != batch or self.in_turn:
            self.compile(wanted)
        while self.bytes() > budget:
            if self.batch == 1:
                raise MemoryError(
                    f"one example takes {readable(self.bytes())} on a device, and the budget is {readable(budget)}: "
                    "give a larger memory=, or fewer references."
                )
            self.compile(self.batch // 2)

    def __call__(self, x: np.ndarray, numbers: np.ndarray, given: np.ndarray | None, aims: Any) -> tuple[Array, ...]:
        """Begin a step. The results are there when they are asked for."""
        if self.constant is not None:
            x, numbers, aims = jax.device_put((x, numbers, aims), self.split)
            return self.compiled(x, numbers, self.constant, aims)
        return self.compiled(*jax.device_put((x, numbers, given, aims), self.split))


def _first(like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same of one example."""
    return jax.ShapeDtypeStruct((1, *like.shape[1:]), like.dtype)


def _of_each_example(target: Any, outputs: Any, examples: Examples) -> Any:
    """The part of a target that is data of each example, arrays `(N, ...)` as a pytree; None if there is none."""
    if isinstance(target, Held):
        found = replace(target, rows=tuple(map(np.asarray, target.rows))) if target.rows else None
    elif target is None or callable(target) or isinstance(target, str | int | tuple):
        found = None
    else:
        [output] = jax.tree.leaves(outputs)[:1]
        one = jax.ShapeDtypeStruct(output.shape[1:], output.dtype)
        found = np.asarray(target) if is_of_each(target, lambda: one) else None
    for each in jax.tree.leaves(found):
        if len(each) != examples.count:
            raise ValueError(
                f"the target has a row for each of {len(each)} examples, but {examples.source} has "
                f"{'no length' if examples.count is None else examples.count}."
            )
        if not np.isfinite(each).all():
            raise ValueError("the target has a NaN or an infinity.")
    return found


def _names_of(target: Any, outputs: Any) -> tuple[str, ...]:
    """The names of several outputs that are explained; their numbers, where all outputs of one axis are."""
    if isinstance(target, Held):
        return target.names
    [output] = jax.tree.leaves(outputs)[:1]
    is_all = isinstance(target, str) and target == "all" and len(output.shape) == 2
    return tuple(map(str, range(output.shape[1]))) if is_all else ()


def canonical(dtype: Any) -> Any:
    """The dtype that JAX makes of a host's array."""
    return jax.dtypes.canonicalize_dtype(dtype)


def default_budget(device: Any) -> int:
    """Bytes that one of this process's devices may take: most of what an accelerator has left; of a host, a quarter of
    its memory and at most 2 GiB, because larger batches are no faster there.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.8 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total // 4, 2 * 2**30) // jax.local_device_count()


def readable(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def storable(dtype: Any) -> np.dtype:
    """The dtype that results are stored in: that of the scores, or float32 where Zarr has no such numbers."""
    return np.dtype(dtype if np.dtype(dtype).kind == "f" else np.float32)


def _power_of_two(n: int, up: bool = False) -> int:
    return 1 << ((n - 1).bit_length() if up else n.bit_length() - 1)
