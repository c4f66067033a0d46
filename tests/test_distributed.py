"""Many processes, started by launch/local.sh: the losses of one, a common end, and the restart."""

import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, distributed, sharding
from janus_jax.errors import UserError
from tests.conftest import ROOT, environment
from tests.helpers.commands import finish, run
from tests.helpers.training import count_steps, read_metrics, write_recipe

TIMEOUT = 1_200  # seconds: every process compiles for itself, on as few as two cores


def train_alone(recipe, workdir):
    """Trains stage 2 in this process, on two devices."""
    with pytest.MonkeyPatch.context() as patch:
        two_devices = sharding.make_mesh(fsdp=-1, devices=jax.devices()[:2])
        patch.setattr(sharding, "make_mesh", lambda **sizes: two_devices)
        result = run("train", f"--config={recipe}:2", f"--workdir={workdir}")
    assert result.code == 0, result.err


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), data)


@pytest.fixture(scope="module")
def single(recipe):
    """The workdir of a run in a single process."""
    train_alone(recipe, recipe.parent / "run")
    return recipe.parent / "run"


def launch(recipe, workdir, *flags, processes, retries=0):
    """Starts stage 2 in several processes with one device each."""
    return subprocess.Popen(
        [
            ROOT / "launch/local.sh",
            f"--processes={processes}",
            f"--retries={retries}",
            "--",
            f"--config={recipe}:2",
            f"--workdir={workdir}",
            *flags,
        ],
        env=environment(devices=1, PYTHON=sys.executable, RETRY_SECONDS="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def training_processes(launcher):
    """{process id of the run: its pid} of the processes that a launcher has started."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            status = (path.parent / "status").read_text()
        except OSError:  # another process ended while we looked
            continue
        parent = int(re.search(r"PPid:\s+(\d+)", status)[1])
        if parent == launcher.pid and "janus_jax.train" in words:
            pids[int(words[-2].removeprefix("--process_id="))] = int(path.parent.name)
    return pids


def wait_for_steps(process, workdir, steps):
    while process.poll() is None and count_steps(workdir) < steps:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]


def assert_same_losses(workdir, reference):
    ours, theirs = read_metrics(workdir), read_metrics(reference)
    assert [row["step"] for row in ours] == list(range(1, 9))
    losses = lambda rows: [row["loss"] for row in rows]
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-4)


def test_a_killed_process_ends_the_others_and_the_run_restarts(recipe, single, tmp_path):
    prompts = "--config.samples.prompts=('a red star',)"
    launcher = launch(recipe, tmp_path, prompts, processes=2, retries=1)
    wait_for_steps(launcher, tmp_path, 5)
    pids = training_processes(launcher)
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    while Path(f"/proc/{pids[0]}").exists():
        assert time.monotonic() - killed < 60
        time.sleep(0.05)
    result = finish(launcher, timeout=TIMEOUT)
    assert result.code == 0, result.err
    # Either process 0 reports why it ends, or jax ends it.
    assert re.search("process 0 of 2 ends|Terminating process because", result.err), result.err
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples[-1] == "0000008_stage_2.png"
    assert_same_losses(tmp_path, single)


def test_four_processes_give_the_losses_of_one_and_stop_at_the_same_step(recipe, single, tmp_path):
    launcher = launch(recipe, tmp_path, "--config.save_every=100", processes=4)
    wait_for_steps(launcher, tmp_path, 4)
    os.kill(training_processes(launcher)[1], signal.SIGTERM)
    result = finish(launcher, timeout=TIMEOUT)
    assert result.code == distributed.PREEMPTED == 75, result.err
    saved = checkpoint.newest(tmp_path)
    assert 4 <= saved.step < 8 and len(saved.about["data"]) == 4  # every process's shards
    train_alone(recipe, tmp_path)  # resumes in one process
    assert_same_losses(tmp_path, single)
    many, one = read_metrics(tmp_path), read_metrics(single)
    for name in ("token_fill", "slot_fill", "ratio"):
        values = lambda rows, name=name: [row[name] for row in rows]
        np.testing.assert_allclose(values(many), values(one), rtol=1e-6)
    positions = [checkpoint.newest(folder).about["data"] for folder in (single, tmp_path)]
    assert positions[0] == positions[1] and len(positions[0]) == 4


def test_inconsistent_flags_are_one_message(tmp_path, monkeypatch):
    # jax connects only in a process that has not asked for devices yet.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    cases = (
        (["--num_processes=2"], ("--num_processes", "--distributed")),
        (["--distributed=here", "--num_processes=2", "--process_id=0"], ("HOST:PORT",)),
        (["--distributed=localhost:1", "--num_processes=2", "--process_id=2"], ("--process_id",)),
        (["--distributed=auto"], ("--distributed=auto",)),
    )
    for flags, words in cases:
        result = run("train", "--config=configs/tiny.py", f"--workdir={tmp_path}/run", *flags)
        assert result.code == 2 and "Traceback" not in result.err, (flags, result.err)
        assert all(word in result.err for word in words), (flags, result.err)
    assert not (tmp_path / "run").exists()


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def test_processes_read_whole_parts_of_the_batch(monkeypatch):
    def mesh(processes, *, fsdp, tensor):
        each = fsdp * tensor // processes
        devices = np.array([Device(p) for p in range(processes) for _ in range(each)])
        shape = dict(data=1, fsdp=fsdp, tensor=tensor)
        return types.SimpleNamespace(devices=devices.reshape(1, fsdp, tensor), shape=shape)

    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert distributed.host_share(mesh(4, fsdp=8, tensor=1)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=4, tensor=2)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=2, tensor=4)) == (1, 2)  # 2 and 3 have the same rows
    with pytest.raises(UserError, match="config.mesh.tensor"):
        distributed.host_share(mesh(3, fsdp=2, tensor=3))
