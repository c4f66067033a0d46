"""Makes data sets.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.prepare openmoji --out=data/openmoji

shapes     procedural scenes in GenEval's six categories, with questions, texts and held-out combinations
openmoji   emoji with their names and groups (CC BY-SA 4.0); needs `pip install -r requirements-openmoji.txt`
"""

from absl import logging

from janus_jax import cli
from janus_jax.data import openmoji, shapes_files
from janus_jax.errors import UserError

OUT = cli.flags.DEFINE_string("out", None, "Folder to write.")
SEED = cli.flags.DEFINE_integer("seed", 0, "shapes: seed of the world.")
SCALE = cli.flags.DEFINE_float("scale", 1.0, "shapes: multiplies the number of training records.")


def main(command):
    """Makes one set and prints its counts."""
    if not OUT.value:
        raise UserError(f"Name a folder: --out=data/{command}.")
    if command == "shapes":
        about = shapes_files.write(OUT.value, seed=SEED.value, scale=SCALE.value)
    else:
        about = openmoji.write(OUT.value)
    for name, value in about.items():
        logging.info("%s: %s", name, value)


if __name__ == "__main__":
    cli.run_commands(main, commands=("shapes", "openmoji"), usage=__doc__)
