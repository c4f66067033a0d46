"""Benchmarks of understanding: official files, exact prompts, answer files, hand-counted scores."""

import importlib.util
import json
from pathlib import Path

import pytest

from janus_jax.data.chat import IMAGE
from janus_jax.errors import UserError
from janus_jax.evaluate.benchmarks import BENCHMARKS
from janus_jax.evaluate.understanding import choice, mmmu, open_answers, yes_no
from janus_jax.evaluate.understanding.vqa_accuracy import normalise, vqa_accuracy
from tests.conftest import OFFICIAL_DATA
from tests.helpers.benchmark_files import (
    QUESTIONS,
    annotate,
    chart_qa,
    gqa,
    mm_vet,
    mmbench,
    mme,
    mmmu_files,
    png,
    pope,
    put,
    seed_bench,
    text_vqa,
    vqa,
)

POPE = OFFICIAL_DATA / "pope"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


# POPE


@pytest.mark.parametrize("folder", ("val2014", "."))
def test_pope(tmp_path, folder):
    pope(tmp_path / "in", folder)
    benchmark = BENCHMARKS["pope"]
    questions = benchmark.read(tmp_path / "in")
    assert [q.id for q in questions[3:5]] == ["random/3", "popular/0"]
    assert questions[4].content == f"{IMAGE}\nIs there a popular 0?{SHORT}"
    assert questions[4].images == (tmp_path / "in" / folder / "0.jpg",)
    # random: yes, a denial, garbled (counts as yes), no. Others: always yes.
    answers = ["Yes", "There is not, sorry", "", "No, there is none. Yes"] + ["yes"] * 8
    files = benchmark.write(tmp_path / "out", questions, answers)
    assert [f.name for f in files] == [f"coco_pope_{s}_answers.json" for s in yes_no.POPE_SPLITS]
    first = files[0].read_text().splitlines()
    assert (
        first[1] == '{"question": "Is there a random 1? Please answer yes or no.", '
        '"answer": "There is not, sorry"}'
    )
    assert len(first) == 4
    score = benchmark.score(questions, answers)
    assert [
        score[f"{m}/random"] for m in ("accuracy", "precision", "recall", "f1", "yes_ratio")
    ] == [0.5] * 5
    assert (
        score["f1/popular"] == pytest.approx(2 / 3)
        and score["recall/popular"] == score["yes_ratio/popular"] == 1
    )
    assert score["f1"] == pytest.approx((0.5 + 2 / 3 + 2 / 3) / 3) and score[
        "yes_ratio"
    ] == pytest.approx(2.5 / 3)
    never = benchmark.score(questions, ["no"] * 12)
    assert (never["precision"], never["f1"], never["accuracy"]) == (0, 0, 0.5)


def test_pope_reads_yes_unless_denied():
    for answer, yes in [
        ("No", False), ("no, never", False), ("I do not", False), ("NO", True), ("nothing", True),
        ("", True), ("Yes. no", True),
    ]:  # fmt: skip
        assert yes_no.is_yes(answer) is yes, answer


@pytest.mark.skipif(not POPE.is_dir(), reason="needs the real questions")
def test_pope_reads_the_real_questions(tmp_path):
    names = set()
    for split in yes_no.POPE_SPLITS:
        text = (POPE / f"coco_pope_{split}.json").read_text()
        put(tmp_path / f"coco_pope_{split}.json", text)
        names |= {json.loads(line)["image"] for line in text.splitlines()}
    for name in names:
        (tmp_path / name).touch()
    questions = BENCHMARKS["pope"].read(tmp_path)
    assert [q.extra["split"] for q in questions] == [
        s for s in yes_no.POPE_SPLITS for _ in range(3000)
    ]
    assert questions[0].content == f"{IMAGE}\nIs there a snowboard in the image?{SHORT}"
    score = BENCHMARKS["pope"].score(questions, [q.extra["answer"] for q in questions])
    assert score["accuracy"] == 1 and score["yes_ratio"] == 0.5


# MME


def test_mme(tmp_path):
    mme(tmp_path / "in")
    benchmark = BENCHMARKS["mme"]
    questions = benchmark.read(tmp_path / "in")
    assert [q.id for q in questions[:5]] == [
        f"existence/{n}" for n in ("a/0", "a/1", "b/0", "b/1")
    ] + ["count/a/0"]
    assert questions[0].content == f"{IMAGE}\nIs it? Please answer yes or no.{SHORT}"
    assert questions[0].images == (tmp_path / "in/existence/a.png",)
    assert questions[4].images == (tmp_path / "in/count/images/a.png",)
    # existence: both right, then one of two; count: a late yes is "other"; the rest right.
    answers = ["Yes.", "no", "YES", "yes"] + ["I say: yes", "No\tway\n"] + ["yes", "no"] * 12
    files = benchmark.write(tmp_path / "out", questions, answers)
    assert len(files) == 14 and files[1] == tmp_path / "out/count.txt"
    assert files[1].read_text() == (
        "a.png\tIs it? Please answer yes or no.\tYes\tI say: yes\n"
        "a.png\tIs it not? Please answer yes or no.\tNo\tNo way\n"
    )
    score = benchmark.score(questions, answers)
    assert score["existence"] == 75 + 50 and score["count"] == 50 + 0 and score["OCR"] == 200
    assert (score["perception"], score["cognition"]) == (125 + 50 + 8 * 200, 800)


def test_mme_reads_four_characters():
    for answer, word in [
        ("yes", "yes"), (" No.", "no"), ("A: no", "other"), ("Not", "no"), ("", "other"),
    ]:  # fmt: skip
        assert yes_no.first_word(answer) == word, answer


# MMBench, SEED-Bench


def test_mmbench(tmp_path, monkeypatch):
    mmbench(tmp_path / "in")
    benchmark = BENCHMARKS["mmbench"]
    questions = benchmark.read(tmp_path / "in")
    assert questions[0].content == f"{IMAGE}\nWhat is it?\nA. a cat\nB. a dog\n{LETTER}"
    assert (
        questions[1].content
        == f'{IMAGE}\nHint: Two\nlines\nWhich "one"?\nA. x\nB. y\nC. z\nD. w\n{LETTER}'
    )
    assert [q.images for q in questions] == [(png(),)] * 3
    answers = ["B", "(C)\tz", "A"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (file,) = benchmark.write(tmp_path / "out", questions, answers)
    assert file.read_text().splitlines() == [
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tprediction",
        "1\tWhat is it?\tnan\ta cat\ta dog\t\t\tB\tobject\to2\tB",
        '2\tWhich "one"?\tTwo lines\tx\ty\tz\tw\tA\tlogic\tl2\t(C) z',
        "1000001\tWhat is it?\t\ta dog\ta cat\t\t\tC\tobject\to2\tA",
    ]
    # the third row is a circular repetition, which is asked but not scored
    assert benchmark.score(questions, answers) == {
        "accuracy": 0.5,
        "accuracy/logic": 0,
        "accuracy/object": 1,
    }


def test_mmbench_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    mmbench(tmp_path / "in")
    questions = BENCHMARKS["mmbench"].read(tmp_path / "in")
    (file,) = BENCHMARKS["mmbench"].write(tmp_path / "out", questions, ["=B", "C\x07", "A"])
    sheet = openpyxl.load_workbook(file).active
    rows = list(sheet.values)
    assert {cell.data_type for row in sheet for cell in row} <= {
        "s",
        "inlineStr",
        "n",
    }  # an answer is never a formula
    assert file.suffix == ".xlsx" and rows[0][-2:] == ("l2-category", "prediction")
    assert [(row[0], row[-1]) for row in rows[1:]] == [(1, "=B"), (2, "C"), (1_000_001, "A")]


def test_mmbench_without_answers_has_no_score(tmp_path):
    mmbench(tmp_path, answers=("", "", ""))
    assert BENCHMARKS["mmbench"].score(BENCHMARKS["mmbench"].read(tmp_path), ["A"] * 3) == {}


def test_find_letter():
    for answer, letter in [
        ("B", "B"), ("(C)", "C"), ("D. the sea", "D"), ("The answer is A.", "A"),
        ("It shows a lake", "C"), ("b", ""), ("A or B", ""), ("A or B, a river", "B"),
        ("A man stands there near the lake", "C"), ("a river, a lake", ""), ("", ""),
    ]:  # fmt: skip
        options = {"A": "hill", "B": "river", "C": "lake", "D": "the sea"}
        assert choice.find_letter(answer, options) == letter, answer


def test_seed_bench(tmp_path):
    seed_bench(tmp_path)
    benchmark = BENCHMARKS["seed-bench"]
    questions = benchmark.read(tmp_path)
    assert [q.id for q in questions] == ["7", "8"]
    assert questions[0].content == f"{IMAGE}\nWhere?\nA. in\nB. on\nC. at\nD. by\n{LETTER}"
    (file,) = benchmark.write(tmp_path / "out", questions, ["A.", "hm"])
    assert (
        file.read_text()
        == '{"question_id": "7", "prediction": "A"}\n{"question_id": "8", "prediction": ""}\n'
    )
    assert benchmark.score(questions, ["A.", "hm"]) == {
        "accuracy": 0.5,
        "accuracy/1": 1,
        "accuracy/5": 0,
    }


# MMMU


def test_mmmu(tmp_path):
    mmmu_files(tmp_path / "in")
    benchmark = BENCHMARKS["mmmu"]
    questions = benchmark.read(tmp_path / "in")
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
    (file,) = benchmark.write(tmp_path / "out", questions, answers)
    wrote = json.loads(file.read_text())
    assert (file.name, list(wrote)) == ("mmmu_predictions.json", [q.id for q in questions])
    assert [wrote[q.id] for q in questions[:3]] == ["B", "so x = 3.43", "A"]
    score = benchmark.score(questions, answers)
    assert (
        score["accuracy"] == 17 / 31
        and score["accuracy/Sub_0"] == 1
        and score[f"accuracy/{questions[2].id[11:-2]}"] == 0
    )


def test_mmmu_parses_choices():
    for answer, letter in [
        ("B", "B"), ("B.", "B"), ("(A) or rather (C)", "C"), ("I take (A), not B ", "A"),
        ("A B", "B"), ("it must be the Grey Fox over there", "C"),
        ("A. cat is what one sees there", "A"),
    ]:  # fmt: skip
        options = {"A": "cat", "B": "dog", "C": "grey fox"}
        assert mmmu.parse_choice(answer, options, seed="q") == letter, answer


def test_mmmu_takes_a_random_option_if_none_is_named():
    options = {"A": "cat", "B": "dog", "C": "fox"}
    draw = lambda i: mmmu.parse_choice(
        "grey fox", options, seed=f"validation_Art_{i}"
    )  # too short for its text
    assert [draw(i) for i in range(30)] == [draw(i) for i in range(30)]
    assert {draw(i) for i in range(30)} == set(options)


def test_mmmu_open_answers():
    for answer, reference, correct in [
        ("The total is $1,234", "1234", True), ("is $1,234.50", "1234.5", False),
        ("about 0.333", "0.33", True), ("0.34", "0.33", False), ("x = 2\nso y = 7", "7", True),
        ("8 is less than 9", "8", False), ("y is 5 = 6", "5", False),
        ("It is Tampa.", "tampa", True), ("Tampa is in Florida", "Tampa", False),
        ("abc", "b", False), ("a b", "b", True), ("", "5", False),
    ]:  # fmt: skip
        assert mmmu.matches_open(answer, [reference]) is correct, answer


# VQAv2 and its accuracy


def test_vqav2(tmp_path):
    vqa(tmp_path)
    annotate(tmp_path)
    benchmark = BENCHMARKS["vqav2"]
    questions = benchmark.read(tmp_path)
    assert questions[1].content == f"{IMAGE}\nWhat 1?{SHORT}"
    assert questions[1].images == (tmp_path / "val2014/COCO_val2014_000000000042.jpg",)
    answers = ["Yes.", "Two Dogs"]
    (file,) = benchmark.write(tmp_path / "out", questions, answers)
    assert (
        file.read_text()
        == '[{"question_id": 420, "answer": "yes"}, {"question_id": 421, "answer": "two dogs"}]\n'
    )
    score = benchmark.score(questions, answers)
    assert score == pytest.approx({"accuracy": 0.95, "accuracy/other": 0.9, "accuracy/yes/no": 1})


def test_vqav2_test_splits_have_no_score(tmp_path):
    for split in ("test2015", "test-dev2015"):
        vqa(tmp_path / split, split)
        questions = BENCHMARKS["vqav2"].read(tmp_path / split)
        assert questions[0].images == (
            tmp_path / split / "test2015/COCO_test2015_000000000042.jpg",
        )
        assert BENCHMARKS["vqav2"].score(questions, ["yes", "no"]) == {}


def test_vqa_accuracy_leaves_one_out():
    for same, accuracy in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)):
        assert vqa_accuracy("red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(
            accuracy
        )
    assert vqa_accuracy("The Red", ["red"] * 9 + ["blue"]) == 1
    assert vqa_accuracy("The Red", ["red"] * 10) == 0  # nothing is normalised where all agree


def test_normalise():
    for text, normal in [
        ("The two dogs", "2 dogs"), ("dont", "don't"), ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"), ("red/blue", "red blue"), ("red, blue", "red blue"),
        ("1,000-2", "10002"), ("3.5 m.", "3.5 m"), ("None", "0"), ("an apple a day", "apple day"),
        ("Y'allll", "y'all'll"), ("let's", "let's"), ("somebody'd", "somebodyd"),
    ]:  # fmt: skip
        assert normalise(text) == normal, text


# GQA, TextVQA, ChartQA, MM-Vet


def test_gqa(tmp_path):
    gqa(tmp_path)
    benchmark = BENCHMARKS["gqa"]
    questions = benchmark.read(tmp_path)
    assert questions[0] == (
        "q1",
        f"{IMAGE}\nIs it red?{SHORT}",
        (tmp_path / "images/n5.jpg",),
        {"answer": "yes"},
    )
    (file,) = benchmark.write(tmp_path / "out", questions, ["Yes.", "truck"])
    assert (
        file.read_text() == '[{"questionId": "q1", "prediction": "yes"}, '
        '{"questionId": "q2", "prediction": "truck"}]\n'
    )
    assert benchmark.score(questions, ["Yes.", "truck"]) == {"accuracy": 0.5}


def test_textvqa(tmp_path):
    text_vqa(tmp_path, answers=["Nokia's"] * 2 + ["nokia"] * 8)
    benchmark = BENCHMARKS["textvqa"]
    questions = benchmark.read(tmp_path)
    assert questions[0].content == f"{IMAGE}\nwhat brand?{SHORT}"
    (file,) = benchmark.write(tmp_path / "out", questions, ["Nokia 's "])
    assert file.read_text() == '[{"question_id": 34602, "answer": "Nokia \'s"}]\n'
    assert benchmark.score(questions, ["Nokia 's?"]) == pytest.approx({"accuracy": 0.6})
    text_vqa(tmp_path, answers=["red"] * 10)
    assert benchmark.score(benchmark.read(tmp_path), ["The Red"]) == {
        "accuracy": 1
    }  # normalised though all agree
    text_vqa(tmp_path)
    assert benchmark.score(benchmark.read(tmp_path), ["red"]) == {}


@pytest.mark.parametrize("inner", ("", "test"))
def test_chartqa(tmp_path, inner):
    chart_qa(tmp_path / inner)
    benchmark = BENCHMARKS["chartqa"]
    questions = benchmark.read(tmp_path)
    assert [q.id for q in questions] == ["human/0", "human/1", "augmented/0"]
    assert questions[0].content == f"{IMAGE}\nHow many?{SHORT}"
    answers = ["210", "Bob", "ann"]
    human, augmented = benchmark.write(tmp_path / "out", questions, answers)
    assert (human.name, augmented.name) == (
        "test_human_predictions.json",
        "test_augmented_predictions.json",
    )
    assert (
        augmented.read_text()
        == '[{"imgname": "1.png", "query": "Who?", "label": "Ann", "prediction": "ann"}]\n'
    )
    name = "relaxed_accuracy"
    assert benchmark.score(questions, answers) == {
        name: 0.75,
        f"{name}/human": 0.5,
        f"{name}/augmented": 1,
    }


def test_chart_answers_may_be_five_percent_off():
    for answer, reference, correct in [
        ("210", "200", True), ("190", "200", True), ("210.1", "200", False),
        ("189.9", "200", False), ("5%", "0.05", True), ("5%", "5", False), ("-95", "-100", True),
        ("0.0", "0", False), ("0", "0", True), ("YES ", "yes", True), ("two", "2", False),
        ("1,000", "1000", False),
    ]:  # fmt: skip
        assert open_answers.is_close(answer, reference) is correct, answer


def test_mm_vet_is_written_for_a_judge(tmp_path):
    mm_vet(tmp_path)
    benchmark = BENCHMARKS["mm-vet"]
    questions = benchmark.read(tmp_path)
    assert questions[0].content == f"{IMAGE}\nWhat is x?"
    (file,) = benchmark.write(tmp_path / "out", questions, ["x = 5\n"])
    assert (file.name, file.read_text()) == ("mm-vet_answers.json", '{"v1_0": "x = 5\\n"}\n')
    assert benchmark.score(questions, ["x = 5\n"]) == {}
    assert [n for n in QUESTIONS if BENCHMARKS[n].system] == ["mm-vet"]


# All benchmarks, and errors in files


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_benchmark_keeps_the_contract(tmp_path, name):
    benchmark, folder = BENCHMARKS[name], tmp_path / "in"
    for empty in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"^{name}: ") as error:
            benchmark.read(empty)
        assert repr(str(empty)) in str(error.value) and benchmark.layout in str(error.value)
    QUESTIONS[name](folder)
    questions = benchmark.read(str(folder))
    assert benchmark.name == name and len({q.id for q in questions}) == len(questions)
    for q in questions:
        assert (
            q.content.count(IMAGE) == len(q.images) and json.loads(json.dumps(q.extra)) == q.extra
        )
    with pytest.raises(ValueError, match="shorter"):
        benchmark.score(questions, ["yes"] * (len(questions) - 1))
    score = benchmark.score(questions, [""] * len(questions))
    assert all(type(v) in (int, float) for v in score.values()) and bool(score) == (
        name != "mm-vet"
    )
    files = benchmark.write(str(tmp_path / "new/out"), questions, [""] * len(questions))
    assert files and set(files) == set((tmp_path / "new/out").iterdir())
    images = sorted({i for q in questions for i in q.images if isinstance(i, Path)})
    for image in images:
        image.write_bytes(b"")
    assert benchmark.read(folder) == questions  # images are not opened
    if images:
        images[-1].unlink()
        missing = (
            images[-1].with_suffix(".jpg") if name == "mme" else images[-1]
        )  # MME does not name its images
        with pytest.raises(UserError, match=f"{name}: 1 of {len(images)} ") as error:
            benchmark.read(folder)
        assert repr(str(missing)) in str(error.value)


TEXTVQA = '{"data": [{"question_id": 1, "question": "?", "image_id": "0054", "answers": []}]}'
GQA = '{"1": {"question": "?", "imageId": "n5", "answer": 5}}'


WRONG_FILES = [  # one for each check of the base class and its readers; what the message must name
    ("pope", "coco_pope_popular.json", None, "pope: .*coco_pope_popular.json.*coco_pope_"),
    ("pope", "coco_pope_random.json", '{"text": \n', "Line 1 of .*coco_pope_random.json"),
    ("pope", "coco_pope_random.json", "\n", "coco_pope_random.json' is empty"),
    ("pope", "coco_pope_random.json", '{"question": "?"}', "KeyError: 'text'"),
    (
        "pope",
        "coco_pope_random.json",
        '{"question_id": 1, "text": "?", "label": "maybe"}',
        "'maybe'",
    ),
    ("mme", "existence/b.txt", "Is it?\tYes\n", "existence/b.txt"),
    ("mmbench", "other.tsv", "index\n", "mmbench: 2 .tsv files"),
    ("mmbench", "mmbench_dev.tsv", "index\timage\n1\n", "Row 1 of .*mmbench_dev.tsv"),
    ("seed-bench", "SEED-Bench.json", "[1", "SEED-Bench.json' is not JSON"),
    ("seed-bench", "SEED-Bench.json", '{"questions": []}', "seed-bench: no question"),
    ("textvqa", "TextVQA_0.5.1_val.json", TEXTVQA, r"is \[\]"),
    ("textvqa", "TextVQA_0.5.1_val.json", "\x80", "is not JSON"),
    ("gqa", "testdev_balanced_questions.json", GQA, "is 5"),
    ("gqa", "testdev_balanced_questions.json", "[[]]", "gqa: .*AttributeError"),
    (
        "vqav2",
        "v2_mscoco_val2014_annotations.json",
        None,
        "vqav2: .*v2_mscoco_val2014_annotations.json",
    ),
    ("vqav2", "v2_mscoco_val2014_annotations.json", '{"annotations": []}', "KeyError: 420"),
]


def test_wrong_files(tmp_path):
    for i, (name, file, text, message) in enumerate(WRONG_FILES):
        folder = tmp_path / str(i)
        QUESTIONS[name](folder)
        path = folder / file
        path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            BENCHMARKS[name].read(folder)


def test_mme_without_a_task(tmp_path, caplog):
    mme(tmp_path)
    (tmp_path / "OCR").rename(tmp_path / "ocr2")
    questions = BENCHMARKS["mme"].read(tmp_path)
    assert "mme: 1 of 14 tasks" in caplog.text and "OCR" in caplog.text
    score = BENCHMARKS["mme"].score(questions, ["yes", "no"] * (len(questions) // 2))
    assert (
        score["cognition"] == 800
        and score["count"] == 200
        and not {"perception", "OCR"} & score.keys()
    )
    (tmp_path / "code_reasoning/a.txt").unlink(missing_ok=True)
    (tmp_path / "code_reasoning/questions_answers_YN/a.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match="mme: no question in '.*code_reasoning"):
        BENCHMARKS["mme"].read(tmp_path)


def test_variants_of_official_files(tmp_path, monkeypatch):
    pope(tmp_path / "pope")
    for path in (tmp_path / "pope").glob("*.json"):
        path.write_text(path.read_text().replace('"no"', '"No"').replace('"yes"', '"Yes "'))
    assert {q.extra["answer"] for q in BENCHMARKS["pope"].read(tmp_path / "pope")} == {"yes", "no"}
    mmbench(tmp_path / "mmbench")
    (table,) = (tmp_path / "mmbench").glob("*.tsv")
    assert BENCHMARKS["mmbench"].read(table) == BENCHMARKS["mmbench"].read(tmp_path / "mmbench")
    QUESTIONS["gqa"](tmp_path / "gqa")
    before = BENCHMARKS["gqa"].read(tmp_path / "gqa")
    (tmp_path / "gqa/questions").mkdir()
    (tmp_path / "gqa/testdev_balanced_questions.json").rename(
        tmp_path / "gqa/questions/testdev_balanced_questions.json"
    )
    assert BENCHMARKS["gqa"].read(tmp_path / "gqa") == before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BENCHMARKS["gqa"].read("~/gqa") == before
    mmmu_files(tmp_path / "mmmu", free_answer="[\"x's\", 'y']")
    (free,) = (q for q in BENCHMARKS["mmmu"].read(tmp_path / "mmmu") if q.id.endswith("_2"))
    assert free.extra["answer"] == ["x's", "y"]


def test_duplicate_ids_are_refused(tmp_path):
    pope(tmp_path)
    path = tmp_path / "coco_pope_random.json"
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
    with pytest.raises(UserError, match="pope: 1 questions"):
        BENCHMARKS["pope"].read(tmp_path)


def test_missing_images_inside_tables(tmp_path, caplog):
    mmbench(tmp_path / "a", borrowed="3")
    with pytest.raises(UserError, match="mmbench: row 2 .* row '3'"):
        BENCHMARKS["mmbench"].read(tmp_path / "a")
    mmmu_files(tmp_path / "b", question="See <image 3>.")
    with pytest.raises(UserError, match="mmmu: .*validation_Sub_0_1 names image 3"):
        BENCHMARKS["mmmu"].read(tmp_path / "b")
    mmmu_files(tmp_path / "c", subjects=29)
    questions = BENCHMARKS["mmmu"].read(tmp_path / "c")
    score = BENCHMARKS["mmmu"].score(questions, ["B"] * 30)
    assert len(score) == 29 and score["accuracy/Sub_1"] == 1 and "accuracy" not in score
    assert "29 of 30 subjects" in caplog.text


def test_mmmu_without_answers_has_no_score(tmp_path):
    mmmu_files(tmp_path, answer="?")
    questions = BENCHMARKS["mmmu"].read(tmp_path)
    assert BENCHMARKS["mmmu"].score(questions, ["A"] * 31) == {}
