r"""A tiny Janus that learns `shapes` on a laptop: tokenizer and three stages in a quarter of an hour on 2 cores.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.train --config=configs/tiny.py --workdir=runs/tiny

The model is common.tiny_model: an 8x tokenizer with 64 codes a picture, a ViT with 16 features, 1.0M parameters of LLM.
"""

from configs import common


def get_config(stage="all"):
    """The text after the colon is the stage; without one the whole recipe runs."""
    c = common.get_config()
    c.init_fresh = (".*",)  # nothing is pretrained at this size
    c.save_every = 500
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.samples.prompts = (
        "a small red circle", "two green squares", "a star left of a cross", "a blue diamond and a yellow triangle",
    )  # fmt: skip
    c.model = common.tiny_model(vocab_size=512)
    c.data.tokenizer = "data/shapes/tokenizer.json"
    c.data.sources = {
        task: common.source(f"data/shapes/{task}-train.array_record") for task in ("understanding", "text", "generation")
    }
    c.data.shards = 2
    c.data.roles = ("<|User|>", "<|Assistant|>")
    sources = {task: {task: 1} for task in ("understanding", "text", "generation")}
    shape = dict(rows=4, length=256)
    # The tokenizer is trained first, in place of a pretrained one, and is frozen from then on. The understanding
    # encoder and the LLM have no pretrained weights at this size either, so every stage trains them.
    tokenizer_only = ("generation/tokenizer",)
    c.stages = common.pick_stages(
        stage,
        {
            "tokenizer": common.stage(
                mixture=(0, 0, 1), sources=sources, lr=3e-3, decay="cosine", warmup=50, steps=1_200, batch=16,
                rows=4, length=320, und_slots=0, gen_slots=4,
            ),
            "1": common.stage(
                mixture=(1, 0, 3), sources=sources, lr=2e-3, warmup=50, steps=150, batch=8,
                und_slots=5, gen_slots=13, frozen=tokenizer_only, **shape,
            ),
            "2": common.stage(
                mixture=(2, 3, 5), sources=sources, lr=2e-3, warmup=20, steps=350, batch=8,
                und_slots=5, gen_slots=11, frozen=tokenizer_only, **shape,
            ),
            "3": common.stage(
                mixture=(5, 1, 4), sources=sources, lr=2e-3, decay="cosine", warmup=20, steps=1_000, batch=8,
                und_slots=9, gen_slots=8, template="chat", frozen=tokenizer_only, **shape,
            ),
        },
    )  # fmt: skip
    return c
