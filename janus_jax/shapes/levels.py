"""How hard the images of the `shapes` world are: where objects are placed, and how exactly.

Scenes, words, held-out combinations and the benchmark are the same at every level.
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

from janus_jax.errors import UserError

REACH = 1.25  # distance of the farthest corner of a shape from its center, in radii
DISTANCE = 1.2  # radii that free objects are from the border and, plus the gap, from each other


SIZES = ("small", "medium", "large")


class Level(NamedTuple):
    """How the objects of a scene become an image.

    Attributes:
      image_size: width and height of an image, pixels.
      radii: of a small, a medium and a large circle, pixels; other shapes are of similar size.
      cells: cells per side; every object is in the center of one. 0: objects are anywhere.
      gap: between two objects, pixels, where there are no cells.
      radius_jitter: pixels; angle_jitter: degrees; the largest deviations.
      min_area: pixels of the smallest object; a smaller region is not an object and makes the image
        count as wrong.
      noise: pixels; still smaller regions are ignored, since the image tokenizer causes them.
    """

    image_size: int
    radii: tuple
    cells: int
    gap: float
    radius_jitter: float
    angle_jitter: float
    min_area: int
    noise: int

    def radius(self, size):
        """Radius of a circle of a named size, pixels."""
        return self.radii[SIZES.index(size)]

    def nearest_size(self, radius):
        """Name of the size whose radius is the nearest."""
        return min(SIZES, key=lambda size: abs(self.radius(size) - radius))

    @property
    def cell_size(self):
        """Width and height of a cell, pixels."""
        return self.image_size // self.cells

    def place(self, rng, scene, *, fits, tries=60):
        """Gives the objects of a scene a position, a radius and an angle.

        Args:
          rng: numpy Generator.
          scene: Scene.
          fits: tuple of placed objects -> whether they have the scene's relation.
          tries: placements that are tried.

        Returns:
          Scene, or None if no placement was right.
        """
        n = len(scene.things)
        radii = np.array([self.radius(t.size) for t in scene.things])
        radii = radii + rng.uniform(-self.radius_jitter, self.radius_jitter, size=n)
        angles = rng.uniform(-self.angle_jitter, self.angle_jitter, size=n)
        for spots in self._candidates(rng, radii, tries):
            values = zip(scene.things, spots.tolist(), radii.tolist(), angles.tolist(), strict=True)
            placed = tuple(t._replace(x=x, y=y, radius=r, angle=a) for t, (x, y), r, a in values)
            if fits(placed):
                return scene._replace(things=placed)
        return None

    def _candidates(self, rng, radii, tries):
        """Random centers without overlap, float[n, 2] each; at most `tries`."""
        if self.cells:
            for _ in range(tries):
                chosen = rng.choice(self.cells**2, len(radii), replace=False)
                grid = np.stack([chosen % self.cells, chosen // self.cells], axis=-1)
                yield (grid + 0.5) * self.cell_size
            return
        margin = (DISTANCE * radii + 1)[:, None]
        for spots in rng.uniform(margin, self.image_size - margin, size=(tries, len(radii), 2)):
            apart = (
                math.dist(spots[i], spots[j]) > DISTANCE * (radii[i] + radii[j]) + self.gap
                for i, j in combinations(range(len(radii)), 2)
            )
            if all(apart):
                yield spots


LEVELS = {
    # Every object fills one cell of 16 px: a patch of the tiny encoder. Learned in minutes.
    "cells": Level(
        image_size=48,
        radii=(3.8, 5.0, 6.3),
        cells=3,
        gap=0.0,
        radius_jitter=0.0,
        angle_jitter=0.0,
        min_area=16,
        noise=6,
    ),
    # Free positions, sizes and angles, for accelerators and long runs.
    "free": Level(
        image_size=64,
        radii=(7.0, 10.0, 13.5),
        cells=0,
        gap=2.0,
        radius_jitter=0.5,
        angle_jitter=6.0,
        min_area=40,
        noise=12,
    ),
}


def level_of(name):
    """The Level called `name`.

    Raises:
      UserError: for an unknown name.
    """
    if name not in LEVELS:
        raise UserError(f"There is no level {name!r} of shapes; known: {list(LEVELS)}.")
    return LEVELS[name]
