"""The world keeps its split, and the reader is exact."""

import numpy as np
import pytest

from janus_jax.shapes import reader, world

NAMED = dict(zip(world.CATEGORIES, ((1, 0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 1), (0, 0, 1), (0, 1, 1)), strict=True))


def wanted(scene):
    return [[n if k else "" for n, k in zip(t[:3], NAMED[scene.category], strict=True)] for t in scene.things]


@pytest.mark.parametrize("category", world.CATEGORIES)
def test_reader_accepts_real_pictures_and_refuses_near_misses(category):
    rng = np.random.default_rng(1)
    good, near = [], []
    for i in range(150):
        scene = world.sample_scene(rng, category=category, split="heldout" if i % 2 else "train")
        things = reader.read(world.render(rng, scene))
        want = wanted(scene)
        good.append(reader.fits(things, wanted=want, relation=scene.relation))
        changed = [list(w) for w in want]
        field = int(rng.choice([k for k in range(3) if want[0][k]]))
        names = (world.SIZES, world.COLORS, world.SHAPES)[field]
        other = str(rng.choice([n for n in names if all(n != w[field] for w in want)]))
        for w in changed if category == "counting" else changed[:1]:
            w[field] = other
        near.append(reader.fits(things, wanted=changed, relation=scene.relation))
        near.append(reader.fits(things, wanted=[*want, want[0]], relation=""))
        if scene.relation:
            near.append(reader.fits(things, wanted=want, relation=world.OPPOSITE[scene.relation]))
    assert np.mean(good) >= 0.99 and np.mean(near) <= 0.05


def test_training_scenes_hold_no_held_out_combination():
    rng = np.random.default_rng(0)
    for category in world.CATEGORIES:
        for _ in range(100):
            assert not world.held_out(world.sample_scene(rng, category=category, split="train"))
            assert world.held_out(world.sample_scene(rng, category=category, split="heldout"))


def test_held_out_prompts_are_distinct_and_enough():
    prompts = world.held_out_prompts()
    for category in world.CATEGORIES:
        assert len({p["prompt"] for p in prompts[category]}) == 100


def test_the_majority_answer_is_a_poor_one(data):
    import json

    assert json.loads((data / "about.json").read_text())["majority_answer_baseline"] <= 0.4
