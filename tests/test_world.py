"""The world of shapes has an exact split, distinct prompts, and no good majority answer."""

import json

import numpy as np
import pytest

from janus_jax.shapes import world
from janus_jax.shapes.levels import LEVELS


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_training_scenes_have_no_held_out_combination(level):
    rng = np.random.default_rng(0)
    for category in world.CATEGORIES:
        for _ in range(50):
            sample = lambda split, c=category: world.sample_scene(
                rng, level, category=c, split=split
            )
            assert not world.held_out(sample("train")) and world.held_out(sample("heldout"))


def test_objects_of_the_cells_level_are_alone_in_their_cells():
    level, rng = LEVELS["cells"], np.random.default_rng(0)
    for _ in range(50):
        things = world.sample_collage(rng, level).things
        cells = {(t.x // level.cell_size, t.y // level.cell_size) for t in things}
        assert len(cells) == len(things)
        pixels = world.render(rng, level, world.Scene("", things)).astype(int)
        filled = {
            (x, y)
            for x in range(level.cells)
            for y in range(level.cells)
            if (abs(_cell(pixels, x, y, level.cell_size) - world.GROUND) > 60).any()
        }
        assert filled == cells


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_a_collage_is_not_held_out_and_its_caption_has_every_object(level):
    rng, third = np.random.default_rng(0), level.image_size / 3
    where = lambda t: world.REGIONS[3 * int(t.y // third) + int(t.x // third)]
    for _ in range(100):
        scene = world.sample_collage(rng, level)
        assert not world.held_out(scene)
        said = world.collage_caption(scene, level).rstrip(".").split(", ")
        assert sorted(said) == sorted(f"{where(t)}: {' '.join(t[:3])}" for t in scene.things)


def test_sentences_of_a_caption_are_true_and_name_every_attribute_of_two_objects():
    level, rng = LEVELS["cells"], np.random.default_rng(0)
    orders = set()
    for _ in range(100):
        scene = world.sample_scene(rng, level, category="position", split="train")
        *said, relation = world.caption_in_sentences(rng, scene).rstrip(".").split(". ")
        expected = [f"The {t.shape} is {t.size} and {t.color}" for t in scene.things]
        assert sorted(said) == sorted(expected)
        orders.add(said == expected)
        forward = said == expected
        how = scene.relation if forward else world.OPPOSITE[scene.relation]
        first, last = scene.things if forward else scene.things[::-1]
        assert relation == f"The {first.shape} is {how} the {last.shape}"
    assert orders == {True, False}


def _cell(pixels, x, y, size):
    return pixels[y * size : (y + 1) * size, x * size : (x + 1) * size]


def test_held_out_prompts_are_distinct():
    prompts = world.held_out_prompts(LEVELS["cells"])
    for category in world.CATEGORIES:
        assert len({p["prompt"] for p in prompts[category]}) == 100


def test_the_majority_answer_scores_low(data):
    assert json.loads((data / "about.json").read_text())["majority_answer_baseline"] <= 0.4
