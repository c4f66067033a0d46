"""Records of eight broken kinds in every kind of source: each is listed, no good one is lost, too many stop the run."""

import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from janus_jax.data.sources import KINDS as KINDS_OF_SOURCES
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.recipe.data import build_pipeline
from janus_jax.train import loop
from tests.conftest import stage_of
from tests.helpers import tfds_set

COUNT, STEP = 160, 10  # one record in ten is broken, of a kind after the other


def jpeg(i):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def bomb():
    """The header of a PNG of 30 000 x 30 000 pixels, and nothing in it."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {  # what is wrong: the field, its value, and how the report puts it
    "truncated": ("image", jpeg(0)[:-200], "undecodable picture"),
    "empty picture": ("image", b"", "empty picture"),
    "html": ("image", b"<html>404</html>", "HTML instead of a picture"),
    "bomb": ("image", bomb(), "undecodable picture|picture too large"),
    "wrong field": (None, None, "no field 'prompt' beside "),
    "empty caption": ("prompt", b"  ", "empty 'prompt'"),
    "endless caption": ("prompt", b"word " * 20_000, "absurdly long 'prompt'"),
    "not utf-8": ("prompt", b"caf\xe9 \xff", "text is not UTF-8"),
}
KINDS = list(BROKEN)


def record(i, *, lacks=()):
    """A record, and what is wrong with it."""
    good, kind = {"image": jpeg(i), "prompt": f"a thing called {i}".encode()}, KINDS[i // STEP % len(KINDS)]
    if i % STEP or kind in lacks:
        return good, None
    field, value, _ = BROKEN[kind]
    return ({"image": good["image"], "promt": good["prompt"]} if field is None else good | {field: value}), kind


def array_record(folder, records):
    write_array_record(folder / "a.array_record", records)
    return dict(path=str(folder))


def tensorflow_set(folder, records):
    path = tfds_set.write(folder, [(r["image"], r["prompt"]) for r in records], encoding="jpeg")
    return dict(path=path, fields={"image": "image", "prompt": "label"})


def webdataset(folder, records):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, r in enumerate(records):
            for ending, value in (("jpg", r["image"]), ("txt" if "prompt" in r else "cls", r.get("prompt", b"3"))):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return dict(path=str(folder))


def parquet(folder, records):
    column = lambda name: pa.array([r.get(name) for r in records], pa.binary())
    pq.write_table(pa.table({"image": column("image"), "prompt": column("prompt")}), folder / "a.parquet", row_group_size=50)
    return dict(path=str(folder))


def json_lines(folder, records):
    lines = []
    for i, r in enumerate(records):
        (folder / f"{i}.jpg").write_bytes(r["image"])
        text = {k: b'"' + v + b'"' for k, v in r.items() if k != "image"}
        lines.append(
            b'{"image": "%d.jpg", ' % i + b", ".join(b'"%s": %s' % (k.encode(), v) for k, v in text.items()) + b"}\n"
        )
    (folder / "a.jsonl").write_bytes(b"".join(lines))
    return dict(path=str(folder / "a.jsonl"))


def captioned_folder(folder, records):
    for i, r in enumerate(records):
        (folder / f"{i:04d}.jpg").write_bytes(r["image"])
        if "prompt" in r:
            (folder / f"{i:04d}.txt").write_bytes(r["prompt"])
    return dict(path=str(folder))


def class_folder(folder, records):
    names = {}
    for i, r in enumerate(records):
        kept = f"{i:04d}".encode() + (b"caf\xe9" if b"\xff" in r["prompt"] else b"")
        place = folder / os.fsdecode(kept)
        place.mkdir()
        (place / "a.jpg").write_bytes(r["image"])
        names[place.name] = place.name if b"\xff" in r["prompt"] else r["prompt"].decode()
    (folder / "names.json").write_text(json.dumps(names))
    return dict(path=str(folder), names=str(folder / "names.json"))


WRITERS = {
    "array_record": array_record, "tfds": tensorflow_set, "webdataset": webdataset, "parquet": parquet, "json": json_lines,
    "captioned_folder": captioned_folder, "class_folder": class_folder,
}  # fmt: skip
LACKS = {"tfds": ["wrong field"], "class_folder": ["wrong field"]}  # all records of these have the same fields
OTHERWISE = {  # what a kind of file finds out by itself
    ("json", "not utf-8"): "unreadable JSON",
    ("captioned_folder", "wrong field"): "no text file beside the picture",
}


def drawing_only(config, source):
    config.data.sources = {"things": source}
    config.data.update(prompt_drop=0.0, bad_record_limit=0.2)
    config.stages = {"stage_2": config.stages.stage_2}
    config.stages.stage_2.update(mixture=(0, 0, 1), und_slots=0)
    config.stages.stage_2.sources = {"generation": {"things": 1}}
    config.init_fresh, config.save_every = (".*",), 100
    return config


def test_every_kind_of_source_is_broken_here():
    assert WRITERS.keys() == KINDS_OF_SOURCES.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_each_is_listed_and_no_good_record_is_lost(config, tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    records, faults = zip(*(record(i, lacks=LACKS.get(kind, ())) for i in range(COUNT)), strict=True)
    config = drawing_only(config, dict(kind=kind, **WRITERS[kind](folder, records)))
    report = tmp_path / "bad.jsonl"
    pipeline, _ = build_pipeline(stage_of(config), host=(0, 1), report=report)
    delivered, packed = set(), next(pipeline)
    while packed.stats["epochs"]["things"] < 2.5:
        delivered |= {int(i.rsplit("/", 1)[1]) for i in packed.record_ids}
        packed = next(pipeline)
    truncated = {i for i, wrong in enumerate(faults) if wrong == "truncated"}  # found out when pixels are decoded
    assert delivered - truncated == {i for i, wrong in enumerate(faults) if wrong is None}
    lines = {line["record"]: line for line in map(json.loads, report.read_text().splitlines())}
    assert lines.keys() == {i for i, wrong in enumerate(faults) if wrong}
    for i, line in lines.items():
        expected = OTHERWISE.get((kind, faults[i]), BROKEN[faults[i]][2])
        assert line["reason"].startswith(tuple(expected.split("|"))) and line["source"] == "things", line
        assert line["where"].startswith(("record", "train, record")) or str(folder) in line["where"]


def test_a_run_goes_on_lists_them_once_and_stops_above_the_limit(config, tmp_path):
    config = drawing_only(config, dict(kind="array_record", **array_record(tmp_path, [record(i)[0] for i in range(COUNT)])))
    config.stages.stage_2.steps = 6
    loop.train(config, tmp_path / "run")
    report = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    config.stages.stage_2.steps = 14
    loop.train(config, tmp_path / "run")
    again = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    listed = [json.loads(line)["record"] for line in again]
    assert again[: len(report)] == report and len(set(listed)) == len(listed) >= 5
    config.data.bad_record_limit = 0.02
    with pytest.raises(UserError, match=r"of \d+ records are unusable, more than .*_limit=2%.*listed in"):
        loop.train(config, tmp_path / "other")
