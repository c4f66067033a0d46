"""MMBench and SEED-Bench: one picture, and options to choose from."""

import base64
import importlib.util
import re

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import Benchmark, Question, choice, read_json, read_tsv, shares, write_json_lines

LETTERS = "ABCD"
CIRCULAR = 1_000_000  # MMBench repeats a question with its options turned round at index + 1,000,000, 2,000,000, ...
ABSENT = ("", "nan")  # how its tables write a hint or an option that is not there
REFERENCE = 64  # an `image` no longer than this is the index of the row that holds the picture
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that Excel files cannot hold


def letter_of(answer, options):
    """The option that an answer names: by the one letter near its end, else by the one text; else "".

    A letter far from the end is a word of the text, as the "A" that opens a sentence.
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - 4:
        return named[0]
    told = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return told[0] if len(told) == 1 else ""


class MMBench(Benchmark):
    """Questions of 20 abilities. All rows are asked; the score is of those that are not circular repetitions."""

    name = "mmbench"
    layout = "one .tsv file of MMBench, with columns index, question, A, B, C, D, category and image (base64)"

    def _questions(self, data):
        tables = [data] if data.is_file() else sorted(data.glob("*.tsv"))
        if len(tables) != 1:
            raise UserError(f"{self.name}: {len(tables)} .tsv files in {str(data)!r}; expected {self.layout}.")
        rows = read_tsv(tables[0])
        encoded = {row["index"]: row.pop("image") for row in rows}
        unbroken = {i: "".join(text.split()) for i, text in encoded.items()}
        pictures = {i: base64.b64decode(text, validate=True) for i, text in unbroken.items() if len(text) > REFERENCE}
        for row in rows:
            index = row["index"]
            owner = index if index in pictures else encoded[index]
            if owner not in pictures:
                raise UserError(f"{self.name}: row {index} takes its picture from row {owner!r}, which has none.")
            options = _options(row)
            if "A" not in options:
                raise UserError(f"{self.name}: row {index} of {str(tables[0])!r} has no options.")
            hint = row.get("hint") or ""
            text = choice(row["question"], options=options, hint="" if hint in ABSENT else hint)
            answer = row.get("answer") or ""
            extra = {"answer": None if answer in ABSENT else answer, "category": row.get("category") or "", "row": row}
            yield Question(str(int(index)), f"{chat.IMAGE}\n{text}", (pictures[owner],), extra)

    def _write(self, out, pairs):
        """Writes the .xlsx that the server takes, where openpyxl is installed; else a .tsv of the same columns."""
        columns = [*pairs[0][0].extra["row"], "prediction"]
        rows = [{**q.extra["row"], "prediction": a} for q, a in pairs]
        if importlib.util.find_spec("openpyxl") is None:
            path = out / "mmbench_predictions.tsv"
            cells = [columns, *([" ".join(row[c].split()) for c in columns] for row in rows)]
            path.write_text("".join("\t".join(line) + "\n" for line in cells), encoding="utf-8")
            return [path]
        import openpyxl  # optional: it only writes this file

        path, book = out / "mmbench_predictions.xlsx", openpyxl.Workbook()
        book.active.append(columns)
        for row in rows:
            book.active.append([int(row[c]) if c == "index" else CONTROL.sub("", row[c]) for c in columns])
        for cell in (cell for line in book.active for cell in line if cell.data_type == "f"):
            cell.data_type = "s"  # an answer that opens with "=" is text
        book.save(path)
        return [path]

    def _score(self, pairs):
        pairs = [(q, a) for q, a in pairs if int(q.id) < CIRCULAR]
        right = [letter_of(a, _options(q.extra["row"])) == q.extra["answer"] for q, a in pairs]
        return shares(right, [q.extra["category"] for q, _ in pairs])


def _options(row):
    return {letter: row[letter] for letter in LETTERS if row.get(letter) and row[letter] not in ABSENT}


class SeedBench(Benchmark):
    """The picture questions of SEED-Bench; those about videos are left out, as in the papers."""

    name = "seed-bench"
    layout = "SEED-Bench.json, and the pictures in SEED-Bench-image/"

    def _questions(self, data):
        pictures = self._folder(data, "SEED-Bench-image")
        for row in read_json(self._file(data, "SEED-Bench.json"))["questions"]:
            if row.get("data_type", "image") == "image":
                options = {letter: str(row[f"choice_{letter.lower()}"]) for letter in LETTERS}
                extra = {"answer": row.get("answer"), "type": int(row["question_type_id"]), "options": options}
                picture = pictures / row["data_id"]
                content = f"{chat.IMAGE}\n{choice(row['question'], options=options)}"
                yield Question(str(row["question_id"]), content, (picture,), extra)

    def _write(self, out, pairs):
        rows = [{"question_id": q.id, "prediction": letter_of(a, q.extra["options"])} for q, a in pairs]
        return [write_json_lines(out / "seed-bench_predictions.jsonl", rows)]

    def _score(self, pairs):
        right = [letter_of(a, q.extra["options"]) == q.extra["answer"] for q, a in pairs]
        return shares(right, [q.extra["type"] for q, _ in pairs])
