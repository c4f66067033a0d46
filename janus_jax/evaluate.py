"""Scores a trained model.

    python -m janus_jax.evaluate --checkpoint=runs/tiny --benchmark=shapes --data=data/shapes --out=runs/tiny

writes evaluation.json (scores, their ceiling and floor, and the settings they were made with) and sheet.png, a
contact sheet of drawings, into --out, and prints a table.
"""

import json
from pathlib import Path

import jax
import rich.console
import rich.table
from absl import logging

from janus_jax import assembly, checkpoint, cli, sharding
from janus_jax.data.files import write_json
from janus_jax.errors import UserError
from janus_jax.eval import shapes_score
from janus_jax.eval.sheet import contact_sheet

CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints/STEP.")
BENCHMARK = cli.flags.DEFINE_string("benchmark", "shapes", "What to score: shapes.")
DATA = cli.flags.DEFINE_string("data", None, "Folder of the benchmark's data.")
OUT = cli.flags.DEFINE_string("out", None, "Folder for the results; the checkpoint's own without it.")
GUIDANCE = cli.flags.DEFINE_float("guidance", None, "Guidance scale of the drawings; config.samples.guidance without it.")
TEMPERATURE = cli.flags.DEFINE_float("temperature", None, "Temperature of the drawings (Janus), 0 is greedy; 1 without it.")
STEPS = cli.flags.DEFINE_integer("steps", None, "Euler steps of the drawings (JanusFlow); 30 without it.")
WEIGHTS = cli.flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or not.")
SEEDS = cli.flags.DEFINE_integer("seeds", 4, "Drawings a prompt.")


def main():
    """Runs the benchmark."""
    if not CHECKPOINT.value or not DATA.value:
        raise UserError("Name a run and the benchmark's data: --checkpoint=runs/tiny --data=data/shapes.")
    if BENCHMARK.value != "shapes":
        raise UserError(f"--benchmark={BENCHMARK.value} is unknown; known: ['shapes'].")
    if SEEDS.value < 1 or (TEMPERATURE.value or 0) < 0 or (STEPS.value or 1) < 1:
        raise UserError("--seeds and --steps are at least 1, --temperature at least 0.")
    if not OUT.value and Path(CHECKPOINT.value).name.isdigit():
        raise UserError("A single checkpoint is no place for results: name a folder with --out.")
    saved = checkpoint.open_saved(CHECKPOINT.value)
    out = Path(OUT.value or CHECKPOINT.value)
    out.mkdir(parents=True, exist_ok=True)
    cli.enable_compile_cache(out / ".jax_cache")
    prompts = shapes_score.load_prompts(DATA.value)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        artist = assembly.load_artist(CHECKPOINT.value, mesh=mesh, weights=WEIGHTS.value)
        scale = saved.about["config"]["samples"]["guidance"] if GUIDANCE.value is None else GUIDANCE.value
        guidance = artist.guidance(scale=scale, temperature=TEMPERATURE.value, steps=STEPS.value)
        drawings = shapes_score.draw_all(artist, prompts, seeds=SEEDS.value, guidance=guidance)
        drawing, floor = shapes_score.score(drawings, prompts)
        result = {
            "understanding": shapes_score.understanding(artist, DATA.value),
            "drawing": drawing,
            "ceiling": shapes_score.ceiling(artist, prompts),
            "floor": floor,
            "settings": {
                "seeds": SEEDS.value,
                "prompts": {c: len(p) for c, p in prompts.items()},
                "combinations": shapes_score.combinations(prompts),
                "weights": WEIGHTS.value,
                **guidance._asdict(),
            },
        }
    about = Path(DATA.value) / "about.json"
    if about.is_file():
        result["understanding"]["majority_answer_baseline"] = json.loads(about.read_text())["majority_answer_baseline"]
    write_json(out / "evaluation.json", result)
    shown = [(p["prompt"], drawings[c][i, 0]) for c, ps in prompts.items() for i, p in enumerate(ps[:8])]
    contact_sheet([d for _, d in shown], [t for t, _ in shown]).save(out / "sheet.png")
    _print(result)
    logging.info("Wrote %s and %s", out / "evaluation.json", out / "sheet.png")


def _print(result):
    """The table a person reads."""
    table = rich.table.Table("", "score", "ceiling", "floor")
    for name, value in result["drawing"].items():
        table.add_row(f"drawing {name}", *(f"{v:.3f}" for v in (value, result["ceiling"][name], result["floor"][name])))
    und = result["understanding"]
    table.add_row("understanding", f"{und['accuracy']:.3f}", "", f"{und.get('majority_answer_baseline', 0):.3f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
