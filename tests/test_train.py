"""Real processes: kill and resume, other numbers of devices, and what users are told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from janus_jax.data import shapes
from janus_jax.data.sources import write_array_record
from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent
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
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    }
    command = [sys.executable, "-m", "janus_jax.train", f"--config={config_file}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def lines(workdir):
    path = Path(workdir) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [k for k in rows[-1] if k not in ("seconds", "tokens_per_second", "mfu")]
    return [{k: r.get(k) for k in keys} for r in rows]


def test_a_killed_run_continues_bit_for_bit(config_file, tmp_path):
    assert finish(start(config_file, tmp_path / "whole"))[0] == 0
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.stpes=3"], "no field 'stpes'"),
        (["--config.data.sources.text.path=/nowhere/*"], "no data lie at .*/nowhere"),
        (["--config.stages.stage_1.batch=18"], "do not divide over data x fsdp"),
        (["--config.model.generation.kind=vqgan"], r"kind is 'vqgan'; known paths: \['vq'\]"),
        (["--config.mesh.tensor=3"], "does not fit 8 devices"),
        (["--config.init_fresh=()"], "no checkpoint to start from.*--config.init_from"),
        (["--config.init_fresh=('llm','understanding')"], r"no checkpoint.*generation/tokenizer'.*--config.init_from"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["--config.seed=-1"], "config.seed is -1; it must be at least 0"),
        (["--config.stages.stage_1.template=caht"], "'caht'.*known: 'plain' and 'chat'"),
        (["--config.stages.stage_1.und_slots=0"], "mixes understanding pictures but .*und_slots is 0"),
        (["--workdir=gs://bucket/run"], "no folder; mount the bucket"),
        (["--config.data.sources.text.path={folder}/empty.array_record"], "empty.array_record' holds no records"),
        (
            ["--config.data.sources.scenes.path={folder}/broken.array_record"],
            r"unusable.*undecodable picture.*scenes/0/",
        ),
        (
            ["--config.data.sources.scenes.path={folder}/cut.array_record"],
            r"unusable.*undecodable picture.*scenes/0/",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(config_file, tmp_path, flags, message):
    png = shapes.encode_png(np.full((64, 64, 3), 200, np.uint8))
    broken = {"empty": [], "broken": [b"no picture"] * 30, "cut": [png[:-30]] * 30}
    for name, pictures in broken.items():
        write_array_record(tmp_path / f"{name}.array_record", [{"image": p, "prompt": "a star"} for p in pictures])
    code, err = finish(start(config_file, tmp_path / "run", *(f.format(folder=tmp_path) for f in flags)))
    assert code == 2 and "Traceback" not in err
    assert re.search(message, err), err


def test_a_large_model_says_what_is_missing(tmp_path):
    code, err = finish(start("configs/pro_7b.py", tmp_path / "run", devices=1))
    assert code == 2 and "Traceback" not in err
    assert "no data lie at" in err and "--config.data.sources" in err
