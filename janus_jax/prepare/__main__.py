"""Makes data sets, checks them, and caches what the frozen image tokenizer computes.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.prepare check --config=configs/tiny.py --out=runs/check
    python -m janus_jax.prepare records --config=configs/mine.py --source=photos --out=data/photos
    python -m janus_jax.prepare latents --checkpoint=runs/flow --source=scenes --out=data/latents
    python -m janus_jax.prepare codes --checkpoint=runs/pro_1b --source=photos --out=data/codes

shapes     generates scenes in GenEval's six categories, with questions, texts and held-out
           combinations; --level=cells has objects in 3 x 3 cells and is learned in minutes,
           --level=free has them anywhere and is the hard one
openmoji   emoji with their names and groups (CC BY-SA 4.0); needs
           `pip install -r requirements-openmoji.txt`
check      reads every source of a config: counts, unusable records, duplicates, lengths, scripts;
           and predicts the stages: how full rows are, which slots to choose, and how many epochs of
           each source are read
records    copies a source of any kind to ArrayRecord files, which are the fastest to read in any
           order
latents    a source of images to generate, with the latents of their crops (JanusFlow)
codes      a source of images to generate, with codes instead of the images (Janus)

The folder that records, latents and codes write is a source as any other:
--config.data.sources.NAME.path=DIR. Model and sources are those of the checkpoint's config, or of
--config. A run that was stopped resumes with the next file.
"""

import rich
import rich.table
from absl import logging

from janus_jax import cli
from janus_jax.errors import UserError
from janus_jax.prepare import cache, check, openmoji
from janus_jax.shapes import files
from janus_jax.shapes.levels import LEVELS

OUT = cli.flags.DEFINE_string("out", None, "Folder to write.")
SEED = cli.flags.DEFINE_integer(
    "seed", 0, "shapes: seed of the scenes. latents, codes: seed of random crops."
)
SCALE = cli.flags.DEFINE_float("scale", 1.0, "shapes: factor of the number of training records.")
LEVEL = cli.flags.DEFINE_enum(
    "level", "cells", list(LEVELS), "shapes: objects in 3 x 3 cells, or free ones, which are hard."
)
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string(
    "checkpoint", None, "latents, codes: workdir or checkpoint with the trained tokenizer."
)
SOURCE = cli.flags.DEFINE_string(
    "source", None, "records, latents, codes: a name in config.data.sources."
)


def main(command):
    """Runs one of the commands and prints its counts."""
    config = None if CONFIG.value is None else CONFIG.value.to_dict()
    if command in ("check", "records") and config is None:
        raise UserError("Name a config: --config=configs/tiny.py.")
    if command == "check":
        show(*check.check(config, OUT.value))
        return
    if not OUT.value:
        raise UserError(f"Name a folder: --out=data/{command}.")
    if command == "shapes":
        about = files.write(OUT.value, level=LEVEL.value, seed=SEED.value, scale=SCALE.value)
    elif command == "openmoji":
        about = openmoji.write(OUT.value)
    else:
        about = copy_source(command, config)
    for name, value in about.items():
        logging.info("%s: %s", name, value)


def copy_source(command, config):
    """Runs `records`, `latents` or `codes`; `config` is None for the checkpoint's own."""
    if not SOURCE.value:
        raise UserError("Name a source: --source=scenes, a name in config.data.sources.")
    if command == "records":
        return cache.copy(OUT.value, source_name=SOURCE.value, config=config)
    if not CHECKPOINT.value:
        raise UserError("Name a checkpoint with the tokenizer: --checkpoint=runs/flow.")
    return cache.make(
        command,
        OUT.value,
        checkpoint_path=CHECKPOINT.value,
        source_name=SOURCE.value,
        config=config,
        seed=SEED.value,
    )


def show(sources, stages):
    """Prints what `check.check` returned."""
    counts = ("records", "unusable", "duplicates", "pictures")
    table = rich.table.Table(
        "source", "records", "unusable", "duplicates", "images", "widths", "heights", "scripts"
    )
    uses = rich.table.Table("source", "stage and task", "tokens", "epochs")
    for name, summary in sources.items():
        scripts = ", ".join(f"{script} {n}" for script, n in summary["scripts"].items())
        table.add_row(
            name,
            *(str(summary[field]) for field in counts),
            _join(summary["widths"]),
            _join(summary["heights"]),
            scripts,
        )
        for use, spread in summary["tokens"].items():
            stage, _ = use.split()
            exact = all(phase["epochs_are_exact"] for phase in stages[stage])
            epochs = f"{'' if exact else 'about '}{summary['epochs'][use]:.3f}"
            uses.add_row(name, use, _join(spread), epochs)
    rich.print(table, uses, "Tokens, widths and heights: smallest/median/largest.")
    for stage, phases in stages.items():
        for phase in phases:
            first, last = phase["steps"]
            und, gen = phase["slots"]
            rich.print(
                f"{stage}, steps {first} to {last}, {phase['mixture']}: with und_slots={und} and "
                f"gen_slots={gen}, {phase['token_fill']:.3f} of the tokens (at most "
                f"{phase['token_bound']:.3f}) and {phase['slot_fill']:.3f} of the slots are used. "
                f"{phase['reasons']}."
            )


def _join(spread):
    """'smallest/median/largest'."""
    return "/".join(map(str, spread))


if __name__ == "__main__":
    cli.run_commands(
        main, commands=("shapes", "openmoji", "check", "records", "latents", "codes"), usage=__doc__
    )
