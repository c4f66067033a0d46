"""Benchmarks of image generation: official files, layouts of images, official results."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.evaluate.benchmarks import BENCHMARKS
from tests.conftest import OFFICIAL_DATA
from tests.helpers.benchmark_files import GENEVAL_LINES, PROMPTS


def random_images(n, seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def pixels(path):
    return np.asarray(Image.open(path))


def generated(name, tmp_path):
    """A benchmark, its prompts, and a complete folder of images."""
    benchmark, out = BENCHMARKS[name], tmp_path / "out"
    PROMPTS[name](tmp_path / "data")
    prompts = benchmark.read(tmp_path / "data")
    for i, prompt in enumerate(prompts):
        benchmark.save(out, prompt, random_images(benchmark.samples, seed=i))
    return benchmark, prompts, out


@pytest.mark.parametrize("name", PROMPTS)
def test_missing_and_damaged_images_are_found(name, tmp_path):
    benchmark, prompts, out = generated(name, tmp_path)
    missing = lambda: [p.id for p in prompts if not benchmark.is_done(out, p)]
    assert len(prompts) == 3 and not missing() and not list(out.rglob("*.partial"))
    benchmark.check_complete(out, prompts)
    assert benchmark.score(out, prompts) == {}  # no scorer has written results

    first, second = out / prompts[0].files[0], out / prompts[1].files[-1]
    first.unlink()
    whole = second.read_bytes()
    for damaged in (whole[:-20], whole[:60] + bytes(30) + whole[90:], b"", whole[:20]):
        second.write_bytes(damaged)
        assert missing() == [prompts[0].id, prompts[1].id]
    with pytest.raises(UserError, match="2 of 3 prompts"):
        benchmark.check_complete(out, prompts)
    second.write_bytes(b"\x89PNG")
    assert missing() == [prompts[0].id, prompts[1].id]
    for i in range(2):
        benchmark.save(out, prompts[i], random_images(benchmark.samples, seed=i))
    benchmark.check_complete(out, prompts)
    (out / "cat.png").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="'cat.png'"):
        benchmark.check_complete(out, prompts)


@pytest.mark.parametrize("name", PROMPTS)
def test_wrong_files(name, tmp_path):
    benchmark = BENCHMARKS[name]
    with pytest.raises(UserError, match=f"{name}: no .* in '{tmp_path}'; expected "):
        benchmark.read(tmp_path)
    with pytest.raises(UserError, match=f"{name}: no .*nowhere"):
        benchmark.read(tmp_path / "nowhere")
    other = tmp_path / "other.json"
    for text in ("{", "[1]", '{"a": 1}', '{"a": {"prompt": "b"}}', ""):
        other.write_text(text)
        with pytest.raises(UserError, match=f"^{name}: .*expected "):
            benchmark.read(other)


def test_geneval_writes_the_official_layout(tmp_path):
    benchmark, prompts, out = generated("geneval", tmp_path)
    assert benchmark.read(tmp_path / "data/evaluation_metadata.jsonl") == prompts
    assert [(p.id, p.text, p.extra["tag"]) for p in prompts][1] == (
        "00001",
        "a photo of a red cat",
        "colors",
    )
    for i, line in enumerate(GENEVAL_LINES):
        folder = out / f"{i:05}"
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == [
            "grid.png",
            "metadata.jsonl",
            *(f"samples/000{k}.png" for k in range(4)),
        ]
        assert (folder / "metadata.jsonl").read_text() == line
        for k, image in enumerate(random_images(4, seed=i)):
            np.testing.assert_array_equal(pixels(folder / f"samples/000{k}.png"), image)
    (out / "00001/metadata.jsonl").write_text(GENEVAL_LINES[2])
    assert not benchmark.is_done(out, prompts[1])  # images of another prompt


def test_prompts_without_a_text_or_a_safe_path_are_refused(tmp_path):
    for name, file, text, message in [
        (
            "geneval",
            "evaluation_metadata.jsonl",
            '{"tag": "colors", "prompt": 5}',
            "'00000'.* is 5",
        ),
        (
            "dpg",
            "dpg_prompts.jsonl",
            '{"id": "a/../../b", "prompt": "a cat"}',
            "a/../../b.*outside",
        ),
        (
            "mjhq",
            "meta_data.json",
            '{"a": {"category": "/tmp", "prompt": "a cat"}}',
            "'a'.*outside",
        ),
    ]:
        (tmp_path / file).write_text(text)
        with pytest.raises(UserError, match=message):
            BENCHMARKS[name].read(tmp_path)


@pytest.mark.parametrize(
    "name, part", [("geneval", "prompts"), ("dpg", "dpg_bench"), ("coco", "annotations")]
)
def test_a_whole_checkout_or_archive_is_read(tmp_path, name, part):
    benchmark = BENCHMARKS[name]
    PROMPTS[name](tmp_path / "data")
    (tmp_path / "all").mkdir()
    (tmp_path / "data").rename(tmp_path / "all" / part)
    assert benchmark.read(tmp_path / "all") == benchmark.read(tmp_path / "all" / part)


def test_only_a_newline_ends_a_line(tmp_path):
    PROMPTS["geneval"](tmp_path)
    (tmp_path / "evaluation_metadata.jsonl").write_text('{"tag": "colors", "prompt": "a\u2028b"}\n')
    assert [p.text for p in BENCHMARKS["geneval"].read(tmp_path)] == ["a\u2028b"]
    (tmp_path / "captions_x.tsv").write_text("image_id\tcaption\n7\ta cat\n")
    assert [(p.id, p.text) for p in BENCHMARKS["coco"].read(tmp_path)] == [("7", "a cat")]


def test_geneval_scores_images_by_tag(tmp_path):
    benchmark, prompts, out = generated("geneval", tmp_path)
    correct = {"00000": (1, 1, 1, 0), "00001": (0, 0, 0, 0), "00002": (1, 0, 1, 0)}
    rows = [
        {
            "filename": f"/elsewhere/{p.id}/samples/000{k}.png",
            "tag": p.extra["tag"],
            "correct": bool(correct[p.id][k]),
        }
        for p in prompts
        for k in range(4)
    ]
    results = out / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, rows)))
    assert benchmark.score(out, prompts) == {"single_object": 0.75, "colors": 0.25, "overall": 0.5}
    results.write_text("\n".join(map(json.dumps, rows[:-3])))
    with pytest.raises(UserError, match="9 of the 12 images and 0 others"):
        benchmark.score(out, prompts)
    results.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="4 of the 4 images and 8 others"):
        benchmark.score(out, prompts[:1])
    results.write_text('{"tag": "colors"}')
    with pytest.raises(UserError, match="results.jsonl.*evaluate_images"):
        benchmark.score(out, prompts)


def test_dpg_tiles_are_where_the_scorer_cuts(tmp_path):
    benchmark, prompts, out = generated("dpg", tmp_path)
    assert [p.id for p in prompts] == ["12", "COCOval2014000000000589", "whoops7"]
    assert prompts[2].text == "A dense prompt, whoops7." and prompts == benchmark.read(
        tmp_path / "data/prompts"
    )
    sheet, s = Image.open(out / "whoops7.png"), 8
    for (x, y), image in zip(
        ((0, 0), (s, 0), (0, s), (s, s)), random_images(4, seed=2), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(sheet.crop((x, y, x + s, y + s))), image)


def test_dpg_reads_one_file_of_prompts_and_refuses_other_text_files(tmp_path):
    benchmark = BENCHMARKS["dpg"]
    PROMPTS["dpg"](tmp_path / "data")
    rows = [{"id": p.id, "prompt": p.text} for p in benchmark.read(tmp_path / "data")]
    packed = tmp_path / "dpg_prompts.jsonl"
    packed.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "README.txt").write_text("Not\na prompt\n")
    assert benchmark.read(packed) == benchmark.read(tmp_path) == benchmark.read(tmp_path / "data")
    packed.write_text("\n".join(map(json.dumps, rows + rows[:1])))
    with pytest.raises(UserError, match="2 prompts .* '12.png'"):
        benchmark.read(packed)
    packed.unlink()
    with pytest.raises(UserError, match="README.txt"):
        benchmark.read(tmp_path)


def test_dpg_reads_the_newest_results(tmp_path):
    benchmark, prompts, out = generated("dpg", tmp_path)
    (out / "dpg-bench_20250101-000000_results.txt").write_text("nothing of worth\n")
    (out / "dpg-bench_20260101-000000_results_detail.txt").write_text(
        "out/12.png, (0, 0, 8, 8), a cow?, yes\n"
    )
    results = out / "dpg-bench_20260101-000000_results.txt"
    rows = [
        f"some, where/{p.id}.png, 1.0, 0.5, 0.5, 0.0, {mean}"
        for p, mean in zip(prompts, (0.5, 0.75, 1.0))
    ]
    summary = (
        "Model: out\nL1 category scores:\n\tentity: 80.5\n\tother: 100.0\n"
        "L2 category scores:\n\tentity - whole: 80.5\n"
    )
    results.write_text("\n".join(rows) + "\n" + summary + "DPG-Bench score: 75.0\n")
    assert benchmark.score(out, prompts) == {"entity": 80.5, "other": 100.0, "overall": 75.0}
    results.write_text("\n".join(rows[:2]) + "\n" + summary)
    with pytest.raises(UserError, match="2 of the 3 prompts and 0 others"):
        benchmark.score(out, prompts)


def test_mjhq_has_a_folder_per_category(tmp_path):
    _, prompts, out = generated("mjhq", tmp_path)
    assert [p.files for p in prompts] == [
        ("animals/id0.png",),
        ("art/id1.png",),
        ("animals/id2.png",),
    ]
    np.testing.assert_array_equal(pixels(out / "art/id1.png"), random_images(1, seed=1)[0])


def test_coco_takes_each_photo_once_first(tmp_path, monkeypatch):
    benchmark, prompts, out = generated("coco", tmp_path)
    assert {p.files[0] for p in prompts[:2]} == {"139.png", "285.png"} and prompts[2].files == (
        "139-2.png",
    )
    assert {p.text for p in prompts} == {"caption 0", "caption 1", "caption 2"}
    assert pixels(out / "139-2.png").shape == (8, 8, 3)
    table = tmp_path / "captions_val2017.tsv"
    table.write_text("139\tcaption 0\n139\tcaption 1\n285\tcaption 2\n")
    assert benchmark.read(table) == benchmark.read(tmp_path) == prompts
    monkeypatch.setattr(type(benchmark), "count", 2)
    assert benchmark.read(table) == prompts[:2]
    (tmp_path / "captions_train2014.json").write_text("{}")
    with pytest.raises(UserError, match="captions_train2014.json"):
        benchmark.read(tmp_path)


@pytest.mark.skipif(
    not (OFFICIAL_DATA / "geneval").is_dir(), reason="needs the benchmarks' own prompts"
)
def test_real_prompts():
    tags = Counter(p.extra["tag"] for p in BENCHMARKS["geneval"].read(OFFICIAL_DATA / "geneval"))
    assert list(tags.values()) == [80, 99, 80, 94, 100, 100]
    assert list(tags) == [
        "single_object",
        "two_object",
        "counting",
        "colors",
        "position",
        "color_attr",
    ]
    dense = BENCHMARKS["dpg"].read(OFFICIAL_DATA / "dpg_bench")
    assert len({p.id for p in dense}) == 1065 and all(p.text for p in dense)
    captions = BENCHMARKS["coco"].read(OFFICIAL_DATA / "coco_captions")
    assert len(captions) == 25_014 and len({p.extra["image_id"] for p in captions[:5000]}) == 5000
