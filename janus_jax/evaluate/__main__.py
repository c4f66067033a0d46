r"""Scores a trained model, or writes what the official scorer of a benchmark reads.

    python -m janus_jax.evaluate --checkpoint=runs/tiny --benchmark=shapes --data=data/shapes
    python -m janus_jax.evaluate --checkpoint=runs/pro_1b --benchmark=geneval \
        --data=geneval/prompts --out=results/geneval
    python -m janus_jax.evaluate --checkpoint=runs/pro_1b --benchmark=pope --data=pope \
        --out=results/pope

image generation   shapes geneval dpg mjhq coco: the folders that the official scorers read
understanding      pope mme mmbench seed-bench vqav2 gqa mmmu mm-vet chartqa textvqa: the official
                   answer files, and the score if it is a formula, in percent (MME: points)

The same command resumes an interrupted run; shapes, which takes minutes, starts again. --out gets
settings.json, which later runs must share, evaluation.json and evaluation.md (the papers' numbers,
ours, and our settings), and for generated images the folder pictures/ and sheet.png, a contact
sheet. The benchmark shapes writes evaluation.json and sheet.png only. docs/evaluation.md shows how
to reproduce the papers' rows.
"""

import importlib.metadata
from pathlib import Path

import jax

from janus_jax import checkpoint, cli, distributed
from janus_jax.data.files import IMAGE_ENDINGS, files_at, make_folder
from janus_jax.errors import UserError
from janus_jax.evaluate.base import Options
from janus_jax.evaluate.benchmarks import BENCHMARKS
from janus_jax.evaluate.drawing.feature_distance import Comparison, Features
from janus_jax.recipe.load import load_sampler
from janus_jax.recipe.stage import compute_dtype

CONNECTED = cli.distributed_flags()
SAMPLING = cli.sampling_flags()
BENCHMARK = cli.flags.DEFINE_string(
    "benchmark", "shapes", f"What to score: {', '.join(BENCHMARKS)}."
)
DATA = cli.flags.DEFINE_string("data", None, "Folder of the benchmark's own files.")
OUT = cli.flags.DEFINE_string(
    "out", None, "Folder for the results; default for shapes: the run's workdir."
)
SEEDS = cli.flags.DEFINE_integer("seeds", 4, "shapes: images per prompt.", lower_bound=1)
SEED = cli.flags.DEFINE_integer("seed", 0, "Another one gives other images.", 0, 2**20)
BATCH = cli.flags.DEFINE_integer("batch", 64, "Images or questions at once.", lower_bound=1)
FEATURES = cli.flags.DEFINE_string(
    "features", None, "ONNX network to compare the images with --reference by."
)
REFERENCE = cli.flags.DEFINE_string("reference", None, "Folder of real images.")
MEAN = cli.flags.DEFINE_list(
    "features_mean", ["127.5"], "--features: pixel level that becomes 0; one, or red,green,blue."
)
STD = cli.flags.DEFINE_list(
    "features_std", ["127.5"], "--features: number of levels that becomes 1; one, or three."
)
SIDE = cli.flags.DEFINE_integer(
    "features_side", None, "--features: input side in pixels, if the network has none.", 1
)


def main():
    """Runs the benchmark."""
    benchmark = _benchmark()
    with CONNECTED():
        saved = checkpoint.open_saved(SAMPLING.checkpoint.value)
        # A run that still trains may save another step, which not all processes would see.
        directory = saved.directory / str(distributed.from_primary(saved.step))
        data = Path(DATA.value)
        tasks = benchmark.read(data)
        comparison = _comparison()
        out = Path(OUT.value or SAMPLING.checkpoint.value)
        make_folder(out)
        cli.enable_compile_cache(out / ".jax_cache")
        sampler = load_sampler(
            directory, weights=SAMPLING.weights.value, dtype=SAMPLING.dtype.value
        )
        options = Options(
            data=data,
            out=out,
            batch=BATCH.value,
            seed=SEED.value,
            samples=SEEDS.value,
            comparison=comparison,
        )
        with jax.set_mesh(sampler.mesh):
            options, settings = _settings(directory, sampler, benchmark, options)
            benchmark.run(sampler, tasks, options, settings)


def _benchmark():
    """The benchmark of the flags; raises UserError for flags that do not fit together."""
    benchmark = BENCHMARKS.get(BENCHMARK.value)
    if benchmark is None:
        raise UserError(f"--benchmark={BENCHMARK.value} is unknown; known: {list(BENCHMARKS)}.")
    run = SAMPLING.checkpoint.value
    if not run or not DATA.value:
        raise UserError(
            "--checkpoint and --data are needed: --checkpoint=runs/tiny --data=data/shapes."
        )
    SAMPLING.image_settings()
    if not OUT.value and (benchmark.needs_out or Path(run).name.isdigit()):
        raise UserError("--out is missing: name a folder for the results.")
    if bool(FEATURES.value) != bool(REFERENCE.value) or (
        FEATURES.value and not benchmark.compares_photos
    ):
        names = [name for name, known in BENCHMARKS.items() if known.compares_photos]
        raise UserError(
            f"--features and --reference need each other, and --benchmark={' or '.join(names)}."
        )
    return benchmark


def _comparison():
    """The Comparison of the flags, or None; checks that its files can be read."""
    if not FEATURES.value:
        return None
    try:
        mean, std = ([float(level) for level in flag.value] for flag in (MEAN, STD))
        valid = {len(mean), len(std)} <= {1, 3} and min(std) > 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            "--features_mean and --features_std are one number or three, as in 1,2,3; std above 0."
        )
    files_at(REFERENCE.value, *IMAGE_ENDINGS)
    features = Features(FEATURES.value, mean=mean, std=std, side=SIDE.value)
    settings = {flag.name: flag.value for flag in (FEATURES, REFERENCE, MEAN, STD, SIDE)}
    return Comparison(features, REFERENCE.value, settings)


def _settings(directory, sampler, benchmark, options):
    """Options with the sampling settings, and all that scores depend on besides the data."""
    saved = checkpoint.open_saved(directory)
    config = saved.about["config"]
    has_average = bool(checkpoint.param_structs(saved, "ema"))
    settings = {
        "benchmark": benchmark.name,
        "checkpoint": str(directory),
        "fingerprint": saved.fingerprint,
        "weights": "ema" if SAMPLING.weights.value == "ema" and has_average else "raw",
        "dtype": compute_dtype(SAMPLING.dtype.value or config["dtype"]).name,
        "template": sampler.template.kind,
        "roles": list(sampler.template.roles),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "pillow")
        },
    }
    if benchmark.generates_images:
        guidance = sampler.guidance(**SAMPLING.image_settings())
        options = options._replace(guidance=guidance)
    return options, settings | benchmark.settings(config["model"], options)


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
