"""Mistakes in a config are one clear message before the first step."""

import re

import numpy as np
import pytest

from janus_jax import cli
from janus_jax.data.images import encode_png
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.train.loop import train


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with sources of no records, of undecodable images, and of truncated images."""
    folder = tmp_path_factory.mktemp("broken")
    png = encode_png(np.full((64, 64, 3), 200, np.uint8))
    sources = {"empty": [], "undecodable": [b"no image"] * 30, "truncated": [png[:-30]] * 30}
    for name, images in sources.items():
        records = [{"image": image, "prompt": "a star"} for image in images]
        write_array_record(folder / f"{name}.array_record", records)
    return folder


def test_mistakes_in_a_config_name_the_field_and_the_number(config, broken, tmp_path):
    config.init_fresh = (".*",)
    config.stages = {"stage_2": config.stages.stage_2}
    scenes, text = "data.sources.scenes.path", "data.sources.text.path"
    cases = (
        (text, "/nowhere/*", r"/nowhere/\*.*--config\.data\.sources"),
        (text, f"{broken}/empty.array_record", "'text'.*/empty.array_record"),
        (scenes, f"{broken}/undecodable.array_record", r"bad_record_limit=1%.*scenes/[01]/"),
        (scenes, f"{broken}/truncated.array_record", r"bad_record_limit=1%.*scenes/[01]/"),
        ("stages.stage_2.batch", 18, r"18 .* 9 .*config\.mesh"),
        ("stages.stage_2.batch", 15, r"15 .* 2 .*rows"),
        ("stages.stage_2.template", "caht", "'caht'.*'plain'.*'chat'"),
        ("stages.stage_2.und_slots", 0, r"stage_2\.und_slots is 0"),
        ("model.generation.kind", "vqgan", "'vqgan'.*'flow'.*'vq'"),
        ("model.llm.num_heads", 3, r"model\.llm: num_heads, 3, .* 32"),
        ("model.llm.num_heads", 32, "embed_dim / num_heads is 1;"),
        ("model.llm.num_kv_heads", 3, "num_kv_heads, 3, .*num_heads, 2"),
        ("mesh.tensor", 3, "8 devices"),
        ("mesh.tensor", 0, "0.*-1"),
        ("seed", -1, r"config\.seed is -1"),
        ("ema", 1.0, r"config\.ema is 1\.0"),
    )
    for field, value, pattern in cases:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: value})
        try:
            train(changed, tmp_path)
        except UserError as error:
            assert re.search(pattern, str(error)), f"{field}={value}: {error}"
        else:
            pytest.fail(f"{field}={value} is no error")


def test_what_a_later_stage_lacks_is_an_error_before_the_first_one_starts(config, tmp_path):
    config.stages = {name: config.stages[name] for name in ("stage_1", "stage_2")}
    config.data.sources.text.path = "/nowhere"
    with pytest.raises(UserError, match="/nowhere"):
        train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_model_too_large_for_the_machine_is_an_error_with_all_that_is_missing(tmp_path):
    with pytest.raises(UserError) as error:
        train(cli.load_config("pro_7b", "2"), tmp_path / "run")
    message = str(error.value)
    assert re.search(r"stage_2 needs \d+\.\d GiB", message)
    for word in ("--config.mesh", "janus_jax.plan", "tokenizer.json", "--config.data.sources"):
        assert word in message
    assert not (tmp_path / "run").exists()
