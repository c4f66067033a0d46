"""Writes the `shapes` set: records by task and split, held-out prompts, and a text tokenizer trained on its texts."""

import functools
import multiprocessing
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import rich.progress

from janus_jax.data import chat, shapes, tokenizer
from janus_jax.data.sources import write_array_record, write_json

COUNTS = {"generation": 26_000, "understanding": 16_000, "text": 4_000}
HELD_OUT = {"understanding": 1_200, "generation": 600}
CHUNK = 500
VOCAB = 512
ROLES = ("<|User|>", "<|Assistant|>")


def _scene(rng, split):
    category = str(rng.choice(shapes.CATEGORIES, p=shapes.SHARES))
    return shapes.sample_scene(rng, category=category, split=split)


def generation_record(rng, split):
    """A picture and a prompt of its category, or half the time in training one that says everything."""
    scene = _scene(rng, split)
    full = split == "train" and rng.random() < 1 / 2
    prompt = shapes.caption(scene) if full else shapes.prompt(rng, scene)
    return {"image": shapes.encode_png(shapes.render(rng, scene)), "prompt": prompt}


def understanding_record(rng, split):
    """A picture with a question; in training with a full caption half the time, else with three questions."""
    scene = _scene(rng, split)
    image = shapes.encode_png(shapes.render(rng, scene))
    if split == "train" and rng.random() < 1 / 2:
        return {"image": image, "caption": shapes.caption(scene)}
    if split == "train":
        turns = []
        for _ in range(3):
            _, question, answer = shapes.question(rng, scene)
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns[0]["content"] = f"{chat.IMAGE}\n{turns[0]['content']}"
        return {"images": [image], "conversation": turns}
    kind, question, answer = shapes.question(rng, scene)
    return {"image": image, "question": question, "answer": answer, "kind": kind}


def text_record(rng, split):
    """A sentence about the same world."""
    return {"text": shapes.sentence(rng)}


MAKERS = {"generation": generation_record, "understanding": understanding_record, "text": text_record}


def _chunk(job, *, seed):
    """One chunk of records; its random numbers depend on nothing but its own place."""
    task, split, number, size = job
    rng = np.random.default_rng((seed, sorted(MAKERS).index(task), split == "train", number))
    return job, [MAKERS[task](rng, split) for _ in range(size)]


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
    out.mkdir(parents=True, exist_ok=True)
    wanted = {(t, "train"): int(n * scale) for t, n in COUNTS.items()}
    wanted |= {(t, "heldout"): n for t, n in HELD_OUT.items()}
    jobs = [
        (task, split, start // CHUNK, min(CHUNK, n - start))
        for (task, split), n in wanted.items()
        for start in range(0, n, CHUNK)
    ]
    records = defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(functools.partial(_chunk, seed=seed), jobs)  # in order, whatever the workers
        for (task, split, *_), part in rich.progress.track(made, description="shapes", total=len(jobs)):
            records[task, split] += part
    for (task, split), part in records.items():
        write_array_record(out / f"{task}-{split}.array_record", part)
    write_json(out / "prompts.json", shapes.held_out_prompts(seed=seed))

    said = ("prompt", "text", "caption", "question", "answer")
    words = [r[k] for part in records.values() for r in part for k in said if k in r]
    words += [turn["content"] for r in records["understanding", "train"] for turn in r.get("conversation", ())]
    words += [chat.CAPTION] * 1000
    tokens = tokenizer.train(words, vocab_size=VOCAB, extra=ROLES)
    (out / "tokenizer.json").write_text(tokens)

    about = {"records": {f"{t}-{s}": len(part) for (t, s), part in records.items()}, "seed": seed}
    about["majority_answer_baseline"] = majority_baseline(records["understanding", "heldout"])
    write_json(out / "about.json", about)
    return about


def majority_baseline(records):
    """Accuracy on questions of always giving each kind's most frequent answer."""
    answers = defaultdict(Counter)
    for r in records:
        answers[r["kind"]][r["answer"]] += 1
    right = sum(c.most_common(1)[0][1] for c in answers.values())
    return round(right / len(records), 4)
