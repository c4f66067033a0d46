"""The world of shapes has an exact split, distinct prompts, and no good majority answer."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from janus_jax.shapes import language, world
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


def _cell(pixels, x, y, size):
    return pixels[y * size : (y + 1) * size, x * size : (x + 1) * size]


def test_held_out_prompts_are_distinct():
    prompts = language.held_out_prompts(LEVELS["cells"])
    for category in world.CATEGORIES:
        assert len({p["prompt"] for p in prompts[category]}) == 100


def test_the_majority_answer_scores_low(data):
    assert json.loads((data / "about.json").read_text())["majority_answer_baseline"] <= 0.4


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_what_is_said_of_collages_is_true(level):
    """Every answer is worked out again from positions; a caption names each object once."""
    rng, kinds, third = np.random.default_rng(0), Counter(), level.image_size / 3
    where = lambda t: language.REGIONS[3 * int(t.y // third) + int(t.x // third)]
    for _ in range(100):
        scene = world.sample_collage(rng, level)
        assert not world.held_out(scene)
        said = language.collage_caption(scene, level).rstrip(".").split(", ")
        assert sorted(said) == sorted(f"{where(t)}: {' '.join(t[:3])}" for t in scene.things)
        for _ in range(6):
            question, answer = language.collage_question(rng, scene, level)
            kinds[" ".join(question.split(" ")[:2])] += 1
            if question.startswith("How many"):
                noun = question.split(" ")[2]
                count = sum(language.plural(t.shape) == noun for t in scene.things)
                assert answer == language.NUMBERS[count]
            elif question.startswith("Where"):
                color, shape = question.rstrip("?").split(" ")[-2:]
                (thing,) = [t for t in scene.things if t[1:3] == (color, shape)]
                assert answer == where(thing)
            elif question.startswith("What"):
                region = question.split(" at the ")[1].rstrip("?")
                there = [" ".join(t[:3]) for t in scene.things if where(t) == region]
                assert answer == (", ".join(there) or "nothing")
            elif question.startswith("Is there"):
                color, shape = question.rstrip("?").split(" ")[-2:]
                assert answer == (
                    "yes" if any(t[1:3] == (color, shape) for t in scene.things) else "no"
                )
            else:
                first, second = re.fullmatch(
                    "Is the (.*) left of, right of, above or below the (.*)[?]", question
                ).groups()
                (a,), (b,) = (
                    [t for t in scene.things if f"{t.color} {t.shape}".endswith(name)]
                    for name in (first, second)
                )
                assert answer == world.relation_of(a, b)
    assert len(kinds) == 5 and min(kinds.values()) > 20
