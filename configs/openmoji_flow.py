r"""The tiny JanusFlow on real images: names, groups and drawings of emoji.

    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.train --config=configs/openmoji_flow.py --workdir=runs/openmoji_flow

OpenMoji's drawings are CC BY-SA 4.0 (https://openmoji.org), and so are images from a
model trained on them.
"""

from configs import common, openmoji


def get_config(stage="all"):
    """Data as in configs/openmoji.py, model and rows as in configs/tiny_flow.py."""
    c = openmoji.get_config()
    c.init_fresh = ("llm", "understanding", "generation/(?!tokenizer).*")
    c.ema = 0.99
    c.model = common.tiny_flow_model(vocab_size=1024)
    sources = {task: {task: 1} for task in ("understanding", "text", "generation")}
    shape = dict(
        batch=16, rows=8, length=128, und_slots=6, gen_slots=28, frozen=("generation/tokenizer",)
    )
    c.stages = common.pick_stages(
        stage,
        {
            "tokenizer": common.stage(
                objective="tokenizer", mixture=(0, 0, 1), sources={"generation": {"pictures": 1}},
                lr=4e-3, decay="cosine", warmup=50, steps=800, batch=4, rows=1, length=512,
                und_slots=0, gen_slots=8, frozen=("generation/tokenizer/scale",),
            ),
            "1": common.stage(
                mixture=(1, 0, 3), sources=sources, lr=3e-3, warmup=50, steps=100, **shape,
            ),
            "2": common.stage(
                mixture=(1, 1, 6), sources=sources, lr=3e-3, warmup=50, steps=600, **shape,
            ),
            "3": common.stage(
                mixture=(1, 1, 6), sources=sources, lr=3e-3, decay="cosine", warmup=50, steps=700,
                template="chat", **shape,
            ),
        },
    )  # fmt: skip
    return c
