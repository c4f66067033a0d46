"""Workdirs that version 0.1.0 wrote, tests/legacy, still load, resume and sample as they did
then.
"""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from janus_jax.recipe.load import load_sampler
from janus_jax.train.loop import train
from tests.conftest import small

LEGACY = Path(__file__).parent / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text())


@pytest.fixture
def workdir(tmp_path):
    """Extracts one of the folders."""

    def extract(name):
        zipfile.ZipFile(LEGACY / f"{name}.zip").extractall(tmp_path / name)
        return tmp_path / name

    return extract


@pytest.fixture
def legacy_data(workdir):
    """The records and the text tokenizer that the run was trained on."""
    return workdir("data")


def recipe(data):
    """The config that the run was made with."""
    config = small(tiny.get_config("2"), data)
    config.init_fresh = (".*",)
    config.model.llm.update(embed_dim=16, mlp_dim=32, rope_theta=100.0)
    config.model.understanding.encoder.update(embed_dim=16, mlp_dim=32, patch_size=16)
    config.stages.stage_2.update(batch=8, rows=2, length=128, steps=8)
    config.data.shards, config.ema, config.keep_checkpoints = 2, 0.9, 1
    config.mesh = dict(data=1, fsdp=4, tensor=2)
    return config


def test_a_run_of_0_1_resumes_with_the_same_losses(workdir, legacy_data):
    folder = workdir("run")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    assert not train(recipe(legacy_data), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row, expected in zip(rows, EXPECTED["metrics"], strict=True):
        assert row["stage"] == expected.pop("stage")
        for name, value in expected.items():
            np.testing.assert_allclose(
                row[name], value, rtol=1e-5, err_msg=f"{name} of step {row['step']}"
            )


@pytest.mark.parametrize("name", ["run", "imported"])
def test_checkpoints_of_0_1_sample_the_same(workdir, name):
    expected = EXPECTED if name == "run" else EXPECTED["imported"]
    prompts = ["a red star", "two green squares"][: len(expected["images"])]
    seeds = [0, 1] if name == "run" else [3]
    sampler = load_sampler(workdir(name))
    with jax.set_mesh(sampler.mesh):
        guidance = sampler.guidance(scale=5.0, temperature=0)
        images = sampler.draw(prompts, seeds=seeds, guidance=guidance)
        gray = Image.fromarray(np.full((40, 30, 3), 90, np.uint8))
        answers = sampler.ask([gray], ["What color is it?"], max_tokens=8)
    # A level, from truncation
    assert np.abs(images.astype(int) - np.array(expected["images"])).max() <= 1
    assert answers == expected["answers"]
