"""The whole of the `shapes` benchmark: questions, drawings, their ceiling and floor, a table and a contact sheet."""

import json
from pathlib import Path

import rich.console
import rich.table
from absl import logging

from janus_jax import distributed
from janus_jax.data.files import write_json
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.shapes import score


def run(sampler, prompts, data, *, out, seeds, guidance, batch, settings):
    """Scores a model and writes evaluation.json and sheet.png.

    Args:
      sampler: Sampler.
      prompts: of `shapes_score.load_prompts`.
      data: folder of the set.
      out: folder of the results.
      seeds: of the drawings of each prompt.
      guidance: of the sampler.
      batch: pictures or questions at once.
      settings: what to write beside the scores.
    """
    questions = score.load_questions(data)
    drawings = score.draw_all(sampler, prompts, seeds=seeds, guidance=guidance, batch=batch)
    drawing, floor = score.score(drawings, prompts)
    result = {
        "understanding": score.understanding(sampler, questions, batch=batch),
        "drawing": drawing,
        "ceiling": score.ceiling(sampler, prompts),
        "floor": floor,
        "settings": settings
        | {"prompts": {c: len(p) for c, p in prompts.items()}, "combinations": score.combinations(prompts)},
    }
    about = Path(data) / "about.json"
    if about.is_file():
        result["understanding"]["majority_answer_baseline"] = json.loads(about.read_text())["majority_answer_baseline"]
    if distributed.is_primary():
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
