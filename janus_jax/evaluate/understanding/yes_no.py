"""POPE and MME: questions that are answered with yes or no."""

from absl import logging

from janus_jax.data.files import PICTURES
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import Benchmark, Question, read_json_lines, short_answer, write_json_lines

POPE_SPLITS = ("random", "popular", "adversarial")
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()


class Pope(Benchmark):
    """Is this object in the picture? Three splits of 3,000 questions, half of them yes."""

    name = "pope"
    layout = "coco_pope_{random,popular,adversarial}.json, and the COCO pictures in val2014/ or beside them"
    max_tokens = 128

    def _questions(self, data):
        folder = self._folder(data, "val2014")
        for split in POPE_SPLITS:
            for row in read_json_lines(self._file(data, f"coco_pope_{split}.json")):
                extra = {"split": split, "text": row["text"], "answer": row["label"].strip().lower()}
                if extra["answer"] not in ("yes", "no"):
                    raise UserError(
                        f"{self.name}: the label of question {row['question_id']} is {row['label']!r}, not yes or no."
                    )
                content = short_answer(row["text"].replace(" Please answer yes or no.", ""))
                yield Question(f"{split}/{row['question_id']}", content, (folder / row["image"],), extra)

    def _write(self, out, pairs):
        return [
            write_json_lines(
                out / f"coco_pope_{split}_answers.json",
                [{"question": q.extra["text"], "answer": a} for q, a in pairs if q.extra["split"] == split],
            )
            for split in POPE_SPLITS
        ]

    def _score(self, pairs):
        by_split = {s: _detection([(q, a) for q, a in pairs if q.extra["split"] == s]) for s in POPE_SPLITS}
        means = {m: sum(t[m] for t in by_split.values()) / len(by_split) for m in by_split["random"]}
        return means | {f"{m}/{s}": value for s, table in by_split.items() for m, value in table.items()}


def said_yes(answer):
    """How POPE reads an answer: no word of denial in the first sentence is a yes, whatever else is there."""
    return not {"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" "))


def _detection(pairs):
    """Accuracy, precision, recall and F1 of yes, and the share of yes."""
    said = [(said_yes(a), q.extra["answer"] != "no") for q, a in pairs]
    hits, yes, true = sum(s and t for s, t in said), sum(s for s, _ in said), sum(t for _, t in said)
    precision, recall = hits / max(yes, 1), hits / max(true, 1)
    return {
        "accuracy": sum(s == t for s, t in said) / len(said),
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / max(yes + true, 1),
        "yes_ratio": yes / len(said),
    }


class Mme(Benchmark):
    """14 tasks, two questions about each picture."""

    name = "mme"
    layout = (
        "a folder for each of the 14 tasks, with TASK/NAME.txt beside its picture, or TASK/images/ and "
        "TASK/questions_answers_YN/; each text has two lines of question, tab, Yes or No"
    )
    max_tokens = 16

    def _questions(self, data):
        tasks = (*PERCEPTION, *COGNITION)
        here = [task for task in tasks if (data / task).is_dir()]
        if lacking := [task for task in tasks if task not in here]:
            logging.warning("%s: %s of %d tasks are not here, %s", self.name, len(lacking), len(tasks), ", ".join(lacking))
        for task in here:
            texts = pictures = data / task
            if (data / task / "questions_answers_YN").is_dir():
                texts, pictures = data / task / "questions_answers_YN", data / task / "images"
            names = {p.stem: p.name for p in sorted(pictures.glob("*")) if p.suffix.lower() in PICTURES}
            found = sorted(texts.glob("*.txt"))
            if not found:
                raise UserError(f"{self.name}: no question in {str(texts)!r}; expected {self.layout}.")
            for path in found:
                lines = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
                if len(lines) != 2 or any(len(line) < 2 or line[1].strip().lower() not in ("yes", "no") for line in lines):
                    raise UserError(f"{self.name}: {str(path)!r} is not two lines of question, tab, Yes or No.")
                picture = pictures / names.get(path.stem, f"{path.stem}.jpg")
                for i, (question, truth, *_) in enumerate(lines):
                    extra = {"task": task, "image": picture.name, "text": question, "answer": truth.strip()}
                    yield Question(f"{task}/{path.stem}/{i}", short_answer(question), (picture,), extra)

    def _write(self, out, pairs):
        lines = {}
        for q, a in pairs:
            row = (q.extra["image"], q.extra["text"], q.extra["answer"], one_line(a))
            lines.setdefault(q.extra["task"], []).append("\t".join(row) + "\n")
        for task, part in lines.items():
            (out / f"{task}.txt").write_text("".join(part), encoding="utf-8")
        return [out / f"{task}.txt" for task in lines]

    def _score(self, pairs):
        tasks = {}
        for q, a in pairs:
            right = opening(a) == q.extra["answer"].lower()
            tasks.setdefault(q.extra["task"], {}).setdefault(q.id.rpartition("/")[0], []).append(right)
        scores = {}
        for task, pictures in tasks.items():  # accuracy over questions, and over pictures with both right
            both = sum(all(p) for p in pictures.values())
            scores[task] = 100 * (sum(map(sum, pictures.values())) / 2 + both) / len(pictures)
        halves = {"perception": PERCEPTION, "cognition": COGNITION}
        sums = {half: sum(scores[t] for t in tasks) for half, tasks in halves.items() if scores.keys() >= set(tasks)}
        return sums | scores


def one_line(answer):
    """An answer without tabs and line breaks, which would end its field."""
    return " ".join(answer.split())


def opening(answer):
    """How MME reads an answer: 'yes' or 'no' within its first four characters, else 'other'."""
    start = one_line(answer).lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")
