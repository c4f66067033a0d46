"""What every benchmark of understanding is: questions read from its official files, answers written back, a score.

A benchmark is a subclass of `Benchmark` that says how its files are laid out; what may be wrong with a user's folder
is found here, once for all of them.
"""

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from janus_jax.data import chat
from janus_jax.errors import UserError

SHORT = "Answer the question using a single word or phrase."
LONGEST_FIELD = 2**31 - 1  # a picture in base64 is longer than what the csv module takes for sane


class Question(NamedTuple):
    """A user's turn, and what is needed to write its answer down and to score it."""

    id: str  # unique in the benchmark
    content: str  # the whole turn, chat.IMAGE where a picture stands
    images: tuple  # a Path or bytes for each chat.IMAGE
    extra: dict  # plain JSON; "answer" is the reference, None where it is not public

    @property
    def asked(self):
        """What its answer depends on, pictures by their names."""
        named = [hashlib.blake2b(i).hexdigest() if isinstance(i, bytes) else i.name for i in self.images]
        return self.id, self.content, named


class Benchmark:
    """One benchmark: a subclass gives the three attributes, and `_questions`, `_write` and `_score`."""

    name = ""
    layout = ""  # what `read` looks for in the folder, for people
    max_tokens = 32
    system = ""

    def read(self, data):
        """Reads the questions of a folder in the benchmark's official layout; pictures are looked for, not opened.

        Args:
          data: the folder.

        Returns:
          list of Question, in the order in which the official files have them.

        Raises:
          UserError: where files or pictures are missing, hold something else, or hold nothing.
        """
        data = Path(data).expanduser()
        try:
            questions = list(self._questions(data))
        except UserError:
            raise
        except (AttributeError, KeyError, SyntaxError, TypeError, ValueError, csv.Error) as e:
            raise UserError(
                f"{self.name}: a file in {str(data)!r} is not in the official format ({type(e).__name__}: {e}); "
                f"expected {self.layout}."
            ) from e
        if not questions:
            raise UserError(f"{self.name}: no question in {str(data)!r}; expected {self.layout}.")
        twice = len(questions) - len({q.id for q in questions})
        if twice:
            raise UserError(f"{self.name}: {twice} questions in {str(data)!r} have an id that another one has.")
        for q in questions:
            answer = q.extra["answer"]
            known = answer if isinstance(answer, list) else [answer]
            if answer is not None and not (known and all(isinstance(a, str) for a in known)):
                raise UserError(
                    f"{self.name}: the reference answer of question {q.id} in {str(data)!r} is {answer!r}, no text; "
                    f"expected {self.layout}."
                )
        self._look_for([i for q in questions for i in q.images if isinstance(i, Path)])
        return questions

    def write(self, out, questions, answers):
        """Writes the answers as the benchmark's own scorer or server takes them.

        Args:
          out: folder, made where it is missing.
          questions: what `read` gave.
          answers: one str for each question.

        Returns:
          list of the Paths written.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        return self._write(out, list(zip(questions, answers, strict=True)))

    def score(self, questions, answers):
        """Scores by the official formula.

        Args:
          questions: what `read` gave.
          answers: one str for each question.

        Returns:
          {metric: float}; empty where a judge has to decide or the reference answers are not public.
        """
        pairs = list(zip(questions, answers, strict=True))
        return {} if any(q.extra["answer"] is None for q in questions) else self._score(pairs)

    def _file(self, data, *names):
        """The first of some files that exists."""
        for name in names:
            if (data / name).is_file():
                return data / name
        raise UserError(f"{self.name}: no {names[0]} in {str(data)!r}; expected {self.layout}.")

    def _folder(self, data, *names):
        """The first of some folders in `data` that exists, else `data` itself."""
        return next((data / name for name in names if (data / name).is_dir()), data)

    def _look_for(self, pictures):
        """Raises where pictures are missing. Folders are listed once: asking for each file is slow on a bucket."""
        pictures = list(dict.fromkeys(pictures))
        listed = {folder: set(os.listdir(folder)) if folder.is_dir() else () for folder in {p.parent for p in pictures}}
        missing = [p for p in pictures if p.name not in listed[p.parent]]
        if missing:
            raise UserError(
                f"{self.name}: {len(missing)} of {len(pictures)} pictures are missing, the first is {str(missing[0])!r}; "
                f"expected {self.layout}."
            )


def short_answer(question):
    """The turn of a question about one picture whose answer is a word or a phrase."""
    return f"{chat.IMAGE}\n{question}\n{SHORT}"


def choice(question, *, options, hint=""):
    """The turn of a multiple-choice question, without its picture.

    Args:
      question: its text.
      options: {letter: text}; without any it is an open question.
      hint: what is told first.
    """
    text = f"Hint: {hint}\n{question}\n" if hint else f"{question}\n"
    if not options:
        return f"{text}Answer the question directly."
    listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    return f"{text}{listed}\nAnswer with the option's letter from the given choices directly."


def shares(values, groups, *, name="accuracy"):
    """{name: mean, name/group: mean of the group}."""
    table = {}
    for value, group in zip(values, groups, strict=True):
        table.setdefault(group, []).append(float(value))
    means = {f"{name}/{group}": sum(part) / len(part) for group, part in sorted(table.items())}
    return {name: sum(map(float, values)) / len(values), **means}


def read_json(path):
    """What a JSON file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{str(path)!r} is not JSON: {e}.") from e
    return _filled(value, path)


def read_json_lines(path):
    """What the lines of a file hold, one JSON value each."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as e:
            raise UserError(f"Line {number} of {str(path)!r} is not JSON: {e}.") from e
    return _filled(rows, path)


def read_tsv(path):
    """Rows of a tab-separated file with a head line, {column: str}."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(f"Row {number} of {str(path)!r} has not as many fields as its head line.")
    return _filled(rows, path)


def _filled(value, path):
    if not value:
        raise UserError(f"{str(path)!r} holds nothing.")
    return value


def write_json(path, value):
    """Writes JSON on one line, as the servers' own examples have it, and gives the path back."""
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_json_lines(path, rows):
    """Writes one JSON value a line, and gives the path back."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
