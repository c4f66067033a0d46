r"""Trains a recipe, stage after stage, in one workdir, and resumes where it stopped.

    python -m janus_jax.train --config=configs/tiny.py --workdir=runs/tiny
    python -m janus_jax.train --config=configs/pro_7b.py:2 --workdir=runs/pro_7b \
        --config.init_from=runs/other

Without :STAGE all stages of the config run in order. Any field can be changed: --config.seed=1,
--config.stages.stage_2.steps=500, --config.data.sources.captions.path='/data/*.array_record'.

A stage starts from the first of these that exists:
    1. its own newest checkpoint in the workdir: everything continues, bit for bit
    2. the newest checkpoint of an earlier stage in the workdir: parameters only
    3. --config.init_from, a workdir or a checkpoint: parameters only
    4. nothing, where --config.init_fresh lets every parameter start fresh

The workdir holds checkpoints/, metrics.jsonl (one JSON object per step), TensorBoard events,
config.json, and samples/, contact sheets of config.samples.prompts as the model generates them at
every checkpoint; at the end also curves.png, losses and scores against minutes. Losses on
config.held_out.sources and scores on config.samples.shapes are logged at every checkpoint, too.
"""

import sys
from pathlib import Path

from janus_jax import cli, distributed
from janus_jax.errors import UserError
from janus_jax.train.loop import train

CONFIG = cli.config_flag()
CONNECTED = cli.distributed_flags()
WORKDIR = cli.flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/<config name>."
)


def main():
    """Reads the flags and trains; after SIGTERM the state is saved and the exit code is 75."""
    if CONFIG.value is None:
        raise UserError("Name a config: python -m janus_jax.train --config=configs/tiny.py.")
    workdir = WORKDIR.value or f"runs/{Path(cli.config_file()).stem}"
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir} is not a folder; mount the bucket (with gcsfuse) and "
            "name the mounted folder."
        )
    with CONNECTED():
        if train(CONFIG.value, Path(workdir).absolute(), preempted=distributed.preemption()):
            sys.exit(distributed.PREEMPTED)


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
