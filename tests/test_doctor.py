"""What the doctor says before a run, the bound on how full rows can be, and the benchmark of the data."""

import functools
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax import sharding
from janus_jax.data import packing_stats, synthetic
from janus_jax.data.packing_stats import Lengths
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.prepare import check
from janus_jax.recipe import assembly
from tests.conftest import ROOT, environment

DIMS = {  # a shape file in small
    "image": {"size": 32, "patch": 8, "tokens": 16},
    "vision": {"width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2},
    "vq": {"base_channels": 32, "channel_mult": [1, 2, 2, 2], "res_blocks": 1, "z_channels": 32, "codebook_size": 64,
           "codebook_dim": 8},
    "llm": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "mlp": 64, "vocab": 256, "rms_eps": 1e-6,
            "rope_theta": 1e4},
    "train": {"rows": 4, "length": 128},
    "lengths": {"und": [8, 9, 12], "text": [10, 20, 31, 60], "gen": [5, 7, 9]},
}  # fmt: skip


def test_the_doctor_counts_what_is_there(config, tmp_path):
    photo = synthetic.photo(np.random.default_rng(0), size=32)
    records = [{"image": photo, "prompt": "一只红色的狐狸"}] * 3 + [{"image": b"", "prompt": "x"}]
    records += [{"image": synthetic.photo(np.random.default_rng(i), size=32), "prompt": f"a fox {i}"} for i in range(4)]
    write_array_record(tmp_path / "mixed.array_record", records)
    config.data.sources.scenes.path = str(tmp_path / "mixed.array_record")
    config.stages = {name: config.stages[name] for name in ("stage_2", "stage_3")}
    config.data.bad_record_limit = 0.5
    sources, stages = check.check(config.to_dict(), tmp_path / "out")
    scenes = sources["scenes"]
    assert (scenes["records"], scenes["unusable"], scenes["duplicates"], scenes["pictures"]) == (8, 1, 2, 7)
    assert scenes["scripts"] == {"LATIN": 4, "CJK": 3} and scenes["widths"] == [32, 32, 32]
    assert json.loads((tmp_path / "out/check.json").read_text())["sources"]["scenes"]["unusable"] == 1
    (line,) = (tmp_path / "out/bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "empty picture"
    assert Image.open(tmp_path / "out/lengths.png").height > 400
    (phase,) = stages["stage_2"]
    assert 0.8 < phase["token_fill"] <= phase["token_bound"] + 0.02 and "und_slots=" in phase["reasons"]
    resolved = config.to_dict()
    mesh, network = sharding.make_mesh(devices=jax.devices()[:1]), assembly.build_network(resolved, "stage_2")
    run, _ = assembly.build_pipeline(resolved, "stage_2", network, mesh=mesh, host=(0, 1))
    packed = [next(run) for _ in range(8)][-1]  # the whole stage
    for name, epochs in packed.stats["epochs"].items():
        told = sum(n for use, n in sources[name]["epochs"].items() if use.startswith("stage_2 "))
        assert told == pytest.approx(epochs, abs=1e-3) and phase["epochs_are_exact"]


def test_a_source_without_a_usable_record_is_told(config, tmp_path):
    write_array_record(tmp_path / "other.array_record", [{"jpg": b"x", "txt": "a fox"}] * 3)
    config.data.sources.scenes.path = str(tmp_path / "other.array_record")
    with pytest.raises(
        UserError, match=r"'scenes' has no record that stage_. can use for .*no field .* beside \['jpg', 'txt'\]"
    ):
        check.check(config.to_dict(), tmp_path / "out")


@pytest.mark.parametrize("seed", range(5))
def test_no_packing_passes_the_bound(seed):
    """Beside the best of all ways to put a few examples into rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 30, 5)
    table = {"text": Lengths(tokens, np.zeros(5, int))}
    bound = packing_stats.bound(table, (0, 1, 0), length=40)
    fewest = min(max(rows) + 1 for rows in itertools.product(range(5), repeat=5)
                 if all(tokens[np.array(rows) == r].sum() <= 40 for r in range(5)))  # fmt: skip
    assert tokens.sum() / (40 * fewest) <= bound + 1e-9 <= 1 + 1e-6
    packed = packing_stats.simulate(table, (0, 1, 0), rows=2, length=40, und_slots=0, gen_slots=0, window=32, groups=4000)
    assert 0.9 * bound < packed.token_fill <= bound + 0.002  # a window is left over


def test_rows_that_fit_no_second_example_have_the_bound_of_one():
    table = {"generation": Lengths(np.array([60]), np.array([1]))}
    assert packing_stats.bound(table, (0, 0, 1), length=100) == pytest.approx(0.6)
    assert packing_stats.budgets(table, (0, 0, 1), rows=2, length=60)[:2] == (0, 4)


def test_slots_hold_the_example_with_the_most_pictures():
    table = {"understanding": Lengths(np.array([50] * 9 + [100]), np.array([0] * 9 + [9]))}
    assert packing_stats.budgets(table, (1, 0, 0), rows=1, length=100)[:2] == (9, 0)


@pytest.mark.parametrize("mixture", [(2, 3, 5), (1, 0, 1), (1, 0, 3), (7, 3, 10), (5, 1, 4)])
def test_eight_rows_of_real_lengths_are_full(mixture):
    table = synthetic.realistic(points=40)
    und, gen, _ = packing_stats.budgets(table, mixture, rows=8, length=4096)
    packed = packing_stats.simulate(table, mixture, rows=8, length=4096, und_slots=und, gen_slots=gen, groups=150)
    assert packed.token_fill >= 0.97 * packing_stats.bound(table, mixture, length=4096) and packed.slot_fill >= 0.85


def test_the_benchmark_of_a_shape_file_ends_with_its_figures(tmp_path):
    (tmp_path / "dims.json").write_text(json.dumps(DIMS))
    command = [sys.executable, "-m", "janus_jax.benchmark", "data", f"--dims={tmp_path}/dims.json", "--json"]
    run = functools.partial(subprocess.run, env=environment(), cwd=ROOT, capture_output=True, text=True)
    done = run([*command, "--repeats=3", "--mixture=1:1:2"])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    keys = "name seconds_median min max n tokens_real tokens_padded tokens_per_second images_per_second token_fill slot_fill"
    assert figures.keys() >= set(keys.split()) | {"mfu", "device", "token_bound", "useful_share_of_flops"}
    assert 0.9 < figures["token_fill"] <= figures["token_bound"] + 0.01 and figures["useful_share_of_flops"] < 1
    fills = [*command[:3], "fill", *command[4:], "--mixture=1:1:2"]
    done = run(fills)
    table = json.loads(done.stdout.splitlines()[-1])["table"]
    assert [line["rows"] for line in table] == [8, 4, 2, 1]
    same = ("token_fill", "token_bound", "slot_fill", "useful_share_of_flops")
    assert [table[0][name] for name in same] == [figures[name] for name in same]
    done = run([*command, "--mixture=1:2"])
    assert done.returncode == 2 and "no ratio like 2:3:5" in done.stderr and "Traceback" not in done.stderr
