"""The `shapes` benchmark: scores of answers and images, ceiling and floor, a contact sheet."""

import json
from pathlib import Path

import numpy as np
import rich.console
import rich.table
from absl import logging

from janus_jax import distributed
from janus_jax.data.files import write_json
from janus_jax.evaluate.base import Benchmark, Options
from janus_jax.evaluate.drawing.base import image_settings
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.shapes import score

SHEET_PROMPTS = 8  # of each category on the contact sheet
ROUND_TRIPS = 100  # generated images that the model answers a question about


class Shapes(Benchmark):
    """This project's own benchmark, which takes minutes: an interrupted run starts again."""

    name = "shapes"
    layout = "a folder of `python -m janus_jax.prepare shapes`"
    generates_images = True
    needs_out = False

    def read(self, data):
        """{category: [{'prompt', 'things', 'relation'}]}."""
        return score.load_prompts(data)

    def settings(self, model, options):
        """Settings of the generated images."""
        return image_settings(model, options, samples=options.samples)

    def run(self, sampler, prompts, options: Options, settings):
        """Scores a model and writes evaluation.json and sheet.png."""
        first_seed = options.seed * options.samples
        images = score.draw_all(
            sampler,
            prompts,
            seeds=range(first_seed, first_seed + options.samples),
            guidance=options.guidance,
            batch=options.batch,
        )
        questions = score.load_questions(options.data)
        first = np.stack([part[:, 0] for part in images.values()], axis=1)
        mixed = np.concatenate(first)[:ROUND_TRIPS]  # one of each category after the other
        level = score.load_level(options.data)
        drawing, floor = score.score(images, prompts, level)
        result = {
            "understanding": score.understanding(sampler, questions, batch=options.batch),
            "drawing": drawing,
            "ceiling": score.ceiling(sampler, prompts, level, batch=options.batch),
            "floor": floor,
            "round_trip": score.round_trip(sampler, mixed, level, batch=options.batch),
            "settings": settings
            | {
                "prompts": {category: len(part) for category, part in prompts.items()},
                "combinations": score.combinations(prompts),
            },
        }
        about = Path(options.data) / "about.json"
        if about.is_file():
            baseline = json.loads(about.read_text())["majority_answer_baseline"]
            result["understanding"]["majority_answer_baseline"] = baseline
        if not distributed.is_primary():
            return
        write_json(options.out / "evaluation.json", result)
        on_sheet = [
            (prompt["prompt"], image, score.is_right(image, prompt, level))
            for category, part in prompts.items()
            for prompt, (image, *_) in zip(part[:SHEET_PROMPTS], images[category], strict=False)
        ]
        captions, first_images, right = zip(*on_sheet, strict=True)
        contact_sheet(first_images, captions, right=right).save(options.out / "sheet.png")
        _print(result)
        logging.info("Wrote evaluation.json and sheet.png to %s", options.out)


def _print(result):
    """Prints the scores as a table."""
    table = rich.table.Table("", "score", "ceiling", "floor")
    for name, value in result["drawing"].items():
        columns = (value, result["ceiling"][name], result["floor"][name])
        table.add_row(f"drawing {name}", *(f"{column:.3f}" for column in columns))
    answers = result["understanding"]
    baseline = answers.get("majority_answer_baseline", 0)
    table.add_row("understanding", f"{answers['accuracy']:.3f}", "", f"{baseline:.3f}")
    trip = result["round_trip"]
    table.add_row("round trip: answers about its own images", f"{trip['accuracy']:.3f}", "", "")
    rich.console.Console().print(table)
