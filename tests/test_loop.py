"""The training loop in real processes: killed, stopped, and resumed on other numbers of devices."""

import logging
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from configs import tiny
from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.train.loop import train
from tests.conftest import small
from tests.helpers.commands import finish, start
from tests.helpers.training import count_steps, read_metrics, write_recipe


@pytest.fixture
def recipe(tmp_path, data):
    """The page of a small recipe of stages 1 and 2, for a child process."""
    return write_recipe(tmp_path, data)


def make_config(data, **changes):
    """The same recipe as a ConfigDict."""
    config = small(tiny.get_config(), data)
    config.init_fresh = (".*",)
    config.stages = {name: config.stages[name] for name in ("stage_1", "stage_2")}
    config.update_from_flattened_dict(changes)
    return config


def start_and_signal(number, *flags, workdir, steps):
    """Starts a child process that trains, and signals it after some steps; returns its Result."""
    process = start("train", f"--workdir={workdir}", *flags)
    while process.poll() is None and count_steps(workdir) < steps:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be signalled"
    process.send_signal(number)
    return finish(process)


def test_a_killed_run_resumes_bit_for_bit_and_on_another_number_of_devices(
    recipe, data, tmp_path, monkeypatch
):
    whole, cut, other = tmp_path / "whole", tmp_path / "cut", tmp_path / "other"
    train(make_config(data, profile_steps="3:5"), whole)
    assert len(list((whole / "profile").rglob("*.xplane.pb"))) == 2  # one per stage
    result = start_and_signal(signal.SIGKILL, f"--config={recipe}", workdir=cut, steps=10)
    assert result.code == -signal.SIGKILL
    shutil.copytree(cut, other)
    train(make_config(data), cut)
    assert [row["step"] for row in read_metrics(whole)] == list(range(1, 17))
    assert read_metrics(cut) == read_metrics(whole)

    one_device = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **sizes: one_device)
    train(make_config(data, **{"samples.prompts": ("a red star",)}), other)
    losses = lambda workdir: [row["loss"] for row in read_metrics(workdir)]
    np.testing.assert_allclose(losses(other), losses(whole), rtol=1e-4)
    samples = sorted(path.name for path in (other / "samples").iterdir())
    assert samples[-1] == "0000016_stage_2.png"


def test_sigterm_saves_and_damaged_checkpoints_are_named_and_renamed(
    recipe, data, tmp_path, caplog, one_device
):
    workdir = tmp_path / "run"
    flags = [f"--config={recipe}:1", "--config.save_every=1000"]
    long = "--config.stages.stage_1.steps=1000"
    result = start_and_signal(signal.SIGTERM, *flags, long, workdir=workdir, steps=5)
    assert result.code == 75, result.err
    (saved,) = (workdir / "checkpoints").iterdir()
    last = int(saved.name)
    assert last == count_steps(workdir) < 1000

    def resume(steps):
        config = make_config(data, save_every=1000)
        config.stages = {"stage_1": config.stages.stage_1}
        config.stages.stage_1.steps = steps
        train(config, workdir)

    files = [path for path in (saved / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 999)
    content[middle] = bytes(byte ^ 255 for byte in content[middle])
    largest.write_bytes(content)
    with pytest.raises(UserError, match=f"checkpoints/{last}'.*delete"):
        resume(last + 1)

    shutil.rmtree(saved / "params")
    caplog.set_level(logging.WARNING, logger="absl")
    resume(last)
    assert f"checkpoints/{last} is damaged" in caplog.text
    names = {path.name for path in saved.parent.iterdir()}
    assert names == {str(last), f"damaged-{last}"}
    assert [row["step"] for row in read_metrics(workdir)] == list(range(1, last + 1))


def test_a_run_that_diverges_stops_and_names_its_records(data, tmp_path, one_device):
    config = make_config(data, max_skipped_steps=2)
    config.stages = {"stage_1": config.stages.stage_1}
    config.stages.stage_1.update(lr=float("nan"), warmup=0)
    with pytest.raises(UserError, match=r"2 steps.* 3, .*'captions/0/.* step 0.*stage_1\.lr"):
        train(config, tmp_path)
    assert count_steps(tmp_path) == 3
