r"""Janus-Pro-7B: SigLIP-L/16 + VQ-16 + 7B LLaMA-type LLM (Janus-Pro, tables 1 and 2).

    python -m janus_jax.train --config=configs/pro_7b.py:2 --workdir=runs/pro_7b

The text after the colon is the stage; by default the whole recipe runs.
"""

from configs import pro_1b


def get_config(stage="all"):
    """The recipe of configs/pro_1b.py with a larger LLM and a shorter third stage."""
    c = pro_1b.get_config(stage)
    c.model.llm = dict(
        vocab_size=102_400,
        num_layers=30,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        mlp_dim=11_008,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        remat="block",
    )
    if "stage_3" in c.stages:
        c.stages.stage_3.steps = 40_000
    return c
