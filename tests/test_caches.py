"""Caches: equal to what the step computes, made on all devices, taken up after a cut, refused where they do not fit."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, fingerprint, sharding
from janus_jax.data import synthetic
from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.prepare import cache
from janus_jax.recipe import assembly
from janus_jax.train import __main__ as train
from tests.conftest import ROOT, environment, first_batch, params_of


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Saves the fresh tokenizer of a config as a checkpoint: (config, shift) -> its folder."""

    def save(config, *, shift=0.0):
        folder = tmp_path_factory.mktemp("tokenizer")
        network = assembly.build_network(config.to_dict(), "stage_2")
        inside = {p: a + shift for p, a in params_of(network).items() if p.startswith("generation/tokenizer/")}
        writer = checkpoint.Writer(folder, keep=1)
        writer.save(1, params=inside, about={"stage": "tokenizer", "config": None, "stage_start": 0, "tokenizer": None})
        writer.wait()
        return folder, inside

    return save


@pytest.fixture
def cached(config, tokenizer_of, tmp_path):
    """The small config with cached codes as its pictures to draw; the tokenizer's folder."""
    folder, _ = tokenizer_of(config)
    path = tmp_path / "codes"
    resolved = config.to_dict()
    about = cache.make("codes", path, checkpoint_path=folder, source_name="scenes", config=resolved)
    assert about["records left out"] == 0
    config.data.sources.scenes.path = str(path)
    return config, folder


def test_codes_of_a_cache_are_those_of_the_step(config, cached):
    pixels = config.copy_and_resolve_references()
    pixels.data.sources.scenes.path = config.data.sources.text.path.replace("text", "scenes")
    network, from_pixels = first_batch(pixels)
    _, from_cache = first_batch(cached[0])
    assert from_cache.gen_images is None and from_cache.gen_codes.shape[-1] == 16
    used = from_pixels.gen_start < from_pixels.tokens[0].size
    codes = network.merge(params_of(network)).path.encode(from_pixels.gen_images[used])
    np.testing.assert_array_equal(from_cache.gen_codes[used], codes)
    np.testing.assert_array_equal(from_cache.tokens, from_pixels.tokens)


def test_a_cut_cache_goes_on_and_another_one_is_refused(config, cached, tokenizer_of, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PER_FILE", 100)
    folder, _ = tokenizer_of(config)
    config.data.sources.scenes.path = config.data.sources.text.path.replace("text", "scenes")
    make = lambda place, seed=0: cache.make(
        "codes", tmp_path / place, checkpoint_path=folder, source_name="scenes", config=config.to_dict(), seed=seed
    )
    make("whole")
    names = sorted(p.name for p in (tmp_path / "whole").glob("*.array_record"))
    assert len(names) > 2
    make("cut")
    (tmp_path / "cut" / names[1]).rename(tmp_path / "cut" / names[1].replace("array_record", "partial"))
    kept = (tmp_path / "cut" / names[0]).stat().st_mtime_ns
    make("cut")
    assert (tmp_path / "cut" / names[0]).stat().st_mtime_ns == kept
    one, other = (Source("s", kind="array_record", path=str(tmp_path / place)) for place in ("whole", "cut"))
    assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    with pytest.raises(UserError, match="was made with another seed"):
        make("cut", seed=1)


def test_a_cache_of_another_tokenizer_size_or_crop_is_refused(cached, tokenizer_of, tmp_path):
    config, folder = cached
    sources = {"scenes": Source("scenes", **config.data.sources.scenes.to_dict())}
    _, same = tokenizer_of(config)
    cache.check(sources, same, config.to_dict(), "stage_2")
    _, other = tokenizer_of(config, shift=1e-3)
    with pytest.raises(UserError, match="cannot use the cache .*fingerprint is .*prepare codes.*scenes-train"):
        cache.check(sources, other, config.to_dict(), "stage_2")
    config.data.crop = "random"
    with pytest.raises(UserError, match="its crop is center, not random"):
        cache.check(sources, same, config.to_dict(), "stage_2")
    config.data.crop = "center"
    with pytest.raises(UserError, match="a tokenizer needs pixels"):
        cache.check(sources, same, config.to_dict(), "tokenizer")


def test_fingerprints_are_the_same_on_any_mesh(config, tokenizer_of):
    _, params = tokenizer_of(config)
    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1)
    network = assembly.build_network(config.to_dict(), "stage_2")
    places = sharding.param_shardings(mesh, network.abstract, network.axes)
    spread = {p: jax.device_put(a, places[p]) for p, a in params.items()}
    assert fingerprint.fingerprint(spread) == fingerprint.fingerprint(params)
    swapped = dict(params)
    name = next(p for p, a in params.items() if a.ndim > 1)
    swapped[name] = params[name][::-1]
    assert fingerprint.fingerprint(swapped) != fingerprint.fingerprint(params)


def test_pixels_and_codes_do_not_mix(cached):
    config, _ = cached
    config.data.sources.more = dict(kind="array_record", path=config.data.sources.text.path.replace("text", "scenes"))
    config.stages.stage_2.sources.generation = {"scenes": 1, "more": 1}
    with pytest.raises(UserError, match=r"pixels  from 'more' and as codes \(16,\) from 'scenes'; cache every source"):
        first_batch(config)


def test_a_run_trains_from_codes_of_its_own_tokenizer_alone(cached, tokenizer_of, tmp_path):
    config, folder = cached
    config.init_fresh, config.init_from = (".*",), str(folder)
    config.stages = {"stage_2": config.stages.stage_2}
    config.stages.stage_2.steps = 2
    train.train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and np.isfinite(rows[-1]["loss_gen"])
    config.init_from = str(tokenizer_of(config, shift=1e-3)[0])
    with pytest.raises(UserError, match="cannot use the cache"):
        train.train(config, tmp_path / "other")


def test_records_of_any_kind_become_array_records(config, tmp_path):
    """Pictures keep their bytes; what cannot be read is left out and listed; a cut copy goes on."""
    pictures = [synthetic.photo(np.random.default_rng(i), size=32) for i in range(9)]
    (tmp_path / "from").mkdir()
    lines = [{"image": f"{i}.jpg", "caption": f"number {i}", "tags": [i, None]} for i in range(9)]
    for i, encoded in enumerate(pictures):
        (tmp_path / f"from/{i}.jpg").write_bytes(encoded)
    lines.insert(4, {"image": "none.jpg"})
    (tmp_path / "from/all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"image": "image", "prompt": "caption", "tags": "tags"}
    config.data.sources.mine = dict(kind="json", path=str(tmp_path / "from/all.jsonl"), fields=fields)
    copy = lambda: cache.copy(tmp_path / "to", source_name="mine", config=config.to_dict())
    assert copy()["records left out"] == 1
    (listed,) = (json.loads(line) for line in (tmp_path / "to/bad_records.jsonl").read_text().splitlines())
    assert listed["record"] == 4 and listed["reason"] == "missing picture file" and "line 5" in listed["where"]
    source = Source("mine", kind="array_record", path=str(tmp_path / "to"))
    expected = [{"image": p, "prompt": f"number {i}", "tags": [i, None]} for i, p in enumerate(pictures)]
    assert [source[i] for i in range(len(source))] == expected
    assert copy()["records left out"] == 0 and len(Source("mine", kind="array_record", path=str(tmp_path / "to"))) == 9


def test_a_killed_cache_goes_on(config, tokenizer_of, tmp_path):
    """A real process, killed in the middle of a file."""
    folder, _ = tokenizer_of(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    code = (
        "import json, sys\nfrom janus_jax import caches\ncaches.PER_FILE = 40\n"
        "config = json.load(open(sys.argv[1]))\n"
        "caches.make('codes', sys.argv[3], checkpoint_path=sys.argv[2], source_name='scenes', config=config)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json"), str(folder)]
    files = lambda name: sorted((tmp_path / name).glob("*.array_record"))
    process = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(files("cut")) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {f: f.stat().st_mtime_ns for f in files("cut")}
    subprocess.run([*command, str(tmp_path / "cut")], env=environment(), cwd=ROOT, check=True)
    cache.make("codes", tmp_path / "whole", checkpoint_path=folder, source_name="scenes", config=config.to_dict())
    assert 2 <= len(kept) < len(files("cut")) and all(f.stat().st_mtime_ns == at for f, at in kept.items())
    one, other = (Source("s", kind="array_record", path=str(tmp_path / name)) for name in ("cut", "whole"))
    assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    assert not list((tmp_path / "cut").glob("*.partial"))
