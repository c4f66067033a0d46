r"""JanusFlow-1.3B at 256 px, the size of the paper's ablations: 256 latent tokens per image.

    python -m janus_jax.train --config=configs/flow_1p3b_256.py:2 --workdir=runs/flow_1p3b_256

SigLIP has weights for 256 px, too (siglip_large_patch16_256).
"""

from configs import flow_1p3b


def get_config(stage="all"):
    """As configs/flow_1p3b.py; rows hold more than twice as many images."""
    c = flow_1p3b.get_config(stage, image_size=256)
    for s in c.stages.values():
        s.und_slots, s.gen_slots = 2 * s.und_slots, 2 * s.gen_slots
    return c
