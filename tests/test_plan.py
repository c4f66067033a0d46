"""`plan`: figures by formula, the memory check, and the real compilers where installed."""

import itertools
import json
import math

import jax
import pytest

from janus_jax import cli, hardware, sharding, train_step
from janus_jax.errors import UserError
from janus_jax.plan import estimate, papers, topology
from janus_jax.recipe.stage import make_stage
from janus_jax.train import preflight
from tests.helpers.commands import finish, run, start

PRO_7B = "--config=configs/pro_7b.py:2"
KEYS = {
    "config", "stage", "topology", "fits", "bytes_per_device", "bytes_limit", "bytes_by_kind",
    "collective_bytes", "parameters", "trainable_parameters", "flops_per_step", "flops_by_part",
    "tokens_per_step", "days", "compile_seconds",
}  # fmt: skip


def stage_of(name, stage="2", **changes):
    """A stage of a shipped config in bf16, on one abstract device."""
    config = cli.load_config(name, stage)
    config.dtype = "bfloat16"
    config.update_from_flattened_dict(changes)
    (stage_name,) = config.stages
    return make_stage(config.to_dict(), stage_name)


def json_lines(result, *, last):
    """The last lines of a command with --json."""
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()[-last:]]


def test_bytes_of_the_state_fall_with_the_mesh():
    stage = stage_of("pro_7b")

    def state_bytes(name):
        target = topology.parse(name)
        return estimate.estimate(
            estimate.on_topology(stage.config, stage, target), target, mfu=0.5
        )["state_bytes"]

    assert state_bytes("v5e:16x16") == pytest.approx(state_bytes("v5e:8x8") / 4, rel=0.05)


@pytest.mark.parametrize(
    ("name", "stage"), [("pro_1b", "2"), ("flow_1p3b", "3"), ("pro_7b", "1"), ("tiny", "tokenizer")]
)
def test_train_and_plan_agree_on_what_fits(name, stage, monkeypatch):
    target = topology.parse("h100:8")
    monkeypatch.setattr(preflight, "absent_data", lambda stage: [])
    base = stage_of(name, stage)
    stats = estimate.expected_statistics(base)
    monkeypatch.setattr(estimate, "expected_statistics", lambda stage: stats)  # takes a second
    sizes = set()
    for moments, ema, kind in itertools.product(
        ("float32", "bfloat16"), (0.0, 0.99), ("adamw", "muon")
    ):
        changes = {"optimizer.moments": moments, "optimizer.kind": kind, "ema": ema}
        setting = stage_of(name, stage, **changes)
        _, planned = next(estimate.candidates(setting, target))
        config = planned.config
        mesh = sharding.make_mesh(**config["mesh"])
        trained = make_stage(config, planned.name, mesh=mesh, network=planned.network)
        needed = trained.bytes_per_device
        sizes.add(tuple(trained.memory.values()))
        for memory, fits in ((needed, True), (needed - 1, False)):
            monkeypatch.setattr(preflight, "device_memory", lambda memory=memory: memory)
            chip = hardware.Chip(peak=1e15, memory=memory, attention_blocks={})
            monkeypatch.setattr(hardware, "find_chip", lambda kind, chip=chip: chip)
            figures = estimate.estimate(planned, target, mfu=0.5)
            assert figures["fits"] == fits and figures["bytes_per_device"] == needed, changes
            if fits:
                preflight.check_machine(trained)
            else:
                with pytest.raises(UserError, match=f"{needed / hardware.GIB:.1f} GiB"):
                    preflight.check_machine(trained)

        state = train_step.abstract_state(trained)
        leaves = jax.tree.leaves(state._replace(step=(), skipped=()))
        shard = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
        state_bytes = sum(leaf.dtype.itemsize * math.prod(shard(leaf)) for leaf in leaves)
        assert figures["state_bytes"] == state_bytes, changes
    assert len(sizes) == 8  # every option changes the memory


def test_settings_start_with_the_configs_own_and_all_divide():
    stage = stage_of("pro_1b", "3")  # 64 groups
    changes, _ = next(estimate.candidates(stage, topology.parse("h100:64")))
    assert changes == {}
    candidates = list(estimate.candidates(stage, topology.parse("v5e:16x16")))
    assert candidates
    for changes, candidate in candidates:
        assert changes and candidate.settings["batch"] == 128
        assert candidate.mesh.size == 256
        assert (
            candidate.groups * candidate.settings["rows"] == 128
        )  # an error if it does not divide


def test_settings_that_would_divide_a_head_are_left_out():
    stage = stage_of("tiny", **{"model.llm.num_heads": 2, "model.llm.num_kv_heads": 2})
    candidates = estimate.candidates(stage, topology.parse("h100:8"))
    assert max(candidate.mesh.shape["tensor"] for _, candidate in candidates) == 2


def test_a_plan_by_formula():
    result = run("plan", PRO_7B, "--topology=v5p:4x4x4,h200:8", "--json")
    first, second = json_lines(result, last=2)
    assert set(first) >= KEYS and first["fits"]
    assert first["parameters"] > first["trainable_parameters"] > 7e9
    assert second["days"] > first["days"] > 0


def test_the_papers_own_runs():
    rows = json_lines(run("plan", "--papers", "--json"), last=len(papers.RUNS))
    pro_7b = {row["run"]: row for row in rows}["Janus-Pro-7B, 14 days, 270k"]
    assert pro_7b["tokens_per_second"] == pytest.approx(1964, abs=1)
    assert 0.23 < pro_7b["mfu"] < 0.26
    assert pro_7b["mfu"] == pytest.approx(pro_7b["flops"] / 256 / 14 / 86_400 / 312e12)


def test_mistakes_are_one_message():
    pod, small_pod = "--topology=v5p:4x4x4", "--topology=v5e:4x4"
    no_microbatches = "--config.stages.stage_2.microbatches=0"
    cases = (
        ([], ("--config", "--topology")),
        ([PRO_7B, "--topology=v5p"], ("--topology=v5p",)),
        ([PRO_7B, pod, "--config.mesh.fsdp=3"], ("v5p:4x4x4", "64", "--config.mesh")),
        (["--config=configs/nope.py:2", pod], ("configs/nope.py",)),
        (["--config=configs/pro_7b.py:9", pod], ("'9'",)),
        ([PRO_7B, "--config.dtyp=x"], ("'dtyp'", "'dtype'")),
        ([PRO_7B, small_pod, no_microbatches], ("config.stages.stage_2.microbatches", "0")),
        (["--effort=5"], ("effort",)),
        (["--mfu=nan"], ("mfu",)),
    )
    for flags, words in cases:
        result = run("plan", *flags)
        assert result.code == 2 and "Traceback" not in result.err, (flags, result.err)
        assert all(word in result.err for word in words), (flags, result.err)


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8"])
def test_the_train_step_is_compiled_for_devices_that_are_not_attached(name, tmp_path, monkeypatch):
    if not topology.has_compiler(topology.parse(name)):
        pytest.skip("the compilers of requirements-plan.txt are not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = [
        "--config=configs/tiny.py:2", f"--topology={name}", "--compile", "--json",
        "--config.stages.stage_2.batch=64", "--config.mesh.tensor=2",
    ]  # fmt: skip
    (cell,) = json_lines(finish(start("plan", *flags)), last=1)
    assert cell["compiled"] and cell["fits"] and cell["compile_seconds"] > 0
    assert sum(cell["collective_bytes"].values()) > 0 and len(cell["largest"]) == 10
    assert cell["bytes_per_device"] == sum(cell["bytes_by_kind"].values())

    (cached,) = (tmp_path / "janus_jax/plan").iterdir()
    cached.write_text(json.dumps(json.loads(cached.read_text()) | {"host_bytes": 17}))
    (again,) = json_lines(finish(start("plan", *flags)), last=1)
    assert again == cell | {"host_bytes": 17}  # read from the cache, not compiled
