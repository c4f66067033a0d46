"""Where a stage starts, and what may change when it resumes."""

import logging
import shutil

import numpy as np
import pytest

from configs import tiny
from janus_jax import checkpoint
from janus_jax.errors import UserError
from janus_jax.train.loop import train
from tests.conftest import fresh_params, small, stage_of
from tests.helpers.training import read_metrics


def make_config(data, *names):
    """The small recipe with some of its stages and fresh parameters."""
    config = small(tiny.get_config(), data)
    config.init_fresh = (".*",)
    config.stages = {name: config.stages[name] for name in names}
    for stage in config.stages.values():
        stage.steps = 3
    return config


@pytest.fixture(scope="module")
def after_three_steps(data, tmp_path_factory):
    """The workdir of a run that ended after three steps of stage 2."""
    workdir = tmp_path_factory.mktemp("run")
    config = make_config(data, "stage_2")
    config.stages.stage_2.mixture = (2, 3, 5)
    train(config, workdir)
    return workdir


@pytest.fixture
def workdir(after_three_steps, tmp_path):
    """A copy of it."""
    return shutil.copytree(after_three_steps, tmp_path / "run")


@pytest.fixture
def config(data):
    """The config of that run, two steps longer."""
    config = make_config(data, "stage_2")
    config.stages.stage_2.update(mixture=(2, 3, 5), steps=5)
    return config


@pytest.mark.usefixtures("one_device")
def test_a_mixture_may_change_in_the_middle_of_a_block(config, workdir, caplog):
    """The last checkpoint knows both mixtures and the step at which the second began."""
    config.stages.stage_2.update(steps=12, mixture=(1, 0, 1))
    caplog.set_level(logging.INFO, logger="absl")
    train(config, workdir)
    assert "step 3 of the stage, from [2, 3, 5] to [1, 0, 1]" in caplog.text
    mixtures = checkpoint.newest(workdir).about["mixtures"]
    mixtures = [(mixture["from_step"], mixture["mixture"]) for mixture in mixtures]
    assert mixtures == [(0, [2, 3, 5]), (3, [1, 0, 1])]
    ratios = np.array([row["ratio"] for row in read_metrics(workdir)])
    assert ratios[:3, 1].min() > 0.2
    np.testing.assert_allclose(ratios[9:].mean(axis=0), [0.5, 0, 0.5], atol=0.1)


@pytest.mark.usefixtures("one_device")
def test_what_arrays_and_data_depend_on_may_not_change(config, workdir):
    cases = (
        ("seed", 0, 1),
        ("ema", 0.0, 0.5),
        ("data.shards", 4, 2),
        ("stages.stage_2.lr", 0.003, 0.001),
        ("stages.stage_2.batch", 16, 32),
    )
    for field, before, now in cases:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: now})
        with pytest.raises(UserError, match=rf"config\.{field} .*{before} .*{now};"):
            train(changed, workdir)
    for part in ("model.llm.rope_theta", "optimizer.b1"):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({part: 0.5})
        with pytest.raises(UserError, match=rf"config\.{part.split('.')[0]} "):
            train(changed, workdir)


def test_a_workdir_does_not_go_back_to_an_earlier_stage(data, workdir):
    with pytest.raises(UserError, match="stage_2.*stage_1.*--workdir.*--config.init_from"):
        train(make_config(data, "stage_1"), workdir)


@pytest.mark.usefixtures("one_device")
def test_parameters_that_nothing_provides_are_named(config, data, tmp_path):
    config.init_fresh = ()
    with pytest.raises(UserError, match="stage_2.*'llm/embed'.*--config.init_from"):
        train(config, tmp_path / "run")
    config.init_fresh = ("llm", "understanding")
    with pytest.raises(UserError, match="'generation/tokenizer'.*--config.init_from") as error:
        train(config, tmp_path / "run")
    assert "llm/embed" not in str(error.value)

    params = fresh_params(stage_of(config, "stage_2").network)
    part = {path: array for path, array in params.items() if not path.startswith("llm/")}
    writer = checkpoint.Writer(tmp_path / "part", keep=1)
    writer.save(1, params=part, about={"stage": "imported", "config": None, "tokenizer": None})
    writer.wait()
    config.init_fresh = ()
    config.init_from = str(tmp_path / "part")
    with pytest.raises(UserError, match="part/checkpoints/1'.*'llm/layers'.*--config.init_fresh"):
        train(config, tmp_path / "run")
