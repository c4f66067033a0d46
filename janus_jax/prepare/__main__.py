"""Makes data sets, looks them over, and keeps what the frozen picture tokenizer makes of them.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.prepare check --config=configs/tiny.py --out=runs/check
    python -m janus_jax.prepare records --config=configs/mine.py --source=pictures --out=data/pictures
    python -m janus_jax.prepare latents --checkpoint=runs/flow --source=scenes --out=data/scenes_latents
    python -m janus_jax.prepare codes --checkpoint=runs/pro_1b --source=pictures --out=data/pictures_codes

shapes     procedural scenes in GenEval's six categories, with questions, texts and held-out combinations
openmoji   emoji with their names and groups (CC BY-SA 4.0); needs `pip install -r requirements-openmoji.txt`
check      walks every source of a config: counts, unusable records, duplicates, lengths, scripts; and what its stages
           will make of them: how full rows get, which slots to give, how many epochs each source sees
records    a source of any kind as ArrayRecord files, which are the quickest to read in any order
latents    a source of pictures to draw with its latents beside them (JanusFlow), cropped once and for all
codes      a source of pictures to draw with its codes in their place (Janus)

A cache is a folder of ArrayRecord files, a source like any other: --config.data.sources.NAME.path=DIR. Its model and
sources are those of the checkpoint's config, or of --config. A cut-off run goes on with the next file.
"""

import rich
import rich.table
from absl import logging

from janus_jax import cli
from janus_jax.errors import UserError
from janus_jax.prepare import cache, check, openmoji
from janus_jax.shapes import files

OUT = cli.flags.DEFINE_string("out", None, "Folder to write.")
SEED = cli.flags.DEFINE_integer("seed", 0, "shapes: seed of the world. latents: seed of random crops.")
SCALE = cli.flags.DEFINE_float("scale", 1.0, "shapes: multiplies the number of training records.")
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "latents, codes: what holds the trained or imported tokenizer.")
SOURCE = cli.flags.DEFINE_string("source", None, "records, latents, codes: a name of config.data.sources.")


def main(command):
    """Makes one set and prints its counts."""
    config = None if CONFIG.value is None else CONFIG.value.to_dict()
    if command in ("check", "records") and config is None:
        raise UserError("Name a config: --config=configs/tiny.py.")
    if command == "check":
        show(*check.check(config, OUT.value))
        return
    if not OUT.value:
        raise UserError(f"Name a folder: --out=data/{command}.")
    if command == "shapes":
        about = files.write(OUT.value, seed=SEED.value, scale=SCALE.value)
    elif command == "openmoji":
        about = openmoji.write(OUT.value)
    elif not SOURCE.value:
        raise UserError("Name what to read: --source=scenes, a name of config.data.sources.")
    elif command == "records":
        about = cache.copy(OUT.value, source_name=SOURCE.value, config=config)
    elif not CHECKPOINT.value:
        raise UserError("Name what holds the tokenizer: --checkpoint=runs/flow.")
    else:
        about = cache.make(
            command, OUT.value, checkpoint_path=CHECKPOINT.value, source_name=SOURCE.value, config=config, seed=SEED.value
        )
    for name, value in about.items():
        logging.info("%s: %s", name, value)


def show(sources, stages):
    """Prints what the doctor found."""
    of = lambda spread: "/".join(map(str, spread))
    records = rich.table.Table("source", "records", "unusable", "duplicates", "pictures", "widths", "heights", "scripts")
    uses = rich.table.Table("source", "stage and task", "tokens", "epochs")
    for name, found in sources.items():
        counts = [str(found[field]) for field in ("records", "unusable", "duplicates", "pictures")]
        scripts = ", ".join(f"{script} {n}" for script, n in found["scripts"].items())
        records.add_row(name, *counts, of(found["widths"]), of(found["heights"]), scripts)
        for use, spread in found["tokens"].items():
            exact = all(phase["epochs_are_exact"] for phase in stages[use.split()[0]])
            uses.add_row(name, use, of(spread), f"{'' if exact else 'about '}{found['epochs'][use]:.3f}")
    rich.print(records, uses, "Tokens, widths and heights: smallest/median/largest.")
    for stage, phases in stages.items():
        for phase in phases:
            und, gen = phase["slots"]
            rich.print(
                f"{stage}, steps {phase['steps'][0]} to {phase['steps'][1]}, {phase['mixture']}: und_slots={und}, "
                f"gen_slots={gen} fill {phase['token_fill']:.3f} of the tokens (at most {phase['token_bound']:.3f}) "
                f"and {phase['slot_fill']:.3f} of the slots. {phase['reasons']}."
            )


if __name__ == "__main__":
    cli.run_commands(main, commands=("shapes", "openmoji", "check", "records", "latents", "codes"), usage=__doc__)
