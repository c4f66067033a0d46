"""Reads a `shapes` image: which objects it shows, and whether they match a prompt.

It takes the place of GenEval's detector: connected regions that differ from the light background
are compared with outlines of every shape at a grid of sizes and angles, and their color is the
nearest of the palette.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from janus_jax.shapes import world
from janus_jax.shapes.levels import REACH

MIN_OVERLAP = 0.72  # intersection over union of a region with its best outline
FOREGROUND = 95.0  # RGB distance from the background


class Templates(NamedTuple):
    """Outlines to compare regions with: masks float[n, window, window], areas, names, radii."""

    masks: np.ndarray
    areas: np.ndarray
    names: list
    radii: np.ndarray


@cache
def templates(level):
    """Templates of every shape, size and angle of a Level."""
    smallest, largest = level.radii[0], level.radii[-1]
    window = 2 * math.ceil(REACH * largest + 1)  # and a margin
    radii = np.linspace(0.8 * smallest, 1.15 * largest, 21)
    angles = (-12, -8, -4, 0, 4, 8, 12) if level.angle_jitter else (-5, 0, 5)
    masks, names, sizes = [], [], []
    for name in world.SHAPES:
        for radius in radii:
            for angle in (0,) if name == "circle" else angles:
                image = Image.new("L", (window * 4, window * 4))
                points = world.outline(name, x=0, y=0, radius=radius, angle=angle) * 4
                ImageDraw.Draw(image).polygon([tuple(p + window * 2) for p in points], fill=255)
                mask = image.resize((window, window), Image.Resampling.BOX)
                masks.append(_center(np.asarray(mask, np.float32) / 255, window))
                names.append(name)
                sizes.append(radius)
    masks = np.stack(masks)
    return Templates(masks, masks.sum(axis=(1, 2)), names, np.array(sizes))


def _center(coverage, window):
    """Moves the centroid of a coverage map to the center of a window x window map."""
    y, x = ndimage.center_of_mass(coverage)
    rows = np.arange(window) - window / 2 + y
    columns = np.arange(window) - window / 2 + x
    return ndimage.map_coordinates(coverage, np.meshgrid(rows, columns, indexing="ij"), order=1)


def read(pixels, level):
    """Finds the objects of an image.

    Args:
      pixels: uint8[h, w, 3].
      level: Level of its world.

    Returns:
      list of `world.Thing`; a region that matches no shape has the shape ''.
    """
    rgb = pixels.astype(np.float32)
    background = np.median(rgb.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(rgb - background, axis=-1)
    labels, count = ndimage.label(distance > FOREGROUND)
    palette = np.array(list(world.COLORS.values()), np.float32)
    names = list(world.COLORS)
    things = []
    for i in range(1, count + 1):
        region = labels == i
        if region.sum() < level.noise:
            continue
        core = ndimage.binary_erosion(region)
        color = np.median(rgb[core if core.any() else region], axis=0)
        near = ndimage.binary_dilation(region) & (region | (labels == 0))
        coverage = np.where(near, distance / np.linalg.norm(color - background), 0).clip(0, 1)
        shape, size = _shape_and_size(coverage, level)
        name = names[int(np.argmin(np.linalg.norm(palette - color, axis=-1)))]
        y, x = ndimage.center_of_mass(coverage)
        things.append(world.Thing(size, name, shape, x, y))
    return things


def _shape_and_size(coverage, level):
    """Shape and size of the best outline of similar area; '' if none overlaps enough."""
    masks, areas, names, radii = templates(level)
    area = coverage.sum()
    near = np.flatnonzero(abs(areas / area - 1) < 0.3)
    if area < level.min_area or not len(near):
        return "", ""
    region = _center(coverage, masks.shape[-1])
    intersection = np.minimum(masks[near], region).sum(axis=(1, 2))
    union = np.maximum(masks[near], region).sum(axis=(1, 2))
    overlap = intersection / union
    best = near[int(np.argmax(overlap))]
    shape = names[best] if overlap.max() >= MIN_OVERLAP else ""
    return shape, level.nearest_size(radii[best])


def fits(things, *, expected, relation):
    """Whether an image has exactly the objects of a prompt.

    Args:
      things: result of `read`.
      expected: [[size, color, shape], ...]; '' leaves an attribute open.
      relation: of the first expected object to the second, or ''.
    """
    if len(things) != len(expected):
        return False
    if len(expected) == 2 and expected[0] != expected[1]:
        first, second = expected
        for a, b in (things, things[::-1]):
            right_relation = relation in ("", world.relation_of(a, b, margin=0.0))
            if _matches(a, first) and _matches(b, second) and right_relation:
                return True
        return False
    return all(_matches(thing, attributes) for thing in things for attributes in expected)


def _matches(thing, attributes):
    """Whether an object has the given size, color and shape; '' leaves one open."""
    return all(name in ("", own) for name, own in zip(attributes, thing[:3], strict=True))
