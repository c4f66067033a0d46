"""The base class of understanding benchmarks: questions, answer files, official scores.

A benchmark is a subclass of `QuestionBenchmark` that knows the layout of its files; errors in a
user's folder are found here, for all of them.
"""

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from janus_jax import distributed
from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate import runner
from janus_jax.evaluate.base import Benchmark, Options

SHORT = "Answer the question using a single word or phrase."
MAX_FIELD = (
    2**31 - 1
)  # characters; an image in base64 is longer than the csv module's default limit


class Question(NamedTuple):
    """A user's turn, and what is needed to write its answer and to score it.

    Attributes:
      id: unique in the benchmark.
      content: the whole turn, with chat.IMAGE in the place of each image.
      images: a Path or bytes for each chat.IMAGE.
      extra: JSON; "answer" is the reference, None if it is not public.
    """

    id: str
    content: str
    images: tuple
    extra: dict

    @property
    def identity(self):
        """What its answer depends on; images by their names or checksums."""
        names = [
            hashlib.blake2b(i).hexdigest() if isinstance(i, bytes) else i.name for i in self.images
        ]
        return self.id, self.content, names


class QuestionBenchmark(Benchmark):
    """Base class; a subclass sets the attributes and has `_questions`, `_write` and `_score`.

    Attributes:
      max_tokens: maximum length of an answer.
      system: system prompt of the chat template.
    """

    unit = 100  # percent
    max_tokens = 32
    system = ""

    def _questions(self, data: Path):
        """Yields the Questions of a folder."""
        raise NotImplementedError

    def _write(self, out: Path, pairs: list) -> list[Path]:
        """Writes the official answer files from [(Question, answer)]."""
        raise NotImplementedError

    def _score(self, pairs: list) -> dict:
        """{metric: float} from [(Question, answer)]."""
        return {}

    def read(self, data) -> list[Question]:
        """Reads the questions of a folder in the official layout; images are not opened.

        Args:
          data: the folder.

        Returns:
          list of Question, in the order of the official files.

        Raises:
          UserError: if files or images are missing, or files are empty or have another format.
        """
        data = Path(data).expanduser()
        try:
            questions = list(self._questions(data))
        except UserError:
            raise
        except (AttributeError, KeyError, SyntaxError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"{self.name}: a file in {str(data)!r} is not in the official format "
                f"({type(error).__name__}: {error}); expected {self.layout}."
            ) from error
        if not questions:
            raise UserError(f"{self.name}: no question in {str(data)!r}; expected {self.layout}.")
        duplicates = len(questions) - len({q.id for q in questions})
        if duplicates:
            raise UserError(
                f"{self.name}: {duplicates} questions in {str(data)!r} have the id of another one."
            )
        for q in questions:
            answer = q.extra["answer"]
            references = answer if isinstance(answer, list) else [answer]
            if answer is not None and not (
                references and all(isinstance(a, str) for a in references)
            ):
                raise UserError(
                    f"{self.name}: the reference answer of question {q.id} in {str(data)!r} is "
                    f"{answer!r}, not a string; expected {self.layout}."
                )
        self._check_exist(
            [image for q in questions for image in q.images if isinstance(image, Path)]
        )
        return questions

    def settings(self, model, options):
        """How answers are generated."""
        return {
            "image_size": model["understanding"]["encoder"]["image_size"],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "system_prompt": self.system,
        }

    def evaluate(self, sampler, questions, options: Options):
        """Answers the remaining questions, writes the official files, and returns the scores."""
        answers = runner.answer_all(sampler, self, questions, out=options.out, batch=options.batch)
        if distributed.is_primary():
            self.write(options.out, questions, answers)
        return self.score(questions, answers)

    def write(self, out, questions, answers) -> list[Path]:
        """Writes the answers in the format of the benchmark's own scorer or server.

        Args:
          out: folder, created if necessary.
          questions: what `read` returned.
          answers: one string per question.

        Returns:
          paths of the files.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        return self._write(out, list(zip(questions, answers, strict=True)))

    def score(self, questions, answers) -> dict:
        """Scores by the official formula.

        Args:
          questions: what `read` returned.
          answers: one string per question.

        Returns:
          {metric: float}; empty if a judge decides or the reference answers are not public.
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

    def _check_exist(self, images):
        """Raises UserError if image files are missing.

        Each folder is listed once, because a query per file is slow on network file systems.
        """
        images = list(dict.fromkeys(images))
        folders = {image.parent for image in images}
        contents = {
            folder: set(os.listdir(folder)) if folder.is_dir() else () for folder in folders
        }
        missing = [image for image in images if image.name not in contents[image.parent]]
        if missing:
            raise UserError(
                f"{self.name}: {len(missing)} of {len(images)} images are missing, first "
                f"{str(missing[0])!r}; expected {self.layout}."
            )


def short_question(question):
    """The turn of a question about one image that is answered with a word or a phrase."""
    return f"{chat.IMAGE}\n{question}\n{SHORT}"


def choice_question(question, *, options, hint=""):
    """The turn of a multiple-choice question, without its image.

    Args:
      question: its text.
      options: {letter: text}; empty for an open question.
      hint: text before the question.
    """
    text = f"Hint: {hint}\n{question}\n" if hint else f"{question}\n"
    if not options:
        return f"{text}Answer the question directly."
    lines = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    return f"{text}{lines}\nAnswer with the option's letter from the given choices directly."


def means_by_group(values, groups, *, name="accuracy"):
    """{name: mean of all values, name/group: mean of each group}."""
    by_group = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(float(value))
    means = {f"{name}/{group}": sum(part) / len(part) for group, part in sorted(by_group.items())}
    return {name: sum(map(float, values)) / len(values), **means}


def read_json(path):
    """The value in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}.") from error
    return _check_not_empty(value, path)


def read_json_lines(path):
    """The values in a file of one JSON value per line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"Line {number} of {str(path)!r} is not JSON: {error}.") from error
    return _check_not_empty(rows, path)


def read_tsv(path):
    """Rows of a tab-separated file with a header line, {column: str}."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(
                f"Row {number} of {str(path)!r} does not have as many fields as the header line."
            )
    return _check_not_empty(rows, path)


def _check_not_empty(value, path):
    if not value:
        raise UserError(f"{str(path)!r} is empty.")
    return value


def write_json(path, value):
    """Writes JSON on one line, as in the servers' own examples, and returns the path."""
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_json_lines(path, rows):
    """Writes one JSON value per line and returns the path."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path
