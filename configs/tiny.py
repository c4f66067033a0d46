r"""A tiny Janus that learns `shapes` on a laptop: tokenizer and three stages, minutes on 2 cores.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.train --config=configs/tiny.py --workdir=runs/tiny

The model is common.tiny_model: a tokenizer with 8x downsampling and 36 codes per image, a ViT
with 9 features, one for each cell of the images, and an LLM of 0.5M parameters.
"""

from configs import common


def get_config(stage="all"):
    """The text after the colon is the stage; by default the whole recipe runs."""
    c = common.get_config()
    c.init_fresh = (
        "llm",
        "understanding",
        "generation/(embed|adaptor|head)",
    )  # no pretrained weights at this size
    c.save_every = 2_000  # the end of every stage is saved anyway
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.optimizer.kind = "muon"  # from scratch, half the steps of AdamW
    c.samples.update(guidance=1.3, temperature=0.6)
    c.samples.prompts = (
        "a small red circle", "two green squares", "a star left of a cross",
        "a blue diamond and a yellow triangle",
    )  # fmt: skip
    c.model = common.tiny_model(vocab_size=512)
    c.data.tokenizer = "data/shapes/tokenizer.json"
    names = ("collages", "objects", "scenes", "captions", "questions", "text")
    c.data.sources = {
        name: common.source(f"data/shapes/{name}-train.array_record") for name in names
    }
    c.data.sources["questions-heldout"] = common.source(
        "data/shapes/questions-heldout.array_record"
    )
    c.held_out.sources = dict(understanding={"questions-heldout": 1})
    c.data.shards = 2
    c.data.roles = ("<|User|>", "<|Assistant|>")
    sources = dict(understanding={"captions": 1}, text={"text": 1}, generation={"scenes": 1})
    # The tokenizer trains first, since there is no pretrained one, and is frozen afterwards. The
    # understanding encoder and the LLM have no pretrained weights either: every stage trains them.
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
                lr=6e-3, decay="cosine", warmup=30, steps=560, batch=4, rows=2, length=512,
                und_slots=0, gen_slots=8,
            ),
            "1": common.stage(
                mixture=(1, 0, 1), sources=sources | collages | {"generation": {"objects": 1}},
                steps=100, und_slots=11, gen_slots=12, **shape,
            ),
            "2": common.stage(
                mixture=(5, 1, 6),
                sources=sources | {"understanding": {"collages": 2, "captions": 1}},
                steps=200, und_slots=11, gen_slots=12, **shape,
            ),
            "3": common.stage(
                mixture=(9, 1, 6),
                sources=sources
                | dict(
                    understanding={"questions": 10, "captions": 1, "collages": 1},
                    generation={"scenes": 5, "collages": 1},
                ),
                decay="cosine", steps=1_250, template="chat",
                und_slots=16, gen_slots=11, **shape,
            ),
        },
    )  # fmt: skip
    return c
