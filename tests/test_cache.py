"""Caches of codes: equal to what the step computes, resumable, refused where they do not fit."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, fingerprint, sharding
from janus_jax.data import synthetic
from janus_jax.data.examples import ImageForm
from janus_jax.data.shards import Stream
from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.objectives.tokenizer import Tokenizer
from janus_jax.prepare import cache
from janus_jax.recipe.data import build_example_maker, check_caches
from janus_jax.train.loop import train
from tests.conftest import ROOT, environment, first_batch, fresh_params, stage_of
from tests.helpers.training import read_metrics


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Saves the fresh tokenizer of a config as a checkpoint: (config, shift) -> its folder."""

    def save(config, *, shift=0.0):
        folder = tmp_path_factory.mktemp("tokenizer")
        network = Tokenizer.build_network(config.model.to_dict(), dtype=None)
        params = fresh_params(network)
        params = {path: array + shift for path, array in params.items()}
        writer = checkpoint.Writer(folder, keep=1)
        about = {"stage": "tokenizer", "config": None, "stage_start": 0, "tokenizer": None}
        writer.save(1, params=params, about=about)
        writer.wait()
        return folder, params

    return save


@pytest.fixture
def cached(config, tokenizer_of, tmp_path):
    """The small config with cached codes; the folder and the parameters of their tokenizer."""
    folder, params = tokenizer_of(config)
    path = tmp_path / "codes"
    about = cache.make(
        "codes", path, checkpoint_path=folder, source_name="scenes", config=config.to_dict()
    )
    assert about["records left out"] == 0
    config.data.sources.scenes.path = str(path)
    return config, folder, params


def use_pixels(config):
    """Sets the source of images to generate back to the original records."""
    config.data.sources.scenes.path = config.data.sources.text.path.replace("text", "scenes")


def records(path):
    source = Source("s", kind="array_record", path=str(path))
    return [source[i] for i in range(len(source))]


def test_codes_of_a_cache_are_those_of_the_step(cached):
    config, _, params = cached
    _, from_cache = first_batch(config)
    use_pixels(config)
    stage, from_pixels = first_batch(config)
    assert from_cache.gen_images is None and from_cache.gen_codes.shape[-1] == 16
    used = from_pixels.gen_start < from_pixels.tokens[0].size
    model = stage.network.merge(fresh_params(stage.network) | params)
    codes = model.generation.tokenizer.codes(from_pixels.gen_images[used])
    np.testing.assert_array_equal(from_cache.gen_codes[used], codes)
    np.testing.assert_array_equal(from_cache.tokens, from_pixels.tokens)


def test_a_stopped_cache_resumes_and_another_one_is_refused(cached, config, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PER_FILE", 100)
    _, folder, _ = cached
    use_pixels(config)

    def make(name, seed=0):
        settings = dict(checkpoint_path=folder, source_name="scenes", config=config.to_dict())
        cache.make("codes", tmp_path / name, seed=seed, **settings)

    make("whole")
    names = sorted(p.name for p in (tmp_path / "whole").glob("*.array_record"))
    assert len(names) > 2
    make("cut")
    first, second = (tmp_path / "cut" / name for name in names[:2])
    second.rename(second.with_suffix(".partial"))
    time_of_first = first.stat().st_mtime_ns
    make("cut")
    assert first.stat().st_mtime_ns == time_of_first
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    with pytest.raises(UserError, match="seed"):
        make("cut", seed=1)


def test_a_cache_of_another_tokenizer_size_or_crop_is_refused(cached, tokenizer_of):
    config, _, same = cached
    sources = {"scenes": Source("scenes", **config.data.sources.scenes.to_dict())}
    check_caches(stage_of(config), sources, same)
    _, other = tokenizer_of(config, shift=1e-3)
    with pytest.raises(UserError, match="fingerprint.*prepare codes.*scenes-train"):
        check_caches(stage_of(config), sources, other)
    with pytest.raises(UserError, match="pixels"):
        check_caches(stage_of(config, "tokenizer"), sources, same)
    config.data.crop = "random"
    with pytest.raises(UserError, match="crop is center, not random"):
        check_caches(stage_of(config), sources, same)


def test_fingerprints_are_the_same_on_any_mesh(config, tokenizer_of):
    _, params = tokenizer_of(config)
    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1)
    network = stage_of(config, "tokenizer").network
    shardings = sharding.param_shardings(mesh, network.abstract, network.axes)
    sharded = {path: jax.device_put(array, shardings[path]) for path, array in params.items()}
    assert fingerprint.fingerprint(sharded) == fingerprint.fingerprint(params)
    path = next(path for path, array in params.items() if array.ndim > 1)
    reversed_rows = params | {path: params[path][::-1]}
    assert fingerprint.fingerprint(reversed_rows) != fingerprint.fingerprint(params)


def test_pixels_and_codes_do_not_mix(cached):
    config, _, _ = cached
    path = config.data.sources.text.path.replace("text", "scenes")
    config.data.sources.more = dict(kind="array_record", path=path)
    config.stages.stage_2.sources.generation = {"scenes": 1, "more": 1}
    with pytest.raises(UserError, match=r"'more'.*\(16,\).*'scenes'"):
        first_batch(config)


def test_the_form_of_a_cache_is_in_its_about(cached):
    """No record is read; a cache of version 0.1, without `shape`, is asked for its first record."""
    config, _, _ = cached
    path = Path(config.data.sources.scenes.path)

    def form(make):
        source = Source("scenes", kind="array_record", path=str(path))
        return Stream(source, make=make, seed=0).gen_form()

    assert form(make=None) == ImageForm("codes", (16,))
    about = json.loads((path / "about.json").read_text())
    del about["shape"]
    (path / "about.json").write_text(json.dumps(about))
    assert form(make=build_example_maker(stage_of(config))[0]) == ImageForm("codes", (16,))


@pytest.mark.usefixtures("one_device")
def test_a_run_trains_from_codes_of_its_own_tokenizer_alone(cached, tokenizer_of, tmp_path):
    config, folder, _ = cached
    config.init_fresh = (".*",)
    config.init_from = str(folder)
    config.stages = {"stage_2": config.stages.stage_2}
    config.stages.stage_2.steps = 2
    train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 2 and np.isfinite(rows[-1]["loss_gen"])
    config.init_from = str(tokenizer_of(config, shift=1e-3)[0])
    with pytest.raises(UserError, match="cache"):
        train(config, tmp_path / "other")


def test_records_of_any_kind_become_array_records(config, tmp_path):
    """Images keep their bytes; unreadable records are left out and listed; a copy may run again."""
    images = [synthetic.photo(np.random.default_rng(i), size=32) for i in range(9)]
    (tmp_path / "from").mkdir()
    for i, encoded in enumerate(images):
        (tmp_path / f"from/{i}.jpg").write_bytes(encoded)
    lines = [{"image": f"{i}.jpg", "caption": f"number {i}", "tags": [i, None]} for i in range(9)]
    lines.insert(4, {"image": "none.jpg"})
    (tmp_path / "from/all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.data.sources.mine = dict(
        kind="json",
        path=str(tmp_path / "from/all.jsonl"),
        fields={"image": "image", "prompt": "caption", "tags": "tags"},
    )

    def copy():
        return cache.copy(tmp_path / "to", source_name="mine", config=config.to_dict())

    assert copy()["records left out"] == 1
    report = (tmp_path / "to/bad_records.jsonl").read_text().splitlines()
    (bad,) = map(json.loads, report)
    assert bad["record"] == 4 and bad["reason"] and "line 5" in bad["where"]
    expected = [
        {"image": image, "prompt": f"number {i}", "tags": [i, None]}
        for i, image in enumerate(images)
    ]
    assert records(tmp_path / "to") == expected
    assert copy()["records left out"] == 0 and len(records(tmp_path / "to")) == 9


CACHE_IN_FILES_OF_40 = """
import json, sys
from janus_jax.objectives.tokenizer import Tokenizer
from janus_jax.prepare import cache

cache.PER_FILE = 40
config, checkpoint, out = sys.argv[1:]
config = json.load(open(config))
cache.make("codes", out, checkpoint_path=checkpoint, source_name="scenes", config=config)
"""


def test_a_killed_cache_resumes(config, tokenizer_of, tmp_path):
    """A child process, killed in the middle of a file."""
    folder, _ = tokenizer_of(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-c", CACHE_IN_FILES_OF_40, tmp_path / "config.json", folder]
    command += [tmp_path / "cut"]
    options = dict(env=environment(), cwd=ROOT)

    def modified():
        return {f: f.stat().st_mtime_ns for f in (tmp_path / "cut").glob("*.array_record")}

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    while process.poll() is None and len(modified()) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = modified()
    subprocess.run(command, check=True, **options)
    after = modified()
    assert 2 <= len(before) < len(after) and before.items() <= after.items()
    settings = dict(checkpoint_path=folder, source_name="scenes", config=config.to_dict())
    cache.make("codes", tmp_path / "whole", **settings)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("*.partial"))
