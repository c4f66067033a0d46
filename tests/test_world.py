"""The world of shapes has an exact split, distinct prompts, and no good majority answer."""

import json

import numpy as np

from janus_jax.shapes import world


def test_training_scenes_have_no_held_out_combination():
    rng = np.random.default_rng(0)
    for category in world.CATEGORIES:
        for _ in range(100):
            assert not world.held_out(world.sample_scene(rng, category=category, split="train"))
            assert world.held_out(world.sample_scene(rng, category=category, split="heldout"))


def test_held_out_prompts_are_distinct():
    prompts = world.held_out_prompts()
    for category in world.CATEGORIES:
        assert len({p["prompt"] for p in prompts[category]}) == 100


def test_the_majority_answer_scores_low(data):
    assert json.loads((data / "about.json").read_text())["majority_answer_baseline"] <= 0.4
