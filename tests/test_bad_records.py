"""Eight kinds of broken records in every kind of source: all are listed, no usable one is lost."""

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

COUNT, STEP = 160, 10  # one record in ten is broken; the kinds take turns


def jpeg(i):
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def bomb():
    """A PNG of 30 000 x 30 000 pixels by its header, without any pixels."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


BROKEN = {  # kind: (field, its value, words of which the report must have one)
    "truncated": ("image", jpeg(0)[:-200], ["undecodable"]),
    "empty image": ("image", b"", ["empty image"]),
    "html": ("image", b"<html>404</html>", ["HTML"]),
    "bomb": ("image", bomb(), ["undecodable", "too large"]),
    "wrong field": (None, None, ["no field 'prompt'"]),
    "empty caption": ("prompt", b"  ", ["empty 'prompt'"]),
    "endless caption": ("prompt", b"word " * 20_000, ["long 'prompt'"]),
    "not utf-8": ("prompt", b"caf\xe9 \xff", ["UTF-8"]),
}
KINDS = list(BROKEN)


def record(i, *, impossible=()):
    """A record, and in which way it is broken: a kind that is not `impossible`, or None."""
    usable = {"image": jpeg(i), "prompt": f"a thing called {i}".encode()}
    kind = KINDS[i // STEP % len(KINDS)]
    if i % STEP or kind in impossible:
        return usable, None
    field, value, _ = BROKEN[kind]
    if field is None:
        return {"image": usable["image"], "promt": usable["prompt"]}, kind
    return usable | {field: value}, kind


def array_record(folder, records):
    write_array_record(folder / "a.array_record", records)
    return dict(path=str(folder))


def tensorflow_set(folder, records):
    path = tfds_set.write(folder, [(r["image"], r["prompt"]) for r in records], encoding="jpeg")
    return dict(path=path, fields={"image": "image", "prompt": "label"})


def webdataset(folder, records):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, r in enumerate(records):
            text = ("txt", r["prompt"]) if "prompt" in r else ("cls", b"3")
            for ending, value in (("jpg", r["image"]), text):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return dict(path=str(folder))


def parquet(folder, records):
    column = lambda name: pa.array([r.get(name) for r in records], pa.binary())
    table = pa.table({"image": column("image"), "prompt": column("prompt")})
    pq.write_table(table, folder / "a.parquet", row_group_size=50)
    return dict(path=str(folder))


def json_lines(folder, records):
    lines = []
    for i, r in enumerate(records):
        (folder / f"{i}.jpg").write_bytes(r["image"])
        ((name, text),) = [(k, v) for k, v in r.items() if k != "image"]
        lines.append(b'{"image": "%d.jpg", "%s": "%s"}\n' % (i, name.encode(), text))
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
        not_utf8 = b"\xff" in r["prompt"]
        name = f"{i:04d}".encode() + (b"caf\xe9" if not_utf8 else b"")
        subfolder = folder / os.fsdecode(name)
        subfolder.mkdir()
        (subfolder / "a.jpg").write_bytes(r["image"])
        names[subfolder.name] = subfolder.name if not_utf8 else r["prompt"].decode()
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
# All records of these kinds have the same fields.
IMPOSSIBLE = {"tfds": ["wrong field"], "class_folder": ["wrong field"]}
OWN_REASONS = {  # of the reader itself
    ("json", "not utf-8"): ["JSON"],
    ("captioned_folder", "wrong field"): ["no text file"],
}


def generation_only(config, source):
    config.data.sources = {"things": source}
    config.data.update(prompt_drop=0.0, bad_record_limit=0.2)
    config.stages = {"stage_2": config.stages.stage_2}
    config.stages.stage_2.update(mixture=(0, 0, 1), und_slots=0)
    config.stages.stage_2.sources = {"generation": {"things": 1}}
    config.init_fresh, config.save_every = (".*",), 100
    return config


def test_every_kind_of_source_has_a_writer():
    assert WRITERS.keys() == KINDS_OF_SOURCES.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_broken_records_are_listed_and_no_usable_one_is_lost(config, tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    pairs = [record(i, impossible=IMPOSSIBLE.get(kind, ())) for i in range(COUNT)]
    records, faults = zip(*pairs, strict=True)
    config = generation_only(config, dict(kind=kind, **WRITERS[kind](folder, records)))
    report = tmp_path / "bad.jsonl"
    pipeline, _ = build_pipeline(stage_of(config), host=(0, 1), report=report)
    delivered = set()
    packed = next(pipeline)
    while packed.stats["epochs"]["things"] < 2.5:
        delivered |= {int(i.rsplit("/", 1)[1]) for i in packed.record_ids}
        packed = next(pipeline)
    # Truncated images are in batches: their pixels are decoded last.
    truncated = {i for i, fault in enumerate(faults) if fault == "truncated"}
    assert delivered - truncated == {i for i, fault in enumerate(faults) if fault is None}
    lines = {line["record"]: line for line in map(json.loads, report.read_text().splitlines())}
    assert lines.keys() == {i for i, fault in enumerate(faults) if fault}
    for i, line in lines.items():
        words = OWN_REASONS.get((kind, faults[i]), BROKEN[faults[i]][2])
        assert any(word in line["reason"] for word in words), line
        assert line["source"] == "things"
        assert line["where"].startswith(("record", "train, record")) or str(folder) in line["where"]


@pytest.mark.usefixtures("one_device")
def test_a_run_lists_each_broken_record_once_and_stops_above_the_limit(config, tmp_path):
    source = array_record(tmp_path, [record(i)[0] for i in range(COUNT)])
    config = generation_only(config, dict(kind="array_record", **source))
    config.stages.stage_2.steps = 6
    loop.train(config, tmp_path / "run")
    report = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    config.stages.stage_2.steps = 14
    loop.train(config, tmp_path / "run")
    again = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    listed = [json.loads(line)["record"] for line in again]
    assert again[: len(report)] == report and len(set(listed)) == len(listed) >= 5
    config.data.bad_record_limit = 0.02
    with pytest.raises(UserError, match=r"bad_record_limit=2%.*bad_records\.jsonl"):
        loop.train(config, tmp_path / "other")
