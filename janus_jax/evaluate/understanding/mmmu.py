"""MMMU: 30 college subjects, several pictures a question, options or an open answer.

The rules that read an answer are those of the benchmark's own scorer, quirks included, so that the file written here
gets there the accuracy printed here.
"""

import ast
import random
import re

import pyarrow.parquet
from absl import logging

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import Benchmark, Question, choice, shares, write_json

SUBJECTS = 30
PICTURE = re.compile(r"<image (\d)>")
SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # an answer follows
NUMBERS = (  # in this order: 1,234 or 1e-5 or 3.14
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


class Mmmu(Benchmark):
    """The validation questions; pictures stand where the text names them."""

    name = "mmmu"
    layout = "validation-*.parquet of all 30 subjects, in folders or not"
    max_tokens = 256

    def _questions(self, data):
        files, subjects = sorted(data.rglob("validation-*.parquet")), set()
        if not files:
            raise UserError(f"{self.name}: no validation-*.parquet in {str(data)!r}; expected {self.layout}.")
        for file in files:
            for row in pyarrow.parquet.read_table(file).to_pylist():
                question = self._question(row)
                subjects.add(question.extra["subject"])
                yield question
        if len(subjects) != SUBJECTS:
            logging.warning("%s: %d of %d subjects are here, so only they are scored", self.name, len(subjects), SUBJECTS)

    def _question(self, row):
        options = {chr(ord("A") + i): text for i, text in enumerate(ast.literal_eval(row["options"]))}
        text = choice(row["question"], options=options)
        pictures = {n: (row.get(f"image_{n}") or {}).get("bytes") for n in range(1, 8)}
        pictures = {n: picture for n, picture in pictures.items() if picture}
        named = [int(n) for n in PICTURE.findall(text)]
        if set(named) - set(pictures):
            raise UserError(f"{self.name}: {row['id']} names picture {min(set(named) - set(pictures))}, which it has not.")
        first = [n for n in pictures if n not in named]  # nothing says where they stand
        content = chat.IMAGE * len(first) + "\n" * bool(first) + PICTURE.sub(chat.IMAGE, text)
        answer = row["answer"]
        if row["question_type"] != "multiple-choice":
            options = {}
            if answer.startswith(("['", '["')):  # several wordings, written as a Python list
                answer = ast.literal_eval(answer)
        extra = {"answer": None if answer == "?" else answer, "options": options}
        extra["subject"] = "_".join(row["id"].split("_")[1:-1])
        return Question(row["id"], content, tuple(pictures[n] for n in first + named), extra)

    def _write(self, out, pairs):
        table = {q.id: parse_choice(a, q.extra["options"], seed=q.id) if q.extra["options"] else a for q, a in pairs}
        return [write_json(out / "mmmu_predictions.json", table)]

    def _score(self, pairs):
        table = shares([_right(q, a) for q, a in pairs], [q.extra["subject"] for q, _ in pairs])
        if len(table) <= SUBJECTS:  # an incomplete set has no figure of the whole
            del table["accuracy"]
        return table


def _right(question, answer):
    options, truth = question.extra["options"], question.extra["answer"]
    if options:
        return parse_choice(answer, options, seed=question.id) == truth
    return open_right(answer, truth if isinstance(truth, list) else [truth])


def parse_choice(answer, options, *, seed):
    """The option that an answer names last: as (B), else as a lone B, else by its text if the answer is long.

    Args:
      answer: what the model said.
      options: {letter: text}.
      seed: draws an option where none is named, as the official scorer does; of the question's own id, so that the
        draw does not depend on the questions before.

    Returns:
      a letter.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    ways = [
        (answer, {letter: f"({letter})" for letter in options}),
        (answer, {letter: f" {letter} " for letter in options}),
    ]
    if len(answer.split()) > 5:
        ways.append((answer.lower(), {letter: text.lower() for letter, text in options.items()}))
    for text, forms in ways:
        places = {letter: text.rfind(form) for letter, form in forms.items() if form in text}
        if places:
            return max(places, key=places.get)
    return random.Random(seed).choice(list(options))


def open_right(answer, truths):
    """Whether an open answer holds one of the reference answers: as text within it, or as an equal number.

    Args:
      answer: what the model said.
      truths: list of str.
    """
    wanted = [form for truth in truths for form in _forms(truth)]
    words = [form for form in wanted if isinstance(form, str)]
    parts = _key_parts(answer)
    parts += [number for part in parts for pattern in NUMBERS for number in pattern.findall(part)]
    for form in (form for part in parts for form in _forms(part)):
        if any(word in form for word in words) if isinstance(form, str) else form in wanted:
            return True
    return False


def _key_parts(answer):
    """What follows the signs of an answer, the shortest of each line; the whole answer where there are none."""
    lines, parts = answer.strip().strip(".").lower().split("\n"), []
    for i, line in enumerate(lines):
        tail = ""
        for sign in SIGNS + ("=",) * (i == len(lines) - 1):  # the last line may be an equation
            rest = line.split(sign)[-1].strip()
            if sign in line and (not tail or len(rest) < len(tail)):
                tail = rest
        parts += [tail] * (tail not in ("", *":,.!?;'"))
    return parts or ["\n".join(lines)]


def _forms(text):
    """A number to two places, or the text in lower case; a single letter counts only at the edge of a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
