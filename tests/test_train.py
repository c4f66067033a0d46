"""Real processes: kill and resume, other numbers of devices, and what users are told."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from janus_jax import checkpoint
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.shapes import world
from janus_jax.train import __main__ as train
from janus_jax.train import metrics
from tests.conftest import ROOT, environment

CONFIG = """
from pathlib import Path
from configs import tiny
from tests.conftest import small
def get_config(stage="all"):
    c = small(tiny.get_config(stage), Path({data!r}))
    c.init_fresh = (".*",)
    for name in {{"tokenizer", "stage_3"}} & set(c.stages):
        del c.stages[name]
    return c
"""


@pytest.fixture
def config_file(tmp_path, data):
    path = tmp_path / "test_recipe.py"
    path.write_text(CONFIG.format(data=str(data)))
    return path


def start(config_file, workdir, *flags, devices=8):
    return run("train", f"--config={config_file}", f"--workdir={workdir}", *flags, devices=devices)


def run(module, *arguments, devices=8):
    command = [sys.executable, "-m", f"janus_jax.{module}", *map(str, arguments)]
    given = dict(env=environment(devices=devices), cwd=ROOT, text=True)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)


def finish(process):
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def lines(workdir):
    path = Path(workdir) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [k for k in rows[-1] if k not in ("seconds", "tokens_per_second", "mfu")]
    return [{k: r.get(k) for k in keys} for r in rows]


def test_a_killed_run_continues_bit_for_bit(config_file, tmp_path):
    assert finish(start(config_file, tmp_path / "whole", "--config.profile_steps=3:5"))[0] == 0
    assert len(list((tmp_path / "whole/profile").rglob("*.xplane.pb"))) == 2  # one of each stage
    process = start(config_file, tmp_path / "cut")
    path = tmp_path / "cut/metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    seen = path.read_text().count("\n")
    assert seen >= 10, "the run ended before it could be killed"
    assert finish(start(config_file, tmp_path / "cut"))[0] == 0
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [r["step"] for r in whole] == list(range(1, 17)) and cut == whole

    drawn = "--config.samples.prompts=('a red star',)"
    assert finish(start(config_file, tmp_path / "cut", "--config.stages.stage_2.steps=10", devices=4))[0] == 0
    assert finish(start(config_file, tmp_path / "cut", "--config.stages.stage_2.steps=12", drawn, devices=1))[0] == 0
    assert finish(start(config_file, tmp_path / "whole", "--config.stages.stage_2.steps=12"))[0] == 0
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [r["step"] for r in cut] == list(range(1, 21))
    np.testing.assert_allclose([r["loss"] for r in cut], [r["loss"] for r in whole], rtol=1e-4)
    assert [p.name for p in (tmp_path / "cut/samples").iterdir()] == ["0000020_stage_2.png"]

    code, err = finish(start(config_file, tmp_path / "cut", "--config.stages.stage_2.steps=14", "--config.seed=1"))
    assert code == 2 and "config.seed has changed from 0 to 1" in err
    code, err = finish(start(f"{config_file}:1", tmp_path / "cut"))
    assert code == 2 and "already at stage_2" in err


@pytest.mark.parametrize("steps", ["3", "5:3", "0:2", "a:b"])
def test_steps_to_profile_are_checked(tmp_path, steps):
    with pytest.raises(UserError, match="write 10:13"):
        metrics.Profile(steps, tmp_path)


def test_a_trace_begins_where_a_run_goes_on_among_its_steps(tmp_path, monkeypatch, caplog):
    told = []
    monkeypatch.setattr(metrics.jax.profiler, "start_trace", lambda folder: told.append("start"))
    monkeypatch.setattr(metrics.jax.profiler, "stop_trace", lambda: told.append("stop"))
    profile = metrics.Profile("2:5", tmp_path)
    for step in (3, 4, 5, 6):
        profile.before(step)
        profile.after(step, {})
    profile.close()
    assert told == ["start", "stop"]
    profile = metrics.Profile("7:9", tmp_path)
    profile.before(6)
    profile.close()
    assert "none of the steps 7 to 8 was made" in caplog.text


def test_sigterm_saves_and_damaged_checkpoints_are_told(config_file, tmp_path):
    long = ["--config.stages.stage_1.steps=1000", "--config.save_every=1000"]
    process = start(f"{config_file}:1", tmp_path / "run", *long)
    path = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(saved.name) == len(lines(tmp_path / "run")) < 1000

    last = int(saved.name)
    largest = max((f for f in (saved / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    whole, ends = largest.read_bytes(), [f"--config.stages.stage_1.steps={last}", long[1]]
    middle = len(whole) // 2
    largest.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 999]) + whole[middle + 999 :])
    code, err = finish(start(f"{config_file}:1", tmp_path / "run", f"--config.stages.stage_1.steps={last + 1}", long[1]))
    assert code == 2 and "Traceback" not in err and f"{last}' is damaged" in err and "delete that folder" in err

    shutil.rmtree(saved / "params")
    code, err = finish(start(f"{config_file}:1", tmp_path / "run", *ends))
    assert code == 0 and "is damaged and skipped" in err
    assert {p.name for p in saved.parent.iterdir()} == {saved.name, f"damaged-{last}"}
    assert [r["step"] for r in lines(tmp_path / "run")] == list(range(1, last + 1))


def test_the_commands_draw_answer_and_score(trained, data, tmp_path):
    checkpoint = f"--checkpoint={trained}"
    draw = ["sample", "draw", checkpoint, "--prompt=a red star", "--prompt=a cross"]
    assert finish(run(*draw, "--num_images=2", f"--out={tmp_path}/sheet.png"))[0] == 0
    assert Image.open(tmp_path / "sheet.png").width >= 4 * 32
    assert finish(run(*draw[:4], "--top_k=5", "--dtype=bfloat16", f"--out={tmp_path}/star.png"))[0] == 0
    assert Image.open(tmp_path / "star.png").size == (32, 32)
    question = [f"--image={tmp_path}/star.png", "--question=What color is the star?", "--max_tokens=4"]
    process = run("sample", "ask", checkpoint, *question)
    answer, err = process.communicate(timeout=400)
    assert process.returncode == 0 and answer.endswith("\n"), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "paint"], r"Say which of \['draw', 'ask'\], not 'paint'"),
        (["sample", "draw", "--checkpoint=/nowhere", "--prompt=x"], "No complete checkpoint in '/nowhere'"),
        (["sample", "draw", "--checkpoint={run}", "--prompt=x", "--out=x.pgn"], "image format"),
        (["sample", "draw", "--checkpoint={run}", "--prompt=x", "--out=x.psd"], "image format"),
        (["sample", "draw", "--checkpoint={run}", "--prompt=x", f"--seed={2**32 - 1}", "--num_images=2"], f"--seed={2**32 - 1}"),
        (["sample", "draw", "--checkpoint={run}", "--prompt=x", "--steps=0"], "steps=0"),
        (["sample", "draw", "--checkpoint={run}", "--prompt=x", "--guidance=nan"], "--guidance=nan: it must be finite"),
        (["sample", "ask", "--checkpoint={run}", "--image=x", "--question=x", "--top_k=5"], "--top_k"),
        (["sample", "ask", "--checkpoint={run}", "--image=/no.png", "--question=x"], "/no.png"),
        (["sample", "ask", "--checkpoint={run}", "--image=/no.png", "--question=<image_placeholder>"], "image_placeholder>; remove"),
        (["evaluate", "--checkpoint={run}", "--data=/nowhere", "--out={run}"], "/nowhere"),
        (["evaluate", "--checkpoint={run}", "--data=/nowhere", "--benchmark=x"], r"known: \['shapes', "),
    ],
)
def test_mistakes_of_the_other_commands_are_told_in_a_sentence(trained, arguments, message):
    code, err = finish(run(*(a.format(run=trained) for a in arguments)))
    assert code == 2 and "Traceback" not in err
    assert re.search(message, err), err


def test_help_lists_a_commands_own_flags():
    assert {"config", "workdir"} <= {flag.name for flag in flags.FLAGS.get_key_flags_for_module(train)}
    process = run("sample", "--help")
    told, _ = process.communicate(timeout=100)
    assert all(f"\n  --{name}: " in told for name in ("checkpoint", "guidance", "temperature", "top_p", "seed"))


@pytest.fixture(scope="module")
def broken(data, tmp_path_factory):
    """A folder with files of no records, of pictures that are none, and of pictures cut short."""
    folder = tmp_path_factory.mktemp("broken")
    png = world.encode_png(np.full((64, 64, 3), 200, np.uint8))
    for name, pictures in {"empty": [], "broken": [b"no picture"] * 30, "cut": [png[:-30]] * 30}.items():
        write_array_record(folder / f"{name}.array_record", [{"image": p, "prompt": "a star"} for p in pictures])
    return folder


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.stpes=3", "no field 'stpes'"),
        ("--wrkdir=x", "Unknown command line flag 'wrkdir'"),
        ("--workdir=gs://bucket/run", "no folder; mount the bucket"),
        ("--config.data.sources.scenes.path={folder}/cut.array_record", r"unusable.*undecodable.*scenes/[01]/"),
    ],
)
def test_mistakes_end_the_command_with_a_sentence(config_file, broken, tmp_path, flag, message):
    code, err = finish(start(config_file, tmp_path / "run", flag.format(folder=broken)))
    assert code == 2 and "Traceback" not in err
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.sources.text.path", "/nowhere/*", "Cannot train here: no data lie at .*/nowhere"),
        ("stages.stage_2.batch", 18, "do not divide over data x fsdp"),
        ("model.generation.kind", "vqgan", r"kind is 'vqgan'; known paths: \['flow', .*'vq'\]"),
        ("mesh.tensor", 3, "does not fit 8 devices"),
        ("mesh.tensor", 0, "sizes are 1 or more, or -1"),
        ("model.llm.num_heads", 3, "3 heads do not divide embed_dim, 32"),
        ("model.llm.num_kv_heads", 3, "num_kv_heads, 3, do not divide num_heads, 2"),
        ("model.llm.num_heads", 32, "of which positions rotate pairs, is odd"),
        ("init_fresh", (), "no checkpoint to start from.*--config.init_from"),
        ("init_fresh", ("llm", "understanding"), r"no checkpoint.*generation/tokenizer'.*--config.init_from"),
        ("seed", -1, "config.seed is -1; it must be at least 0"),
        ("ema", 1.0, "config.ema is 1.0; the average would never move"),
        ("stages.stage_2.template", "caht", "'caht'.*known: 'plain' and 'chat'"),
        ("stages.stage_2.und_slots", 0, "mixes understanding pictures but .*und_slots is 0"),
        ("data.sources.text.path", "{folder}/empty.array_record", "empty.array_record' holds no records"),
        ("data.sources.scenes.path", "{folder}/broken.array_record", r"unusable.*undecodable.*scenes/[01]/"),
    ],
)
def test_mistakes_are_told_in_a_sentence(config, broken, tmp_path, field, value, message):
    config.init_fresh = (".*",)
    value = value.format(folder=broken) if isinstance(value, str) else value
    config.update_from_flattened_dict({field: value})
    config.stages = {"stage_2": config.stages.stage_2}
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path)


def test_what_a_later_stage_lacks_is_told_at_the_start(config, tmp_path):
    config.stages = {name: config.stages[name] for name in ("stage_1", "stage_2")}
    config.data.sources.text.path = "/nowhere"
    with pytest.raises(UserError, match="no data lie at .*/nowhere"):
        train.train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_mixture_that_changes_on_the_way_is_told_and_kept(config, tmp_path, caplog):
    """In the middle of a block; the last checkpoint knows both mixtures and where the second began."""
    config.stages, config.init_fresh = {"stage_2": config.stages.stage_2}, (".*",)
    config.stages.stage_2.update(steps=3, mixture=(2, 3, 5))
    train.train(config, tmp_path)
    config.stages.stage_2.update(steps=12, mixture=(1, 0, 1))
    caplog.set_level(logging.INFO, logger="absl")
    train.train(config, tmp_path)
    assert "The mixture changes at step 3 of the stage, from [2, 3, 5] to [1, 0, 1]" in caplog.text
    mixtures = checkpoint.newest(tmp_path).about["mixtures"]
    assert [(m["from_step"], m["mixture"]) for m in mixtures] == [(0, [2, 3, 5]), (3, [1, 0, 1])]
    ratios = np.array([r["ratio"] for r in lines(tmp_path)])
    assert ratios[:3, 1].min() > 0.2
    np.testing.assert_allclose(ratios[9:].mean(axis=0), [0.5, 0, 0.5], atol=0.1)


def test_a_large_model_says_what_is_missing(tmp_path):
    code, err = finish(start("configs/pro_7b.py:2", tmp_path / "run", devices=1))
    assert code == 2 and "Traceback" not in err
    assert "no data lie at" in err and "--config.data.sources" in err
    assert "GiB a device" in err and "run on more devices" in err
