"""`prepare check`: what it counts in the sources of a config and predicts for the stages."""

import json

import numpy as np
import pytest
from PIL import Image

from janus_jax.data import synthetic
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.prepare import check
from janus_jax.recipe.data import build_pipeline
from tests.conftest import stage_of


def test_sources_are_counted_and_stages_predicted(config, tmp_path):
    photos = [synthetic.photo(np.random.default_rng(i), size=32) for i in range(4)]
    records = [{"image": photos[0], "prompt": "一只红色的狐狸"}] * 3
    records += [{"image": b"", "prompt": "x"}]
    records += [{"image": photo, "prompt": f"a fox {i}"} for i, photo in enumerate(photos)]
    write_array_record(tmp_path / "mixed.array_record", records)
    config.data.sources.scenes.path = str(tmp_path / "mixed.array_record")
    config.stages = {name: config.stages[name] for name in ("stage_2", "stage_3")}
    config.data.bad_record_limit = 0.5
    sources, stages = check.check(config.to_dict(), tmp_path / "out")

    scenes = sources["scenes"]
    counts = [scenes[field] for field in ("records", "unusable", "duplicates", "pictures")]
    assert counts == [8, 1, 2, 7]
    assert scenes["scripts"] == {"LATIN": 4, "CJK": 3} and scenes["widths"] == [32, 32, 32]
    written = json.loads((tmp_path / "out/check.json").read_text())
    assert written["sources"]["scenes"]["unusable"] == 1
    (line,) = (tmp_path / "out/bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == 3
    assert Image.open(tmp_path / "out/lengths.png").height > 400

    (phase,) = stages["stage_2"]
    assert 0.8 < phase["token_fill"] <= phase["token_bound"] + 0.02
    assert "und_slots=" in phase["reasons"] and phase["epochs_are_exact"]
    pipeline, _ = build_pipeline(stage_of(config), host=(0, 1))
    last = [next(pipeline) for _ in range(8)][-1]  # the stage has 8 steps
    for name, epochs in last.stats["epochs"].items():
        predicted = sources[name]["epochs"]
        of_stage = sum(n for use, n in predicted.items() if use.startswith("stage_2 "))
        assert of_stage == pytest.approx(epochs, abs=1e-3)


def test_a_source_without_a_usable_record_is_an_error(config, tmp_path):
    write_array_record(tmp_path / "other.array_record", [{"jpg": b"x", "txt": "a fox"}] * 3)
    config.data.sources.scenes.path = str(tmp_path / "other.array_record")
    with pytest.raises(UserError, match=r"'scenes'.*stage_.*no field .*\['jpg', 'txt'\]"):
        check.check(config.to_dict(), tmp_path / "out")
