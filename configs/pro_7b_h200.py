r"""Janus-Pro-7B's third stage on one H200, at the full batch of configs/pro_7b.py.

    python -m janus_jax.train --config=configs/pro_7b_h200.py --workdir=runs/pro_7b_h200 \
        --config.init_from=runs/pro_7b

Moments are bf16, and a step accumulates gradients over 64 microbatches; docs/scale.md has the
bytes.
"""

from configs import pro_7b


def get_config(stage="3"):
    """The recipe of configs/pro_7b.py with bf16 moments and microbatches."""
    c = pro_7b.get_config(stage)
    c.optimizer.moments = "bfloat16"
    for s in c.stages.values():
        s.microbatches = s.batch // s.rows
    return c
