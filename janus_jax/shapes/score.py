"""Scores a model on `shapes`: answers to held-out questions, images of held-out prompts.

The ceiling of the score is that of rendered images after the image tokenizer and back; the floor is
that of the model's images for other prompts of the category.
"""

import io
import json
from pathlib import Path

import numpy as np
import rich.progress
from PIL import Image

from janus_jax.data.images import encode_png
from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.shapes import reader, world
from janus_jax.shapes.levels import level_of

BATCH = 64


def load_prompts(data):
    """{category: [{'prompt', 'things', 'relation'}]} of a `shapes` folder."""
    path = Path(data) / "prompts.json"
    try:
        prompts = json.loads(path.read_text())
        if all(
            p["prompt"] and p["things"] for category in world.CATEGORIES for p in prompts[category]
        ):
            return prompts
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(
        f"No prompts.json of this set in {str(data)!r}; make it with `python -m janus_jax.prepare "
        "shapes --out=DIR`."
    )


def load_level(data):
    """The Level of a `shapes` folder; folders of version 0.1 do not name theirs and are free."""
    path = Path(data) / "about.json"
    try:
        about = json.loads(path.read_text()) if path.is_file() else {}
        return level_of(about.get("level", "free"))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged; make the set again: {error}.") from error


def load_questions(data):
    """The held-out questions of a `shapes` folder, a list of records."""
    source = Source(
        "heldout", kind="array_record", path=str(Path(data) / "questions-heldout.array_record")
    )
    return [source[i] for i in range(len(source))]


def combinations(prompts):
    """{category: number of different scenes}; further prompts differ in wording only."""
    return {
        c: len({json.dumps([p["things"], p["relation"]]) for p in ps}) for c, ps in prompts.items()
    }


def understanding(sampler, records, *, batch=BATCH):
    """Share of held-out questions with exactly the right answer, overall and by kind."""
    kinds = [r["kind"] for r in records]
    correct = []
    for start in rich.progress.track(range(0, len(records), batch), description="questions"):
        part = records[start : start + batch]
        images = [Image.open(io.BytesIO(r["image"])).convert("RGB") for r in part]
        answers = sampler.ask(
            *_padded(images, [r["question"] for r in part], size=batch), max_tokens=8
        )
        correct += [answer == r["answer"] for answer, r in zip(answers, part, strict=False)]
    by_kind = {
        kind: float(np.mean([c for c, k in zip(correct, kinds, strict=True) if k == kind]))
        for kind in sorted(set(kinds))
    }
    return {"accuracy": float(np.mean(correct)), "questions": len(correct), "by_kind": by_kind}


def _padded(*lists, size):
    """Pads lists to `size` by their last element, so that one batch size is compiled."""
    return [part + part[-1:] * (size - len(part)) for part in lists]


def draw_all(sampler, prompts, *, seeds, guidance, batch=BATCH):
    """Generates an image per prompt and seed: {category: uint8[prompts, len(seeds), h, w, 3]}."""
    texts = [p["prompt"] for part in prompts.values() for p in part]
    count = max(batch // len(seeds), 1)
    images = []
    for start in rich.progress.track(range(0, len(texts), count), description="drawings"):
        part = texts[start : start + count]
        (padded,) = _padded(part, size=count)
        images += list(sampler.draw(padded, seeds=[seeds] * count, guidance=guidance)[: len(part)])
    by_category, start = {}, 0
    for category, part in prompts.items():
        by_category[category] = np.stack(images[start : start + len(part)])
        start += len(part)
    return by_category


def score(images, prompts, level):
    """Share of images that match their prompt, and share that match another of their category.

    Args:
      images: {category: uint8[prompts, seeds, h, w, 3]}.
      prompts: {category: [{'prompt', 'things', 'relation'}]}.
      level: Level of the images.

    Returns:
      two dicts, {category: share} and 'overall', their plain mean: the score and its floor.
    """
    scores, floor = {}, {}
    for category, rows in images.items():
        things = [[reader.read(image, level) for image in row] for row in rows]
        part = prompts[category]
        scores[category] = float(np.mean([_share(things[i], part[i]) for i in range(len(rows))]))
        order = np.random.default_rng(0).permutation(len(rows))
        others = np.roll(order, 1)
        floor[category] = float(
            np.mean([_share(things[i], part[j]) for i, j in zip(order, others, strict=True)])
        )
    for table in (scores, floor):
        table["overall"] = float(np.mean(list(table.values())))
    return scores, floor


def _share(things_of_images, prompt):
    """Share of images, given by their objects, that match a prompt."""
    return np.mean([_fits(things, prompt) for things in things_of_images])


def _fits(things, prompt):
    return reader.fits(things, expected=prompt["things"], relation=prompt["relation"])


def is_right(image, prompt, level):
    """Whether an image, uint8[h, w, 3], shows what a prompt describes."""
    return _fits(reader.read(image, level), prompt)


def round_trip(sampler, images, level, *, batch=BATCH, seed=0):
    """Share of right answers to questions about images that the model itself has generated.

    The right answer is that of what the reader sees. An image that shows no scene counts as wrong.

    Args:
      sampler: Sampler.
      images: uint8[M, h, w, 3].
      level: Level of the images.
      batch: questions at once.
      seed: of the questions.

    Returns:
      {'accuracy', 'questions', 'unreadable'}, the last one a share.
    """
    rng = np.random.default_rng((seed, 5))
    scenes = [world.as_scene(reader.read(image, level)) for image in images]
    readable = [(image, scene) for image, scene in zip(images, scenes, strict=True) if scene]
    records = []
    for image, scene in readable:
        kind, question, answer = world.question(rng, scene)
        content = {"image": encode_png(image), "question": question, "answer": answer}
        records.append(content | {"kind": kind})
    correct = 0.0
    if records:
        correct = understanding(sampler, records, batch=batch)["accuracy"] * len(records)
    return {
        "accuracy": correct / len(images),
        "questions": len(images),
        "unreadable": 1 - len(readable) / len(images),
    }


def ceiling(sampler, prompts, level, *, seed=0, batch=BATCH):
    """The score of rendered images of the prompts, after the image tokenizer and back."""
    rng = np.random.default_rng((seed, 77))
    reconstructed = {}
    for category, part in prompts.items():
        images = [render_prompt(rng, level, category, prompt) for prompt in part]
        outputs = []
        for start in range(0, len(images), batch):
            (padded,) = _padded(images[start : start + batch], size=batch)
            outputs += list(sampler.reconstruct(np.stack(padded)))
        reconstructed[category] = np.stack(outputs[: len(part)])[:, None]
    return score(reconstructed, prompts, level)[0]


def render_prompt(rng, level, category, prompt):
    """Renders a scene of a prompt, uint8[h, w, 3]; attributes that it leaves open are random."""
    pick = lambda name, names: name or str(rng.choice(list(names)))
    while True:
        things = []
        for size, color, shape in prompt["things"]:
            size = pick(size, ("small", "medium") if category == "counting" else world.SIZES)
            things.append(world.Thing(size, pick(color, world.COLORS), pick(shape, world.SHAPES)))
        scene = world.place(rng, level, world.Scene(category, tuple(things), prompt["relation"]))
        if scene is not None:
            return world.render(rng, level, scene)
