"""What is said about scenes of shapes: prompts, captions, questions and plain text.

Training texts describe training scenes only, so the split of `world` is theirs too.
"""

import numpy as np

from janus_jax.shapes.levels import SIZES
from janus_jax.shapes.world import (
    CATEGORIES,
    COLORS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    pick,
    region_of,
    relation_of,
    sample_scene,
    two,
)

NUMBERS = ("zero", "one", "two", "three", "four")
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


def collage_caption(scene, level):
    """Every object of a collage, and where it is."""
    return ", ".join(f"{REGIONS[region_of(t, level)]}: {full_name(t)}" for t in scene.things) + "."


def full_name(thing):
    """'small red circle'."""
    return f"{thing.size} {thing.color} {thing.shape}"


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
    return kind, *_exists(rng, scene, thing)


def _exists(rng, scene, thing):
    """(question, answer) about an object of the scene, or one of another color or shape."""
    other = thing
    if rng.random() < 0.5:
        while any((t.color, t.shape) == (other.color, other.shape) for t in scene.things):
            change = (
                {"color": pick(rng, COLORS)} if rng.random() < 0.5 else {"shape": pick(rng, SHAPES)}
            )
            other = thing._replace(**change)
    answer = "yes" if other is thing else "no"
    return f"Is there {article(f'{other.color} {other.shape}')}?", answer


def collage_question(rng, scene, level):
    """(question, answer) about a collage: what is where, how many, which relation."""
    things = scene.things
    thing = things[rng.integers(len(things))]
    of_shape = [t for t in things if t.shape == thing.shape]
    alone = [t for t in things if sum(t[1:3] == other[1:3] for other in things) == 1]
    kind = rng.integers(6)
    if kind == 0 and len(of_shape) < len(NUMBERS):
        return f"How many {plural(thing.shape)} are there?", NUMBERS[len(of_shape)]
    if kind == 1:
        return _exists(rng, scene, thing)
    if kind == 2 and alone:
        thing = alone[rng.integers(len(alone))]
        return f"Where is the {thing.color} {thing.shape}?", REGIONS[region_of(thing, level)]
    if kind > 3 and len(alone) > 1:
        first, second = (alone[i] for i in rng.permutation(len(alone))[:2])
        if relation_of(first, second):
            # Short names, as in questions about two objects, where shapes suffice.
            name = lambda t: (
                t.shape if sum(t.shape == o.shape for o in things) == 1 else f"{t.color} {t.shape}"
            )
            question = f"Is the {name(first)} left of, right of, above or below the {name(second)}?"
            return question, relation_of(first, second)
    region = region_of(thing, level) if rng.random() < 0.8 else int(rng.integers(len(REGIONS)))
    there = [full_name(t) for t in things if region_of(t, level) == region]
    return f"What is at the {REGIONS[region]}?", ", ".join(there) or "nothing"


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
