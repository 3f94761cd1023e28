"""Under a real Slurm on this machine: what docs/clusters.md says, with tasks that are stopped and queued again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_scoring import compiled_once, environment, fasta, same

__all__ = ["compiled_once"]
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE, SCORING = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("clusters", "scoring"))
SCORE = "jaxlift score peaks:model peaks.fa --reference dinucleotide_shuffle --shuffles 10 --out scores.zarr"
SHARDS = 4
LACKING = [
    *filter(lambda name: not shutil.which(name), ("munged", "slurmctld", "slurmd")),
    *["root"] * (os.geteuid() != 0),
]
pytestmark = pytest.mark.systems


def block(name):
    """A file on the page, by its name, or its only block with a command."""
    named = re.findall(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    [found] = named or [text for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if text.startswith(name)]
    return found


def in_many_chunks(text, shuffles=10):
    """The page's command, in 32 chunks, and with more to do in each where something is to happen meanwhile."""
    assert "--shuffles 10 " in text
    return text.replace("--shuffles 10 ", f"--shuffles {shuffles} --batch-size 1 ")


def shell(command, folder, **more):
    """What a command prints that succeeds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(PATH=path, **more),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """Copies of a folder with the page's model, sequences, and what one process makes of them, quickly and slowly."""
    folder = tmp_path_factory.mktemp("peaks")
    [model] = re.findall(r"cat > peaks\.py <<'EOF'\n(.*?)EOF\n", SCORING, re.DOTALL)
    (folder / "peaks.py").write_text(model)
    fasta(folder / "peaks.fa", np.eye(4)[np.random.default_rng(0).integers(0, 4, (512, 200))])
    for shuffles, name in ((10, "quick.zarr"), (100, "slow.zarr")):
        shell(in_many_chunks(SCORE, shuffles).replace("scores.zarr", name), folder)
    return lambda path: shutil.copytree(folder, path)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Two nodes with four CPUs and four GPUs each; what runs a command there."""
    if LACKING:
        pytest.skip(f"needs {', '.join(LACKING)}: as root, tests/cluster/slurm.sh install")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([HERE / "slurm.sh", "up", folder], check=True)
        yield lambda command, folder_, **more: shell(command, folder_, SLURM_CONF=str(folder / "slurm.conf"), **more)
    finally:
        subprocess.run([HERE / "slurm.sh", "down", folder], check=True)


def until(holds, seconds=200):
    """Wait for what a function says."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def finished(store):
    """The numbers of a store's chunks that are finished."""
    names = [re.fullmatch(r"c\.(\d+)\.0", file.name) for file in store.glob("checksum/*")]
    return [int(name[1]) for name in names if name]


def process_of(task):
    """The number of the process that scores in a task of an array."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is one of the kernel's
            continue
        job, number = task.encode().split(b"_")
        wanted = {b"SLURM_ARRAY_JOB_ID=" + job, b"SLURM_ARRAY_TASK_ID=" + number, b"SLURM_PROCID=0"}
        if wanted <= set(said) and b"python" in command[0]:
            return int(folder.name)
    return None


def test_array_with_tasks_that_are_stopped(slurm, peaks, tmp_path):
    """Of four, one makes way for another job, one is killed, and one has no time left. All go on, to the same bits."""
    folder = peaks(tmp_path / "array")
    (folder / "score.sbatch").write_text(in_many_chunks(block("score.sbatch"), 100))

    def chunks():
        """How many chunks each shard has finished."""
        of_each = Counter(number % SHARDS for number in finished(folder / "scores.zarr"))
        return [of_each[shard] for shard in range(SHARDS)]

    def state(task):
        return re.findall(r"JobState=(\w+)", slurm(f"scontrol show job {task}", folder))[0]

    job = slurm("sbatch --parsable score.sbatch", folder).strip()
    tasks = [f"{job}_{shard}" for shard in range(SHARDS)]
    stops = {
        1: lambda: slurm(f"scontrol requeue {tasks[1]}", folder),  # as where a job of higher priority takes its place
        2: lambda: os.kill(process_of(tasks[2]), signal.SIGKILL),
        3: lambda: slurm(f"scancel --signal=TERM {tasks[3]}", folder),  # as --signal does when its time is nearly over
    }

    def all_are_stopped():
        for shard in [shard for shard in stops if chunks()[shard]]:
            stops.pop(shard)()
        return not stops

    until(all_are_stopped)
    until(lambda: state(tasks[2]) == "FAILED")
    slurm(f"scontrol requeue {tasks[2]}", folder)
    for task in tasks[1:]:
        until(lambda task=task: state(task) == "PENDING")
    left = chunks()
    assert all(0 < count < 8 for count in left[1:]), left  # stopped in the middle
    for task in tasks[1:]:  # Slurm waits for two minutes before a job that was queued again
        slurm(f"scontrol update JobId={task} StartTime=now", folder)
    until(lambda: {state(task) for task in tasks} == {"COMPLETED"})

    assert chunks() == [8] * SHARDS
    same(folder / "scores.zarr", folder / "slow.zarr")
    assert slurm("jaxlift verify scores.zarr", folder).splitlines() == ["32 chunks are as they were written"]
    for shard, task in enumerate(tasks):
        assert f"Restarts={int(shard > 0)} " in slurm(f"scontrol show job {task}", folder)
        log = (folder / f"score.{shard}.log").read_text()
        assert f"shard {shard}/{SHARDS}: 128 of 128 examples scored, {16 * (8 - left[shard] * (shard > 0))} by" in log


def test_some_tasks_alone(slurm, peaks, tmp_path):
    """Their numbers don't say how many shards there are, unless they are those of a whole array."""
    folder = peaks(tmp_path / "some")
    script = in_many_chunks(block("score.sbatch"))
    (folder / "score.sbatch").write_text(script)
    (folder / "of_four.sbatch").write_text(script.replace("--shard auto", "--shard auto/4"))

    def submit(options):
        job = slurm(f"sbatch --parsable {options}", folder).strip()
        until(lambda: not slurm(f"squeue --noheader --jobs={job}", folder))
        return set(re.findall(r"JobState=(\w+).*?ExitCode=(\d+)", slurm(f"scontrol --oneliner show job {job}", folder)))

    assert submit("--array=1,3 score.sbatch") == {("FAILED", "2")}
    for shard in (1, 3):
        assert "as in auto/8" in (folder / f"score.{shard}.log").read_text()
    assert not (folder / "scores.zarr").exists()

    assert submit("--array=1,3 of_four.sbatch") == {("COMPLETED", "0")}
    assert "of the last run's shards, 0/4 lacks 8, 2/4 lacks 8" in slurm("jaxlift info scores.zarr", folder)
    assert submit("--array=6-7 score.sbatch") == {("COMPLETED", "0")}  # two shards, of what is left
    same(folder / "scores.zarr", folder / "quick.zarr")


DEVICES = [  # options of srun; what JAX by itself takes; and jaxlift
    ("--nodes=1 --ntasks=2 --gpus=2", ["0", "1"], ["0", "1"]),
    ("--nodes=2 --ntasks-per-node=1 --gpus-per-node=4", ["0", "0"], ["all", "all"]),
    ("--nodes=1 --ntasks=2 --gpus-per-task=2", ["0", "1"], ["all", "all"]),
    ("--nodes=1 --ntasks=2 --gpus-per-task=1", ["0", "1"], ["all", "all"]),
    ("--nodes=1 --ntasks=2 --gpus=4", ["0", "1"], ["0", "1"]),
]
SEEN = """
import json, os, pathlib, sys
import jax
if "jaxlift" not in sys.argv[0]:
    jax.distributed.initialize()
from peaks import model
said = {"takes": jax.config.values["jax_cuda_visible_devices"], "sees": os.environ.get("CUDA_VISIBLE_DEVICES")}
said |= {"processes": jax.process_count(), "local": jax.local_device_count(), "all": jax.device_count()}
pathlib.Path(f"seen.{jax.process_index()}.json").write_text(json.dumps(said))
"""


def seen(folder):
    """What each process has said, in order."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("seen.*.json"))]


@pytest.mark.parametrize(("options", "by_itself", "by_jaxlift"), DEVICES, ids=[options for options, *_ in DEVICES])
def test_devices_of_processes(slurm, peaks, tmp_path, options, by_itself, by_jaxlift):
    """The GPUs are none, so this asks which JAX would take; and there are two CPU devices in each process."""
    assert f"| `{options}` |" in PAGE
    folder = peaks(tmp_path / "devices")
    (folder / "seen.py").write_text(SEEN)
    slurm(f"srun {options} python seen.py", folder)
    assert [said["takes"] for said in seen(folder)] == by_itself
    shell("rm seen.*.json", folder)

    command = SCORE.replace("peaks:model", "seen:model") + " --distributed"
    two = "--xla_force_host_platform_device_count=2"
    printed = slurm(f"srun {options} {command}", folder, XLA_FLAGS=two)
    assert all(f"shard {index}/2: " in printed for index in range(2))
    assert slurm("jaxlift verify scores.zarr", folder)
    found = seen(folder)
    assert [said["takes"] for said in found] == by_jaxlift
    count = len(by_jaxlift)
    assert {(said["processes"], said["local"], said["all"]) for said in found} == {(count, 2, 2 * count)}
    if "gpus-per-task" in options:  # Slurm gives each its own
        assert len({said["sees"] for said in found}) == count


@pytest.mark.parametrize(
    ("options", "more", "takes"),
    [("--local-devices 1,3", {}, "1,3"), ("--local-devices all", {}, "all"), ("", {"JAX_LOCAL_DEVICE_IDS": "2"}, "2")],
)
def test_devices_that_are_named(slurm, peaks, tmp_path, options, more, takes):
    folder = peaks(tmp_path / "named")
    (folder / "seen.py").write_text(SEEN)
    command = SCORE.replace("peaks:model", "seen:model")
    slurm(f"srun --nodes=1 --ntasks=2 --gpus=4 {command} --distributed {options}", folder, **more)
    assert [said["takes"] for said in seen(folder)] == [takes] * 2


def test_processes_are_stopped_by_a_signal(slurm, peaks, tmp_path):
    """SIGTERM ends them all, with the exit code that says so, and the same command goes on."""
    folder = peaks(tmp_path / "signal")
    (folder / "job").write_text("#!/bin/bash\n" + in_many_chunks(block("srun"), 100))
    submit = "sbatch --parsable --nodes=2 --gpus-per-node=4 job"
    job = slurm(submit, folder).strip()
    until(lambda: finished(folder / "scores.zarr"))
    began = time.monotonic()
    slurm(f"scancel --signal=TERM {job}", folder)
    until(lambda: "JobState=FAILED" in slurm(f"scontrol show job {job}", folder))
    assert time.monotonic() - began < 30
    assert "ExitCode=143:0" in slurm(f"scontrol show job {job}", folder)
    assert len(finished(folder / "scores.zarr")) < 32
    job = slurm(submit, folder).strip()
    until(lambda: "JobState=COMPLETED" in slurm(f"scontrol show job {job}", folder))
    same(folder / "scores.zarr", folder / "slow.zarr")
