"""Writes the `shapes` set: records to draw and to understand, held-out prompts, a text tokenizer of its texts."""

import functools
import multiprocessing
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import rich.progress

from janus_jax.data import chat, tokenizer
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.shapes import world

COUNTS = {"objects": 10_000, "scenes": 26_000, "captions": 20_000, "questions": 14_000, "text": 4_000}
HELD_OUT = 1_200  # questions
QUESTIONS = 4  # about a training picture
CHUNK = 500
VOCAB = 512
ROLES = ("<|User|>", "<|Assistant|>")


def _scene(rng, split):
    category = str(rng.choice(world.CATEGORIES, p=world.SHARES))
    return world.sample_scene(rng, category=category, split=split)


def object_record(rng):
    """To draw: a lone object."""
    return _drawing(rng, world.sample_scene(rng, category=world.pick(rng, ("single_object", "colors")), split="train"))


def scene_record(rng):
    """To draw: a scene of any category."""
    return _drawing(rng, _scene(rng, "train"))


def _drawing(rng, scene):
    """A picture and its category's prompt, or half the time one that says everything."""
    prompt = world.caption(scene) if rng.random() < 1 / 2 else world.prompt(rng, scene)
    return {"image": world.encode_png(world.render(rng, scene)), "prompt": prompt}


def caption_record(rng):
    """To understand: a picture and everything there is to say of it."""
    scene = _scene(rng, "train")
    return {"image": world.encode_png(world.render(rng, scene)), "caption": world.caption(scene)}


def question_record(rng):
    """To understand: a conversation about a picture."""
    scene, turns = _scene(rng, "train"), []
    for _ in range(QUESTIONS):
        _, question, answer = world.question(rng, scene)
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    turns[0]["content"] = f"{chat.IMAGE}\n{turns[0]['content']}"
    return {"images": [world.encode_png(world.render(rng, scene))], "conversation": turns}


def held_out_record(rng):
    """One question about a held-out scene."""
    scene = _scene(rng, "heldout")
    kind, question, answer = world.question(rng, scene)
    image = world.encode_png(world.render(rng, scene))
    return {"image": image, "question": question, "answer": answer, "kind": kind}


def text_record(rng):
    """A sentence about the same world."""
    return {"text": world.sentence(rng)}


FILES = {
    "objects-train": object_record,
    "scenes-train": scene_record,
    "captions-train": caption_record,
    "questions-train": question_record,
    "text-train": text_record,
    "questions-heldout": held_out_record,
}


def _chunk(job, *, seed):
    """One chunk of a file; its random numbers depend on nothing but its own place."""
    name, number, size = job
    rng = np.random.default_rng((seed, list(FILES).index(name), number))
    return job, [FILES[name](rng) for _ in range(size)]


def write(out, *, seed=0, scale=1.0, workers=None):
    """Writes the whole set into a folder.

    Args:
      out: the folder.
      seed: of the world.
      scale: multiplies the number of training records.
      workers: processes; None takes one a core. The files do not depend on it.

    Returns:
      dict of counts, the majority-answer baseline among them, also written as about.json.
    """
    out = Path(out)
    make_folder(out)
    wanted = {f"{name}-train": int(n * scale) for name, n in COUNTS.items()} | {"questions-heldout": HELD_OUT}
    jobs = [(name, start // CHUNK, min(CHUNK, n - start)) for name, n in wanted.items() for start in range(0, n, CHUNK)]
    records = defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(functools.partial(_chunk, seed=seed), jobs)  # in order, whatever the workers
        for (name, *_), part in rich.progress.track(made, description="shapes", total=len(jobs)):
            records[name] += part
    for name, part in records.items():
        write_array_record(out / f"{name}.array_record", part)
    write_json(out / "prompts.json", world.held_out_prompts(seed=seed))

    said = ("prompt", "text", "caption", "question", "answer")
    words = [r[k] for part in records.values() for r in part for k in said if k in r]
    words += [turn["content"] for r in records["questions-train"] for turn in r["conversation"]]
    words += [chat.CAPTION] * 1000
    tokens = tokenizer.train(words, vocab_size=VOCAB, extra=ROLES)
    (out / "tokenizer.json").write_text(tokens)

    about = {"records": {name: len(part) for name, part in records.items()}, "seed": seed}
    about["majority_answer_baseline"] = majority_baseline(records["questions-heldout"])
    write_json(out / "about.json", about)
    return about


def majority_baseline(records):
    """Accuracy on questions of always giving each kind's most frequent answer."""
    answers = defaultdict(Counter)
    for r in records:
        answers[r["kind"]][r["answer"]] += 1
    right = sum(c.most_common(1)[0][1] for c in answers.values())
    return round(right / len(records), 4)
