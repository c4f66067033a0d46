"""The world keeps its split, and the reader is exact."""

import numpy as np
import pytest

from janus_jax.data import shapes
from janus_jax.eval import shapes_reader

NAMED = dict(zip(shapes.CATEGORIES, ((1, 0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 1), (0, 0, 1), (0, 1, 1)), strict=True))


def wanted(scene):
    return [[n if k else "" for n, k in zip(t[:3], NAMED[scene.category], strict=True)] for t in scene.things]


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_reader_accepts_real_pictures_and_refuses_near_misses(category):
    rng = np.random.default_rng(1)
    good, near = [], []
    for i in range(150):
        scene = shapes.sample_scene(rng, category=category, split="heldout" if i % 2 else "train")
        things = shapes_reader.read(shapes.render(rng, scene))
        want = wanted(scene)
        good.append(shapes_reader.fits(things, wanted=want, relation=scene.relation))
        changed = [list(w) for w in want]
        field = int(rng.choice([k for k in range(3) if want[0][k]]))
        names = (shapes.SIZES, shapes.COLORS, shapes.SHAPES)[field]
        other = str(rng.choice([n for n in names if all(n != w[field] for w in want)]))
        for w in changed if category == "counting" else changed[:1]:
            w[field] = other
        near.append(shapes_reader.fits(things, wanted=changed, relation=scene.relation))
        near.append(shapes_reader.fits(things, wanted=[*want, want[0]], relation=""))
        if scene.relation:
            near.append(shapes_reader.fits(things, wanted=want, relation=shapes.OPPOSITE[scene.relation]))
    assert np.mean(good) >= 0.99 and np.mean(near) <= 0.05


def test_training_scenes_hold_no_held_out_combination():
    rng = np.random.default_rng(0)
    for category in shapes.CATEGORIES:
        for _ in range(100):
            assert not shapes.held_out(shapes.sample_scene(rng, category=category, split="train"))
            assert shapes.held_out(shapes.sample_scene(rng, category=category, split="heldout"))


def test_held_out_prompts_are_distinct_and_enough():
    prompts = shapes.held_out_prompts()
    for category in shapes.CATEGORIES:
        assert len({p["prompt"] for p in prompts[category]}) == 100


def test_the_majority_answer_is_a_poor_one(data):
    import json

    assert json.loads((data / "about.json").read_text())["majority_answer_baseline"] <= 0.4
