"""Draws every prompt of a benchmark, or answers every question, and goes on where a run was cut off.

What a benchmark gets depends on its name, the prompt's id and the sample's number alone, never on the batch, the
devices, or how often the run was started.
"""

import hashlib
import json

import jax
import rich.console
import rich.progress

from janus_jax import distributed
from janus_jax.data import images
from janus_jax.errors import UserError

ANSWERS = "answers.jsonl"


def seed_of(*what):
    """A seed of 32 bits out of the things that a picture or an answer may depend on."""
    return int.from_bytes(hashlib.blake2b(json.dumps(what).encode(), digest_size=4).digest(), "big")


def digest_of(tasks):
    """Names what prompts or questions ask: twelve digits of hex, others where an id, a text or a picture's name differs."""
    return hashlib.blake2b(json.dumps([task.asked for task in tasks]).encode(), digest_size=6).hexdigest()


def draw_all(sampler, benchmark, prompts, *, out, guidance, batch, seed):
    """Draws what is missing.

    Args:
      sampler: Sampler.
      benchmark: one of `picture_sets`.
      prompts: its prompts.
      out: folder of its layout, which holds what was drawn before.
      guidance: of the sampler.
      batch: pictures at once.
      seed: another one gives other pictures.
    """
    todo = _agreed([p for p in prompts if not benchmark.done(out, p)])
    if len(todo) < len(prompts):
        rich.print(f"{len(prompts) - len(todo)} of {len(prompts)} prompts were drawn before.")
    seeds = lambda p: [seed_of(benchmark.name, p.id, i, seed) for i in range(benchmark.samples)]
    for part, real in _batches(todo, max(batch // benchmark.samples, 1), size=lambda p: len(p.text), what="prompts"):
        pictures = sampler.draw([p.text for p in part], seeds=[seeds(p) for p in part], guidance=guidance)
        for prompt, drawn in zip(part[:real], pictures, strict=False):
            if distributed.is_primary():
                benchmark.save(out, prompt, drawn)
    if distributed.is_primary():
        benchmark.finish(out, prompts)


def answer_all(sampler, benchmark, questions, *, out, batch):
    """Answers what has no answer yet, greedily.

    Args:
      sampler: Sampler.
      benchmark: one of `understanding`.
      questions: its questions.
      out: folder whose answers.jsonl holds the answers given before.
      batch: questions at once.

    Returns:
      list of strings, one a question.

    Raises:
      UserError: for a picture that cannot be read.
    """
    answers = _known(out / ANSWERS)
    todo = _agreed([q for q in questions if q.id not in answers])
    if len(todo) < len(questions):
        rich.print(f"{len(questions) - len(todo)} of {len(questions)} questions were answered before.")
    size = lambda q: (len(q.images), len(q.content))
    for part, real in _batches(todo, batch, size=size, what="questions"):
        asked = [([{"role": "user", "content": q.content}], [_opened(i) for i in q.images]) for q in part]
        given = sampler.answer(asked, max_tokens=benchmark.max_tokens, system=benchmark.system)
        new = {q.id: a for q, a in zip(part[:real], given, strict=False)}
        answers |= new
        if distributed.is_primary():
            with (out / ANSWERS).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"id": i, "answer": a}, ensure_ascii=False) + "\n" for i, a in new.items())
    return [answers[q.id] for q in questions]


def _batches(jobs, count, *, size, what):
    """Batches of one length, which the last job fills up, and how many are real; those of one size stand together.

    Few shapes are compiled so, and few rows are padded.
    """
    jobs = sorted(jobs, key=size)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
        task = progress.add_task(what, total=len(jobs))
        for start in range(0, len(jobs), count):
            part = jobs[start : start + count]
            yield part + part[-1:] * (count - len(part)), len(part)
            progress.advance(task, len(part))


def _agreed(todo):
    """What is to do, if all processes find the same of it undone."""
    if distributed.from_primary(len(todo)) != len(todo):
        raise UserError("The processes find different results in --out; name a folder that all of them see.")
    return todo


def _known(path):
    """Answers given before: {id: answer}; a last line that was cut off is taken away."""
    held = path.read_bytes() if path.exists() else b""
    whole = held[: held.rfind(b"\n") + 1]
    if whole != held:
        beside = path.with_suffix(f".{jax.process_index()}")
        beside.write_bytes(whole)
        beside.replace(path)
    try:
        return {entry["id"]: entry["answer"] for entry in map(json.loads, whole.split(b"\n")[:-1])}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{str(path)!r} holds a line that is no answer ({error}); remove it.") from None


def _opened(source):
    """A picture of a file or of bytes, RGB."""
    try:
        return images.decode(source if isinstance(source, bytes) else source.read_bytes())
    except (images.BadRecord, OSError) as error:
        name = "a picture inside the benchmark's file" if isinstance(source, bytes) else repr(str(source))
        raise UserError(f"{name} cannot be read: {error}.") from None
