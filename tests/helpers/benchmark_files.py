"""Tiny files of every benchmark in its official format."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from janus_jax.evaluate.understanding import mmmu, yes_no

GENEVAL_LINES = [
    '{"tag": "single_object", "include": [{"class": "cow"}], "prompt": "a photo of a cow"}',
    '{"tag": "colors", "include": [{"class": "cat"}], "prompt": "a photo of a red cat"}',
    '{"tag": "colors", "include": [{"class": "cup"}], "prompt": "a photo of a pink cup"}',
]


def png(color="red"):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def put(path, value=None):
    """Writes JSON, text or, by default, an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        path.write_bytes(png())
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def pope(folder, images="val2014"):
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
        put(folder / images / f"{i}.jpg")


def mme(folder):
    """Both layouts, one or two images per task."""
    for i, task in enumerate((*yes_no.PERCEPTION, *yes_no.COGNITION)):
        for name in ("a", "b")[: 2 if task == "existence" else 1]:
            apart = i % 2
            put(folder / task / ("images" if apart else "") / f"{name}.png")
            where = folder / task / ("questions_answers_YN" if apart else "") / f"{name}.txt"
            put(
                where,
                "Is it? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n",
            )


def mmbench(folder, *, answers=("B", "A", "C"), borrowed="1"):
    folder.mkdir(exist_ok=True)
    image = base64.b64encode(png()).decode()
    with (folder / "mmbench_dev.tsv").open("w", newline="") as file:
        out = csv.writer(file, delimiter="\t")
        out.writerow("index question hint A B C D answer category l2-category image".split())
        out.writerow(
            [1, "What is it?", "nan", "a cat", "a dog", "", "", answers[0], "object", "o2", image]
        )
        out.writerow(
            [
                2,
                'Which "one"?',
                "Two\nlines",
                "x",
                "y",
                "z",
                "w",
                answers[1],
                "logic",
                "l2",
                borrowed,
            ]
        )
        out.writerow(
            [
                1_000_001,
                "What is it?",
                "",
                "a dog",
                "a cat",
                "",
                "",
                answers[2],
                "object",
                "o2",
                borrowed,
            ]
        )


def seed_bench(folder):
    shared = {
        "question": "Where?",
        "choice_a": "in",
        "choice_b": "on",
        "choice_c": "at",
        "choice_d": "by",
    }
    rows = [
        {
            **shared,
            "question_id": "7",
            "answer": "A",
            "data_id": "1_2",
            "data_type": "image",
            "question_type_id": 1,
        },
        {
            **shared,
            "question_id": "8",
            "answer": "D",
            "data_id": "1_2",
            "data_type": "image",
            "question_type_id": 5,
        },
        {
            **shared,
            "question_id": "9",
            "answer": "D",
            "data_id": "v.mp4",
            "data_type": "video",
            "question_type_id": 10,
        },
    ]
    put(folder / "SEED-Bench.json", {"questions": rows})
    put(folder / "SEED-Bench-image/1_2")


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
        text = {
            "id": f"validation_Sub_{i}_1",
            "question": "Why?",
            "options": "['no', \"don't\"]",
            "answer": answer,
        }
        rows = [{**text, "question_type": "multiple-choice", "image_1": {"bytes": png()}}]
        if i == 0:
            both = {"image_1": {"bytes": png("green")}, "image_2": {"bytes": png("blue")}}
            rows[0] |= {"question": question, "options": "['<image 2>', 'none']", **both}
            free = {
                "id": "validation_Sub_0_2",
                "options": "[]",
                "answer": free_answer,
                "question_type": "open",
            }
            rows += [rows[0] | free]
        columns = {name: [row[name] for row in rows] for name in (*text, "question_type")}
        for n in range(1, 8):
            columns[f"image_{n}"] = pa.array([row.get(f"image_{n}") for row in rows], kind)
        path = folder / f"Sub_{i}" / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pa.parquet.write_table(pa.table(columns), path)


def vqa(folder, split="val2014"):
    rows = [{"image_id": 42, "question": f"What {i}?", "question_id": 420 + i} for i in range(2)]
    put(
        folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {"data_subtype": split, "questions": rows},
    )
    images = split.replace("test-dev", "test")
    put(folder / images / f"COCO_{images}_000000000042.jpg")


def annotate(folder):
    given = (["yes"] * 10, ["2 dogs"] * 3 + ["dogs"] * 7)
    rows = [
        {"question_id": 420 + i, "answer_type": kind, "answers": [{"answer": a} for a in given[i]]}
        for i, kind in ((1, "other"), (0, "yes/no"))
    ]
    put(folder / "v2_mscoco_val2014_annotations.json", {"annotations": rows})


def gqa(folder):
    rows = {"q1": {"imageId": "n5", "question": "Is it red?", "answer": "yes"}}
    rows["q2"] = {"imageId": "n5", "question": "What is it?", "answer": "fire truck"}
    put(folder / "testdev_balanced_questions.json", rows)
    put(folder / "images/n5.jpg")


def text_vqa(folder, **truth):
    rows = [{"question_id": 34602, "question": "what brand?", "image_id": "0054", **truth}]
    put(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    put(folder / "train_images/0054.jpg")


def chart_qa(folder):
    rows = [
        {"imgname": "1.png", "query": "How many?", "label": "200"},
        {"imgname": "1.png", "query": "Who?", "label": "Ann"},
    ]
    put(folder / "test_human.json", rows)
    put(folder / "test_augmented.json", rows[1:])
    put(folder / "png/1.png")


def mm_vet(folder):
    rows = {
        "v1_0": {
            "imagename": "v1_0.png",
            "question": "What is x?",
            "answer": "-1 <OR> 5",
            "capability": ["math"],
        }
    }
    put(folder / "mm-vet.json", rows)
    put(folder / "images/v1_0.png")


def geneval(folder):
    put(folder / "evaluation_metadata.jsonl", "\n".join(GENEVAL_LINES) + "\n")


def dpg(folder):
    for name in ("12", "COCOval2014000000000589", "whoops7"):
        put(folder / "prompts" / f"{name}.txt", f"A dense prompt, {name}.\n")


def mjhq(folder):
    categories = ("animals", "art", "animals")
    rows = {f"id{i}": {"category": c, "prompt": f"one of {c}"} for i, c in enumerate(categories)}
    put(folder / "meta_data.json", rows)


def coco(folder):
    rows = [
        {"id": i, "image_id": image, "caption": f"caption {i} "}
        for i, image in enumerate((139, 139, 285))
    ]
    put(folder / "captions_val2014.json", {"annotations": rows, "images": []})


def annotated_vqa(folder):
    vqa(folder)
    annotate(folder)


def text_vqa_with_answers(folder):
    text_vqa(folder, answers=["a"] * 10)


QUESTIONS = {
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "seed-bench": seed_bench,
    "vqav2": annotated_vqa,
    "gqa": gqa,
    "mmmu": mmmu_files,
    "mm-vet": mm_vet,
    "chartqa": chart_qa,
    "textvqa": text_vqa_with_answers,
}
PROMPTS = {"geneval": geneval, "dpg": dpg, "mjhq": mjhq, "coco": coco}  # three prompts each
WRITERS = {**PROMPTS, **QUESTIONS}  # all but shapes
