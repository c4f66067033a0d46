"""MMBench and SEED-Bench: one image, and options to choose from."""

import base64
import importlib.util
import re

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import (
    Question,
    QuestionBenchmark,
    choice_question,
    means_by_group,
    read_json,
    read_tsv,
    write_json_lines,
)

LETTERS = "ABCD"
CIRCULAR = 1_000_000  # MMBench repeats questions with rotated options at index + n * 1,000,000
ABSENT = ("", "nan")  # how its tables write a hint or an option that does not exist
REFERENCE = 64  # characters; a shorter `image` is the index of the row that has the image
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that Excel files cannot hold


def find_letter(answer, options):
    """The only option that an answer names: by its letter near the end, else by its text; else "".

    A letter far from the end is a word, such as the "A" at the beginning of a sentence.
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - 4:
        return letters[0]
    matches = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return matches[0] if len(matches) == 1 else ""


class MMBench(QuestionBenchmark):
    """Questions of 20 abilities. All rows are asked; circular repetitions are not scored."""

    name = "mmbench"
    layout = (
        "one .tsv file of MMBench, with columns index, question, A, B, C, D, category and image "
        "(base64)"
    )

    def _questions(self, data):
        tables = [data] if data.is_file() else sorted(data.glob("*.tsv"))
        if len(tables) != 1:
            raise UserError(
                f"{self.name}: {len(tables)} .tsv files in {str(data)!r}; expected {self.layout}."
            )
        rows = read_tsv(tables[0])
        encoded = {row["index"]: "".join(row.pop("image").split()) for row in rows}
        images = {
            index: base64.b64decode(text, validate=True)
            for index, text in encoded.items()
            if len(text) > REFERENCE
        }
        for row in rows:
            index = row["index"]
            owner = index if index in images else encoded[index]
            if owner not in images:
                raise UserError(
                    f"{self.name}: row {index} refers to the image of row {owner!r}, which has "
                    "none."
                )
            options = _options(row)
            if "A" not in options:
                raise UserError(f"{self.name}: row {index} of {str(tables[0])!r} has no options.")
            hint = row.get("hint") or ""
            text = choice_question(
                row["question"], options=options, hint="" if hint in ABSENT else hint
            )
            answer = row.get("answer") or ""
            extra = {
                "answer": None if answer in ABSENT else answer,
                "category": row.get("category") or "",
                "row": row,
            }
            yield Question(str(int(index)), f"{chat.IMAGE}\n{text}", (images[owner],), extra)

    def _write(self, out, pairs):
        """Writes the .xlsx that the server takes, or a .tsv if openpyxl is not installed."""
        columns = [*pairs[0][0].extra["row"], "prediction"]
        rows = [{**q.extra["row"], "prediction": answer} for q, answer in pairs]
        if importlib.util.find_spec("openpyxl") is None:
            path = out / "mmbench_predictions.tsv"
            cells = [columns, *([" ".join(row[c].split()) for c in columns] for row in rows)]
            path.write_text("".join("\t".join(line) + "\n" for line in cells), encoding="utf-8")
            return [path]
        import openpyxl  # optional: it only writes this file

        path = out / "mmbench_predictions.xlsx"
        book = openpyxl.Workbook()
        book.active.append(columns)
        for row in rows:
            book.active.append(
                [int(row[c]) if c == "index" else CONTROL.sub("", row[c]) for c in columns]
            )
        for cell in (cell for line in book.active for cell in line if cell.data_type == "f"):
            cell.data_type = "s"  # an answer that starts with "=" is text, not a formula
        book.save(path)
        return [path]

    def _score(self, pairs):
        pairs = [(q, answer) for q, answer in pairs if int(q.id) < CIRCULAR]
        correct = [
            find_letter(answer, _options(q.extra["row"])) == q.extra["answer"]
            for q, answer in pairs
        ]
        return means_by_group(correct, [q.extra["category"] for q, _ in pairs])


def _options(row):
    return {
        letter: row[letter] for letter in LETTERS if row.get(letter) and row[letter] not in ABSENT
    }


class SeedBench(QuestionBenchmark):
    """The image questions of SEED-Bench; the video questions are left out, as in the papers."""

    name = "seed-bench"
    layout = "SEED-Bench.json, and the images in SEED-Bench-image/"

    def _questions(self, data):
        folder = self._folder(data, "SEED-Bench-image")
        for row in read_json(self._file(data, "SEED-Bench.json"))["questions"]:
            if row.get("data_type", "image") == "image":
                options = {letter: str(row[f"choice_{letter.lower()}"]) for letter in LETTERS}
                extra = {
                    "answer": row.get("answer"),
                    "type": int(row["question_type_id"]),
                    "options": options,
                }
                content = f"{chat.IMAGE}\n{choice_question(row['question'], options=options)}"
                yield Question(str(row["question_id"]), content, (folder / row["data_id"],), extra)

    def _write(self, out, pairs):
        rows = [
            {"question_id": q.id, "prediction": find_letter(answer, q.extra["options"])}
            for q, answer in pairs
        ]
        return [write_json_lines(out / "seed-bench_predictions.jsonl", rows)]

    def _score(self, pairs):
        correct = [
            find_letter(answer, q.extra["options"]) == q.extra["answer"] for q, answer in pairs
        ]
        return means_by_group(correct, [q.extra["type"] for q, _ in pairs])
