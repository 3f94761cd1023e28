"""Which GPUs a process of a run takes: by what Slurm, a real one, said to tasks with these options."""

import jax
import pytest

from jaxlift.commands._main import main
from jaxlift.scoring import _shards
from jaxlift.scoring._shards import local_devices

LEFT_TO_JAX, ALL = None, []
TASKS = {  # options of srun: tasks, nodes and GPUs of the step, and GPUs that a task sees
    "-N1 -n2 --gpus=2": ("2", "1", "2", "0,1", LEFT_TO_JAX),
    "-N1 -n2 --gpus=4": ("2", "1", "4", "0,1,2,3", LEFT_TO_JAX),
    "-N2 -n4 --gpus-per-node=2": ("4", "2", "2", "0,1", LEFT_TO_JAX),
    "-N1 -n2 --gpus=2 --gpu-bind=none": ("2", "1", "2", None, LEFT_TO_JAX),
    "-N2 -n2 --gpus-per-node=2": ("2", "2", "2", "0,1", ALL),
    "-N1 -n1 --gpus=2": ("1", "1", "2", "0,1", ALL),
    "-N2 -n2": ("2", "2", None, None, ALL),
    "-N1 -n2 --gpus-per-task=1": ("2", "1", "2", "1", ALL),
    "-N1 -n2 --gpus-per-task=2": ("2", "1", "4", "2,3", ALL),
}


@pytest.mark.parametrize("options", TASKS)
def test_what_slurm_says(options):
    *values, wanted = TASKS[options]
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")
    environ = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    assert local_devices(environ) == wanted
    assert local_devices(environ | {"JAX_LOCAL_DEVICE_IDS": "0"}) is LEFT_TO_JAX


def test_without_slurm():
    assert local_devices({"CUDA_VISIBLE_DEVICES": "1", "SLURM_GPUS_ON_NODE": "2"}) is LEFT_TO_JAX


@pytest.mark.parametrize(("text", "devices"), [("all", []), ("0,3", [0, 3]), ("2", [2])])
def test_what_the_command_says(monkeypatch, capsys, text, devices):
    given = []

    def initialize(*_, local_device_ids):
        given.append(local_device_ids)
        raise ValueError("there is no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(_shards, "local_devices", lambda: pytest.fail("it was said"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        assert main(["score", "scored:model", "x.npy", "--distributed", "--local-devices", text]) == 2
    finally:
        jax.config.update("jax_enable_preemption_service", True)
    assert given == [devices]
    assert "no scheduler that JAX knows" in capsys.readouterr().err


def test_without_other_processes(capsys):
    assert main(["score", "scored:model", "x.npy", "--local-devices", "all"]) == 2
    assert "--local-devices is for one of several processes: add --distributed" in capsys.readouterr().err


def test_what_is_no_device(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["score", "scored:model", "x.npy", "--distributed", "--local-devices", "gpu0"])
    assert "expected all, or numbers of GPUs such as 0,1, got 'gpu0'" in capsys.readouterr().err
