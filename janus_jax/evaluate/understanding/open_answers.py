"""VQAv2, GQA, TextVQA, ChartQA and MM-Vet: answers in the model's own words."""

from janus_jax.data import chat
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding.base import Benchmark, Question, read_json, shares, short_answer, write_json
from janus_jax.evaluate.understanding.vqa_accuracy import agreement, normalise, one_line, vqa_accuracy

CHART_SPLITS = ("human", "augmented")
TOLERANCE = 0.05


def bare(answer):
    """Lower case, without a final full stop: what is handed in where the scorer compares letter by letter."""
    return answer.strip().lower().removesuffix(".").strip()


class VqaV2(Benchmark):
    """Questions about COCO pictures, ten answers each; without annotations (test) answers are only written."""

    name = "vqav2"
    layout = (
        "one v2_OpenEnded_mscoco_SPLIT_questions.json, v2_mscoco_SPLIT_annotations.json unless SPLIT is a test, and the "
        "pictures COCO_SPLIT_*.jpg in a folder named SPLIT, such as val2014/"
    )

    def _questions(self, data):
        files = sorted(data.glob("v2_OpenEnded_mscoco_*_questions.json"))
        if len(files) != 1:
            raise UserError(
                f"{self.name}: {len(files)} files v2_OpenEnded_mscoco_*_questions.json in {str(data)!r}; "
                f"expected {self.layout}."
            )
        table, told = read_json(files[0]), None
        split = table.get("data_subtype") or files[0].name.split("_")[3]
        if not split.startswith("test"):
            annotations = read_json(self._file(data, f"v2_mscoco_{split}_annotations.json"))["annotations"]
            told = {row["question_id"]: row for row in annotations}
        split = split.replace("test-dev", "test")  # a part of the test questions, about the same pictures
        pictures = self._folder(data, split)
        for row in table["questions"]:
            extra = {"question_id": row["question_id"], "answer": None}
            if told is not None:
                truth = told[row["question_id"]]
                extra |= {"answer": [str(a["answer"]) for a in truth["answers"]]}
                extra |= {"type": truth.get("answer_type", "other")}
            picture = pictures / f"COCO_{split}_{row['image_id']:012d}.jpg"
            yield Question(str(row["question_id"]), short_answer(row["question"]), (picture,), extra)

    def _write(self, out, pairs):
        rows = [{"question_id": q.extra["question_id"], "answer": bare(a)} for q, a in pairs]
        return [write_json(out / "vqav2_answers.json", rows)]

    def _score(self, pairs):
        values = [vqa_accuracy(bare(a), q.extra["answer"]) for q, a in pairs]
        return shares(values, [q.extra["type"] for q, _ in pairs])


class Gqa(Benchmark):
    """The balanced test-dev questions."""

    name = "gqa"
    layout = "testdev_balanced_questions.json, and the pictures in images/"

    def _questions(self, data):
        name = "testdev_balanced_questions.json"
        for key, row in read_json(self._file(data, name, f"questions/{name}", f"questions1.2/{name}")).items():
            picture = data / "images" / f"{row['imageId']}.jpg"
            yield Question(key, short_answer(row["question"]), (picture,), {"answer": row.get("answer")})

    def _write(self, out, pairs):
        rows = [{"questionId": q.id, "prediction": bare(a)} for q, a in pairs]
        return [write_json(out / "gqa_predictions.json", rows)]

    def _score(self, pairs):
        return {"accuracy": sum(bare(a) == bare(q.extra["answer"]) for q, a in pairs) / len(pairs)}


class TextVqa(Benchmark):
    """Questions about text in pictures, ten answers each; no text is read out to the model beforehand."""

    name = "textvqa"
    layout = "TextVQA_0.5.1_val.json, and the pictures in train_images/"

    def _questions(self, data):
        pictures = self._folder(data, "train_images", "train_val_images/train_images")
        for row in read_json(self._file(data, "TextVQA_0.5.1_val.json"))["data"]:
            extra = {"question_id": row["question_id"], "answer": row.get("answers")}
            picture = pictures / f"{row['image_id']}.jpg"
            yield Question(str(row["question_id"]), short_answer(row["question"]), (picture,), extra)

    def _write(self, out, pairs):
        rows = [{"question_id": q.extra["question_id"], "answer": a.strip()} for q, a in pairs]
        return [write_json(out / "textvqa_answers.json", rows)]

    def _score(self, pairs):
        values = [agreement(_words(a), [_words(r) for r in q.extra["answer"]]) for q, a in pairs]
        return {"accuracy": sum(values) / len(values)}


def _words(answer):
    """TextVQA always normalises, and first takes commas, question marks and genitives apart."""
    return normalise(one_line(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")))


class ChartQa(Benchmark):
    """Charts, with questions by people and by a machine."""

    name = "chartqa"
    layout = "test_human.json, test_augmented.json and the pictures in png/, all of them there or in test/"

    def _questions(self, data):
        for split in CHART_SPLITS:
            path = self._file(data, f"test_{split}.json", f"test/test_{split}.json")
            for i, row in enumerate(read_json(path)):
                extra = {"split": split, "answer": str(row["label"]), "row": row}
                picture = path.parent / "png" / row["imgname"]
                yield Question(f"{split}/{i}", short_answer(row["query"]), (picture,), extra)

    def _write(self, out, pairs):
        rows = {split: [] for split in CHART_SPLITS}
        for q, a in pairs:
            rows[q.extra["split"]].append({**q.extra["row"], "prediction": a.strip()})
        return [write_json(out / f"test_{split}_predictions.json", part) for split, part in rows.items()]

    def _score(self, pairs):
        name = "relaxed_accuracy"
        table = shares([near(a, q.extra["answer"]) for q, a in pairs], [q.extra["split"] for q, _ in pairs], name=name)
        table[name] = sum(table[f"{name}/{split}"] for split in CHART_SPLITS) / len(CHART_SPLITS)
        return table


def near(answer, truth):
    """Whether a number is within 5 % of the true one; other answers, and a true zero, are compared as text."""
    answer, truth = answer.strip(), truth.strip()
    said, true = _number(answer), _number(truth)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return answer.lower() == truth.lower()


def _number(text):
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


class MMVet(Benchmark):
    """Free answers that a judge marks: they are only written."""

    name = "mm-vet"
    layout = "mm-vet.json, and the pictures in images/"
    max_tokens = 2048
    system = "You are a careful assistant. Answer truthfully, and think step by step in writing before you conclude."

    def _questions(self, data):
        for key, row in read_json(self._file(data, "mm-vet.json")).items():
            picture = data / "images" / row["imagename"]
            yield Question(key, f"{chat.IMAGE}\n{row['question']}", (picture,), {"answer": None})

    def _write(self, out, pairs):
        return [write_json(out / "mm-vet_answers.json", {q.id: a for q, a in pairs})]
