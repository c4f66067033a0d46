r"""Janus-Pro-7B's third stage on one H200: what fits there of the recipe of pro_7b, at its full batch.

    python -m janus_jax.train --config=configs/pro_7b_h200.py:3 --workdir=runs/pro_7b_h200 --config.init_from=runs/pro_7b

Moments are held in bf16, and a step goes through its rows in 64 parts; docs/scale.md has the bytes.
"""

from configs import pro_7b


def get_config(stage="3"):
    """The recipe of pro_7b with bf16 moments and microbatches."""
    c = pro_7b.get_config(stage)
    c.optimizer.moments = "bfloat16"
    for s in c.stages.values():
        s.microbatches = s.batch // s.rows
    return c
