"""Slow tests: whole runs as a user starts them. `make acceptance` writes docs/acceptance.md."""

import functools
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time

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
from janus_jax.recipe.data import build_pipeline
from janus_jax.recipe.load import load_sampler
from janus_jax.recipe.stage import make_stage
from janus_jax.shapes import reader, world
from janus_jax.shapes.levels import LEVELS
from tests.conftest import OFFICIAL_DATA, ROOT
from tests.helpers import random_weights
from tests.paths import flow
from tests.test_decode import draw

pytestmark = pytest.mark.slow


def user_environment(*, tuned=True):
    """The environment without the settings of the tests; `tuned` adds those of the Makefile."""
    ours = (
        "XLA_FLAGS",
        "JAX_PLATFORMS",
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    )
    env = {name: value for name, value in os.environ.items() if name not in ours}
    if not tuned:
        return env
    malloc = ("hugetlb=1", "mmap_max=0", "arena_max=1", "trim_threshold=100000000000")
    tunables = ":".join(f"glibc.malloc.{setting}" for setting in malloc)
    return env | {"JAX_NUM_CPU_DEVICES": "2", "GLIBC_TUNABLES": tunables}


def run(*command):
    """Runs a command as a user does."""
    subprocess.run([sys.executable, "-m", *command], env=user_environment(), cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def shapes_set():
    """The folder data/shapes, which is made where it is missing."""
    if not (ROOT / "data/shapes/about.json").is_file():
        run("janus_jax.prepare", "shapes", "--out=data/shapes")
    return ROOT / "data/shapes"


def test_rows_and_slots_are_full(shapes_set, record_property):
    config = tiny.get_config().to_dict()
    config["data"]["tokenizer"] = str(ROOT / config["data"]["tokenizer"])
    for source in config["data"]["sources"].values():
        source["path"] = str(ROOT / source["path"])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    tokens, slots, figures = [], [], []
    for name in ("stage_1", "stage_2", "stage_3"):
        pipeline, _ = build_pipeline(make_stage(config, name, mesh=mesh), host=(0, 1))
        stats = [next(pipeline).stats for _ in range(150)][50:]
        pipeline.close()
        tokens.append(np.mean([each["token_fill"] for each in stats]))
        slots.append(np.mean([each["slot_fill"] for each in stats]))
        figures.append(f"{name}: tokens {tokens[-1]:.3f}, slots {slots[-1]:.3f}")
    record_property("figures", "; ".join(figures))
    assert min(tokens) >= 0.95 and min(slots) >= 0.80


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_the_reader_is_exact_on_three_thousand_images(level, record_property):
    rng = np.random.default_rng(11)
    correct = []
    for category in world.CATEGORIES:
        for i in range(500):
            split = "heldout" if i % 2 else "train"
            scene = world.sample_scene(rng, level, category=category, split=split)
            things = reader.read(world.render(rng, level, scene), level)
            expected = [list(thing[:3]) for thing in scene.things]
            if category == "counting":
                correct.append(sorted(list(thing[:3]) for thing in things) == sorted(expected))
            else:
                correct.append(reader.fits(things, expected=expected, relation=scene.relation))
    share = np.mean(correct)
    record_property("figures", f"all objects of an image right in {share:.4f} of the images")
    assert share >= 0.99


def convert(*arguments):
    """Runs a command of `convert`; returns its seconds and its peak memory in GiB."""
    code = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    command = [sys.executable, "-c", code, "janus_jax.convert", *map(str, arguments)]
    start = time.perf_counter()
    result = subprocess.run(
        command,
        env=user_environment(tuned=False),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, float(result.stdout.rsplit("peak", 1)[1])


def test_a_full_size_checkpoint_is_imported_and_exported(tmp_path, record_property):
    source = tmp_path / "pro_1b"
    random_weights.write(source, pro_1b.get_config().to_dict())
    layout = "--layout=deepseek"
    costs = {
        "import": convert("import", layout, f"--src={source}", f"--out={tmp_path}/ours"),
        "export": convert(
            "export", layout, f"--checkpoint={tmp_path}/ours", f"--out={tmp_path}/out"
        ),
        "import again": convert(
            "import", layout, f"--src={tmp_path}/out", f"--out={tmp_path}/again"
        ),
    }
    before, after = files.Folder(source), files.Folder(tmp_path / "out")
    size = sum(2 * math.prod(shape) for shape, _ in before.tensors.values()) / 2**30
    described = "; ".join(f"{name} {s:.0f} s, {peak:.1f} GiB" for name, (s, peak) in costs.items())
    record_property("figures", f"{len(before.tensors)} tensors, {size:.2f} GiB: {described}")
    assert before.tensors == after.tensors
    for name in before.tensors:
        bits = [folder.read(name).view(np.uint16) for folder in (before, after)]
        np.testing.assert_array_equal(*bits, err_msg=name)
    largest = 2 * 24 * 2048 * 5632 / 2**30  # GiB of the largest parameter in bf16
    for name in ("import", "import again"):
        _, peak = costs[name]
        assert peak - size < largest + 2


def train_and_evaluate(config, workdir):
    """Runs a recipe on `shapes` as `make` does.

    Returns:
      accuracy of understanding, {category: score} of generation, minutes of training, and all of it
      in words.
    """
    start = time.perf_counter()
    run("janus_jax.train", f"--config=configs/{config}.py", f"--workdir={workdir}")
    minutes = (time.perf_counter() - start) / 60
    flags = ("--benchmark=shapes", "--data=data/shapes", f"--out={workdir}")
    run("janus_jax.evaluate", f"--checkpoint={workdir}", *flags)
    result = json.loads((ROOT / workdir / "evaluation.json").read_text())
    drawing = result["drawing"]
    understanding = result["understanding"]["accuracy"]
    scores = ", ".join(f"{name} {score:.3f}" for name, score in drawing.items())
    figures = f"understanding {understanding:.3f}; {scores}; trained in {minutes:.1f} min"
    return understanding, drawing, minutes, figures


def test_quickstart_reaches_its_targets(shapes_set, record_property):
    understanding, drawing, _, figures = train_and_evaluate("tiny", "runs/quickstart")
    record_property("figures", figures)
    assert understanding >= 0.90 and drawing["single_object"] >= 0.90
    assert (
        drawing["colors"] >= 0.80 and drawing["overall"] >= 0.80 and min(drawing.values()) >= 0.60
    )


def test_flow_reaches_its_targets(shapes_set, record_property):
    understanding, drawing, minutes, figures = train_and_evaluate("tiny_flow", "runs/flow")
    record_property("figures", figures)
    assert understanding >= 0.90 and drawing["overall"] >= 0.60 and minutes <= 15


BENCHMARKS = {  # folder of the data, pattern of the generated images, number of images or answers
    "geneval": ("geneval", "*/samples/*.png", 553 * 4),
    "dpg": ("dpg_bench", "*.png", 1065),
    "pope": ("pope", None, 9000),
}


def write_gray_images(folder):
    """Writes the images that POPE's questions name."""
    gray = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(gray, "JPEG")
    for file in folder.glob("coco_pope_*.json"):
        for line in file.read_text().splitlines():
            (folder / json.loads(line)["image"]).write_bytes(gray.getvalue())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_whole_benchmark_runs_on_the_quickstart(name, tmp_path, record_property):
    """Official prompts and questions, on the quickstart's model; the images of POPE are gray."""
    folder, pattern, count = BENCHMARKS[name]
    data = OFFICIAL_DATA / folder
    if not data.is_dir():
        pytest.skip("the official prompts and questions are not here")
    if name == "pope":
        data = shutil.copytree(data, tmp_path / "pope")
        write_gray_images(data)
    out = tmp_path / "out"
    start = time.perf_counter()
    flags = (f"--benchmark={name}", f"--data={data}", f"--out={out}")
    run("janus_jax.evaluate", "--checkpoint=runs/quickstart", *flags)
    minutes = (time.perf_counter() - start) / 60
    result = json.loads((out / "evaluation.json").read_text())
    if name == "pope":
        answers = out.glob("coco_pope_*_answers.json")
        done = sum(len(file.read_text().splitlines()) for file in answers)
        assert 0 <= result["scores"]["accuracy"] <= 100
    else:
        done = len(list((out / "pictures").glob(pattern)))
    record_property("figures", f"{done} of {count} in {minutes:.1f} min")
    assert done == count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bf16_generates_the_images_of_fp32_up_to_rounding(temperature, record_property):
    """The quickstart's model gives the same codes until a choice is closer than bf16 resolves."""
    colors = ("red", "blue", "green", "purple")
    prompts = [f"a {color} {shape}" for color in colors for shape in world.SHAPES[:4]]
    checkpoint = ROOT / "runs/quickstart"
    samplers = {dtype: load_sampler(checkpoint, dtype=dtype) for dtype in ("float32", "bfloat16")}

    def codes(dtype, prompts, *, devices, first=0):
        guidance = samplers[dtype].guidance(scale=1.5, temperature=temperature)
        seeds = range(first, first + len(prompts))
        _, codes = draw(samplers[dtype], prompts, seeds, devices=devices, guidance=guidance)
        return codes

    assert samplers["bfloat16"].params["llm/norm/scale"].dtype == jnp.bfloat16
    reference = codes("bfloat16", prompts, devices=1)
    assert len(np.unique(reference, axis=0)) > 8
    singles = [codes("bfloat16", [prompt], devices=1, first=i) for i, prompt in enumerate(prompts)]
    others = {
        "fp32": codes("float32", prompts, devices=1),
        "bf16 again": codes("bfloat16", prompts, devices=1),
        "one by one": np.concatenate(singles),
        "on 8 devices": codes("bfloat16", prompts, devices=8),
    }

    def equal_share(a, b):
        """Mean share of an image's codes before the first that differs."""
        differs = a != b
        first = np.where(differs.any(axis=1), differs.argmax(axis=1), a.shape[1])
        return first.mean() / a.shape[1]

    shares = {name: equal_share(reference, other) for name, other in others.items()}
    described = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    record_property(
        "figures",
        f"share of an image's codes before the first that differs from one bf16 batch: {described}",
    )
    assert shares["bf16 again"] == 1 and shares["fp32"] > 0.1


def test_a_cached_prompt_saves_time(record_property):
    """On the model of `make flow`: 8 images after a prompt of 30 tokens, both ways in turns."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        sampler = load_sampler(ROOT / "runs/flow", mesh=mesh)
    side = sampler.network.module.generation.side
    noise = jax.random.normal(jax.random.key(1), (8, side, side, 4))
    ids = jnp.arange(240).reshape(8, 30) + 10
    figures = []
    for guidance in (FlowGuidance(2.0, 30), FlowGuidance(1.0, 30), FlowGuidance(2.0, 8)):
        prompts = jnp.tile(ids, (1 if guidance.scale == 1 else 2, 1))
        generate = functools.partial(
            flow.draw_after, sampler.network, ids=prompts, noise=noise, guidance=guidance
        )
        options = {"xla_backend_optimization_level": 3}  # users' default; other tests lower it
        programs = [
            jax.jit(functools.partial(generate, reuse=reuse), compiler_options=options)
            for reuse in (True, False)
        ]
        np.testing.assert_allclose(*(program(sampler.params) for program in programs), atol=1e-5)
        seconds = np.zeros((7, 2))
        for i, j in np.ndindex(seconds.shape):
            start = time.perf_counter()
            jax.block_until_ready(programs[j](sampler.params))
            seconds[i, j] = time.perf_counter() - start
        cached, recomputed = np.median(seconds, axis=0)
        setting = f"{guidance.steps} steps, scale {guidance.scale:g}"
        figures.append(f"{setting}: {cached:.3f} s, without a cache {recomputed:.3f} s")
        record_property("figures", "; ".join(figures))
        assert cached < recomputed


def test_openmoji_generates_what_it_was_trained_on(record_property):
    if not (ROOT / "data/openmoji").is_dir():
        run("janus_jax.prepare", "openmoji", "--out=data/openmoji")
    run("janus_jax.train", "--config=configs/openmoji.py", "--workdir=runs/openmoji")
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    with jax.set_mesh(mesh):
        sampler = load_sampler(ROOT / "runs/openmoji", mesh=mesh)
        seeds = range(len(openmoji.PROMPTS))
        outputs = sampler.draw(openmoji.PROMPTS, seeds=seeds, guidance=VQGuidance(scale=1.0))
    path = ROOT / "data/openmoji/openmoji/1.0.0"
    source = Source("emoji", kind="tfds", path=str(path), split="train")
    records = [source[i] for i in range(len(source))]
    emoji = np.stack([images.decode(record["image"]) for record in records]).astype(np.float32)
    names = [record["name"].decode() for record in records]
    distances = [((emoji - output) ** 2).sum(axis=(1, 2, 3)) for output in outputs]
    nearest = [names[int(np.argmin(each))] for each in distances]
    hits = [name == prompt for name, prompt in zip(nearest, openmoji.PROMPTS, strict=True)]
    record_property(
        "figures",
        f"{sum(hits)} of {len(hits)} images are nearest to their own emoji, of {len(names)}",
    )
    assert np.mean(hits) >= 0.5
