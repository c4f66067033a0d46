r"""A tiny JanusFlow that learns `shapes` on a laptop: autoencoder and three stages.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.train --config=configs/tiny_flow.py --workdir=runs/flow

The model is common.tiny_flow_model: an autoencoder of SDXL's architecture, 8x downsampling,
and 9 latent tokens per image.
"""

from configs import common


def get_config(stage="all"):
    """The text after the colon is the stage; by default the whole recipe runs."""
    c = common.get_config()
    c.init_fresh = (
        "llm",
        "understanding",
        "generation/(?!tokenizer).*",
    )  # no pretrained weights at this size
    c.save_every = 1_000
    c.ema = 0.99
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.optimizer.kind = "muon"  # from scratch, half the steps of AdamW
    c.samples.guidance = 2.0
    c.samples.prompts = (
        "a small red circle", "two green squares", "a star left of a cross",
        "a blue diamond and a yellow triangle",
    )  # fmt: skip
    c.model = common.tiny_flow_model(vocab_size=512)
    c.data.tokenizer = "data/shapes/tokenizer.json"
    names = ("collages", "objects", "scenes", "captions", "questions", "text")
    c.data.sources = {
        name: common.source(f"data/shapes/{name}-train.array_record") for name in names
    }
    c.data.shards = 2
    c.data.roles = ("<|User|>", "<|Assistant|>")
    sources = dict(understanding={"captions": 1}, text={"text": 1}, generation={"scenes": 1})
    # The autoencoder trains first, since there is no pretrained one, and is frozen afterwards; its
    # scale is measured at the end of its stage. The understanding encoder and the LLM have no
    # pretrained weights either: every stage trains them, and the alignment target is the current
    # encoder.
    shape = dict(
        batch=8, rows=4, length=256, lr=5e-3, warmup=20,
        frozen=("generation/tokenizer",),
    )  # fmt: skip
    # Captions of collages come first: they teach where things are, and questions build on that.
    collages = {"understanding": {"collages": 1}}
    c.stages = common.pick_stages(
        stage,
        {
            "tokenizer": common.stage(
                objective="tokenizer", mixture=(0, 0, 1), sources={"generation": {"collages": 1}},
                lr=6e-3, decay="cosine", warmup=30, steps=500, batch=4, rows=2, length=512,
                und_slots=0, gen_slots=8, frozen=("generation/tokenizer/scale",),
            ),
            "1": common.stage(
                mixture=(1, 0, 2), sources=sources | collages | {"generation": {"objects": 1}},
                steps=100, und_slots=11, gen_slots=21, **shape,
            ),
            "2": common.stage(
                mixture=(4, 1, 8),
                sources=sources | {"understanding": {"collages": 1, "captions": 1}},
                steps=300, und_slots=11, gen_slots=21, **shape,
            ),
            "3": common.stage(
                mixture=(6, 1, 7),
                sources=sources
                | {"understanding": {"questions": 8, "captions": 3, "collages": 1}},
                decay="cosine", steps=1_500, template="chat",
                und_slots=16, gen_slots=19, **shape,
            ),
        },
    )  # fmt: skip
    return c
