"""Scores a model on `shapes`: held-out questions, and held-out prompts drawn and read by the exact reader.

Beside the score stand its ceiling, real held-out pictures through the picture tokenizer and back, and its floor, the
same drawings held against other prompts of their category.
"""

import io
import json
from pathlib import Path

import numpy as np
import rich.progress
from PIL import Image

from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.shapes import reader, world

BATCH = 64


def load_prompts(data):
    """{category: [{'prompt', 'things', 'relation'}]} of a `shapes` folder."""
    path = Path(data) / "prompts.json"
    try:
        prompts = json.loads(path.read_text())
        if all(p["prompt"] and p["things"] for category in world.CATEGORIES for p in prompts[category]):
            return prompts
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(
        f"No prompts.json of this set in {str(data)!r}; make it with `python -m janus_jax.prepare shapes --out=DIR`."
    )


def load_questions(data):
    """The held-out questions of a `shapes` folder, a list of records."""
    source = Source("heldout", kind="array_record", path=str(Path(data) / "questions-heldout.array_record"))
    return [source[i] for i in range(len(source))]


def combinations(prompts):
    """{category: how many different scenes its prompts ask for}; the rest is wording."""
    return {c: len({json.dumps([p["things"], p["relation"]]) for p in ps}) for c, ps in prompts.items()}


def understanding(sampler, records, *, batch=BATCH):
    """Share of held-out questions answered word for word, overall and by kind of question."""
    right, kinds = [], [r["kind"] for r in records]
    for start in rich.progress.track(range(0, len(records), batch), description="questions"):
        part = records[start : start + batch]
        images = [Image.open(io.BytesIO(r["image"])).convert("RGB") for r in part]
        answers = sampler.ask(*_padded(images, [r["question"] for r in part], size=batch), max_tokens=8)
        right += [a == r["answer"] for a, r in zip(answers, part, strict=False)]
    by_kind = {k: float(np.mean([r for r, kind in zip(right, kinds, strict=True) if kind == k])) for k in sorted(set(kinds))}
    return {"accuracy": float(np.mean(right)), "questions": len(right), "by_kind": by_kind}


def _padded(*lists, size=BATCH):
    """Fills the last batch up, so that one size is compiled."""
    return [part + part[-1:] * (size - len(part)) for part in lists]


def draw_all(sampler, prompts, *, seeds, guidance, batch=BATCH):
    """Draws every prompt with every seed: {category: uint8[prompts, len(seeds), h, w, 3]}."""
    texts = [p["prompt"] for ps in prompts.values() for p in ps]
    pictures, at_once = [], max(batch // len(seeds), 1)
    for start in rich.progress.track(range(0, len(texts), at_once), description="drawings"):
        part = texts[start : start + at_once]
        (padded,) = _padded(part, size=at_once)
        pictures += list(sampler.draw(padded, seeds=[seeds] * at_once, guidance=guidance)[: len(part)])
    cut, out = 0, {}
    for category, ps in prompts.items():
        out[category] = np.stack(pictures[cut : cut + len(ps)])
        cut += len(ps)
    return out


def score(drawings, prompts):
    """What share of the drawings fit their prompt, and what share fits the next prompt of the category but one.

    Args:
      drawings: {category: uint8[prompts, seeds, h, w, 3]}.
      prompts: {category: [{'prompt', 'things', 'relation'}]}.

    Returns:
      two dicts, {category: share} and 'overall', their plain mean: the score and its floor.
    """
    good, floor = {}, {}
    for category, pictures in drawings.items():
        found = [[reader.read(p) for p in row] for row in pictures]
        fit = lambda i, j, found=found, ps=prompts[category]: np.mean(
            [reader.fits(t, wanted=ps[j]["things"], relation=ps[j]["relation"]) for t in found[i]]
        )
        n, order = len(pictures), np.random.default_rng(0).permutation(len(pictures))
        good[category] = float(np.mean([fit(i, i) for i in range(n)]))
        floor[category] = float(np.mean([fit(int(i), int(j)) for i, j in zip(order, np.roll(order, 1), strict=True)]))
    for table in (good, floor):
        table["overall"] = float(np.mean(list(table.values())))
    return good, floor


def ceiling(sampler, prompts, *, seed=0):
    """The score of real pictures for the prompts, after the picture tokenizer and back."""
    rng, real = np.random.default_rng((seed, 77)), {}
    for category, ps in prompts.items():
        pictures = [_real_picture(rng, category, p) for p in ps]
        back = []
        for start in range(0, len(pictures), BATCH):
            (part,) = _padded(pictures[start : start + BATCH])
            back += list(sampler.reconstruct(np.stack(part)))
        real[category] = np.stack(back[: len(ps)])[:, None]
    return score(real, prompts)[0]


def _real_picture(rng, category, prompt):
    """Draws a scene that a prompt describes, open attributes at random."""
    pick = lambda name, names: name or str(rng.choice(list(names)))
    first = None
    while True:
        things = []
        for size, color, shape in prompt["things"]:
            size = pick(size, ("small", "medium") if category == "counting" else world.SIZES)
            things.append(world.Thing(size, pick(color, world.COLORS), pick(shape, world.SHAPES)))
        first = world.place(rng, world.Scene(category, tuple(things), prompt["relation"]))
        if first is not None:
            return world.render(rng, first)
