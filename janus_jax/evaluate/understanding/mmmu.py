"""MMMU: 30 college subjects, several images per question, options or an open answer.

Answers are parsed by the rules of the official scorer, including its quirks, so that it computes
the same accuracy from the file written here.
"""

import ast
import random
import re

import pyarrow.parquet
from absl import logging

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import (
    Question,
    QuestionBenchmark,
    choice_question,
    means_by_group,
    write_json,
)

SUBJECTS = 30
IMAGE_MARK = re.compile(r"<image (\d)>")
SIGNS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)  # an answer follows
NUMBERS = (  # in this order: 1,234 or 1e-5 or 3.14
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


class Mmmu(QuestionBenchmark):
    """The validation questions; the images are where the text names them."""

    name = "mmmu"
    layout = "validation-*.parquet of all 30 subjects, in folders or not"
    max_tokens = 256

    def _questions(self, data):
        files = sorted(data.rglob("validation-*.parquet"))
        subjects = set()
        if not files:
            raise UserError(
                f"{self.name}: no validation-*.parquet in {str(data)!r}; expected {self.layout}."
            )
        for file in files:
            for row in pyarrow.parquet.read_table(file).to_pylist():
                question = self._question(row)
                subjects.add(question.extra["subject"])
                yield question
        if len(subjects) != SUBJECTS:
            logging.warning(
                "%s: only %d of %d subjects are in the folder; there is no overall score",
                self.name,
                len(subjects),
                SUBJECTS,
            )

    def _question(self, row):
        options = {
            chr(ord("A") + i): text for i, text in enumerate(ast.literal_eval(row["options"]))
        }
        text = choice_question(row["question"], options=options)
        images = {n: (row.get(f"image_{n}") or {}).get("bytes") for n in range(1, 8)}
        images = {n: image for n, image in images.items() if image}
        named = [int(n) for n in IMAGE_MARK.findall(text)]
        if missing := set(named) - set(images):
            raise UserError(
                f"{self.name}: the text of {row['id']} names image {min(missing)}, which it does "
                "not have."
            )
        first = [
            n for n in images if n not in named
        ]  # images that the text does not name come before it
        content = chat.IMAGE * len(first) + "\n" * bool(first) + IMAGE_MARK.sub(chat.IMAGE, text)
        answer = row["answer"]
        if row["question_type"] != "multiple-choice":
            options = {}
            if answer.startswith(("['", '["')):  # several wordings, written as a Python list
                answer = ast.literal_eval(answer)
        extra = {"answer": None if answer == "?" else answer, "options": options}
        extra["subject"] = "_".join(row["id"].split("_")[1:-1])
        return Question(row["id"], content, tuple(images[n] for n in first + named), extra)

    def _write(self, out, pairs):
        predictions = {}
        for q, answer in pairs:
            options = q.extra["options"]
            predictions[q.id] = parse_choice(answer, options, seed=q.id) if options else answer
        return [write_json(out / "mmmu_predictions.json", predictions)]

    def _score(self, pairs):
        scores = means_by_group(
            [_is_correct(q, a) for q, a in pairs], [q.extra["subject"] for q, _ in pairs]
        )
        if len(scores) <= SUBJECTS:  # an incomplete set has no overall score
            del scores["accuracy"]
        return scores


def _is_correct(question, answer):
    options = question.extra["options"]
    reference = question.extra["answer"]
    if options:
        return parse_choice(answer, options, seed=question.id) == reference
    return matches_open(answer, reference if isinstance(reference, list) else [reference])


def parse_choice(answer, options, *, seed):
    """The option that an answer names last: as (B), else as B, else by its text in a long answer.

    Args:
      answer: the model's answer.
      options: {letter: text}.
      seed: of the random option for an answer that names none, as in the official scorer; here the
        question's id, so that the option does not depend on other questions.

    Returns:
      a letter.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    forms = [
        (answer, {letter: f"({letter})" for letter in options}),
        (answer, {letter: f" {letter} " for letter in options}),
    ]
    if len(answer.split()) > 5:
        forms.append((answer.lower(), {letter: text.lower() for letter, text in options.items()}))
    for text, form_of in forms:
        positions = {letter: text.rfind(form) for letter, form in form_of.items() if form in text}
        if positions:
            return max(positions, key=positions.get)
    return random.Random(seed).choice(list(options))


def matches_open(answer, references):
    """Whether an open answer contains one of the reference answers, as text or as an equal number.

    Args:
      answer: the model's answer.
      references: list of str.
    """
    expected = [form for reference in references for form in _forms(reference)]
    words = [form for form in expected if isinstance(form, str)]
    parts = _key_parts(answer)
    parts += [number for part in parts for pattern in NUMBERS for number in pattern.findall(part)]
    for form in (form for part in parts for form in _forms(part)):
        if isinstance(form, str):
            if any(word in form for word in words):
                return True
        elif form in expected:
            return True
    return False


def _key_parts(answer):
    """The shortest text after an answer sign in each line; the whole answer if there is no sign."""
    lines = answer.strip().strip(".").lower().split("\n")
    parts = []
    for i, line in enumerate(lines):
        tail = ""
        for sign in SIGNS + ("=",) * (i == len(lines) - 1):  # the last line may be an equation
            rest = line.split(sign)[-1].strip()
            if sign in line and (not tail or len(rest) < len(tail)):
                tail = rest
        parts += [tail] * (tail not in ("", *":,.!?;'"))
    return parts or ["\n".join(lines)]


def _forms(text):
    """[number rounded to 2 digits], or [lower case]; a single letter with a space on each side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
