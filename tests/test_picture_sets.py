"""Drawing benchmarks from tiny files in their official formats; distances against closed forms; the papers' rows."""

import json
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.evaluate import papers
from janus_jax.evaluate.drawing import feature_distance
from janus_jax.evaluate.drawing.image_sets import PICTURE_SETS

SHARED = Path(__file__).parents[2] / "shared/data"
LINES = [
    '{"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}',
    '{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"}',
    '{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "pink"}], "prompt": "a photo of a pink cup"}',
]


def pictures(n, seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def pixels(path):
    return np.asarray(Image.open(path))


def made(name, folder):
    """Official files of a benchmark, three prompts or captions; and the set that reads them."""
    folder.mkdir(exist_ok=True)
    match name:
        case "geneval":
            (folder / "evaluation_metadata.jsonl").write_text("\n".join(LINES) + "\n")
        case "dpg":
            (folder / "prompts").mkdir()
            for stem in ("12", "COCOval2014000000000589", "whoops7"):
                (folder / "prompts" / f"{stem}.txt").write_text(f"A dense prompt, {stem}.\n")
        case "mjhq":
            rows = {f"id{i}": {"category": c, "prompt": f"one of {c}"} for i, c in enumerate(("animals", "art", "animals"))}
            (folder / "meta_data.json").write_text(json.dumps(rows))
        case "coco":
            rows = [{"id": i, "image_id": image, "caption": f"caption {i} "} for i, image in enumerate((139, 139, 285))]
            (folder / "captions_val2014.json").write_text(json.dumps({"annotations": rows, "images": []}))
    return PICTURE_SETS[name]


def drawn(name, tmp_path):
    """A set, its prompts, and a finished output folder."""
    picture_set, out = made(name, tmp_path / "data"), tmp_path / "out"
    prompts = picture_set.read(tmp_path / "data")
    for i, prompt in enumerate(prompts):
        picture_set.save(out, prompt, pictures(picture_set.samples, seed=i))
    return picture_set, prompts, out


@pytest.mark.parametrize("name", PICTURE_SETS)
def test_a_killed_run_draws_only_what_is_missing(name, tmp_path):
    picture_set, prompts, out = drawn(name, tmp_path)
    undone = lambda: [p.id for p in prompts if not picture_set.done(out, p)]
    assert len(prompts) == 3 and not undone() and not list(out.rglob("*.partial"))
    picture_set.finish(out, prompts)
    assert picture_set.score(out, prompts) == {}  # no scorer has been here

    first, second = out / prompts[0].files[0], out / prompts[1].files[-1]
    first.unlink()
    whole = second.read_bytes()
    for damaged in (whole[:-20], whole[:60] + bytes(30) + whole[90:], b"", whole[:20]):
        second.write_bytes(damaged)
        assert undone() == [prompts[0].id, prompts[1].id]
    with pytest.raises(UserError, match="2 of 3 prompts lack pictures"):
        picture_set.finish(out, prompts)
    second.write_bytes(b"\x89PNG")
    assert undone() == [prompts[0].id, prompts[1].id]
    for i in range(2):
        picture_set.save(out, prompts[i], pictures(picture_set.samples, seed=i))
    picture_set.finish(out, prompts)
    (out / "cat.png").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="belong to no prompt, first of them 'cat.png'"):
        picture_set.finish(out, prompts)


@pytest.mark.parametrize("name", PICTURE_SETS)
def test_wrong_data_is_one_clear_sentence(name, tmp_path):
    picture_set = PICTURE_SETS[name]
    with pytest.raises(UserError, match=f"{name}: no .* in '{tmp_path}'; expected "):
        picture_set.read(tmp_path)
    with pytest.raises(UserError, match=f"{name}: no .*nowhere"):
        picture_set.read(tmp_path / "nowhere")
    other = tmp_path / "other.json"
    for text in ("{", "[1]", '{"a": 1}', '{"a": {"prompt": "b"}}', ""):
        other.write_text(text)
        with pytest.raises(UserError, match=f"^{name}: .*expected "):
            picture_set.read(other)


def test_geneval_writes_the_official_layout(tmp_path):
    picture_set, prompts, out = drawn("geneval", tmp_path)
    assert picture_set.read(tmp_path / "data/evaluation_metadata.jsonl") == prompts
    assert [(p.id, p.text, p.extra["tag"]) for p in prompts][1] == ("00001", "a photo of a red cat", "colors")
    for i, line in enumerate(LINES):
        folder = out / f"{i:05}"
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == [
            "grid.png",
            "metadata.jsonl",
            *(f"samples/000{k}.png" for k in range(4)),
        ]
        assert (folder / "metadata.jsonl").read_text() == line
        for k, picture in enumerate(pictures(4, seed=i)):
            np.testing.assert_array_equal(pixels(folder / f"samples/000{k}.png"), picture)
    (out / "00001/metadata.jsonl").write_text(LINES[2])
    assert not picture_set.done(out, prompts[1])  # drawn for another prompt


@pytest.mark.parametrize(
    "name, file, text, said",
    [
        ("geneval", "evaluation_metadata.jsonl", '{"tag": "colors", "prompt": 5}', "is 5, which is no text"),
        ("dpg", "dpg_prompts.jsonl", '{"id": "a/../../b", "prompt": "a cat"}', "drawn outside the output folder"),
        ("mjhq", "meta_data.json", '{"a": {"category": "/tmp", "prompt": "a cat"}}', "drawn outside the output folder"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_told(tmp_path, name, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said):
        PICTURE_SETS[name].read(tmp_path)


@pytest.mark.parametrize("name, part", [("geneval", "prompts"), ("dpg", "dpg_bench"), ("coco", "annotations")])
def test_a_whole_checkout_or_archive_is_read_too(tmp_path, name, part):
    picture_set = made(name, tmp_path / "data")
    (tmp_path / "all").mkdir()
    (tmp_path / "data").rename(tmp_path / "all" / part)
    assert picture_set.read(tmp_path / "all") == picture_set.read(tmp_path / "all" / part)


def test_lines_end_with_a_newline_alone(tmp_path):
    made("geneval", tmp_path)
    (tmp_path / "evaluation_metadata.jsonl").write_text('{"tag": "colors", "prompt": "a\u2028b"}\n')
    assert [p.text for p in PICTURE_SETS["geneval"].read(tmp_path)] == ["a\u2028b"]
    (tmp_path / "captions_x.tsv").write_text("image_id\tcaption\n7\ta cat\n")
    assert [(p.id, p.text) for p in PICTURE_SETS["coco"].read(tmp_path)] == [("7", "a cat")]


def test_geneval_counts_pictures_by_tag(tmp_path):
    picture_set, prompts, out = drawn("geneval", tmp_path)
    right = {"00000": (1, 1, 1, 0), "00001": (0, 0, 0, 0), "00002": (1, 0, 1, 0)}
    rows = [
        {"filename": f"/elsewhere/{p.id}/samples/000{k}.png", "tag": p.extra["tag"], "correct": bool(right[p.id][k])}
        for p in prompts
        for k in range(4)
    ]
    results = out / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, rows)))
    assert picture_set.score(out, prompts) == {"single_object": 0.75, "colors": 0.25, "overall": 0.5}
    results.write_text("\n".join(map(json.dumps, rows[:-3])))
    with pytest.raises(UserError, match="judges 9 of the 12 pictures and 0 others"):
        picture_set.score(out, prompts)
    results.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="judges 4 of the 4 pictures and 8 others"):
        picture_set.score(out, prompts[:1])
    results.write_text('{"tag": "colors"}')
    with pytest.raises(UserError, match="no result of evaluate_images"):
        picture_set.score(out, prompts)


def test_dpg_tiles_lie_where_the_scorer_cuts(tmp_path):
    picture_set, prompts, out = drawn("dpg", tmp_path)
    assert [p.id for p in prompts] == ["12", "COCOval2014000000000589", "whoops7"]
    assert prompts[2].text == "A dense prompt, whoops7." and prompts == picture_set.read(tmp_path / "data/prompts")
    sheet, s = Image.open(out / "whoops7.png"), 8
    for (x, y), picture in zip(((0, 0), (s, 0), (0, s), (s, s)), pictures(4, seed=2), strict=True):
        np.testing.assert_array_equal(np.asarray(sheet.crop((x, y, x + s, y + s))), picture)


def test_dpg_reads_one_file_of_prompts_and_refuses_other_texts(tmp_path):
    picture_set = made("dpg", tmp_path / "data")
    rows = [{"id": p.id, "prompt": p.text} for p in picture_set.read(tmp_path / "data")]
    packed = tmp_path / "dpg_prompts.jsonl"
    packed.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "README.txt").write_text("Not\na prompt\n")
    assert picture_set.read(packed) == picture_set.read(tmp_path) == picture_set.read(tmp_path / "data")
    packed.write_text("\n".join(map(json.dumps, rows + rows[:1])))
    with pytest.raises(UserError, match="2 prompts .* ask for the same file, '12.png'"):
        picture_set.read(packed)
    packed.unlink()
    with pytest.raises(UserError, match="README.txt is not one line"):
        picture_set.read(tmp_path)


def test_dpg_reads_the_newest_results(tmp_path):
    picture_set, prompts, out = drawn("dpg", tmp_path)
    (out / "dpg-bench_20250101-000000_results.txt").write_text("nothing of worth\n")
    (out / "dpg-bench_20260101-000000_results_detail.txt").write_text("out/12.png, (0, 0, 8, 8), a cow?, yes\n")
    results = out / "dpg-bench_20260101-000000_results.txt"
    judged = [f"some, where/{p.id}.png, 1.0, 0.5, 0.5, 0.0, {mean}" for p, mean in zip(prompts, (0.5, 0.75, 1.0))]
    summary = (
        "Model: out\nL1 category scores:\n\tentity: 80.5\n\tother: 100.0\nL2 category scores:\n\tentity - whole: 80.5\n"
    )
    results.write_text("\n".join(judged) + "\n" + summary + "DPG-Bench score: 75.0\n")
    assert picture_set.score(out, prompts) == {"entity": 80.5, "other": 100.0, "overall": 75.0}
    results.write_text("\n".join(judged[:2]) + "\n" + summary)
    with pytest.raises(UserError, match="judges 2 of the 3 prompts and 0 others"):
        picture_set.score(out, prompts)


def test_mjhq_keeps_categories_apart(tmp_path):
    _, prompts, out = drawn("mjhq", tmp_path)
    assert [p.files for p in prompts] == [("animals/id0.png",), ("art/id1.png",), ("animals/id2.png",)]
    np.testing.assert_array_equal(pixels(out / "art/id1.png"), pictures(1, seed=1)[0])


def test_coco_takes_each_photo_once_before_any_twice(tmp_path, monkeypatch):
    picture_set, prompts, out = drawn("coco", tmp_path)
    assert {p.files[0] for p in prompts[:2]} == {"139.png", "285.png"} and prompts[2].files == ("139-2.png",)
    assert {p.text for p in prompts} == {"caption 0", "caption 1", "caption 2"}
    assert pixels(out / "139-2.png").shape == (8, 8, 3)
    table = tmp_path / "captions_val2017.tsv"
    table.write_text("139\tcaption 0\n139\tcaption 1\n285\tcaption 2\n")
    assert picture_set.read(table) == picture_set.read(tmp_path) == prompts
    monkeypatch.setattr(type(picture_set), "count", 2)
    assert picture_set.read(table) == prompts[:2]
    (tmp_path / "captions_train2014.json").write_text("{}")
    with pytest.raises(UserError, match="name the file instead"):
        picture_set.read(tmp_path)


@pytest.mark.skipif(not (SHARED / "geneval").is_dir(), reason="needs the benchmarks' own prompts")
def test_real_prompts_are_read_whole():
    tags = Counter(p.extra["tag"] for p in PICTURE_SETS["geneval"].read(SHARED / "geneval"))
    assert list(tags.values()) == [80, 99, 80, 94, 100, 100]
    assert list(tags) == ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    dense = PICTURE_SETS["dpg"].read(SHARED / "dpg_bench")
    assert len({p.id for p in dense}) == 1065 and all(p.text for p in dense)
    captions = PICTURE_SETS["coco"].read(SHARED / "coco_captions")
    assert len(captions) == 25_014 and len({p.extra["image_id"] for p in captions[:5000]}) == 5000


def gaussian(n, mean, std, seed):
    """Samples whose mean and unbiased covariance are exactly those asked for."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(n - 1)
    return x * np.asarray(std) + np.asarray(mean)


def test_frechet_distance_has_its_closed_form():
    means, stds = ([1.0, -2.0, 300.0], [0.0, 1.0, 301.0]), ([1.0, 2.0, 0.1], [3.0, 0.5, 0.0])
    a, b = (gaussian(50, m, s, i) for i, (m, s) in enumerate(zip(means, stds)))
    expected = np.sum(np.subtract(*means) ** 2) + np.sum(np.subtract(*stds) ** 2)
    assert feature_distance.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert feature_distance.frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert feature_distance.frechet(a, a) == pytest.approx(0, abs=1e-9)
    few = np.random.default_rng(2).normal(size=(5, 40))  # fewer pictures than features: a covariance without an inverse
    assert feature_distance.frechet(few, few) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="at least 2 pictures on either side, not 1"):
        feature_distance.frechet(a, b[:1])


def test_moments_in_batches_are_those_of_the_whole():
    x = np.random.default_rng(0).normal(1e4, 1, (101, 7))
    moments = feature_distance.Moments()
    for start in range(0, len(x), 8):
        moments.add(x[start : start + 8])
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)


class Session:
    """Stands in for a network: the mean of each channel, as a map of two places."""

    shape, kind = ["n", 3, 4, 6], "tensor(float)"

    def __init__(self, path, providers):
        if not Path(path).is_file():
            raise RuntimeError("no such file")
        self.seen = []

    def get_inputs(self):
        return [types.SimpleNamespace(name="picture", shape=self.shape, type=self.kind)]

    def run(self, names, feed):
        x = feed["picture"]
        self.seen.append(x)
        y = x.mean((2, 3) if self.shape[1] == 3 else (1, 2))
        return [np.stack([y - 1, y + 1], -1)[..., None] if self.shape[1] == 3 else y]


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Makes `Features` of a stub with a certain input."""
    path = tmp_path / "channel-means.onnx"
    path.touch()

    def make(shape, *, side=None, kind="tensor(float)", file=path):
        stub = type("Stub", (Session,), dict(shape=shape, kind=kind))
        monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=stub))
        return feature_distance.Features(file, mean=(10, 20, 30), std=2, side=side)

    return make


def test_features_fit_pictures_to_the_network(network):
    flat = np.broadcast_to(np.array([14, 20, 36], np.uint8), (3, 9, 9, 3))
    expected = np.broadcast_to([2.0, 0.0, 3.0], (3, 3))
    for shape, side, calls in ((["n", 3, 4, 6], None, [3]), ([2, 4, 6, 3], None, [2, 2]), ([None, 3, "h", "w"], 5, [3])):
        features = network(shape, side=side)
        result = features(flat)
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected)
        fed = features._network.seen
        assert [len(x) for x in fed] == calls and fed[0].dtype == np.float32
        assert sorted(fed[0].shape[1:]) == ([3, 5, 5] if side else [3, 4, 6])
    assert network([1, 3, 4, 6])([flat[0], flat[0, :5]]).shape == (2, 3)  # pictures of several sizes
    noise = pictures(1, side=64)
    shrunk = network(["n", 3, 4, 4])
    shrunk(noise)
    assert shrunk._network.seen[0].std() * 2 < noise.std() / 4  # the filter widens: noise averages out


def test_figures_are_named_after_their_network(network, tmp_path):
    assert network(["n", 3, 4, 4]).figures == ("frechet_distance[channel-means]", "cosine_similarity[channel-means]")
    inception = tmp_path / "pt_inception-2015-12-05-6726825d.onnx"
    inception.touch()
    assert network(["n", 3, 4, 4], file=inception).figures[0] == "FID"


def test_a_network_that_does_not_fit_is_refused(network, monkeypatch, tmp_path):
    for shape, side, kind, message in (
        (["n", 1, 4, 4], None, "tensor(float)", "a feature network takes"),
        (["n", 3, 4, 4], None, "tensor(int64)", "a feature network takes"),
        (["n", 3, "h", "w"], None, "tensor(float)", "leaves its input's side open"),
        (["n", 3, 4, 4], 8, "tensor(float)", r"takes pictures of \(4, 4\) pixels, not of 8"),
    ):
        with pytest.raises(UserError, match=message):
            network(shape, side=side, kind=kind)
    with pytest.raises(UserError, match="no ONNX network that can be loaded: no such file"):
        network(["n", 3, 4, 4], file=tmp_path / "gone.onnx")
    broken = network(["n", 3, 4, 4])
    broken._network.run = lambda names, feed: [np.full((1, 3), np.nan)]
    with pytest.raises(UserError, match="or with NaN"):
        broken(pictures(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        feature_distance.Features(tmp_path / "channel-means.onnx", 0, 1)


def test_folders_are_compared_picture_by_picture(network, tmp_path):
    drawn_folder, reference = tmp_path / "drawn", tmp_path / "reference"
    for folder, ending, names in ((drawn_folder, "png", "abcd"), (reference, "bmp", "cdefg")):
        (folder / "sub").mkdir(parents=True)
        for i, name in enumerate(names):
            side = 5 + i if folder == reference else 8
            Image.fromarray(pictures(1, seed=ord(name), side=side)[0]).save(folder / f"sub/{name}.{ending}")
    features = network(["n", 3, 4, 4])
    result = feature_distance.distance(drawn_folder, reference, features, batch=2)
    a, b = (features([pixels(p) for p in sorted(folder.rglob("*.*"))]) for folder in (drawn_folder, reference))
    assert result.pop("frechet_distance[channel-means]") == pytest.approx(feature_distance.frechet(a, b))
    assert result.pop("cosine_similarity[channel-means]") == pytest.approx(feature_distance.cosines(a[2:], b[:2]).mean())
    assert result == {"drawn": 4, "reference": 5, "pairs": 2}
    (drawn_folder / "sub").rename(drawn_folder / "other")
    assert "cosine_similarity[channel-means]" not in feature_distance.distance(drawn_folder, reference, features)

    (reference / "sub/c.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="nothing but the ending"):
        feature_distance.distance(drawn_folder, reference, features)
    (reference / "sub/c.bmp").unlink()
    with pytest.raises(UserError, match="c.jpg' cannot be read as a picture"):
        feature_distance.distance(drawn_folder, reference, features)
    with pytest.raises(UserError, match="No file"):
        feature_distance.distance(tmp_path / "gone", reference, features)


@pytest.mark.skipif(not (SHARED / "weights_fastestdet").is_dir(), reason="needs a real network")
def test_a_real_network_tells_pictures_apart(tmp_path):
    pytest.importorskip("onnxruntime")
    features = feature_distance.Features(SHARED / "weights_fastestdet/FastestDet.onnx", 0, 255)
    assert features(pictures(3)).shape == (3, 85)  # a network that takes one picture at a time
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        for i, picture in enumerate(pictures(4, seed=seed)):
            Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
    name = "frechet_distance[FastestDet]"
    same = feature_distance.distance(tmp_path / "a", tmp_path / "a", features)
    assert same[name] == pytest.approx(0, abs=1e-6) and same["cosine_similarity[FastestDet]"] == pytest.approx(1)
    assert feature_distance.distance(tmp_path / "a", tmp_path / "b", features)[name] > same[name]
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(UserError, match="no ONNX network that can be loaded"):
        feature_distance.Features(tmp_path / "broken.onnx", 0, 1)


def test_papers_rows_are_consistent():
    for model, figures in papers.SCORES["geneval"].items():
        columns = [value for tag, value in figures.items() if tag != "overall"]
        assert len(columns) == 6 and figures["overall"] == pytest.approx(np.mean(columns), abs=0.01), model
    assert {b: list(models) for b, models in papers.SOURCES.items()} == {b: list(m) for b, m in papers.SCORES.items()}
    (row,) = papers.rows("pope", "Janus-Pro-1B")
    assert row[:3] == ("Janus-Pro-1B", {"accuracy/f1": 86.2}, "Janus-Pro, Table 3") and "F1: not stated" in row.settings
    assert [r.model for r in papers.rows("mjhq")] == ["Janus", "JanusFlow 256", "JanusFlow 384"]
    assert papers.rows("dpg", "Janus")[0].settings.startswith("guidance not stated")  # printed by Janus-Pro's paper
    assert papers.rows("coco", "Janus-Pro-7B") == papers.rows("shapes") == []
    with pytest.raises(UserError, match="No paper reports on 'Bagel'"):
        papers.rows("pope", "Bagel")
