"""Every kind of source: real files of that kind, read exactly, and trained from."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import common, pro_1b
from janus_jax.data import images
from janus_jax.data.chat import IMAGE
from janus_jax.data.images import BadRecord
from janus_jax.data.mixture import Mixture
from janus_jax.data.sources import KINDS, Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.recipe.data import build_pipeline, source_names
from janus_jax.recipe.stage import make_stage
from janus_jax.train import loop
from tests.conftest import OFFICIAL_DATA, stage_of
from tests.helpers import tfds_set

COUNT = 24
NAMES = [f"thing number {chr(97 + i)}" for i in range(COUNT)]


def image(i):
    """A PNG that differs for every i, wider than high."""
    pixels = np.random.default_rng(i).integers(0, 256, (20, 28, 3), np.uint8)
    return images.encode_png(pixels)


IMAGES = [image(i) for i in range(COUNT)]


def array_record(folder):
    records = [{"png": p, "title": n} for p, n in zip(IMAGES, NAMES, strict=True)]
    write_array_record(folder / "a.array_record", records[:10])
    write_array_record(folder / "b.array_record", records[10:])
    fields = {"image": "png", "prompt": "title", "caption": "title"}
    return dict(path=str(folder / "*.array_record"), fields=fields)


def tensorflow_set(folder):
    path = tfds_set.write(folder, zip(IMAGES, NAMES, strict=True), encoding="png")
    return dict(path=path, fields={"image": "image", "prompt": "label", "caption": "label"})


def webdataset(folder):
    for shard, part in enumerate((range(14), range(14, COUNT))):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in part:
                text = NAMES[i].encode()
                for ending, value in (
                    ("png", IMAGES[i]),
                    ("txt", text),
                    ("json", b'{"width": 28}'),
                ):
                    info = tarfile.TarInfo(f"sub/{i:03d}.{ending}")
                    info.size = len(value)
                    tar.addfile(info, io.BytesIO(value))
    return dict(path=str(folder / "*.tar"))


def parquet(folder):
    images = [{"bytes": encoded, "path": None} for encoded in IMAGES]
    table = pa.table({"image": images, "meta": [{"text": name} for name in NAMES]})
    pq.write_table(table.slice(0, 9), folder / "train-0.parquet", row_group_size=4)
    pq.write_table(table.slice(9), folder / "train-1.parquet", row_group_size=100)
    fields = {"image": "image", "prompt": "meta.text", "caption": "meta.text"}
    return dict(path=str(folder), fields=fields, cached_groups=2)


def json_lines(folder):
    (folder / "images").mkdir()
    lines = []
    for i, (encoded, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        (folder / f"images/{i}.png").write_bytes(encoded)
        lines.append(json.dumps({"image": f"{i}.png", "caption": name, "prompt": name}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return dict(path=str(folder / "data.jsonl"), images=str(folder / "images"))


def captioned_folder(folder):
    for i, (encoded, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        subfolder = folder / str(i % 3)
        subfolder.mkdir(exist_ok=True)
        (subfolder / f"{i}.png").write_bytes(encoded)
        (subfolder / f"{i}.txt").write_text(name)
    return dict(path=str(folder))


def class_folder(folder):
    names = {}
    for i, (encoded, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        names[f"n{i:08d}"] = name
        (folder / f"n{i:08d}").mkdir()
        (folder / f"n{i:08d}/one.png").write_bytes(encoded)
    (folder / "names.json").write_text(json.dumps(names))
    return dict(path=str(folder), names=str(folder / "names.json"))


WRITERS = {
    "array_record": array_record,
    "tfds": tensorflow_set,
    "webdataset": webdataset,
    "parquet": parquet,
    "json": json_lines,
    "captioned_folder": captioned_folder,
    "class_folder": class_folder,
}


@pytest.fixture(params=WRITERS)
def source(request, tmp_path):
    """Writes the files of a source; its config."""
    folder = tmp_path / "data"
    folder.mkdir()
    return dict(kind=request.param, **WRITERS[request.param](folder))


def plain(value):
    return value.decode() if isinstance(value, bytes) else value


def test_every_kind_has_a_writer():
    assert WRITERS.keys() == KINDS.keys()


def test_records_are_read_exactly_in_any_order(source):
    opened = Source("things", **source)
    shuffled = np.random.default_rng(0).permutation(COUNT)
    records = {plain(opened[i]["prompt"]): opened[i] for i in shuffled}
    assert records.keys() == set(NAMES) and len(opened) == COUNT
    for encoded, name in zip(IMAGES, NAMES, strict=True):
        pixels = np.asarray(images.decode(records[name]["image"]))
        np.testing.assert_array_equal(pixels, np.asarray(images.decode(encoded)))
        assert plain(records[name]["caption"]) == name
    assert len({opened.locate(i) for i in range(COUNT)}) == COUNT


def train_on(config, source, *, steps):
    """Makes a config train stage 2 on one source, to understand and to generate its images."""
    config.init_fresh = (".*",)
    config.save_every = 100
    config.data.sources = {"things": source}
    config.stages = {"stage_2": config.stages.stage_2}
    config.stages.stage_2.update(mixture=(1, 0, 1), steps=steps)
    tasks = ("understanding", "generation")
    config.stages.stage_2.sources = {task: {"things": 1} for task in tasks}


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_first_batch_has_what_the_files_have(source, config):
    train_on(config, source, steps=20)
    config.data.prompt_drop = 0.0
    pipeline, tokenizer = build_pipeline(stage_of(config), host=(0, 1))
    batch = next(pipeline).batch
    checked = {"und": 0, "gen": 0}
    for s, (tokens, segments) in enumerate(zip(batch.tokens, batch.segment_ids, strict=True)):
        segments = segments + 100 * np.arange(len(segments))[:, None]  # different in every row
        tokens, segments = tokens.reshape(-1), segments.reshape(-1)
        for kind, starts, pixels, fit in (
            ("und", batch.und_start[s], batch.und_images[s], images.for_understanding),
            ("gen", batch.gen_start[s], batch.gen_images[s], images.for_generation),
        ):
            for slot in np.flatnonzero(starts < len(tokens)):
                text = tokenizer.decode(tokens[segments == segments[starts[slot]]])
                (i,) = [i for i, name in enumerate(NAMES) if name in text]
                expected = fit(images.decode(IMAGES[i]), size=32)
                np.testing.assert_array_equal(pixels[slot], expected)
                checked[kind] += 1
    assert min(checked.values()) >= 10


@pytest.mark.parametrize("source", ["parquet"], indirect=True)
@pytest.mark.usefixtures("one_device")
def test_a_run_reads_a_source_for_several_epochs(source, config, tmp_path):
    train_on(config, source, steps=20)
    loop.train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 20 and np.isfinite([row["loss"] for row in rows]).all()
    assert rows[-1]["epochs/things"] > 1  # 24 records are read several times


LLAVA = [
    {
        "id": "1",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "a thing"},
        ],
    },
    {
        "id": "2",
        "images": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image><image>\nSame?"},
            {"from": "gpt", "value": "No."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "是的。"},
        ],
    },
    {
        "id": "3",
        "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}],
    },
]


def llava(folder):
    for name, encoded in zip("ab", IMAGES, strict=False):
        (folder / f"{name}.png").write_bytes(encoded)
    (folder / "llava.json").write_text(json.dumps(LLAVA))
    return Source("llava", kind="json", path=str(folder / "llava.json"))


def test_llava_json_becomes_conversations(tmp_path):
    one, two, three = (llava(tmp_path)[i] for i in range(3))
    assert one["images"] == [IMAGES[0]]
    assert two["images"] == IMAGES[:2]
    assert three["images"] == []
    assert one["conversation"][0] == {"role": "user", "content": f"{IMAGE}\nWhat is it?"}
    assert [t["role"] for t in two["conversation"]] == ["user", "assistant"] * 2
    assert two["conversation"][-1]["content"] == "是的。"


def test_json_reads_no_image_outside_its_folder(tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(IMAGES[0])
    for record, reason in (
        ({"image": "../secret.png", "caption": "x"}, "outside"),
        ({"image": "/etc/hostname", "caption": "x"}, "outside"),
        ({"image": "none.png", "caption": "x"}, "missing image"),
        ({"image": [3], "caption": "x"}, "without a file name"),
        ([1, 2], "no JSON object"),
    ):
        (inside / "a.jsonl").write_text(json.dumps(record) + "\nno json\n")
        source = Source("s", kind="json", path=str(inside / "a.jsonl"))
        with pytest.raises(BadRecord, match=reason):
            source[0]
        with pytest.raises(BadRecord, match="unreadable JSON"):
            source[1]
        assert source.locate(1).endswith("a.jsonl, line 2")


def test_images_are_in_the_folder_of_their_json_file(tmp_path):
    for name, encoded in zip("ab", IMAGES, strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded)
        line = json.dumps({"image": "0.png", "caption": name})
        text = f"\ufeff{line}\n\n" if name == "a" else f"\n{line}\n"
        (tmp_path / name / "all.jsonl").write_text(text)
    source = Source("s", kind="json", path=str(tmp_path))
    assert [(r["image"], r["caption"]) for r in source] == [(IMAGES[0], "a"), (IMAGES[1], "b")]
    assert source.locate(1).endswith("b/all.jsonl, line 2")  # blank lines are no records


def test_links_are_followed_and_classes_are_the_first_level_of_folders(tmp_path):
    (tmp_path / "elsewhere/images").mkdir(parents=True)
    (tmp_path / "elsewhere/images/0.png").write_bytes(IMAGES[0])
    (tmp_path / "set/n02").mkdir(parents=True)
    (tmp_path / "set/n02/1.png").write_bytes(IMAGES[1])
    (tmp_path / "set/n01").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "names.txt").write_text("n01 red fox\n")
    names = str(tmp_path / "names.txt")
    source = Source("s", kind="class_folder", path=str(tmp_path / "set"), names=names)
    assert source[0] == {"image": IMAGES[0], "prompt": "red fox", "caption": "red fox"}
    with pytest.raises(BadRecord, match="no name"):
        source[1]
    flat = Source("s", kind="class_folder", path=str(tmp_path / "set/n02"))
    assert flat[0]["prompt"] == "n02"


def test_a_damaged_header_loses_one_member_and_joined_tar_files_are_read_to_the_end(
    tmp_path, caplog
):
    webdataset(tmp_path)
    one = (tmp_path / "00000.tar").read_bytes()
    with tarfile.open(tmp_path / "00000.tar") as tar:
        offset = next(m.offset for m in tar if m.name == "sub/005.png")
    (tmp_path / "00001.tar").write_bytes(one + one)
    (tmp_path / "00000.tar").write_bytes(one[:offset] + b"\xff" + one[offset + 1 :])
    source = Source("s", kind="webdataset", path=str(tmp_path))
    assert len(source) == 3 * 14 and "00000.tar is damaged" in caplog.text
    assert [plain(source[i]["prompt"]) for i in range(14)] == NAMES[:14]
    assert ["image" in source[i] for i in range(14)].count(False) == 1 and "image" not in source[5]


def test_a_truncated_tar_file_gives_its_complete_records(tmp_path):
    webdataset(tmp_path)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    source = Source("s", kind="webdataset", path=str(tmp_path))
    assert 14 < len(source) < COUNT
    assert [plain(source[i]["prompt"]) for i in range(16)] == NAMES[:16]


def test_missing_data_and_unknown_options_are_errors(tmp_path):
    for kind in sorted(set(KINDS) - {"tfds"}):
        with pytest.raises(UserError, match=f"'s': .*{tmp_path}.*config.data.sources.s.path"):
            Source("s", kind=kind, path=str(tmp_path))
        with pytest.raises(UserError, match="'splt'"):
            Source("s", kind=kind, path=str(tmp_path), splt="train")


def test_a_file_of_another_kind_is_an_error(tmp_path):
    for kind, name in (
        ("parquet", "a.parquet"),
        ("webdataset", "a.tar"),
        ("json", "a.json"),
        ("array_record", "a.array_record"),
    ):
        (tmp_path / name).write_bytes(b"something else" * 99)
        with pytest.raises(UserError, match=f"'s': .*{name}' is no "):
            Source("s", kind=kind, path=str(tmp_path / name))


def photos(tmp_path):
    folder = OFFICIAL_DATA / "coco_mini_captioned"
    fields = {"image": "file", "prompt": "captions", "caption": "captions"}
    path = str(folder / "captions.jsonl")
    return 119, dict(kind="json", path=path, pictures=("file",), fields=fields)


def emoji(tmp_path):
    with zipfile.ZipFile(OFFICIAL_DATA / "emoji64/noto.zip") as packed:
        packed.extractall(tmp_path / "noto")
    fields = {"image": "file", "prompt": "name", "caption": "name"}
    path = str(tmp_path / "noto/captions.jsonl")
    return 1650, dict(kind="json", path=path, pictures=("file",), fields=fields)


@pytest.mark.skipif(not OFFICIAL_DATA.is_dir(), reason="needs the official data")
@pytest.mark.parametrize("data_set", [photos, emoji])
@pytest.mark.usefixtures("one_device")
def test_real_sets_train_through_the_public_kinds(config, tmp_path, data_set):
    count, source = data_set(tmp_path)
    train_on(config, source, steps=3)
    loop.train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 3 and np.isfinite(rows[-1]["loss"])
    assert not (tmp_path / "run/bad_records.jsonl").exists()
    assert len(Source("things", **source)) == count


@pytest.mark.usefixtures("one_device")
def test_the_examples_of_the_guide_are_configs(data):
    """Every source of a stage is in the config, and its kind knows its options."""
    guide = (Path(__file__).parent.parent / "docs/data.md").read_text()
    blocks = re.findall("```python\n(.*?)```", guide, re.DOTALL)
    kinds = set()
    for block in blocks:
        names = {"common": common, "c": pro_1b.get_config()}
        exec(block, names)
        c = names["get_config"]() if "get_config" in names else names["c"]
        resolved = c.to_dict()
        for name in resolved["stages"]:
            stage = make_stage(resolved, name)
            for phase in stage.phases:
                Mixture(phase)
            assert set(source_names(stage)) <= resolved["data"]["sources"].keys()
        for name, source in resolved["data"]["sources"].items():
            kinds.add(source["kind"])
            with pytest.raises(UserError, match="(?i)no (file|tensorflow data set|folder)"):
                Source(name, **source)
    assert len(blocks) >= 7 and kinds == KINDS.keys()
