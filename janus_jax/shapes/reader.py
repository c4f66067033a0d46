"""Reads a `shapes` picture: which objects it shows, and whether they are what a prompt asks for.

Exact in the sense of GenEval, without a detector: blobs are cut out of the light ground, each is matched with drawn
outlines of every shape over a grid of sizes and angles, and its colour is the nearest of the palette.
"""

from collections import Counter
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from janus_jax.shapes import world

WINDOW = 36  # side of the window that blobs are compared in, pixels
MIN_AREA = 40  # smaller blobs are specks: too small to be an object, too large to overlook
SPECK = 12  # anything below is noise of the tokenizer
MIN_OVERLAP = 0.72  # intersection over union that a blob must reach with some outline
FOREGROUND = 95.0  # RGB distance from the ground


@cache
def _templates():
    """Coverage float[n, WINDOW, WINDOW] of every outline, their areas, shape names and radii."""
    masks, names, radii = [], [], []
    for name in world.SHAPES:
        for radius in np.arange(5.5, 15.6, 0.5):
            for angle in (0,) if name == "circle" else (-12, -8, -4, 0, 4, 8, 12):
                image = Image.new("L", (WINDOW * 4, WINDOW * 4))
                points = world.outline(name, x=0, y=0, radius=radius, angle=angle) * 4
                ImageDraw.Draw(image).polygon([tuple(p + WINDOW * 2) for p in points], fill=255)
                mask = np.asarray(image.resize((WINDOW, WINDOW), Image.Resampling.BOX), np.float32) / 255
                masks.append(_centre(mask))
                names.append(name)
                radii.append(radius)
    masks = np.stack(masks)
    return masks, masks.sum(axis=(1, 2)), names, np.array(radii)


def _centre(coverage):
    """Moves the centroid of a coverage map to the middle of a WINDOW x WINDOW frame."""
    y, x = ndimage.center_of_mass(coverage)
    rows = np.arange(WINDOW) - WINDOW / 2 + y
    columns = np.arange(WINDOW) - WINDOW / 2 + x
    return ndimage.map_coordinates(coverage, np.meshgrid(rows, columns, indexing="ij"), order=1)


def read(pixels):
    """Finds the objects of a picture.

    Args:
      pixels: uint8[64, 64, 3].

    Returns:
      list of `shapes.Thing`; a blob that looks like no shape has the shape ''.
    """
    rgb = pixels.astype(np.float32)
    ground = np.median(rgb.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(rgb - ground, axis=-1)
    labels, count = ndimage.label(distance > FOREGROUND)
    palette = np.array(list(world.COLORS.values()), np.float32)
    things = []
    for i in range(1, count + 1):
        blob = labels == i
        if blob.sum() < SPECK:
            continue
        core = ndimage.binary_erosion(blob)
        color = np.median(rgb[core if core.any() else blob], axis=0)
        near = ndimage.binary_dilation(blob) & (blob | (labels == 0))
        coverage = np.where(near, distance / np.linalg.norm(color - ground), 0).clip(0, 1)
        shape, size = _shape_and_size(coverage)
        name = list(world.COLORS)[int(np.argmin(np.linalg.norm(palette - color, axis=-1)))]
        y, x = ndimage.center_of_mass(coverage)
        things.append(world.Thing(size, name, shape, x, y))
    return things


def _shape_and_size(coverage):
    """The outline that overlaps best among those of about the same area; '' for a shape that none fits."""
    masks, areas, names, radii = _templates()
    area = coverage.sum()
    near = np.flatnonzero(abs(areas / area - 1) < 0.3)
    if area < MIN_AREA or not len(near):
        return "", ""
    blob = _centre(coverage)
    overlap = np.minimum(masks[near], blob).sum(axis=(1, 2)) / np.maximum(masks[near], blob).sum(axis=(1, 2))
    best = near[int(np.argmax(overlap))]
    size = min(world.SIZES, key=lambda s: abs(world.SIZES[s] - radii[best]))
    return names[best] if overlap.max() >= MIN_OVERLAP else "", size


def fits(things, *, wanted, relation):
    """Whether the objects of a picture are just what a prompt asks for, no more and no fewer.

    Args:
      things: what `read` found.
      wanted: [[size, color, shape], ...]; '' leaves an attribute open.
      relation: what the first wanted object is to the second, or ''.
    """
    if len(things) != len(wanted):
        return False
    matches = lambda thing, want: all(w in ("", n) for w, n in zip(want, thing[:3], strict=True))
    if len(wanted) == 2 and wanted[0] != wanted[1]:
        orders = (things, things[::-1])
        return any(
            matches(a, wanted[0]) and matches(b, wanted[1]) and relation in ("", world.relation_of(a, b, margin=0.0))
            for a, b in orders
        )
    alike = Counter(tuple(w) for w in wanted)
    return all(matches(t, w) for t in things for w in alike)
