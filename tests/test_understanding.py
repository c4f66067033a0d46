"""Benchmarks of understanding: official files in, prompts word for word, official files out, scores counted by hand."""

import base64
import csv
import importlib.util
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from janus_jax.data.chat import IMAGE
from janus_jax.errors import UserError
from janus_jax.evaluate.understanding import BENCHMARKS, choice, mmmu, open_answers, yes_no
from janus_jax.evaluate.understanding.vqa_accuracy import normalise, vqa_accuracy

POPE = Path(__file__).parents[2] / "shared/data/pope"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def png(color="red"):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def put(path, value=None):
    """Writes JSON, text or, without a value, a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        path.write_bytes(png())
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# POPE


def pope(folder, pictures="val2014"):
    for split in yes_no.POPE_SPLITS:
        rows = [
            {
                "question_id": i,
                "image": f"{i % 2}.jpg",
                "text": f"Is there a {split} {i}? Please answer yes or no.",
                "label": l,
            }
            for i, l in enumerate(("yes", "yes", "no", "no"))
        ]
        put(folder / f"coco_pope_{split}.json", lines(rows))
    for i in range(2):
        put(folder / pictures / f"{i}.jpg")


@pytest.mark.parametrize("pictures", ("val2014", "."))
def test_pope(tmp_path, pictures):
    pope(tmp_path / "in", pictures)
    bench = BENCHMARKS["pope"]
    questions = bench.read(tmp_path / "in")
    assert [q.id for q in questions[3:5]] == ["random/3", "popular/0"]
    assert questions[4].content == f"{IMAGE}\nIs there a popular 0?{SHORT}"
    assert questions[4].images == (tmp_path / "in" / pictures / "0.jpg",)
    # random: yes, a denial, garbled (counts as yes), no. Others: always yes.
    answers = ["Yes", "There is not, sorry", "", "No, there is none. Yes"] + ["yes"] * 8
    files = bench.write(tmp_path / "out", questions, answers)
    assert [f.name for f in files] == [f"coco_pope_{s}_answers.json" for s in yes_no.POPE_SPLITS]
    first = files[0].read_text().splitlines()
    assert first[1] == '{"question": "Is there a random 1? Please answer yes or no.", "answer": "There is not, sorry"}'
    assert len(first) == 4
    score = bench.score(questions, answers)
    assert [score[f"{m}/random"] for m in ("accuracy", "precision", "recall", "f1", "yes_ratio")] == [0.5] * 5
    assert score["f1/popular"] == pytest.approx(2 / 3) and score["recall/popular"] == score["yes_ratio/popular"] == 1
    assert score["f1"] == pytest.approx((0.5 + 2 / 3 + 2 / 3) / 3) and score["yes_ratio"] == pytest.approx(2.5 / 3)
    never = bench.score(questions, ["no"] * 12)
    assert (never["precision"], never["f1"], never["accuracy"]) == (0, 0, 0.5)


@pytest.mark.parametrize(
    "answer, yes",
    [
        ("No", False),
        ("no, never", False),
        ("I do not", False),
        ("NO", True),
        ("nothing", True),
        ("", True),
        ("Yes. no", True),
    ],
)
def test_pope_hears_a_denial_or_a_yes(answer, yes):
    assert yes_no.said_yes(answer) is yes


@pytest.mark.skipif(not POPE.is_dir(), reason="the real questions are not here")
def test_pope_reads_the_real_questions(tmp_path):
    names = set()
    for split in yes_no.POPE_SPLITS:
        text = (POPE / f"coco_pope_{split}.json").read_text()
        put(tmp_path / f"coco_pope_{split}.json", text)
        names |= {json.loads(line)["image"] for line in text.splitlines()}
    for name in names:
        (tmp_path / name).touch()
    questions = BENCHMARKS["pope"].read(tmp_path)
    assert [q.extra["split"] for q in questions] == [s for s in yes_no.POPE_SPLITS for _ in range(3000)]
    assert questions[0].content == f"{IMAGE}\nIs there a snowboard in the image?{SHORT}"
    score = BENCHMARKS["pope"].score(questions, [q.extra["answer"] for q in questions])
    assert score["accuracy"] == 1 and score["yes_ratio"] == 0.5


# MME


def mme(folder):
    """Both layouts, one or two pictures a task."""
    for i, task in enumerate((*yes_no.PERCEPTION, *yes_no.COGNITION)):
        for name in ("a", "b")[: 2 if task == "existence" else 1]:
            apart = i % 2
            put(folder / task / ("images" if apart else "") / f"{name}.png")
            where = folder / task / ("questions_answers_YN" if apart else "") / f"{name}.txt"
            put(where, "Is it? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n")


def test_mme(tmp_path):
    mme(tmp_path / "in")
    bench = BENCHMARKS["mme"]
    questions = bench.read(tmp_path / "in")
    assert [q.id for q in questions[:5]] == [f"existence/{n}" for n in ("a/0", "a/1", "b/0", "b/1")] + ["count/a/0"]
    assert questions[0].content == f"{IMAGE}\nIs it? Please answer yes or no.{SHORT}"
    assert questions[0].images == (tmp_path / "in/existence/a.png",)
    assert questions[4].images == (tmp_path / "in/count/images/a.png",)
    # existence: both right, then one of two; count: a late yes is "other"; the rest right.
    answers = ["Yes.", "no", "YES", "yes"] + ["I say: yes", "No\tway\n"] + ["yes", "no"] * 12
    files = bench.write(tmp_path / "out", questions, answers)
    assert len(files) == 14 and files[1] == tmp_path / "out/count.txt"
    assert files[1].read_text() == (
        "a.png\tIs it? Please answer yes or no.\tYes\tI say: yes\na.png\tIs it not? Please answer yes or no.\tNo\tNo way\n"
    )
    score = bench.score(questions, answers)
    assert score["existence"] == 75 + 50 and score["count"] == 50 + 0 and score["OCR"] == 200
    assert (score["perception"], score["cognition"]) == (125 + 50 + 8 * 200, 800)


@pytest.mark.parametrize("answer, read", [("yes", "yes"), (" No.", "no"), ("A: no", "other"), ("Not", "no"), ("", "other")])
def test_mme_reads_four_characters(answer, read):
    assert yes_no.opening(answer) == read


# MMBench, SEED-Bench


def mmbench(folder, *, answers=("B", "A", "C"), borrowed="1"):
    folder.mkdir(exist_ok=True)
    picture = base64.b64encode(png()).decode()
    with (folder / "mmbench_dev.tsv").open("w", newline="") as file:
        out = csv.writer(file, delimiter="\t")
        out.writerow("index question hint A B C D answer category l2-category image".split())
        out.writerow([1, "What is it?", "nan", "a cat", "a dog", "", "", answers[0], "object", "o2", picture])
        out.writerow([2, 'Which "one"?', "Two\nlines", "x", "y", "z", "w", answers[1], "logic", "l2", borrowed])
        out.writerow([1_000_001, "What is it?", "", "a dog", "a cat", "", "", answers[2], "object", "o2", borrowed])


def test_mmbench(tmp_path, monkeypatch):
    mmbench(tmp_path / "in")
    bench = BENCHMARKS["mmbench"]
    questions = bench.read(tmp_path / "in")
    assert questions[0].content == f"{IMAGE}\nWhat is it?\nA. a cat\nB. a dog\n{LETTER}"
    assert questions[1].content == f'{IMAGE}\nHint: Two\nlines\nWhich "one"?\nA. x\nB. y\nC. z\nD. w\n{LETTER}'
    assert [q.images for q in questions] == [(png(),)] * 3
    answers = ["B", "(C)\tz", "A"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (file,) = bench.write(tmp_path / "out", questions, answers)
    assert file.read_text().splitlines() == [
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tprediction",
        "1\tWhat is it?\tnan\ta cat\ta dog\t\t\tB\tobject\to2\tB",
        '2\tWhich "one"?\tTwo lines\tx\ty\tz\tw\tA\tlogic\tl2\t(C) z',
        "1000001\tWhat is it?\t\ta dog\ta cat\t\t\tC\tobject\to2\tA",
    ]
    # the third row is a circular repetition, which is asked but not scored
    assert bench.score(questions, answers) == {"accuracy": 0.5, "accuracy/logic": 0, "accuracy/object": 1}


def test_mmbench_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    mmbench(tmp_path / "in")
    questions = BENCHMARKS["mmbench"].read(tmp_path / "in")
    (file,) = BENCHMARKS["mmbench"].write(tmp_path / "out", questions, ["=B", "C\x07", "A"])
    sheet = openpyxl.load_workbook(file).active
    rows = list(sheet.values)
    assert {cell.data_type for row in sheet for cell in row} <= {"s", "inlineStr", "n"}  # an answer is never a formula
    assert file.suffix == ".xlsx" and rows[0][-2:] == ("l2-category", "prediction")
    assert [(row[0], row[-1]) for row in rows[1:]] == [(1, "=B"), (2, "C"), (1_000_001, "A")]


def test_mmbench_without_answers_has_no_score(tmp_path):
    mmbench(tmp_path, answers=("", "", ""))
    assert BENCHMARKS["mmbench"].score(BENCHMARKS["mmbench"].read(tmp_path), ["A"] * 3) == {}


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"), ("(C)", "C"), ("D. the sea", "D"), ("The answer is A.", "A"), ("It shows a lake", "C"), ("b", ""),
        ("A or B", ""), ("A or B, a river", "B"), ("A man stands there near the lake", "C"), ("a river, a lake", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_letters_are_found(answer, letter):
    assert choice.letter_of(answer, {"A": "hill", "B": "river", "C": "lake", "D": "the sea"}) == letter


def seed_bench(folder):
    shared = {"question": "Where?", "choice_a": "in", "choice_b": "on", "choice_c": "at", "choice_d": "by"}
    rows = [
        {**shared, "question_id": "7", "answer": "A", "data_id": "1_2", "data_type": "image", "question_type_id": 1},
        {**shared, "question_id": "8", "answer": "D", "data_id": "1_2", "data_type": "image", "question_type_id": 5},
        {**shared, "question_id": "9", "answer": "D", "data_id": "v.mp4", "data_type": "video", "question_type_id": 10},
    ]
    put(folder / "SEED-Bench.json", {"questions": rows})
    put(folder / "SEED-Bench-image/1_2")


def test_seed_bench(tmp_path):
    seed_bench(tmp_path)
    bench = BENCHMARKS["seed-bench"]
    questions = bench.read(tmp_path)
    assert [q.id for q in questions] == ["7", "8"]
    assert questions[0].content == f"{IMAGE}\nWhere?\nA. in\nB. on\nC. at\nD. by\n{LETTER}"
    (file,) = bench.write(tmp_path / "out", questions, ["A.", "hm"])
    assert file.read_text() == '{"question_id": "7", "prediction": "A"}\n{"question_id": "8", "prediction": ""}\n'
    assert bench.score(questions, ["A.", "hm"]) == {"accuracy": 0.5, "accuracy/1": 1, "accuracy/5": 0}


# MMMU


def mmmu_files(
    folder,
    *,
    question="See <image 1> and <image 2>, then <image 1>.",
    subjects=mmmu.SUBJECTS,
    answer="B",
    free_answer="['24/7', '3.429']",
):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for i in range(subjects):
        text = {"id": f"validation_Sub_{i}_1", "question": "Why?", "options": "['no', \"don't\"]", "answer": answer}
        rows = [{**text, "question_type": "multiple-choice", "image_1": {"bytes": png()}}]
        if i == 0:
            both = {"image_1": {"bytes": png("green")}, "image_2": {"bytes": png("blue")}}
            rows[0] |= {"question": question, "options": "['<image 2>', 'none']", **both}
            free = {"id": "validation_Sub_0_2", "options": "[]", "answer": free_answer, "question_type": "open"}
            rows += [rows[0] | free]
        columns = {name: [row[name] for row in rows] for name in (*text, "question_type")}
        for n in range(1, 8):
            columns[f"image_{n}"] = pa.array([row.get(f"image_{n}") for row in rows], kind)
        path = folder / f"Sub_{i}" / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pa.parquet.write_table(pa.table(columns), path)


def test_mmmu(tmp_path):
    mmmu_files(tmp_path / "in")
    bench = BENCHMARKS["mmmu"]
    questions = bench.read(tmp_path / "in")
    assert len(questions) == 31 and questions[0].id == "validation_Sub_0_1"
    shown = f"See {IMAGE} and {IMAGE}, then {IMAGE}.\n"
    assert questions[0].content == f"{shown}A. {IMAGE}\nB. none\n{LETTER}"
    assert questions[0].images == (png("green"), png("blue"), png("green"), png("blue"))
    assert (questions[1].content, questions[1].images) == (
        f"{shown}Answer the question directly.",
        (png("green"), png("blue"), png("green")),
    )
    assert questions[2].content == f"{IMAGE}\nWhy?\nA. no\nB. don't\n{LETTER}"
    answers = ["I think (B)", "so x = 3.43"] + ["A"] * 14 + ["B."] * 15
    (file,) = bench.write(tmp_path / "out", questions, answers)
    wrote = json.loads(file.read_text())
    assert (file.name, list(wrote)) == ("mmmu_predictions.json", [q.id for q in questions])
    assert [wrote[q.id] for q in questions[:3]] == ["B", "so x = 3.43", "A"]
    score = bench.score(questions, answers)
    assert score["accuracy"] == 17 / 31 and score["accuracy/Sub_0"] == 1 and score[f"accuracy/{questions[2].id[11:-2]}"] == 0


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"), ("B.", "B"), ("(A) or rather (C)", "C"), ("I take (A), not B ", "A"), ("A B", "B"),
        ("it must be the Grey Fox over there", "C"), ("A. cat is what one sees there", "A"),
    ],
)  # fmt: skip
def test_mmmu_choices(answer, letter):
    assert mmmu.parse_choice(answer, {"A": "cat", "B": "dog", "C": "grey fox"}, seed="q") == letter


def test_mmmu_draws_where_no_option_is_named():
    options = {"A": "cat", "B": "dog", "C": "fox"}
    draw = lambda i: mmmu.parse_choice("grey fox", options, seed=f"validation_Art_{i}")  # too short for its text
    assert [draw(i) for i in range(30)] == [draw(i) for i in range(30)]
    assert {draw(i) for i in range(30)} == set(options)


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("The total is $1,234", "1234", True), ("is $1,234.50", "1234.5", False), ("about 0.333", "0.33", True),
        ("0.34", "0.33", False), ("x = 2\nso y = 7", "7", True), ("8 is less than 9", "8", False),
        ("y is 5 = 6", "5", False), ("It is Tampa.", "tampa", True), ("Tampa is in Florida", "Tampa", False),
        ("abc", "b", False), ("a b", "b", True), ("", "5", False),
    ],
)  # fmt: skip
def test_mmmu_open_answers(answer, truth, right):
    assert mmmu.open_right(answer, [truth]) is right


# VQAv2 and its accuracy


def vqa(folder, split="val2014"):
    rows = [{"image_id": 42, "question": f"What {i}?", "question_id": 420 + i} for i in range(2)]
    put(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_subtype": split, "questions": rows})
    pictures = split.replace("test-dev", "test")
    put(folder / pictures / f"COCO_{pictures}_000000000042.jpg")


def annotate(folder):
    given = (["yes"] * 10, ["2 dogs"] * 3 + ["dogs"] * 7)
    rows = [
        {"question_id": 420 + i, "answer_type": kind, "answers": [{"answer": a} for a in given[i]]}
        for i, kind in ((1, "other"), (0, "yes/no"))
    ]
    put(folder / "v2_mscoco_val2014_annotations.json", {"annotations": rows})


def test_vqav2(tmp_path):
    vqa(tmp_path)
    annotate(tmp_path)
    bench = BENCHMARKS["vqav2"]
    questions = bench.read(tmp_path)
    assert questions[1].content == f"{IMAGE}\nWhat 1?{SHORT}"
    assert questions[1].images == (tmp_path / "val2014/COCO_val2014_000000000042.jpg",)
    answers = ["Yes.", "Two Dogs"]
    (file,) = bench.write(tmp_path / "out", questions, answers)
    assert file.read_text() == '[{"question_id": 420, "answer": "yes"}, {"question_id": 421, "answer": "two dogs"}]\n'
    score = bench.score(questions, answers)
    assert score == pytest.approx({"accuracy": 0.95, "accuracy/other": 0.9, "accuracy/yes/no": 1})


@pytest.mark.parametrize("split, pictures", [("test2015", "test2015"), ("test-dev2015", "test2015")])
def test_vqav2_test_is_written_not_scored(tmp_path, split, pictures):
    vqa(tmp_path, split)
    questions = BENCHMARKS["vqav2"].read(tmp_path)
    assert questions[0].images == (tmp_path / pictures / f"COCO_{pictures}_000000000042.jpg",)
    assert BENCHMARKS["vqav2"].score(questions, ["yes", "no"]) == {}


def test_vqa_accuracy_leaves_one_out():
    for same, accuracy in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)):
        assert vqa_accuracy("red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(accuracy)
    assert vqa_accuracy("The Red", ["red"] * 9 + ["blue"]) == 1
    assert vqa_accuracy("The Red", ["red"] * 10) == 0  # nothing is normalised where all agree


@pytest.mark.parametrize(
    "text, normal",
    [
        ("The two dogs", "2 dogs"), ("dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"), ("red, blue", "red blue"), ("1,000-2", "10002"), ("3.5 m.", "3.5 m"), ("None", "0"),
        ("an apple a day", "apple day"), ("Y'allll", "y'all'll"), ("let's", "let's"), ("somebody'd", "somebodyd"),
    ],
)  # fmt: skip
def test_answers_are_normalised(text, normal):
    assert normalise(text) == normal


# GQA, TextVQA, ChartQA, MM-Vet


def gqa(folder):
    rows = {"q1": {"imageId": "n5", "question": "Is it red?", "answer": "yes"}}
    rows["q2"] = {"imageId": "n5", "question": "What is it?", "answer": "fire truck"}
    put(folder / "testdev_balanced_questions.json", rows)
    put(folder / "images/n5.jpg")


def test_gqa(tmp_path):
    gqa(tmp_path)
    bench = BENCHMARKS["gqa"]
    questions = bench.read(tmp_path)
    assert questions[0] == ("q1", f"{IMAGE}\nIs it red?{SHORT}", (tmp_path / "images/n5.jpg",), {"answer": "yes"})
    (file,) = bench.write(tmp_path / "out", questions, ["Yes.", "truck"])
    assert file.read_text() == '[{"questionId": "q1", "prediction": "yes"}, {"questionId": "q2", "prediction": "truck"}]\n'
    assert bench.score(questions, ["Yes.", "truck"]) == {"accuracy": 0.5}


def text_vqa(folder, **truth):
    rows = [{"question_id": 34602, "question": "what brand?", "image_id": "0054", **truth}]
    put(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    put(folder / "train_images/0054.jpg")


def test_textvqa(tmp_path):
    text_vqa(tmp_path, answers=["Nokia's"] * 2 + ["nokia"] * 8)
    bench = BENCHMARKS["textvqa"]
    questions = bench.read(tmp_path)
    assert questions[0].content == f"{IMAGE}\nwhat brand?{SHORT}"
    (file,) = bench.write(tmp_path / "out", questions, ["Nokia 's "])
    assert file.read_text() == '[{"question_id": 34602, "answer": "Nokia \'s"}]\n'
    assert bench.score(questions, ["Nokia 's?"]) == pytest.approx({"accuracy": 0.6})
    text_vqa(tmp_path, answers=["red"] * 10)
    assert bench.score(bench.read(tmp_path), ["The Red"]) == {"accuracy": 1}  # normalised though all agree
    text_vqa(tmp_path)
    assert bench.score(bench.read(tmp_path), ["red"]) == {}


def chart_qa(folder):
    rows = [
        {"imgname": "1.png", "query": "How many?", "label": "200"},
        {"imgname": "1.png", "query": "Who?", "label": "Ann"},
    ]
    put(folder / "test_human.json", rows)
    put(folder / "test_augmented.json", rows[1:])
    put(folder / "png/1.png")


@pytest.mark.parametrize("inner", ("", "test"))
def test_chartqa(tmp_path, inner):
    chart_qa(tmp_path / inner)
    bench = BENCHMARKS["chartqa"]
    questions = bench.read(tmp_path)
    assert [q.id for q in questions] == ["human/0", "human/1", "augmented/0"]
    assert questions[0].content == f"{IMAGE}\nHow many?{SHORT}"
    answers = ["210", "Bob", "ann"]
    human, augmented = bench.write(tmp_path / "out", questions, answers)
    assert (human.name, augmented.name) == ("test_human_predictions.json", "test_augmented_predictions.json")
    assert augmented.read_text() == '[{"imgname": "1.png", "query": "Who?", "label": "Ann", "prediction": "ann"}]\n'
    name = "relaxed_accuracy"
    assert bench.score(questions, answers) == {name: 0.75, f"{name}/human": 0.5, f"{name}/augmented": 1}


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("210", "200", True), ("190", "200", True), ("210.1", "200", False), ("189.9", "200", False), ("5%", "0.05", True),
        ("5%", "5", False), ("-95", "-100", True), ("0.0", "0", False), ("0", "0", True), ("YES ", "yes", True),
        ("two", "2", False), ("1,000", "1000", False),
    ],
)  # fmt: skip
def test_chart_answers_may_be_five_percent_off(answer, truth, right):
    assert open_answers.near(answer, truth) is right


def mm_vet(folder):
    rows = {"v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1 <OR> 5", "capability": ["math"]}}
    put(folder / "mm-vet.json", rows)
    put(folder / "images/v1_0.png")


def test_mm_vet_is_written_for_a_judge(tmp_path):
    mm_vet(tmp_path)
    bench = BENCHMARKS["mm-vet"]
    questions = bench.read(tmp_path)
    assert questions[0].content == f"{IMAGE}\nWhat is x?"
    (file,) = bench.write(tmp_path / "out", questions, ["x = 5\n"])
    assert (file.name, file.read_text()) == ("mm-vet_answers.json", '{"v1_0": "x = 5\\n"}\n')
    assert bench.score(questions, ["x = 5\n"]) == {}
    assert "step by step" in bench.system and [n for n, b in BENCHMARKS.items() if b.system] == ["mm-vet"]


# What is common to all, and users' mistakes

MAKERS = {
    "pope": pope, "mme": mme, "mmbench": mmbench, "seed-bench": seed_bench, "vqav2": lambda f: (vqa(f), annotate(f)),
    "gqa": gqa, "mmmu": mmmu_files, "mm-vet": mm_vet, "chartqa": chart_qa,
    "textvqa": lambda f: text_vqa(f, answers=["a"] * 10),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_keeps_the_contract(tmp_path, name):
    bench = BENCHMARKS[name]
    folder = tmp_path / "in"
    MAKERS[name](folder)
    questions = bench.read(str(folder))
    assert bench.name == name and len({q.id for q in questions}) == len(questions)
    for q in questions:
        assert q.content.count(IMAGE) == len(q.images) and json.loads(json.dumps(q.extra)) == q.extra
    with pytest.raises(ValueError, match="shorter"):
        bench.score(questions, ["yes"] * (len(questions) - 1))
    score = bench.score(questions, [""] * len(questions))
    assert all(type(v) in (int, float) for v in score.values()) and bool(score) == (name != "mm-vet")
    files = bench.write(str(tmp_path / "new/out"), questions, [""] * len(questions))
    assert files and set(files) == set((tmp_path / "new/out").iterdir())
    for picture in {i for q in questions for i in q.images if isinstance(i, Path)}:
        picture.write_bytes(b"")
    assert bench.read(folder) == questions  # pictures are not opened


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_is_told_what_belongs_there(tmp_path, name):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"^{name}: ") as e:
            BENCHMARKS[name].read(folder)
        assert repr(str(folder)) in str(e.value) and str(e.value).endswith(f"expected {BENCHMARKS[name].layout}.")


PICTURES = {
    "pope": "val2014/1.jpg", "mme": "count/images/a.png", "seed-bench": "SEED-Bench-image/1_2", "gqa": "images/n5.jpg",
    "vqav2": "val2014/COCO_val2014_000000000042.jpg", "mm-vet": "images/v1_0.png", "chartqa": "png/1.png",
    "textvqa": "train_images/0054.jpg",
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_the_first_missing_picture_is_named(tmp_path, name):
    MAKERS[name](tmp_path)
    lost = tmp_path / PICTURES[name]
    lost.unlink()
    told = str(lost).replace("count/images/a.png", "count/images/a.jpg")  # the ending of a lost MME picture is a guess
    with pytest.raises(UserError, match="are missing, the first is") as e:
        BENCHMARKS[name].read(tmp_path)
    count = {"pope": "1 of 2", "mme": "1 of 15"}.get(name, "1 of 1")
    assert f"{name}: {count} pictures are missing, the first is {told!r}" in str(e.value)


TEXTVQA = '{"data": [{"question_id": 1, "question": "?", "image_id": "0054", "answers": []}]}'


@pytest.mark.parametrize(
    "name, file, text, said",
    [
        ("pope", "coco_pope_popular.json", None, "pope: no coco_pope_popular.json in '{}'; expected coco_pope_"),
        ("pope", "coco_pope_random.json", '{"text": \n', "Line 1 of '{}/coco_pope_random.json' is not JSON"),
        ("pope", "coco_pope_random.json", "\n", "'{}/coco_pope_random.json' holds nothing."),
        ("pope", "coco_pope_random.json", '{"question": "?"}', "not in the official format (KeyError: 'text')"),
        ("mme", "existence/b.txt", "Is it?\tYes\n", "'{}/existence/b.txt' is not two lines of question, tab, Yes or No."),
        ("mmbench", "other.tsv", "index\n", "mmbench: 2 .tsv files in '{}'"),
        ("mmbench", "mmbench_dev.tsv", "index\timage\n1\n", "Row 1 of '{}/mmbench_dev.tsv' has not as many fields"),
        ("mmbench", "mmbench_dev.tsv", "index\tquestion\n1\twho\n", "not in the official format (KeyError: 'image')"),
        ("seed-bench", "SEED-Bench.json", "[1", "'{}/SEED-Bench.json' is not JSON"),
        ("seed-bench", "SEED-Bench.json", '{"questions": []}', "seed-bench: no question in '{}'"),
        ("pope", "coco_pope_random.json", '{"question_id": 1, "text": "?", "label": "maybe"}', "is 'maybe', not yes or no"),
        ("textvqa", "TextVQA_0.5.1_val.json", TEXTVQA, "is [], no text"),
        (
            "gqa",
            "testdev_balanced_questions.json",
            '{"1": {"question": "?", "imageId": "n5", "answer": 5}}',
            "is 5, no text",
        ),
        ("vqav2", "v2_mscoco_val2014_annotations.json", None, "vqav2: no v2_mscoco_val2014_annotations.json in '{}'"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", '{"annotations": []}', "(KeyError: 420)"),
        ("gqa", "testdev_balanced_questions.json", "[[]]", "gqa: a file in '{}' is not in the official format"),
        ("chartqa", "test_augmented.json", "[]", "'{}/test_augmented.json' holds nothing."),
        ("textvqa", "TextVQA_0.5.1_val.json", "\x80", "is not JSON"),
    ],
)
def test_wrong_files_are_told(tmp_path, name, file, text, said):
    MAKERS[name](tmp_path)
    path = tmp_path / file
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as e:
        BENCHMARKS[name].read(tmp_path)
    assert said.format(tmp_path) in str(e.value)


def test_a_task_of_mme_is_missed(tmp_path, caplog):
    mme(tmp_path)
    (tmp_path / "OCR").rename(tmp_path / "ocr2")
    questions = BENCHMARKS["mme"].read(tmp_path)
    assert "mme: 1 of 14 tasks are not here, OCR" in caplog.text
    score = BENCHMARKS["mme"].score(questions, ["yes", "no"] * (len(questions) // 2))
    assert score["cognition"] == 800 and score["count"] == 200 and not {"perception", "OCR"} & score.keys()
    (tmp_path / "code_reasoning/a.txt").unlink(missing_ok=True)
    (tmp_path / "code_reasoning/questions_answers_YN/a.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match="mme: no question in '.*code_reasoning"):
        BENCHMARKS["mme"].read(tmp_path)


def test_what_official_files_may_look_like(tmp_path, monkeypatch):
    pope(tmp_path / "pope")
    for path in (tmp_path / "pope").glob("*.json"):
        path.write_text(path.read_text().replace('"no"', '"No"').replace('"yes"', '"Yes "'))
    assert {q.extra["answer"] for q in BENCHMARKS["pope"].read(tmp_path / "pope")} == {"yes", "no"}
    mmbench(tmp_path / "mmbench")
    (table,) = (tmp_path / "mmbench").glob("*.tsv")
    assert BENCHMARKS["mmbench"].read(table) == BENCHMARKS["mmbench"].read(tmp_path / "mmbench")
    MAKERS["gqa"](tmp_path / "gqa")
    before = BENCHMARKS["gqa"].read(tmp_path / "gqa")
    (tmp_path / "gqa/questions").mkdir()
    (tmp_path / "gqa/testdev_balanced_questions.json").rename(tmp_path / "gqa/questions/testdev_balanced_questions.json")
    assert BENCHMARKS["gqa"].read(tmp_path / "gqa") == before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BENCHMARKS["gqa"].read("~/gqa") == before
    mmmu_files(tmp_path / "mmmu", free_answer="[\"x's\", 'y']")
    (free,) = (q for q in BENCHMARKS["mmmu"].read(tmp_path / "mmmu") if q.id.endswith("_2"))
    assert free.extra["answer"] == ["x's", "y"]


def test_a_question_is_not_asked_twice(tmp_path):
    pope(tmp_path)
    path = tmp_path / "coco_pope_random.json"
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
    with pytest.raises(UserError, match="pope: 1 questions in .* have an id that another one has"):
        BENCHMARKS["pope"].read(tmp_path)


def test_pictures_inside_tables_are_missed(tmp_path, caplog):
    mmbench(tmp_path / "a", borrowed="3")
    with pytest.raises(UserError, match="mmbench: row 2 takes its picture from row '3', which has none"):
        BENCHMARKS["mmbench"].read(tmp_path / "a")
    mmmu_files(tmp_path / "b", question="See <image 3>.")
    with pytest.raises(UserError, match="mmmu: validation_Sub_0_1 names picture 3, which it has not"):
        BENCHMARKS["mmmu"].read(tmp_path / "b")
    mmmu_files(tmp_path / "c", subjects=29)
    questions = BENCHMARKS["mmmu"].read(tmp_path / "c")
    score = BENCHMARKS["mmmu"].score(questions, ["B"] * 30)
    assert len(score) == 29 and score["accuracy/Sub_1"] == 1 and "accuracy" not in score
    assert "mmmu: 29 of 30 subjects are here" in caplog.text


def test_mmmu_without_answers_has_no_score(tmp_path):
    mmmu_files(tmp_path, answer="?")
    questions = BENCHMARKS["mmmu"].read(tmp_path)
    assert BENCHMARKS["mmmu"].score(questions, ["A"] * 31) == {}
