"""Samples while a run trains: the score on the shapes prompts."""

import types

import jax
import numpy as np

from janus_jax import sharding
from janus_jax.data import tokenizer
from janus_jax.recipe.stage import make_stage
from janus_jax.shapes import score
from janus_jax.train.samples import SampleLogger


def test_shapes_are_scored_while_a_run_trains(config, data, monkeypatch):
    config.samples.shapes = str(data)
    rows = []
    log = types.SimpleNamespace(write=lambda step, values: rows.append((step, values)))
    stage = make_stage(config.to_dict(), "stage_3", mesh=sharding.make_mesh())
    text_tokenizer = tokenizer.load(data / "tokenizer.json")
    logger = SampleLogger(stage, text_tokenizer, folder=None, log=log)

    def draw_all(sampler, prompts, *, seeds, guidance):
        assert guidance.scale == config.samples.guidance and seeds == [0]
        rng, level = np.random.default_rng(0), score.load_level(data)
        return {
            category: np.stack(
                [[score.render_prompt(rng, level, category, prompt)] for prompt in part]
            )
            for category, part in prompts.items()
        }

    monkeypatch.setattr(score, "draw_all", draw_all)
    logger(7, stage.network.init(jax.random.key(0)), batch=None)
    expected = {f"shapes/{name}": 1.0 for name in (*score.load_prompts(data), "overall")}
    assert rows == [(7, expected)]
