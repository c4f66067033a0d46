"""Scores a trained model, or draws and answers for the scorer of a benchmark.

    python -m janus_jax.evaluate --checkpoint=runs/tiny --benchmark=shapes --data=data/shapes --out=runs/tiny
    python -m janus_jax.evaluate --checkpoint=runs/pro_1b --benchmark=geneval --data=geneval/prompts --out=results/geneval
    python -m janus_jax.evaluate --checkpoint=runs/pro_1b --benchmark=pope --data=pope --out=results/pope

drawing          shapes geneval dpg mjhq coco: the folders that the official scorers read
understanding    pope mme mmbench seed-bench vqav2 gqa mmmu mm-vet chartqa textvqa: the official answer files, and the
                 metric where it is a formula, in percent but for MME's points

A run that is cut off goes on with the same command; shapes, a matter of minutes, begins anew. Into --out go settings.json,
which a later run must share, evaluation.json and evaluation.md (the papers' numbers, ours, and the settings they were made
with), and for drawings the folder pictures/ and sheet.png, a contact sheet. docs/evaluation.md says how to reproduce the
papers' rows.
"""

import importlib.metadata
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image

from janus_jax import checkpoint, cli, distributed
from janus_jax.data.files import PICTURES, files_at, make_folder
from janus_jax.errors import UserError
from janus_jax.evaluate import report, runner, shapes_run
from janus_jax.evaluate.drawing import feature_distance
from janus_jax.evaluate.drawing.image_sets import PICTURE_SETS
from janus_jax.evaluate.understanding import BENCHMARKS
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.recipe import assembly
from janus_jax.shapes import score

SHAPES = "shapes"
KNOWN = (SHAPES, *PICTURE_SETS, *BENCHMARKS)
SETS_OF_PHOTOS = ("mjhq", "coco")  # which are compared with real pictures
SHOWN = 32  # drawings on a contact sheet

CONNECTED = cli.distributed_flags()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints/STEP.")
BENCHMARK = cli.flags.DEFINE_string("benchmark", SHAPES, f"What to score: {', '.join(KNOWN)}.")
DATA = cli.flags.DEFINE_string("data", None, "Folder of the benchmark's own files.")
OUT = cli.flags.DEFINE_string("out", None, "Folder for the results; shapes: the checkpoint's own without it.")
GUIDANCE = cli.define_finite("guidance", None, "Guidance scale of the drawings; config.samples.guidance without it.")
TEMPERATURE = cli.define_finite(
    "temperature", None, "Temperature of the drawings (Janus), 0 is greedy; 1 without it.", lower_bound=0
)
TOP_K = cli.flags.DEFINE_integer("top_k", None, "Drawings: only the k likeliest codes (Janus).", lower_bound=1)
TOP_P = cli.define_finite(
    "top_p", None, "Drawings: only the likeliest codes that make up p (Janus).", lower_bound=0, upper_bound=1
)
STEPS = cli.flags.DEFINE_integer("steps", None, "Euler steps of the drawings (JanusFlow); 30 without it.", lower_bound=1)
WEIGHTS = cli.flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or not.")
DTYPE = cli.flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "The run's own without it, on CPU mostly fp32.")
SEEDS = cli.flags.DEFINE_integer("seeds", 4, "shapes: drawings a prompt.", lower_bound=1)
SEED = cli.flags.DEFINE_integer("seed", 0, "Another one gives other drawings.", 0, 2**20)
BATCH = cli.flags.DEFINE_integer("batch", 64, "Pictures or questions at once.", lower_bound=1)
FEATURES = cli.flags.DEFINE_string("features", None, "An ONNX network that drawings are compared with --reference by.")
REFERENCE = cli.flags.DEFINE_string("reference", None, "A folder of real pictures.")
MEAN = cli.flags.DEFINE_list("features_mean", ["127.5"], "Level that --features takes for 0, or three: red, green, blue.")
STD = cli.flags.DEFINE_list("features_std", ["127.5"], "Levels that --features takes for 1, or three.")
SIDE = cli.flags.DEFINE_integer("features_side", None, "Side of its pictures, where --features leaves it open.", 1)


def main():
    """Runs the benchmark."""
    _check_flags()
    with CONNECTED():
        name, data, out = BENCHMARK.value, Path(DATA.value), Path(OUT.value or CHECKPOINT.value)
        saved = checkpoint.open_saved(CHECKPOINT.value)
        step = saved.directory / str(distributed.from_primary(saved.step))  # a run that still trains may save another one
        benchmark = PICTURE_SETS.get(name) or BENCHMARKS.get(name)
        tasks = benchmark.read(data) if benchmark else score.load_prompts(data)
        features = _features()
        make_folder(out)
        cli.enable_compile_cache(out / ".jax_cache")
        sampler = assembly.load_sampler(step, weights=WEIGHTS.value, dtype=DTYPE.value)
        with jax.set_mesh(sampler.mesh):
            guidance = None if name in BENCHMARKS else _guidance(sampler)
            settings = _settings(step, sampler, benchmark, guidance)
            if benchmark:
                settings["tasks"] = runner.digest_of(tasks)
                report.pin(out, settings)
            if name == SHAPES:
                seeds = range(SEED.value * SEEDS.value, (SEED.value + 1) * SEEDS.value)
                how = dict(seeds=seeds, guidance=guidance, batch=BATCH.value, settings=settings)
                shapes_run.run(sampler, tasks, data, out=out, **how)
            elif name in PICTURE_SETS:
                scores = _draw(sampler, benchmark, tasks, out=out, guidance=guidance, features=features)
            else:
                answers = runner.answer_all(sampler, benchmark, tasks, out=out, batch=BATCH.value)
                unit = 1 if name == "mme" else 100
                scores = {metric: unit * value for metric, value in benchmark.score(tasks, answers).items()}
                if distributed.is_primary():
                    benchmark.write(out, tasks, answers)
        if benchmark and distributed.is_primary():
            compared = {flag.name: flag.value for flag in (FEATURES, REFERENCE, MEAN, STD, SIDE)} if features else {}
            report.write(out, name, scores, settings | compared, len(tasks))


def _check_flags():
    """Raises UserError for flags that go wrong together."""
    if BENCHMARK.value not in KNOWN:
        raise UserError(f"--benchmark={BENCHMARK.value} is unknown; known: {list(KNOWN)}.")
    if not CHECKPOINT.value or not DATA.value:
        raise UserError("Name a run and the benchmark's data: --checkpoint=runs/tiny --data=data/shapes.")
    if TOP_P.value == 0:
        raise UserError("--top_p is above 0; --temperature=0 draws the likeliest codes alone.")
    if not OUT.value and (BENCHMARK.value != SHAPES or Path(CHECKPOINT.value).name.isdigit()):
        raise UserError("Name a folder for the results with --out.")
    if bool(FEATURES.value) != bool(REFERENCE.value) or (FEATURES.value and BENCHMARK.value not in SETS_OF_PHOTOS):
        raise UserError(f"--features and --reference go together, with --benchmark={' or '.join(SETS_OF_PHOTOS)}.")


def _features():
    """The network that drawings are compared by, if one is named, and a look at what they are compared with."""
    if not FEATURES.value:
        return None
    try:
        mean, std = ([float(level) for level in flag.value] for flag in (MEAN, STD))
        fine = {len(mean), len(std)} <= {1, 3} and min(std) > 0
    except ValueError:
        fine = False
    if not fine:
        raise UserError("--features_mean and --features_std are a number or three, commas between; the latter above 0.")
    files_at(REFERENCE.value, *PICTURES)
    return feature_distance.Features(FEATURES.value, mean=mean, std=std, side=SIDE.value)


def _guidance(sampler):
    """How to draw: the flags, and the guidance of the run's own samples."""
    scale = sampler.config["samples"]["guidance"] if GUIDANCE.value is None else GUIDANCE.value
    return sampler.guidance(
        scale=scale, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, steps=STEPS.value
    )


def _settings(step, sampler, benchmark, guidance):
    """All that scores depend on beside the benchmark's data: a plain dict."""
    config, drawn, saved = sampler.config, guidance is not None, checkpoint.open_saved(step)
    model = config["model"]
    averaged = WEIGHTS.value == "ema" and bool(checkpoint.param_structs(saved, "ema"))
    found = {
        "benchmark": BENCHMARK.value,
        "checkpoint": str(step),
        "fingerprint": saved.fingerprint,
        "weights": "ema" if averaged else "raw",
        "dtype": cli.compute_dtype(config["dtype"]),
        "template": sampler.template,
        "roles": list(config["data"]["roles"]),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "pillow")},
    }
    if drawn:
        return (
            found
            | {
                "image_size": model["generation"]["image_size"],
                "seed": SEED.value,
                "pictures_a_prompt": getattr(benchmark, "samples", SEEDS.value),
            }
            | guidance._asdict()
        )
    answered = {"temperature": 0, "max_tokens": benchmark.max_tokens, "system_prompt": benchmark.system}
    return found | {"image_size": model["understanding"]["encoder"]["image_size"]} | answered


def _draw(sampler, benchmark, prompts, *, out, guidance, features):
    """Draws a set, scores what can be scored here, and lays a contact sheet."""
    pictures = out / "pictures"
    runner.draw_all(sampler, benchmark, prompts, out=pictures, guidance=guidance, batch=BATCH.value, seed=SEED.value)
    scores = benchmark.score(pictures, prompts)
    if not distributed.is_primary():
        return scores
    if features:
        scores |= feature_distance.distance(pictures, REFERENCE.value, features)
    shown = [(np.asarray(Image.open(pictures / p.files[0]).convert("RGB")), p.text) for p in prompts[:SHOWN]]
    contact_sheet([d for d, _ in shown], [t for _, t in shown]).save(out / "sheet.png")
    logging.info("%s", benchmark.how_to_score)
    return scores


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
