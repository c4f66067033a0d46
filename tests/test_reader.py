"""The reader of shapes accepts rendered scenes and refuses near misses."""

import numpy as np
import pytest

from janus_jax.shapes import reader, world
from janus_jax.shapes.levels import LEVELS

NAMED = {  # which of (size, color, shape) the prompts of a category name
    "single_object": (1, 0, 1),
    "two_objects": (0, 0, 1),
    "counting": (0, 1, 1),
    "colors": (0, 1, 1),
    "position": (0, 0, 1),
    "color_attribution": (0, 1, 1),
}


def attributes_of(scene):
    use = NAMED[scene.category]
    return [[name if u else "" for name, u in zip(t[:3], use, strict=True)] for t in scene.things]


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("category", world.CATEGORIES)
def test_reader_accepts_scenes_and_refuses_near_misses(category, level):
    rng = np.random.default_rng(1)
    correct, near_misses = [], []
    for i in range(150):
        split = "heldout" if i % 2 else "train"
        scene = world.sample_scene(rng, level, category=category, split=split)
        things = reader.read(world.render(rng, level, scene), level)
        fits = lambda expected, relation, things=things: reader.fits(
            things, expected=expected, relation=relation
        )
        expected = attributes_of(scene)
        correct.append(fits(expected, scene.relation))
        changed = [list(attributes) for attributes in expected]
        field = int(rng.choice([k for k in range(3) if expected[0][k]]))
        names = (world.SIZES, world.COLORS, world.SHAPES)[field]
        others = [name for name in names if all(name != a[field] for a in expected)]
        other = str(rng.choice(others))
        for attributes in changed if category == "counting" else changed[:1]:
            attributes[field] = other
        near_misses.append(fits(changed, scene.relation))
        near_misses.append(fits([*expected, expected[0]], ""))
        if scene.relation:
            near_misses.append(fits(expected, world.OPPOSITE[scene.relation]))
    assert np.mean(correct) >= 0.99 and np.mean(near_misses) <= 0.05
