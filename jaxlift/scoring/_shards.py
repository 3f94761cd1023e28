"""Which part of a run is this process's: by a number that a scheduler gives it, or by JAX's number of the process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxlift.scoring._places import is_url
from jaxlift.scoring._store import BusyError, StoreError


@dataclass(frozen=True)
class Shard:
    """The chunks c with ``c % count == index``. Whoever has them needs none of the others, before or after."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard {self}: of {self.count} shards expected 0/{self.count} to {self.count - 1}/{self.count}."
            )

    def owns(self, chunk: int) -> bool:
        """Whether a chunk is this shard's."""
        return chunk % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Array:
    """The environment variables by which a scheduler tells a task of an array which one it is.

    Attributes:
        scheduler: its name, for people.
        index: the task's number. The others need not be there.
        count: how many tasks there are.
        first, last, step: the numbers that there are.
        begins: the first where no variable says so. A job that is no array may have a lower one.
    """

    scheduler: str
    index: str
    count: str = ""
    first: str = ""
    last: str = ""
    step: str = ""
    begins: int = 0


ARRAYS = (
    Array(
        "Slurm",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
    ),
    Array("Google Batch", "BATCH_TASK_INDEX", "BATCH_TASK_COUNT"),
    Array("Cloud Run", "CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
    Array("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    Array("Kubernetes", "JOB_COMPLETION_INDEX"),
    Array("Grid Engine", "SGE_TASK_ID", "", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    Array("LSF", "LSB_JOBINDEX", last="LSB_JOBINDEX_END", step="LSB_JOBINDEX_STEP", begins=1),
    Array("PBS", "PBS_ARRAY_INDEX"),
    Array("Torque", "PBS_ARRAYID"),
)


def read_shard(given: Shard | tuple[int, int] | str, environ: Mapping[str, str] = os.environ) -> Shard:
    """What `shard=` means: ``(I, N)``, ``"I/N"``, ``"auto"`` or ``"auto/N"``."""
    if isinstance(given, Shard):
        return given
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(number, int | np.integer) for number in given):
        return Shard(int(given[0]), int(given[1]))
    if isinstance(given, str) and (found := re.fullmatch(r"(\d+)/(\d+)", given)):
        return Shard(int(found[1]), int(found[2]))
    if isinstance(given, str) and (found := re.fullmatch(r"auto(?:/(\d+))?", given)):
        return _of_array(environ, int(found[1]) if found[1] else None)
    raise ValueError(f"expected a shard such as 0/4, auto or auto/4, got {given!r}.")


def _of_array(environ: Mapping[str, str], count: int | None) -> Shard:
    """The shard of a task, from its scheduler's variables.

    Args:
        environ: the environment.
        count: how many shards there are. Left out, as many as tasks were submitted together, whatever their numbers: so
            the tasks of an array that failed can be submitted alone, and share what is left.
    """

    def number(name: str) -> int | None:
        text = environ.get(name, "")
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    for array in ARRAYS:
        task = number(array.index)
        if task is None or task < array.begins:
            continue
        if count is not None:
            return Shard(task % count, count)
        step, last, tasks = number(array.step) or 1, number(array.last), number(array.count)
        first = number(array.first)
        first = array.begins if first is None else first
        if last is not None and tasks not in (None, (last - first) // step + 1):
            raise ValueError(
                f"the numbers of the {tasks} tasks of this {array.scheduler} array, {first} to {last}, have gaps: say "
                "how many shards there are, as in auto/8."
            )
        if last is not None:
            tasks = (last - first) // step + 1
        if tasks is None:
            raise ValueError(
                f"{array.scheduler} says that this is task {task} ({array.index}), and not of how many: write auto/N."
            )
        return Shard((task - first) // step, tasks)
    names = ", ".join(f"{array.index} ({array.scheduler})" for array in ARRAYS)
    raise ValueError(
        f"shard 'auto': no scheduler says which task of an array this is. Write the shard, I/N, such as 0/8 for the "
        f"first of eight. Looked for {names}."
    )


_locked: set[tuple[Path, Shard]] = set()


@contextlib.contextmanager
def lock(path: Path, shard: Shard) -> Iterator[None]:
    """Keep other runs off the chunks of a shard. The lock ends with the process, however it ends.

    It saves work that would be done twice, and nothing depends on it: two runs that compute the same chunk write the
    same bits. So where there are no locks, in an object store and on some network file systems, a run does without.

    Args:
        path: of the store. The lock is a file beside it, since Zarr warns of files in a group that it doesn't know.
            Each shard locks a byte of it, as network file systems can too, and a run of all chunks locks all.
        shard: which.
    """
    if is_url(path):
        yield
        return
    import fcntl

    busy = BusyError(f"another run works on {path}: wait for it to end, or stop it.")
    # The locks of a process don't keep its own threads apart.
    if any(at == path and (other == shard or 1 in (other.count, shard.count)) for at, other in _locked):
        raise busy
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.with_name(f".{path.name}.lock").open("a+b")
    except PermissionError:  # the folder, or the lock of an earlier run, is another user's
        yield
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, int(shard.count > 1), shard.index)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise busy from None
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        _locked.add((path, shard))
        try:
            yield
        finally:
            _locked.discard((path, shard))


class Team:
    """The processes that JAX knows of (`jax.distributed`), each of which has a shard of its own.

    They have to agree before they begin, so that none waits for another that can't.
    """

    agreed = False  # whether all have been asked whether they can begin
    to_leave = False  # whether this process joined the others for the sake of this run alone

    def __init__(self) -> None:
        self.shard = Shard(jax.process_index(), jax.process_count())
        self.is_alone = self.shard.count == 1

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Let all processes fail if one fails here."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
        others_are_fine = self.agree(error is None)
        if error is not None:
            raise error
        if not others_are_fine:
            raise StoreError("another process of this run has failed; its own message says why.")

    def agree(self, is_fine: bool) -> bool:
        """Whether all processes are fine."""
        if self.is_alone:
            return is_fine
        from jax.experimental import multihost_utils

        Team.agreed = True
        return bool(np.all(multihost_utils.process_allgather(np.int32(is_fine))))

    def leave(self) -> None:
        """Go on without the others, if this process joined them for this run alone: so none ends with another."""
        if Team.to_leave:
            Team.to_leave, self.is_alone = False, True
            jax.distributed.shutdown()


def join(
    coordinator: str | None, processes: int | None, process: int | None, devices: Sequence[int] | None = None
) -> None:
    """Become one of the processes of a run, by what a scheduler says that JAX knows, or by these numbers.

    Args:
        coordinator: address of the first process.
        processes: how many there are.
        process: which this is.
        devices: numbers of the machine's GPUs that this process takes. None in the list: all that it sees.
    """
    jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM, and go on
    ids = local_devices() if devices is None else devices
    jax.distributed.initialize(coordinator, processes, process, local_device_ids=ids)
    Team.to_leave = True


def local_devices(environ: Mapping[str, str] = os.environ) -> list[int] | None:
    """The devices that a process takes where nobody says which. None leaves it to JAX.

    Under Slurm, JAX takes one: that of the task's number on its machine. That is right for tasks that see the same
    GPUs. A task that is alone on its machine would leave the others idle, and one that has GPUs of its own would ask
    for one that it doesn't see.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS") or "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    is_alone = environ["SLURM_STEP_NUM_TASKS"] == environ.get("SLURM_STEP_NUM_NODES")
    seen = environ.get("CUDA_VISIBLE_DEVICES")
    has_its_own = bool(seen) and len(seen.split(",")) < int(environ.get("SLURM_GPUS_ON_NODE", "0"))
    return [] if is_alone or has_its_own else None


@contextlib.contextmanager
def telling_others() -> Iterator[None]:
    """Let the others know of a process that joined them and fails before all have agreed to begin."""
    try:
        yield
    except BaseException:
        if Team.to_leave and not Team.agreed:
            Team().agree(False)
        raise
