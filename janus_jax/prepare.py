"""Makes data sets, and keeps what the frozen picture tokenizer makes of them.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.prepare latents --checkpoint=runs/flow --source=scenes --out=data/scenes_latents
    python -m janus_jax.prepare codes --checkpoint=runs/pro_1b --source=pictures --out=data/pictures_codes

shapes     procedural scenes in GenEval's six categories, with questions, texts and held-out combinations
openmoji   emoji with their names and groups (CC BY-SA 4.0); needs `pip install -r requirements-openmoji.txt`
latents    a source of pictures to draw with its latents beside them (JanusFlow), cropped once and for all
codes      a source of pictures to draw with its codes in their place (Janus)

A cache is a folder of ArrayRecord files, a source like any other: --config.data.sources.NAME.path=DIR. Its model and
sources are those of the checkpoint's config, or of --config. A cut-off run goes on with the next file.
"""

from absl import logging

from janus_jax import caches, cli
from janus_jax.data import openmoji, shapes_files
from janus_jax.errors import UserError

OUT = cli.flags.DEFINE_string("out", None, "Folder to write.")
SEED = cli.flags.DEFINE_integer("seed", 0, "shapes: seed of the world. latents: seed of random crops.")
SCALE = cli.flags.DEFINE_float("scale", 1.0, "shapes: multiplies the number of training records.")
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "latents, codes: what holds the trained or imported tokenizer.")
SOURCE = cli.flags.DEFINE_string("source", None, "latents, codes: a name of config.data.sources.")


def main(command):
    """Makes one set and prints its counts."""
    if not OUT.value:
        raise UserError(f"Name a folder: --out=data/{command}.")
    if command == "shapes":
        about = shapes_files.write(OUT.value, seed=SEED.value, scale=SCALE.value)
    elif command == "openmoji":
        about = openmoji.write(OUT.value)
    else:
        if not CHECKPOINT.value or not SOURCE.value:
            raise UserError("Name the tokenizer and what to read: --checkpoint=runs/flow --source=scenes.")
        config = None if CONFIG.value is None else CONFIG.value.to_dict()
        about = caches.make(
            command, OUT.value, checkpoint_path=CHECKPOINT.value, source_name=SOURCE.value, config=config, seed=SEED.value
        )
    for name, value in about.items():
        logging.info("%s: %s", name, value)


if __name__ == "__main__":
    cli.run_commands(main, commands=("shapes", "openmoji", "latents", "codes"), usage=__doc__)
