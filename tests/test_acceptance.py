"""Slow proofs: whole runs as a user starts them. `make acceptance` runs them and writes docs/acceptance.md."""

import functools
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import openmoji, pro_1b, tiny
from janus_jax import sharding
from janus_jax.convert import files
from janus_jax.data import images
from janus_jax.data.sources import Source
from janus_jax.generation.flow import FlowGuidance
from janus_jax.generation.vq import VQGuidance
from janus_jax.recipe import assembly
from janus_jax.shapes import reader, world
from tests import synthetic
from tests.paths import flow
from tests.test_decode import drawn

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def as_a_user():
    """The environment of the Makefile: two CPU devices, kept memory, nothing of these tests."""
    drop = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    tuned = "hugetlb=1 mmap_max=0 arena_max=1 trim_threshold=100000000000".replace(" ", ":glibc.malloc.")
    tuned = {"JAX_NUM_CPU_DEVICES": "2", "GLIBC_TUNABLES": f"glibc.malloc.{tuned}"}
    return {k: v for k, v in os.environ.items() if k not in drop} | tuned


def run(*command):
    """A command as a user gives it."""
    subprocess.run([sys.executable, "-m", *command], env=as_a_user(), cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def shapes_set():
    """`data/shapes` of this checkout, made where it is missing."""
    if not (ROOT / "data/shapes/about.json").is_file():
        run("janus_jax.prepare", "shapes", "--out=data/shapes")
    return ROOT / "data/shapes"


def test_rows_and_slots_are_full(shapes_set, record_property):
    figures = []
    for stage in ("stage_1", "stage_2", "stage_3"):
        config = tiny.get_config().to_dict()
        network = assembly.build_network(config, stage)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        config["data"]["tokenizer"] = str(ROOT / config["data"]["tokenizer"])
        for source in config["data"]["sources"].values():
            source["path"] = str(ROOT / source["path"])
        pipeline, _ = assembly.build_pipeline(config, stage, network, mesh=mesh, host=(0, 1))
        stats = [next(pipeline).stats for _ in range(150)][50:]
        figures.append([np.mean([s[k] for s in stats]) for k in ("token_fill", "slot_fill")])
    record_property("figures", "; ".join(f"stage {i}: tokens {t:.3f}, slots {s:.3f}" for i, (t, s) in enumerate(figures, 1)))
    assert min(t for t, _ in figures) >= 0.95 and min(s for _, s in figures) >= 0.80


def test_the_reader_is_exact_on_three_thousand_pictures(record_property):
    rng, right = np.random.default_rng(11), []
    for category in world.CATEGORIES:
        for i in range(500):
            scene = world.sample_scene(rng, category=category, split="heldout" if i % 2 else "train")
            wanted = [list(t[:3]) for t in scene.things]
            found = reader.read(world.render(rng, scene))
            right.append(
                reader.fits(found, expected=wanted, relation=scene.relation)
                if category != "counting"
                else sorted(t[:3] for t in found) == sorted(t[:3] for t in scene.things)
            )
    record_property("figures", f"every name of every object right in {np.mean(right):.4f} of the pictures")
    assert np.mean(right) >= 0.99


def test_a_full_size_checkpoint_goes_in_and_out(tmp_path, record_property):
    source = tmp_path / "pro_1b"
    synthetic.write(source, pro_1b.get_config().to_dict())

    def convert(*arguments):
        """Seconds and GiB of one command."""
        started = time.perf_counter()
        code = (
            "import resource, runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_module(sys.argv[0], run_name='__main__')"
        )
        code += "\nfinally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
        command = [sys.executable, "-c", code, "janus_jax.convert", *map(str, arguments)]
        env = {k: v for k, v in as_a_user().items() if k not in ("JAX_NUM_CPU_DEVICES", "GLIBC_TUNABLES")}
        done = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)
        return time.perf_counter() - started, float(done.stdout.rsplit("peak", 1)[1])

    ways = [convert("import", "--layout=deepseek", f"--src={source}", f"--out={tmp_path}/ours")]
    ways.append(convert("export", "--layout=deepseek", f"--checkpoint={tmp_path}/ours", f"--out={tmp_path}/out"))
    ways.append(convert("import", "--layout=deepseek", f"--src={tmp_path}/out", f"--out={tmp_path}/again"))
    named = [
        f"{name} {s:.0f} s, {peak:.1f} GiB"
        for name, (s, peak) in zip(("import", "export", "import again"), ways, strict=True)
    ]
    before, after = files.Folder(source), files.Folder(tmp_path / "out")
    size = sum(2 * math.prod(shape) for shape, _ in before.held.values()) / 2**30
    record_property("figures", f"{len(before.held)} tensors, {size:.2f} GiB: {'; '.join(named)}")
    assert before.held == after.held
    for name in before.held:
        np.testing.assert_array_equal(before.read(name).view(np.uint16), after.read(name).view(np.uint16), err_msg=name)
    largest = 2 * 24 * 2048 * 5632 / 2**30
    assert ways[0][1] - size < largest + 2 and ways[2][1] - size < largest + 2


def train_and_evaluate(config, workdir):
    """A recipe on `shapes` as `make` runs it: accuracy, drawing's scores, minutes of training, and words."""
    started = time.perf_counter()
    run("janus_jax.train", f"--config=configs/{config}.py", f"--workdir={workdir}")
    minutes = (time.perf_counter() - started) / 60
    flags = ("--benchmark=shapes", "--data=data/shapes", f"--out={workdir}")
    run("janus_jax.evaluate", f"--checkpoint={workdir}", *flags)
    result = json.loads((ROOT / workdir / "evaluation.json").read_text())
    drawing, understanding = result["drawing"], result["understanding"]["accuracy"]
    named = ", ".join(f"{k} {v:.3f}" for k, v in drawing.items())
    return understanding, drawing, minutes, f"understanding {understanding:.3f}; {named}; trained in {minutes:.1f} min"


def test_quickstart_reaches_its_bars(shapes_set, record_property):
    understanding, drawing, _, figures = train_and_evaluate("tiny", "runs/quickstart")
    record_property("figures", figures)
    assert understanding >= 0.90 and drawing["single_object"] >= 0.90
    assert drawing["colors"] >= 0.80 and drawing["overall"] >= 0.50


def test_flow_reaches_its_bars(shapes_set, record_property):
    understanding, drawing, minutes, figures = train_and_evaluate("tiny_flow", "runs/flow")
    record_property("figures", figures)
    assert understanding >= 0.90 and drawing["overall"] >= 0.50 and minutes <= 25


SETS = {"geneval": ("*/samples/*.png", 553 * 4), "dpg": ("*.png", 1065), "pope": (None, 9000)}


@pytest.mark.parametrize("name", SETS)
def test_a_whole_benchmark_runs_on_the_quickstart(name, tmp_path, record_property):
    """Real prompts and questions on the model of the proof before; its pictures for POPE are plain, which costs the same."""
    folder = {"geneval": "geneval", "dpg": "dpg_bench", "pope": "pope"}[name]
    given = ROOT.parent / "shared/data" / folder
    if not given.is_dir():
        pytest.skip("the official prompts and questions are not here")
    pattern, count = SETS[name]
    data = given
    if name == "pope":
        data = tmp_path / "pope"
        shutil.copytree(given, data)
        plain = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(plain, "JPEG")
        lines = [line for file in data.glob("coco_pope_*.json") for line in file.read_text().splitlines()]
        for picture in {json.loads(line)["image"] for line in lines}:
            (data / picture).write_bytes(plain.getvalue())
    started, out = time.perf_counter(), tmp_path / "out"
    run("janus_jax.evaluate", "--checkpoint=runs/quickstart", f"--benchmark={name}", f"--data={data}", f"--out={out}")
    minutes = (time.perf_counter() - started) / 60
    result = json.loads((out / "evaluation.json").read_text())
    if name == "pope":
        made = sum(len(file.read_text().splitlines()) for file in out.glob("coco_pope_*_answers.json"))
        assert 0 <= result["scores"]["accuracy"] <= 100
    else:
        made = len(list((out / "pictures").glob(pattern)))
    record_property("figures", f"{made} of {count} in {minutes:.1f} min")
    assert made == count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bf16_draws_as_fp32_does_up_to_its_digits(temperature, record_property):
    """On the quickstart's model: the same codes until a choice is closer than bf16 can tell."""
    prompts = [f"a {color} {shape}" for color in ("red", "blue", "green", "purple") for shape in world.SHAPES[:4]]
    samplers = {d: assembly.load_sampler(ROOT / "runs/quickstart", dtype=d) for d in ("float32", "bfloat16")}

    def codes(dtype, prompts, *, devices, first=0):
        guidance = samplers[dtype].guidance(scale=1.5, temperature=temperature)
        return drawn(samplers[dtype], prompts, range(first, first + len(prompts)), devices=devices, guidance=guidance)

    assert samplers["bfloat16"].params["llm/norm/scale"].dtype == jnp.bfloat16
    known = codes("bfloat16", prompts, devices=1)
    assert len(np.unique(known, axis=0)) > 8
    others = {
        "fp32": codes("float32", prompts, devices=1),
        "bf16 again": codes("bfloat16", prompts, devices=1),
        "one by one": np.concatenate([codes("bfloat16", [p], devices=1, first=i) for i, p in enumerate(prompts)]),
        "on 8 devices": codes("bfloat16", prompts, devices=8),
    }
    until = lambda a, b: np.where((a != b).any(axis=1), (a != b).argmax(axis=1), a.shape[1]).mean() / a.shape[1]
    shares = {name: until(known, other) for name, other in others.items()}
    named = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    record_property("figures", f"share of a picture's codes before the first that differs from bf16 in one batch: {named}")
    assert shares["bf16 again"] == 1 and shares["fp32"] > 0.1


def test_a_kept_prompt_saves_time(record_property):
    """On the model of the proof before: 8 pictures after a prompt of 30 tokens, both ways by turns."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        sampler = assembly.load_sampler(ROOT / "runs/flow", mesh=mesh)
    noise, ids = jax.random.normal(jax.random.key(1), (8, 8, 8, 4)), jnp.arange(240).reshape(8, 30) + 10
    figures = []
    for guidance in (FlowGuidance(2.0, 30), FlowGuidance(1.0, 30), FlowGuidance(2.0, 8)):
        prompts = jnp.tile(ids, (1 if guidance.scale == 1 else 2, 1))
        draw = functools.partial(flow.draw_after, sampler.network, ids=prompts, noise=noise, guidance=guidance)
        optimised = {"xla_backend_optimization_level": 3}  # as users compile; tests do without
        runs = [jax.jit(functools.partial(draw, reuse=reuse), compiler_options=optimised) for reuse in (True, False)]
        np.testing.assert_allclose(*(run(sampler.params) for run in runs), atol=1e-5)
        taken = np.zeros((7, 2))
        for i, j in np.ndindex(taken.shape):
            started = time.perf_counter()
            jax.block_until_ready(runs[j](sampler.params))
            taken[i, j] = time.perf_counter() - started
        kept, anew = np.median(taken, axis=0)
        figures.append(f"{guidance.steps} steps, scale {guidance.scale:g}: {kept:.3f} s, without {anew:.3f} s")
        record_property("figures", "; ".join(figures))
        assert kept < anew


def test_openmoji_draws_what_it_was_trained_on(record_property):
    if not (ROOT / "data/openmoji").is_dir():
        run("janus_jax.prepare", "openmoji", "--out=data/openmoji")
    run("janus_jax.train", "--config=configs/openmoji.py", "--workdir=runs/openmoji")
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    with jax.set_mesh(mesh):
        sampler = assembly.load_sampler(ROOT / "runs/openmoji", mesh=mesh)
        drawn = sampler.draw(openmoji.PROMPTS, seeds=range(len(openmoji.PROMPTS)), guidance=VQGuidance(scale=1.0))
    source = Source("emoji", kind="tfds", path=str(ROOT / "data/openmoji/openmoji/1.0.0"), split="train")
    records = [source[i] for i in range(len(source))]
    pictures = np.stack([images.decode(r["image"]) for r in records]).astype(np.float32)
    names = [r["name"].decode() for r in records]
    nearest = [names[int(np.argmin(((pictures - d) ** 2).sum(axis=(1, 2, 3))))] for d in drawn]
    hits = [a == b for a, b in zip(nearest, openmoji.PROMPTS, strict=True)]
    record_property("figures", f"{sum(hits)} of {len(hits)} drawings lie nearest to their own emoji of {len(names)}")
    assert np.mean(hits) >= 0.5
