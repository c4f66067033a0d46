"""Writes the `shapes` data set: records of all tasks, held-out prompts, a text tokenizer."""

import functools
import multiprocessing
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import rich.progress

from janus_jax.data import chat, tokenizer
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.images import encode_png
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.shapes import world
from janus_jax.shapes.levels import level_of

COUNTS = {
    "collages": 10_000,
    "objects": 4_000,
    "scenes": 24_000,
    "captions": 12_000,
    "questions": 24_000,
    "text": 4_000,
}
HELD_OUT = 1_200  # questions
CHUNK = 500  # records with a random generator of their own
VOCAB = 512
ROLES = ("<|User|>", "<|Assistant|>")


def _scene(rng, level, split):
    category = str(rng.choice(world.CATEGORIES, p=world.SHARES))
    return world.sample_scene(rng, level, category=category, split=split)


def collage_record(rng, level):
    """Both tasks: an image full of objects, and what is where."""
    scene = world.sample_collage(rng, level)
    text = world.collage_caption(scene, level)
    return {"image": _png(rng, level, scene), "prompt": text, "caption": text}


def object_record(rng, level):
    """Generation: one object."""
    category = world.pick(rng, ("single_object", "colors"))
    scene = world.sample_scene(rng, level, category=category, split="train")
    return _generation_record(rng, level, scene)


def scene_record(rng, level):
    """Generation: a scene of any category."""
    return _generation_record(rng, level, _scene(rng, level, "train"))


def _png(rng, level, scene):
    return encode_png(world.render(rng, level, scene))


def _generation_record(rng, level, scene):
    """An image with the prompt of its category, or in half of the records with the full caption."""
    prompt = world.caption(scene) if rng.random() < 1 / 2 else world.prompt(rng, scene)
    return {"image": _png(rng, level, scene), "prompt": prompt}


def caption_record(rng, level):
    """Understanding: an image and a full caption, as a phrase or as sentences."""
    scene = _scene(rng, level, "train")
    text = world.caption(scene) if rng.random() < 1 / 2 else world.caption_in_sentences(rng, scene)
    return {"image": _png(rng, level, scene), "caption": text}


def question_record(rng, level):
    """Understanding: one question, since of several in a row each tells something about the
    answers to the next, and a model learns to look there instead of at the image.
    """
    return _question_record(rng, level, "train")


def held_out_record(rng, level):
    """A question about a held-out scene."""
    return _question_record(rng, level, "heldout")


def _question_record(rng, level, split):
    scene = _scene(rng, level, split)
    kind, question, answer = world.question(rng, scene)
    image = _png(rng, level, scene)
    return {"image": image, "question": question, "answer": answer, "kind": kind}


def text_record(rng, level):
    """Text: a sentence about the same world."""
    return {"text": world.sentence(rng, level)}


FILES = {
    "objects-train": object_record,
    "scenes-train": scene_record,
    "captions-train": caption_record,
    "questions-train": question_record,
    "text-train": text_record,
    "questions-heldout": held_out_record,
    "collages-train": collage_record,
}


def _chunk(job, *, level, seed):
    """The records of one chunk, which depend only on seed, file and number of the chunk."""
    name, number, size = job
    rng = np.random.default_rng((seed, list(FILES).index(name), number))
    return job, [FILES[name](rng, level) for _ in range(size)]


def write(out, *, level="cells", seed=0, scale=1.0, workers=None):
    """Writes the whole data set to a folder.

    Args:
      out: the folder.
      level: a key of `levels.LEVELS`.
      seed: of the world.
      scale: multiplies the number of training records.
      workers: processes; by default one per core. The files do not depend on it.

    Returns:
      dict of record counts, seed and majority-answer baseline, also written as about.json.
    """
    out, settings = Path(out), level_of(level)
    make_folder(out)
    counts = {f"{name}-train": int(n * scale) for name, n in COUNTS.items()}
    counts["questions-heldout"] = HELD_OUT
    jobs = [
        (name, start // CHUNK, min(CHUNK, count - start))
        for name, count in counts.items()
        for start in range(0, count, CHUNK)
    ]
    records = defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        chunks = pool.imap(
            functools.partial(_chunk, level=settings, seed=seed), jobs
        )  # in the order of the jobs
        for (name, *_), part in rich.progress.track(chunks, description="shapes", total=len(jobs)):
            records[name] += part
    for name, part in records.items():
        write_array_record(out / f"{name}.array_record", part)
    write_json(out / "prompts.json", world.held_out_prompts(settings, seed=seed))

    fields = ("prompt", "text", "caption", "question", "answer")
    texts = [r[field] for part in records.values() for r in part for field in fields if field in r]
    texts += [chat.CAPTION] * 1000
    tokens = tokenizer.train(texts, vocab_size=VOCAB, extra=ROLES)
    (out / "tokenizer.json").write_text(tokens)

    about = {"records": {name: len(part) for name, part in records.items()}}
    about |= {"level": level, "seed": seed}
    about["majority_answer_baseline"] = majority_baseline(records["questions-heldout"])
    write_json(out / "about.json", about)
    return about


def majority_baseline(records):
    """Accuracy of the most frequent answer to each kind of question."""
    answers = defaultdict(Counter)
    for r in records:
        answers[r["kind"]][r["answer"]] += 1
    correct = sum(counter.most_common(1)[0][1] for counter in answers.values())
    return round(correct / len(records), 4)
