"""POPE and MME: questions with the answers yes and no."""

from absl import logging

from janus_jax.data.files import IMAGE_ENDINGS
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import (
    Question,
    QuestionBenchmark,
    read_json_lines,
    short_question,
    write_json_lines,
)

POPE_SPLITS = ("random", "popular", "adversarial")
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()


class Pope(QuestionBenchmark):
    """Is this object in the image? Three splits of 3,000 questions, half of the answers are yes."""

    name = "pope"
    layout = (
        "coco_pope_{random,popular,adversarial}.json, and the COCO images in val2014/ or in the "
        "same folder"
    )
    max_tokens = 128

    def _questions(self, data):
        folder = self._folder(data, "val2014")
        for split in POPE_SPLITS:
            for row in read_json_lines(self._file(data, f"coco_pope_{split}.json")):
                extra = {
                    "split": split,
                    "text": row["text"],
                    "answer": row["label"].strip().lower(),
                }
                if extra["answer"] not in ("yes", "no"):
                    raise UserError(
                        f"{self.name}: the label of question {row['question_id']} in split {split} "
                        f"is {row['label']!r}; expected yes or no."
                    )
                content = short_question(row["text"].replace(" Please answer yes or no.", ""))
                yield Question(
                    f"{split}/{row['question_id']}", content, (folder / row["image"],), extra
                )

    def _write(self, out, pairs):
        return [
            write_json_lines(
                out / f"coco_pope_{split}_answers.json",
                [
                    {"question": q.extra["text"], "answer": a}
                    for q, a in pairs
                    if q.extra["split"] == split
                ],
            )
            for split in POPE_SPLITS
        ]

    def _score(self, pairs):
        by_split = {
            split: _detection_scores([(q, a) for q, a in pairs if q.extra["split"] == split])
            for split in POPE_SPLITS
        }
        metrics = by_split[POPE_SPLITS[0]]
        means = {
            metric: sum(scores[metric] for scores in by_split.values()) / len(by_split)
            for metric in metrics
        }
        return means | {
            f"{metric}/{split}": value
            for split, scores in by_split.items()
            for metric, value in scores.items()
        }


def is_yes(answer):
    """POPE's reading of an answer: yes, unless the first sentence has the word No, no or not."""
    return not {"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" "))


def _detection_scores(pairs):
    """Accuracy, precision, recall and F1 of yes, and the share of yes."""
    predictions = [is_yes(answer) for _, answer in pairs]
    labels = [q.extra["answer"] != "no" for q, _ in pairs]
    both = list(zip(predictions, labels, strict=True))
    true_positives = sum(prediction and label for prediction, label in both)
    predicted, positive = sum(predictions), sum(labels)
    return {
        "accuracy": sum(prediction == label for prediction, label in both) / len(both),
        "precision": true_positives / max(predicted, 1),
        "recall": true_positives / max(positive, 1),
        "f1": 2 * true_positives / max(predicted + positive, 1),
        "yes_ratio": predicted / len(both),
    }


class Mme(QuestionBenchmark):
    """14 tasks, two questions about each image; the score is in points."""

    name = "mme"
    unit = 1
    layout = (
        "a folder for each of the 14 tasks, with TASK/NAME.txt and its image, or TASK/images/ and "
        "TASK/questions_answers_YN/; each text file has two lines of question, tab, Yes or No"
    )
    max_tokens = 16

    def _questions(self, data):
        tasks = (*PERCEPTION, *COGNITION)
        missing = [task for task in tasks if not (data / task).is_dir()]
        if missing:
            names = ", ".join(missing)
            logging.warning(
                "%s: %d of %d tasks are missing: %s", self.name, len(missing), len(tasks), names
            )
        for task in tasks:
            if task not in missing:
                yield from self._task_questions(data / task)

    def _task_questions(self, folder):
        """Yields the questions of one task."""
        texts = images = folder
        if (folder / "questions_answers_YN").is_dir():
            texts = folder / "questions_answers_YN"
            images = folder / "images"
        names = {
            path.stem: path.name
            for path in sorted(images.glob("*"))
            if path.suffix.lower() in IMAGE_ENDINGS
        }
        files = sorted(texts.glob("*.txt"))
        if not files:
            raise UserError(f"{self.name}: no question in {str(texts)!r}; expected {self.layout}.")
        for path in files:
            image = images / names.get(path.stem, f"{path.stem}.jpg")
            for i, (text, answer) in enumerate(self._read_pair(path)):
                extra = {"task": folder.name, "image": image.name, "text": text, "answer": answer}
                yield Question(
                    f"{folder.name}/{path.stem}/{i}", short_question(text), (image,), extra
                )

    def _read_pair(self, path):
        """[(question, answer)], the two lines of a text file."""
        rows = [
            line.split("\t")
            for line in path.read_text(encoding="utf-8").split("\n")
            if line.strip()
        ]
        if len(rows) != 2 or any(
            len(row) < 2 or row[1].strip().lower() not in ("yes", "no") for row in rows
        ):
            raise UserError(
                f"{self.name}: {str(path)!r} is not two lines of question, tab, Yes or No."
            )
        return [(row[0], row[1].strip()) for row in rows]

    def _write(self, out, pairs):
        lines = {}
        for q, a in pairs:
            row = (q.extra["image"], q.extra["text"], q.extra["answer"], one_line(a))
            lines.setdefault(q.extra["task"], []).append("\t".join(row) + "\n")
        for task, part in lines.items():
            (out / f"{task}.txt").write_text("".join(part), encoding="utf-8")
        return [out / f"{task}.txt" for task in lines]

    def _score(self, pairs):
        by_task = {}  # {task: {image: [is the answer correct] of its two questions}}
        for q, answer in pairs:
            correct = first_word(answer) == q.extra["answer"].lower()
            image = q.id.rpartition("/")[0]
            by_task.setdefault(q.extra["task"], {}).setdefault(image, []).append(correct)
        scores = {}
        for task, images in by_task.items():
            correct_answers = sum(map(sum, images.values()))
            both_correct = sum(all(pair) for pair in images.values())
            # Accuracy over questions plus accuracy over images with both answers correct.
            scores[task] = 100 * (correct_answers / 2 + both_correct) / len(images)
        sums = {}
        for part, tasks in {"perception": PERCEPTION, "cognition": COGNITION}.items():
            if scores.keys() >= set(tasks):
                sums[part] = sum(scores[task] for task in tasks)
        return sums | scores


def one_line(answer):
    """An answer without tabs and line breaks, which would end its field."""
    return " ".join(answer.split())


def first_word(answer):
    """MME's reading of an answer: 'yes' or 'no' in the first four characters, else 'other'."""
    start = one_line(answer).lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")
