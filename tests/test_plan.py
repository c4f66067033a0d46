"""Plans: counts against XLA's own, bytes that shrink with the mesh, what moves, and the real compilers where installed."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import common, pro_1b, pro_7b, tiny
from janus_jax import flops, hlo, sharding
from janus_jax.errors import UserError
from janus_jax.generation import convnext
from janus_jax.generation.convnext import FlowDecoder, FlowEncoder
from janus_jax.generation.flow import FlowPath
from janus_jax.layers.linear import Mlp
from janus_jax.models.functional import ModelSpec
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.plan import estimate, table, topology
from janus_jax.recipe import assembly
from janus_jax.tokenizers.vq16 import VQTokenizer
from tests.conftest import environment, params_of


def counted(function, *args):
    """FLOPs of a program as XLA counts them."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_flops_of_the_llm_are_those_xla_counts():
    llm = dict(num_layers=1, embed_dim=256, num_heads=4, num_kv_heads=2, mlp_dim=768)
    network = ModelSpec(lambda rngs: Llama(rngs, vocab_size=32, remat="none", **llm))
    ids = jnp.ones((2, 64), jnp.int32)  # one block: XLA counts what a loop does once
    run = lambda params, x: network.merge(params)(x, positions=ids, segment_ids=ids)[0]
    mine = flops.transformer(tokens=128, attended=2 * 64 * 64, gates=3, **llm)  # XLA multiplies what the mask hides, too
    assert counted(run, params_of(network), jnp.ones((2, 64, 256))) == pytest.approx(mine, rel=0.02)


def test_flops_of_the_encoder_are_those_xla_counts():
    vit = dict(image_size=64, patch_size=8, num_layers=1, embed_dim=1024, num_heads=4, mlp_dim=2048)
    network = ModelSpec(lambda rngs: Siglip(rngs, remat="none", **vit))
    run = lambda params, x: network.merge(params)(x)
    assert counted(run, params_of(network), jnp.ones((2, 64, 64, 3))) == pytest.approx(2 * flops.encoder(vit), rel=0.02)


def test_flops_of_the_tokenizer_are_those_xla_counts():
    settings = dict(base_channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=64, codebook_size=64, codebook_dim=8)
    network = ModelSpec(lambda rngs: VQTokenizer(rngs, num_groups=2, **settings))
    encode, decode = flops.vq_tokenizer(size=64, **settings)
    read = lambda params, x: network.merge(params).nearest(network.merge(params).encode(x))
    assert counted(read, params_of(network), jnp.ones((1, 64, 64, 3))) == pytest.approx(encode, rel=0.02)
    draw = lambda params, codes: network.merge(params).decode(codes)
    assert counted(draw, params_of(network), jnp.ones((1, 1024), jnp.int32)) == pytest.approx(decode, rel=0.02)


def test_flops_of_the_heads_are_those_xla_counts():
    network = ModelSpec(lambda rngs: Mlp(rngs, 512, 512, 2048, axes=(None, None, None)))
    run = lambda params, x: network.merge(params)(x)
    mine = 64 * 2 * 512 * (512 + 2048)  # as `VQPath.flops` counts the picture head
    assert counted(run, params_of(network), jnp.ones((64, 512))) == pytest.approx(mine, rel=0.02)


def test_flops_of_the_flow_nets_are_those_xla_counts(monkeypatch):
    monkeypatch.setattr(convnext, "banded", convnext.grouped)  # on CPU a product with mostly zeros stands for it
    # Wide, since XLA counts element by element, too.
    net = dict(latent_channels=4, dim=1024, num_blocks=1, time_dim=1024, norm_eps=1e-6)
    encoder, decoder = (ModelSpec(lambda rngs, kind=kind: kind(rngs, **net)) for kind in (FlowEncoder, FlowDecoder))
    unet = dict(dim=1024, num_blocks=1)
    settings = dict(image_size=128, tokenizer=common.SDXL_VAE, unet=unet, alignment=dict(layer=0))
    parts = FlowPath.flops(settings, embed_dim=1024, encoder=0, trains=lambda path: False)
    linear = 2 * 64 * 1024 * 1024  # between each net and the LLM
    time, latents, map = jnp.ones(1), jnp.ones((1, 16, 16, 4)), jnp.ones((1, 8, 8, 1024))
    read = counted(lambda p, x: encoder.merge(p)(x, time), params_of(encoder), latents)
    draw = counted(lambda p, x: decoder.merge(p)(x, x, jnp.ones((1, 1024))), params_of(decoder), map)
    assert read + linear == pytest.approx(parts["adaptors"] / flops.TRAINED, rel=0.02)
    assert draw + linear == pytest.approx(parts["heads"] / flops.TRAINED, rel=0.02)


def devices(count):
    return sharding.make_mesh(devices=jax.devices()[:count])


def test_what_moves_is_counted_as_often_as_it_moves():
    mesh = devices(8)
    place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place("fsdp"))
    stack = jax.ShapeDtypeStruct((5, 128, 128), jnp.float32, sharding=place(None, "fsdp"))

    def run(x, stack):
        def body(x, kernel):
            return x @ jax.lax.with_sharding_constraint(kernel, place()), None  # gathered once a turn

        x, _ = jax.lax.scan(body, x, stack)
        return x, jax.lax.with_sharding_constraint(x.sum(0), place())

    text = jax.jit(run).lower(x, stack).compile().as_text()
    assert hlo.collectives(text) == {"all-gather": 5 * 128 * 128 * 4, "all-reduce": 2 * 128 * 4}
    assert hlo.largest(text, count=1)[0][:2] == (128 * 128 * 4, "f32[1,128,128]")


def test_a_program_of_a_tpu_is_read():
    text = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%more (p: (s32[], bf16[4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%g, %constant.1), direction=LT
}
%body (p: (s32[], /*index=1*/bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %all-gather.1)
}
%all-reduce-scatter.1 (p: bf16[8,8]) -> bf16[2,8] {
  %all-reduce.9 = bf16[8,8]{1,0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[2,8]{1,0} dynamic-slice(%all-reduce.9, %i, %zero)
}
%begun (p: bf16[1,6]) -> bf16[2,6] {
  ROOT %all-gather.2 = bf16[2,6]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
%ended (p: bf16[1,6]) -> bf16[2,6] {
  ROOT %all-gather.3 = bf16[2,6]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
ENTRY %main (x: bf16[1,8]) -> bf16[4,8] {
  %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%more, body=%body
  %all-reduce.2 = (f32[3], f32[5]) all-reduce(%a, %b), to_apply=%add
  %fusion.1 = bf16[2,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %scatter = f32[3]{0} reduce-scatter(%h), channel_id=5, replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%add
  %gather = (bf16[2,4], bf16[8,4], u32[]) all-gather-start(%k), channel_id=6, replica_groups=[2,4]<=[8], dimensions={0}
  %sent = ((f32[8], f32[4]), (f32[2], f32[1])) reduce-scatter-start(%a, %b), channel_id=8, replica_groups=[2,4]<=[8]
  %fusion.8 = bf16[2,6]{1,0} fusion(%k), kind=kCustom, calls=%begun
  %fusion.9 = bf16[2,6]{1,0} fusion(%fusion.8), kind=kCustom, calls=%ended
  ROOT %fusion.3 = bf16[4,8]{1,0} fusion(%w), kind=kLoop, calls=%add, metadata={op_name="jit(step)/out" id=1}
}
"""
    assert hlo.collectives(text) == {
        "all-gather": 24 * 4 * 8 * 2 + 8 * 4 * 2 + 2 * 6 * 2,  # a loop's, one of two arrays, and one in two steps
        "all-reduce": 2 * (3 + 5) * 4,
        "reduce-scatter": 8 * 8 * 2 + 8 * 3 * 4 + 4 * (2 + 1) * 4,
    }
    assert (4 * 8 * 2, "bf16[4,8]", "jit(step)/out") in hlo.largest(text)


@pytest.mark.parametrize(
    "name, count, kind",
    [("v5e:4x4", 16, "TPU v5 lite"), ("2xv5p:4x4x4", 128, "TPU v5"), ("tpu7x:4x4x4", 128, "TPU7x"),
     ("h100:64", 64, "NVIDIA H100"), ("h200:1", 1, "NVIDIA H200")],
)  # fmt: skip
def test_names_of_topologies(name, count, kind):
    found = topology.parse(name)
    assert (found.count, found.device_kind) == (count, kind) and found.chip.peak > 0


@pytest.mark.parametrize("name", ["v5p", "v9:4x4", "h100:12", "2xh100:8", "v5e:", "h100:0", "0xv5p:4x4x4"])
def test_names_that_mean_nothing_are_told(name):
    with pytest.raises(UserError, match=f"--topology={name} is no topology"):
        topology.parse(name)


def test_bytes_of_the_state_fall_with_the_mesh():
    config = pro_7b.get_config("2").to_dict()
    config["dtype"] = "bfloat16"
    network = assembly.build_network(config, "stage_2")
    bytes_on = lambda name: estimate.cell(config, "stage_2", topology.parse(name), network, mfu=0.5)["state_bytes"]
    assert bytes_on("v5e:16x16") == pytest.approx(bytes_on("v5e:8x8") / 4, rel=0.05)


def test_settings_start_with_the_configs_own_and_all_divide():
    config = pro_1b.get_config("3").to_dict()  # 64 groups
    network = assembly.build_network(config, "stage_3")
    first = next(estimate.settings(config, "stage_3", topology.parse("h100:64"), network))
    assert first[0] == {}
    for changes, setting in estimate.settings(config, "stage_3", topology.parse("v5e:16x16"), network):
        assert changes and setting["stages"]["stage_3"]["batch"] == 128
        mesh = sharding.abstract_mesh(*sharding.mesh_sizes(256, **setting["mesh"]))
        assert assembly.check_division(setting["stages"]["stage_3"], mesh)


def test_days_of_the_table_are_those_of_its_mfu(tmp_path):
    for name in ("scale.md", "scale.jsonl"):
        (tmp_path / name).write_text((Path(__file__).parents[1] / "docs" / name).read_text())
    cells = {table._key(c): c for c in map(json.loads, (tmp_path / "scale.jsonl").read_text().splitlines())}
    day = lambda: float((tmp_path / "scale.md").read_text().split("| 2 | v5p:4x4x4 |")[1].split(" | ")[5])
    before = day()
    table._write(tmp_path / "scale.md", cells, 0.225)
    assert day() == pytest.approx(2 * before, abs=0.1)


def test_settings_that_would_cut_a_head_are_passed_over():
    config = tiny.get_config("2").to_dict()  # 2 heads of keys
    near = estimate.settings(config, "stage_2", topology.parse("h100:8"), assembly.build_network(config, "stage_2"))
    found = [setting["mesh"]["tensor"] for _, setting in near]
    assert found and max(found) == 2


def run_plan(*flags, **env):
    command = [sys.executable, "-m", "janus_jax.plan", *flags]
    return subprocess.run(command, env=environment(**env), capture_output=True, text=True)


KEYS = {
    "config", "stage", "topology", "fits", "bytes_per_device", "bytes_limit", "bytes_by_kind", "collective_bytes",
    "parameters", "trainable_parameters", "flops_per_step", "flops_by_part", "tokens_per_step", "days", "compile_seconds",
}  # fmt: skip


def test_a_plan_by_formula():
    done = run_plan("--config=configs/pro_7b.py:2", "--topology=v5p:4x4x4,h200:8", "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines()[-2:])
    assert set(first) >= KEYS and first["fits"] and first["parameters"] > first["trainable_parameters"] > 7e9
    assert second["days"] > first["days"] > 0


def test_the_papers_own_runs():
    done = run_plan("--papers", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["run"]: row for row in map(json.loads, done.stdout.splitlines()[-len(estimate.HAI_LLM) :])}
    pro_7b = rows["Janus-Pro-7B, 14 days, 270k"]
    assert pro_7b["tokens_per_second"] == pytest.approx(1964, abs=1) and 0.23 < pro_7b["mfu"] < 0.26
    assert pro_7b["mfu"] == pytest.approx(pro_7b["flops"] / 256 / 14 / 86_400 / 312e12)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "Name a config and a topology"),
        (("--config=configs/pro_7b.py:2", "--topology=v5p"), "is no topology"),
        (
            ("--config=configs/pro_7b.py:2", "--topology=v5p:4x4x4", "--config.mesh.fsdp=3"),
            "does not divide over the 64 devices of v5p:4x4x4, nor does any setting near its own (Mesh data=",
        ),
        (("--config=configs/nope.py:2", "--topology=v5p:4x4x4"), "No such file or directory: 'configs/nope.py'"),
        (("--config=configs/pro_7b.py:9", "--topology=v5p:4x4x4"), "Error: --config names no stage '9'"),
        (("--config=configs/pro_7b.py:2", "--config.dtyp=x"), "config has no field 'dtyp'; did you mean 'dtype'?"),
        (
            ("--config=configs/pro_7b.py:2", "--topology=v5e:4x4", "--config.stages.stage_2.microbatches=0"),
            "config.stages.stage_2.microbatches is 0; it must be at least 1",
        ),
        (("--effort=5",), "effort"),
        (("--mfu=nan",), "it must be finite"),
    ],
)
def test_mistakes_are_told(flags, message):
    done = run_plan(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8"])
def test_the_real_step_is_compiled_for_devices_that_are_not_here(name, config, tmp_path):
    if not topology.has_compiler(topology.parse(name)):
        pytest.skip("the compilers of requirements-plan.txt are not installed")
    command = [
        "--config=configs/tiny.py:2", f"--topology={name}", "--compile", "--json", "--config.stages.stage_2.batch=64",
        "--config.mesh.tensor=2",
    ]  # fmt: skip
    done = run_plan(*command, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    cell = json.loads(done.stdout.splitlines()[-1])
    (kept,) = (tmp_path / "janus_jax/plan").iterdir()
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"host_bytes": 17}))
    again = json.loads(run_plan(*command, XDG_CACHE_HOME=str(tmp_path)).stdout.splitlines()[-1])
    assert again == cell | {"host_bytes": 17}  # it was read, not compiled
    assert cell["compiled"] and cell["fits"] and cell["compile_seconds"] > 0 and sum(cell["collective_bytes"].values()) > 0
    assert cell["bytes_per_device"] == sum(cell["bytes_by_kind"].values()) and len(cell["largest"]) == 10
