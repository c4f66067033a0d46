"""Generates the images or the answers of a benchmark, and resumes after an interruption.

An image or an answer depends on the benchmark's name, the id of the prompt and the sample's index,
not on the batch, the number of devices or how often the command was started.
"""

import hashlib
import json

import rich.console
import rich.progress

from janus_jax import distributed
from janus_jax.data.files import write_whole
from janus_jax.data.images import BadRecord, decode
from janus_jax.errors import UserError

ANSWERS = "answers.jsonl"


def seed_from(*parts):
    """A seed of 32 bits that depends on all of `parts`."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def draw_all(sampler, benchmark, prompts, *, out, guidance, batch, seed):
    """Generates the images that are missing.

    Args:
      sampler: Sampler.
      benchmark: ImageBenchmark.
      prompts: its prompts.
      out: folder of the images, in the benchmark's layout; images of earlier runs stay.
      guidance: sampling settings.
      batch: images at once.
      seed: another one gives other images.

    Raises:
      UserError: for a folder that does not have exactly the images of the prompts afterwards.
    """
    todo = _check_agreement([p for p in prompts if not benchmark.is_done(out, p)])
    if len(todo) < len(prompts):
        rich.print(
            f"{len(prompts) - len(todo)} of {len(prompts)} prompts have their images already."
        )
    seeds = lambda p: [seed_from(benchmark.name, p.id, i, seed) for i in range(benchmark.samples)]
    size = lambda p: len(p.text)
    for part, count in _batches(
        todo, max(batch // benchmark.samples, 1), size=size, label="prompts"
    ):
        texts = [p.text for p in part]
        images = sampler.draw(texts, seeds=[seeds(p) for p in part], guidance=guidance)
        if distributed.is_primary():
            for prompt, samples in zip(part[:count], images, strict=False):
                benchmark.save(out, prompt, samples)
    if distributed.is_primary():
        benchmark.check_complete(out, prompts)


def answer_all(sampler, benchmark, questions, *, out, batch):
    """Answers the questions that have no answer yet, greedily.

    Args:
      sampler: Sampler.
      benchmark: QuestionBenchmark.
      questions: its questions.
      out: folder whose answers.jsonl has the answers of earlier runs.
      batch: questions at once.

    Returns:
      list of strings, one per question.

    Raises:
      UserError: for an image that cannot be read.
    """
    answers = _read_answers(out / ANSWERS)
    todo = _check_agreement([q for q in questions if q.id not in answers])
    if len(todo) < len(questions):
        rich.print(
            f"{len(questions) - len(todo)} of {len(questions)} questions have their answers "
            "already."
        )
    size = lambda q: (len(q.images), len(q.content))
    for part, count in _batches(todo, batch, size=size, label="questions"):
        conversations = [
            ([{"role": "user", "content": q.content}], [_open(image) for image in q.images])
            for q in part
        ]
        texts = sampler.answer(
            conversations, max_tokens=benchmark.max_tokens, system=benchmark.system
        )
        new = {q.id: text for q, text in zip(part[:count], texts, strict=False)}
        answers |= new
        if distributed.is_primary():
            rows = [
                json.dumps({"id": id_, "answer": text}, ensure_ascii=False)
                for id_, text in new.items()
            ]
            with (out / ANSWERS).open("a", encoding="utf-8") as file:
                file.writelines(row + "\n" for row in rows)
    return [answers[q.id] for q in questions]


def _batches(tasks, count, *, size, label):
    """Yields (batch, number of its tasks without padding); tasks of similar size are together.

    So few shapes are compiled and few tokens are padding. The last task pads the last batch.
    """
    tasks = sorted(tasks, key=size)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
        bar = progress.add_task(label, total=len(tasks))
        for start in range(0, len(tasks), count):
            part = tasks[start : start + count]
            yield part + part[-1:] * (count - len(part)), len(part)
            progress.advance(bar, len(part))


def _check_agreement(todo):
    """Returns `todo`; raises UserError if the processes have different numbers of tasks."""
    if distributed.from_primary(len(todo)) != len(todo):
        raise UserError(
            "The processes see different results in --out; name a folder that all of them share."
        )
    return todo


def _read_answers(path):
    """Answers of earlier runs, {id: text}; an incomplete last line is removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        write_whole(path, complete)
    try:
        rows = map(json.loads, complete.split(b"\n")[:-1])
        return {row["id"]: row["answer"] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} has a line that is no answer ({error}); remove the line."
        ) from None


def _open(source):
    """The image of a Path or of bytes, RGB."""
    try:
        return decode(source if isinstance(source, bytes) else source.read_bytes())
    except (BadRecord, OSError) as error:
        name = (
            "An image inside the benchmark's file"
            if isinstance(source, bytes)
            else repr(str(source))
        )
        raise UserError(f"{name} cannot be read: {error}.") from None
