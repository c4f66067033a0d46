"""A small world of colored shapes: GenEval's six categories, an exact train / held-out split.

A scene has one to four objects on a light background; `levels` decides where. *Combinations* are
held out, from all categories of the training set:

    one object             3 of the 18 (size, shape) and 6 of the 48 (color, shape) pairs
    several of one kind    18 of the 144 (count, color, shape) triples
    two different shapes   3 of the 15 pairs of shapes

So a held-out prompt always describes something that no training image shows, made of parts that
training images show. Collages obey the same table; a held-out pair of shapes occurs there only
together with a third shape.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from janus_jax.shapes.levels import SIZES

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (245, 215, 30),
    "green": (30, 150, 50),
    "cyan": (60, 200, 220),
    "blue": (30, 70, 215),
    "purple": (130, 40, 170),
    "black": (25, 25, 25),
}
NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
SHARES = (0.10, 0.18, 0.20, 0.12, 0.20, 0.20)  # of the training scenes, in the order of CATEGORIES
REGIONS = (
    "top left", "top", "top right", "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
OPENERS = (
    "",
    *(
        f"{a} {b} "
        for a in ("a picture", "a photo", "an image", "a drawing")
        for b in ("of", "with", "showing")
    ),
)
CLOSERS = ("", ".", " on a plain ground")
GROUND = 244

LONE_COLORS = (
    1,
    4,
    7,
    2,
    5,
    0,
)  # of each shape, the index of the color that a single object of it never has
HELD_OUT_PAIRS = tuple(
    frozenset(p) for p in (("circle", "star"), ("square", "cross"), ("triangle", "diamond"))
)


class Thing(NamedTuple):
    """One object: its names, its position and radius in pixels, and its angle in degrees."""

    size: str
    color: str
    shape: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    angle: float = 0.0


class Scene(NamedTuple):
    """A category, its objects, and for `position` the first object's relation to the second."""

    category: str
    things: tuple[Thing, ...]
    relation: str = ""


def pick(rng, names):
    """A random one of `names`."""
    return tuple(names)[rng.integers(len(names))]


def two(rng, names):
    """Two random, different ones of `names`."""
    return tuple(tuple(names)[i] for i in rng.permutation(len(names))[:2])


def held_out(scene):
    """Whether a scene has a held-out combination, by the table at the top of this file."""
    things = scene.things
    first = things[0]
    shape = SHAPES.index(first.shape)
    color = list(COLORS).index(first.color)
    size = SIZES.index(first.size)
    if len(things) == 1:
        return shape == 2 * size or color == LONE_COLORS[shape]
    if len({t.shape for t in things}) == 1:
        return (color + shape + len(things)) % 8 == 0
    return frozenset(t.shape for t in things) in HELD_OUT_PAIRS


def sample_scene(rng, level, *, category, split):
    """A random scene of a category from 'train' or 'heldout', by rejection, placed by `level`."""
    while True:
        scene = _compose(rng, category)
        if _tests_its_category(scene) if split == "heldout" else not held_out(scene):
            placed = place(rng, level, scene)
            if placed is not None:
                return placed


def sample_collage(rng, level):
    """A scene of no category: random objects, at most as many as fit, in reading order."""
    most = level.cells**2 or 5
    while True:
        count = rng.integers(1, most, endpoint=True)
        things = tuple(
            Thing(pick(rng, SIZES), pick(rng, COLORS), pick(rng, SHAPES)) for _ in range(count)
        )
        scene = Scene("", things)
        placed = None if held_out(scene) else place(rng, level, scene)
        if placed is not None:
            in_order = sorted(placed.things, key=lambda t: region_of(t, level))
            return placed._replace(things=tuple(in_order))


def as_scene(things):
    """The Scene that these objects make, or None if questions about them would be ambiguous."""
    shapes, colors = {t.shape for t in things}, {t.color for t in things}
    alike = 1 <= len(things) <= 4 and len(shapes) == len(colors) == 1
    different = len(things) == len(shapes) == 2
    if "" in shapes or not (alike or different):
        return None
    return Scene("", tuple(things))


def _tests_its_category(scene):
    """Whether the attributes that the category's prompt names are a held-out combination."""
    thing = scene.things[0]
    shape, color, size = (
        SHAPES.index(thing.shape),
        list(COLORS).index(thing.color),
        SIZES.index(thing.size),
    )
    if scene.category == "single_object":
        return shape == 2 * size
    if scene.category == "colors":
        return color == LONE_COLORS[shape]
    return held_out(scene)


def _compose(rng, category):
    thing = lambda **kw: Thing(
        **{"size": pick(rng, SIZES), "color": pick(rng, COLORS), "shape": pick(rng, SHAPES), **kw}
    )
    if category in ("single_object", "colors"):
        return Scene(category, (thing(),))
    if category == "counting":
        count = int(rng.integers(2, 5))
        first, sizes = thing(), ("small", "medium")
        return Scene(category, tuple(first._replace(size=pick(rng, sizes)) for _ in range(count)))
    first, second = two(rng, SHAPES)
    colors = two(rng, COLORS)
    relation = pick(rng, RELATIONS) if category == "position" else ""
    return Scene(
        category,
        (thing(shape=first, color=colors[0]), thing(shape=second, color=colors[1])),
        relation,
    )


def place(rng, level, scene):
    """The scene with positions; None if none was found that fits its relation."""
    right = lambda things: scene.relation in ("", relation_of(things[0], things[-1]))
    return level.place(rng, scene, fits=right)


def relation_of(a, b, margin=4.0):
    """Relation of `a` to `b` along the longer axis; '' if none is longer by `margin` pixels."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > abs(dy) + margin:
        return "left of" if dx > 0 else "right of"
    if abs(dy) > abs(dx) + margin:
        return "above" if dy > 0 else "below"
    return ""


def region_of(thing, level):
    """Index in REGIONS of the ninth of the image where an object is."""
    row, column = (int(3 * place / level.image_size) for place in (thing.y, thing.x))
    return 3 * row + column


def outline(shape, *, x, y, radius, angle):
    """Corner points of a shape, float[points, 2]."""
    if shape == "circle":
        turns, reach = np.arange(48) / 48, np.ones(48)
    elif shape == "square":
        turns, reach = np.array([1, 3, 5, 7]) / 8, np.full(4, 1.2)
    elif shape == "diamond":
        turns, reach = np.arange(4) / 4, np.array([0.78, 1.25, 0.78, 1.25])
    elif shape == "triangle":
        turns, reach = np.array([3, 7, 11]) / 12, np.full(3, 1.25)
    elif shape == "star":
        turns, reach = np.arange(10) / 10 + 0.75, np.where(np.arange(10) % 2, 0.5, 1.25)
    else:  # cross
        arm = 0.36
        corners = [(1.1, arm), (arm, arm), (arm, 1.1), (-arm, 1.1), (-arm, arm), (-1.1, arm)]
        points = np.array(corners + [(-px, -py) for px, py in corners])
        turns = np.arctan2(points[:, 1], points[:, 0]) / (2 * math.pi)
        reach = np.hypot(points[:, 0], points[:, 1])
    if shape == "triangle":
        turns = turns + 0.5  # point upwards: y grows downwards
    theta = 2 * math.pi * turns + math.radians(angle)
    return np.stack(
        [x + radius * reach * np.cos(theta), y + radius * reach * np.sin(theta)], axis=-1
    )


def render(rng, level, scene, *, scale=4):
    """Renders a scene: uint8[h, w, 3]. Colors are jittered by a few levels."""
    side = level.image_size * scale
    image = Image.new("RGB", (side, side), (GROUND,) * 3)
    draw = ImageDraw.Draw(image)
    for t in scene.things:
        color = np.clip(np.array(COLORS[t.color]) + rng.integers(-8, 9, size=3), 0, 255)
        points = outline(t.shape, x=t.x, y=t.y, radius=t.radius, angle=t.angle) * scale
        draw.polygon([tuple(p) for p in points], fill=tuple(int(c) for c in color))
    return np.asarray(image.reduce(scale))


def article(words):
    """'orange star' -> 'an orange star'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(noun):
    """'cross' -> 'crosses'."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def describe(scene):
    """The description of a scene in its category's prompt, without opener and closer."""
    first, second = scene.things[0], scene.things[-1]
    return {
        "single_object": lambda: article(f"{first.size} {first.shape}"),
        "colors": lambda: article(f"{first.color} {first.shape}"),
        "counting": lambda: f"{NUMBERS[len(scene.things)]} {first.color} {plural(first.shape)}",
        "two_objects": lambda: f"{article(first.shape)} and {article(second.shape)}",
        "position": lambda: f"{article(first.shape)} {scene.relation} {article(second.shape)}",
        "color_attribution": lambda: (
            f"{article(f'{first.color} {first.shape}')} and "
            f"{article(f'{second.color} {second.shape}')}"
        ),
    }[scene.category]()


def prompt(rng, scene):
    """A prompt for a scene: opener, description, closer."""
    return f"{pick(rng, OPENERS)}{describe(scene)}{pick(rng, CLOSERS)}"


def full_name(thing):
    """'small red circle'."""
    return f"{thing.size} {thing.color} {thing.shape}"


def collage_caption(scene, level):
    """Every object of a collage, and where it is."""
    return ", ".join(f"{REGIONS[region_of(t, level)]}: {full_name(t)}" for t in scene.things) + "."


def caption(scene):
    """The full description of a scene."""
    first, second = scene.things[0], scene.things[-1]
    full = lambda t: article(full_name(t))
    if len(scene.things) == 1:
        return f"{full(first)}."
    if first.shape == second.shape:
        return f"{NUMBERS[len(scene.things)]} {first.color} {plural(first.shape)}."
    relation = relation_of(first, second)
    return f"{full(first)} {relation or 'and'} {full(second)}."


def caption_in_sentences(rng, scene):
    """The full description of a scene, object by object in random order, shapes first: to go on
    after a shape, a model has to find the object that has it.
    """
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    first, last = things[0], things[-1]
    if len(things) > 1 and first.shape == last.shape:
        return f"There are {NUMBERS[len(things)]} {first.color} {plural(first.shape)}."
    parts = [f"The {t.shape} is {t.size} and {t.color}." for t in things]
    if len(things) > 1 and relation_of(first, last):
        parts.append(f"The {first.shape} is {relation_of(first, last)} the {last.shape}.")
    return " ".join(parts)


def question(rng, scene):
    """(kind, question, answer) about a scene; the kind is random among those that fit the scene."""
    first, second, count = scene.things[0], scene.things[-1], len(scene.things)
    alike = count > 1 and first.shape == second.shape
    thing = scene.things[int(rng.integers(count))]
    kinds = ["shape", "exists"]
    kinds += ["count", "count", "color"] if alike else ["color", "size"]
    if count == 2 and not alike and relation_of(first, second):
        kinds += ["relation", "relation"]
    kind = pick(rng, kinds)
    noun = plural(thing.shape) if alike else thing.shape
    if kind == "shape":
        of = "objects" if alike else f"{thing.color} object"
        return kind, f"What shape {'are' if alike else 'is'} the {of}?", thing.shape
    if kind == "color":
        return kind, f"What color {'are' if alike else 'is'} the {noun}?", thing.color
    if kind == "size":
        return kind, f"What size is the {thing.shape}?", thing.size
    if kind == "count":
        return kind, f"How many {noun} are there?", NUMBERS[count]
    if kind == "relation":
        other = second if thing is first else first
        return (
            kind,
            f"Is the {thing.shape} left of, right of, above or below the {other.shape}?",
            relation_of(thing, other),
        )
    other = thing
    if rng.random() < 0.5:  # an object that is not in the scene: with another color or shape
        while any((t.color, t.shape) == (other.color, other.shape) for t in scene.things):
            change = (
                {"color": pick(rng, COLORS)} if rng.random() < 0.5 else {"shape": pick(rng, SHAPES)}
            )
            other = thing._replace(**change)
    answer = "yes" if other is thing else "no"
    return kind, f"Is there {article(f'{other.color} {other.shape}')}?", answer


def sentence(rng, level):
    """A sentence about the same world."""
    kind = int(rng.integers(4))
    if kind == 0:
        scene = sample_scene(rng, level, category=pick(rng, CATEGORIES), split="train")
        return f"This is {caption(scene)}"
    first, second = two(rng, SHAPES)
    if kind == 1:
        relation = pick(rng, RELATIONS)
        condition = f"{article(first)} is {relation} {article(second)}"
        return f"If {condition}, the {second} is {OPPOSITE[relation]} the {first}."
    if kind == 2:
        a, b = (int(n) for n in rng.integers(1, 3, size=2))
        name = lambda n: f"{NUMBERS[n]} {plural(first) if n > 1 else first}"
        return f"{name(a)} and {name(b)} make {NUMBERS[a + b]} {plural(first)}."
    small, large = sorted(rng.choice(3, 2, replace=False))
    return f"A {SIZES[small]} {first} fits into a {SIZES[large]} {first}, not the other way round."


def held_out_prompts(level, *, per_category=100, seed=0):
    """{category: [{'prompt', 'things': [[size, color, shape], ...], 'relation'}]}, all distinct.

    Attributes that a prompt leaves open are '' in 'things'.
    """
    rng = np.random.default_rng((seed, 1_000_003))
    named = {  # which of (size, color, shape) the prompt names
        "single_object": (1, 0, 1),
        "two_objects": (0, 0, 1),
        "counting": (0, 1, 1),
        "colors": (0, 1, 1),
        "position": (0, 0, 1),
        "color_attribution": (0, 1, 1),
    }
    prompts = {}
    for category in CATEGORIES:
        by_text = {}
        while len(by_text) < per_category:
            scene = sample_scene(rng, level, category=category, split="heldout")
            attributes = lambda t, on=named[category]: [
                name if use else "" for name, use in zip(t[:3], on, strict=True)
            ]
            text = prompt(rng, scene)
            things = [attributes(t) for t in scene.things]
            by_text.setdefault(text, {"prompt": text, "things": things, "relation": scene.relation})
        prompts[category] = list(by_text.values())
    return prompts
