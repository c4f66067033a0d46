"""Several processes through launch/local.sh: the losses of one process, their common end, the restart."""

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

from janus_jax import checkpoint, distributed
from janus_jax.errors import UserError
from tests.conftest import ROOT, environment
from tests.test_train import CONFIG, lines, start


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The recipe, and a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "test_recipe.py").write_text(CONFIG.format(data=str(data)))
    assert finish(start(f"{folder}/test_recipe.py:2", folder / "run", devices=2))[0] == 0
    return folder


def launch(folder, workdir, *flags, processes, retries=0):
    env = environment(devices=1, PYTHON=sys.executable, RETRY_SECONDS="0")
    command = [
        ROOT / "launch/local.sh", f"--processes={processes}", f"--retries={retries}", "--",
        f"--config={folder}/test_recipe.py:2", f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of_run(process):
    """Ids of the training processes that a launcher has started, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().decode().split("\0")
        parent = re.search(r"PPid:\s+(\d+)", (path.parent / "status").read_text())
        if int(parent[1]) == process.pid and "janus_jax.train" in words:
            found[int(words[-2].removeprefix("--process_id="))] = int(path.parent.name)
    return found


def finish(process):
    """Every process compiles for itself: four of them on two cores take their time."""
    _, err = process.communicate(timeout=1_200)
    return process.returncode, err


def steps_done(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(process, workdir, *, steps):
    while process.poll() is None and steps_done(workdir) < steps:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]


def test_four_processes_give_the_losses_of_one(alone, tmp_path):
    code, err = finish(launch(alone, tmp_path, processes=4))
    assert code == 0, err
    one, many = lines(alone / "run"), lines(tmp_path)
    assert [r["step"] for r in many] == list(range(1, 9))
    np.testing.assert_allclose([r["loss"] for r in many], [r["loss"] for r in one], rtol=1e-4)
    for name in ("token_fill", "slot_fill", "ratio"):
        np.testing.assert_allclose([r[name] for r in many], [r[name] for r in one], rtol=1e-6)
    positions = [checkpoint.newest(folder).about["data"] for folder in (alone / "run", tmp_path)]
    assert positions[0] == positions[1] and len(positions[0]) == 4  # every process's shards


def test_one_that_is_killed_ends_the_others_and_the_run_is_started_again(alone, tmp_path):
    process = launch(alone, tmp_path, "--config.samples.prompts=('a red star',)", processes=2, retries=1)
    wait_for(process, tmp_path, steps=5)
    first = of_run(process)
    os.kill(first[1], signal.SIGKILL)
    killed = time.monotonic()
    while Path(f"/proc/{first[0]}").exists():
        assert time.monotonic() - killed < 60
        time.sleep(0.05)
    code, err = finish(process)
    assert code == 0, err
    told = "Error: process 0 of 2 ends. Another process has probably ended|Terminating process because"  # or jax itself
    assert re.search(told, err) and "starts again" in err, err
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "0000008_stage_2.png"
    one, many = lines(alone / "run"), lines(tmp_path)
    assert [r["step"] for r in many] == list(range(1, 9))
    np.testing.assert_allclose([r["loss"] for r in many], [r["loss"] for r in one], rtol=1e-4)


def test_sigterm_to_one_saves_all_at_the_same_step(alone, tmp_path):
    process = launch(alone, tmp_path, "--config.save_every=100", processes=2)
    wait_for(process, tmp_path, steps=2)
    os.kill(of_run(process)[1], signal.SIGTERM)
    code, err = finish(process)
    assert code == 75, err
    stopped = checkpoint.newest(tmp_path).step
    assert 2 <= stopped < 8 and len(checkpoint.newest(tmp_path).about["data"]) == 4
    assert finish(start(f"{alone}/test_recipe.py:2", tmp_path, devices=2))[0] == 0  # and one process goes on
    np.testing.assert_allclose([r["loss"] for r in lines(tmp_path)], [r["loss"] for r in lines(alone / "run")], rtol=1e-4)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--num_processes=2"], "--num_processes and --process_id need --distributed"),
        (["--distributed=here", "--num_processes=2", "--process_id=0"], "--distributed is auto, or HOST:PORT"),
        (["--distributed=localhost:1", "--num_processes=2", "--process_id=2"], "which counts from 0"),
        (["--distributed=auto"], "the other processes cannot be found"),
    ],
)
def test_mistakes_are_told(alone, tmp_path, flags, said):
    code, err = finish(start(alone / "test_recipe.py", tmp_path, *flags))
    assert code == 2 and said in err


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def test_processes_hold_whole_parts_of_the_batch(monkeypatch):
    def mesh(processes, *, fsdp, tensor):
        devices = np.array([Device(p) for p in range(processes) for _ in range(fsdp * tensor // processes)])
        shape = dict(data=1, fsdp=fsdp, tensor=tensor)
        return types.SimpleNamespace(devices=devices.reshape(1, fsdp, tensor), shape=shape)

    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert distributed.host_share(mesh(4, fsdp=8, tensor=1)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=4, tensor=2)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=2, tensor=4)) == (1, 2)  # 2 and 3 hold the same rows
    with pytest.raises(UserError, match="one must divide the other"):
        distributed.host_share(mesh(3, fsdp=2, tensor=3))
