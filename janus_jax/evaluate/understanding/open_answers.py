"""VQAv2, GQA, TextVQA, ChartQA and MM-Vet: open answers."""

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import (
    Question,
    QuestionBenchmark,
    means_by_group,
    read_json,
    short_question,
    write_json,
)
from janus_jax.evaluate.understanding.vqa_accuracy import (
    agreement,
    normalise,
    one_line,
    vqa_accuracy,
)

CHART_SPLITS = ("human", "augmented")
TOLERANCE = 0.05  # of ChartQA, relative


def exact_form(answer):
    """Lower case without a final period, for scorers that compare characters."""
    return answer.strip().lower().removesuffix(".").strip()


class VqaV2(QuestionBenchmark):
    """Questions about COCO images, ten answers each; the test splits have no public answers."""

    name = "vqav2"
    layout = (
        "one v2_OpenEnded_mscoco_SPLIT_questions.json, v2_mscoco_SPLIT_annotations.json unless "
        "SPLIT is a test split, and the images COCO_SPLIT_*.jpg in a folder named SPLIT, such as "
        "val2014/"
    )

    def _questions(self, data):
        files = sorted(data.glob("v2_OpenEnded_mscoco_*_questions.json"))
        if len(files) != 1:
            raise UserError(
                f"{self.name}: {len(files)} files v2_OpenEnded_mscoco_*_questions.json in "
                f"{str(data)!r}; expected {self.layout}."
            )
        table = read_json(files[0])
        annotations = None
        split = table.get("data_subtype") or files[0].name.split("_")[3]
        if not split.startswith("test"):
            rows = read_json(self._file(data, f"v2_mscoco_{split}_annotations.json"))["annotations"]
            annotations = {row["question_id"]: row for row in rows}
        split = split.replace(
            "test-dev", "test"
        )  # a subset of the test questions, with the same images
        folder = self._folder(data, split)
        for row in table["questions"]:
            extra = {"question_id": row["question_id"], "answer": None}
            if annotations is not None:
                annotation = annotations[row["question_id"]]
                extra["answer"] = [str(a["answer"]) for a in annotation["answers"]]
                extra["type"] = annotation.get("answer_type", "other")
            image = folder / f"COCO_{split}_{row['image_id']:012d}.jpg"
            yield Question(
                str(row["question_id"]), short_question(row["question"]), (image,), extra
            )

    def _write(self, out, pairs):
        rows = [{"question_id": q.extra["question_id"], "answer": exact_form(a)} for q, a in pairs]
        return [write_json(out / "vqav2_answers.json", rows)]

    def _score(self, pairs):
        values = [vqa_accuracy(exact_form(a), q.extra["answer"]) for q, a in pairs]
        return means_by_group(values, [q.extra["type"] for q, _ in pairs])


class Gqa(QuestionBenchmark):
    """The balanced test-dev questions."""

    name = "gqa"
    layout = "testdev_balanced_questions.json, and the images in images/"

    def _questions(self, data):
        name = "testdev_balanced_questions.json"
        for key, row in read_json(
            self._file(data, name, f"questions/{name}", f"questions1.2/{name}")
        ).items():
            image = data / "images" / f"{row['imageId']}.jpg"
            yield Question(
                key, short_question(row["question"]), (image,), {"answer": row.get("answer")}
            )

    def _write(self, out, pairs):
        rows = [{"questionId": q.id, "prediction": exact_form(a)} for q, a in pairs]
        return [write_json(out / "gqa_predictions.json", rows)]

    def _score(self, pairs):
        return {
            "accuracy": sum(exact_form(a) == exact_form(q.extra["answer"]) for q, a in pairs)
            / len(pairs)
        }


class TextVqa(QuestionBenchmark):
    """Questions about text in images, ten answers each; the prompt has no OCR text."""

    name = "textvqa"
    layout = "TextVQA_0.5.1_val.json, and the images in train_images/"

    def _questions(self, data):
        folder = self._folder(data, "train_images", "train_val_images/train_images")
        for row in read_json(self._file(data, "TextVQA_0.5.1_val.json"))["data"]:
            extra = {"question_id": row["question_id"], "answer": row.get("answers")}
            image = folder / f"{row['image_id']}.jpg"
            yield Question(
                str(row["question_id"]), short_question(row["question"]), (image,), extra
            )

    def _write(self, out, pairs):
        rows = [{"question_id": q.extra["question_id"], "answer": a.strip()} for q, a in pairs]
        return [write_json(out / "textvqa_answers.json", rows)]

    def _score(self, pairs):
        values = [agreement(_words(a), [_words(r) for r in q.extra["answer"]]) for q, a in pairs]
        return {"accuracy": sum(values) / len(values)}


def _words(answer):
    """TextVQA's normalisation: commas, question marks and genitives first, then that of VQA."""
    return normalise(
        one_line(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))
    )


class ChartQa(QuestionBenchmark):
    """Questions about charts, written by people (human) and by a model (augmented)."""

    name = "chartqa"
    layout = (
        "test_human.json, test_augmented.json and the images in png/, all in the folder itself or "
        "in test/"
    )

    def _questions(self, data):
        for split in CHART_SPLITS:
            path = self._file(data, f"test_{split}.json", f"test/test_{split}.json")
            for i, row in enumerate(read_json(path)):
                extra = {"split": split, "answer": str(row["label"]), "row": row}
                image = path.parent / "png" / row["imgname"]
                yield Question(f"{split}/{i}", short_question(row["query"]), (image,), extra)

    def _write(self, out, pairs):
        rows = {split: [] for split in CHART_SPLITS}
        for q, a in pairs:
            rows[q.extra["split"]].append({**q.extra["row"], "prediction": a.strip()})
        return [
            write_json(out / f"test_{split}_predictions.json", part) for split, part in rows.items()
        ]

    def _score(self, pairs):
        name = "relaxed_accuracy"
        correct = [is_close(answer, q.extra["answer"]) for q, answer in pairs]
        scores = means_by_group(correct, [q.extra["split"] for q, _ in pairs], name=name)
        scores[name] = sum(scores[f"{name}/{split}"] for split in CHART_SPLITS) / len(CHART_SPLITS)
        return scores


def is_close(answer, reference):
    """Whether a number is within 5 % of the reference; text and a reference of 0 must be equal."""
    answer = answer.strip()
    reference = reference.strip()
    value = _number(answer)
    expected = _number(reference)
    if value is not None and expected:
        return abs(value - expected) / abs(expected) <= TOLERANCE
    return answer.lower() == reference.lower()


def _number(text):
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


class MMVet(QuestionBenchmark):
    """Free answers that a judge scores; here they are only written."""

    name = "mm-vet"
    layout = "mm-vet.json, and the images in images/"
    max_tokens = 2048
    system = (
        "You are a careful assistant. Answer truthfully, and think step by step in writing before "
        "you conclude."
    )

    def _questions(self, data):
        for key, row in read_json(self._file(data, "mm-vet.json")).items():
            image = data / "images" / row["imagename"]
            yield Question(key, f"{chat.IMAGE}\n{row['question']}", (image,), {"answer": None})

    def _write(self, out, pairs):
        return [write_json(out / "mm-vet_answers.json", {q.id: a for q, a in pairs})]
