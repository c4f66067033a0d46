r"""Janus-1.3B: SigLIP-L/16 + VQ-16 + 1.3B LLaMA-type LLM (Janus, table 2).

    python -m janus_jax.train --config=configs/janus_1p3b.py:2 --workdir=runs/janus_1p3b

The text after the colon is the stage; by default the whole recipe runs.
"""

from configs import common


def get_config(stage="all"):
    """Mixtures are understanding : text : generation; batches count packed rows of 4096 tokens."""
    c = common.get_config()
    c.model.llm = common.LLM_1P3B
    c.model.understanding = dict(encoder=common.SIGLIP_L_16_384, adaptor="mlp", begin=False)
    c.model.generation = dict(
        kind="vq", image_size=384, tokenizer=common.VQ_16, tokenizer_training=None
    )
    c.data.shards = 64  # the number of groups of the smallest batch; for up to 64 processes
    c.data.system_prompt = common.SYSTEM_PROMPT
    c.data.tokenizer = "data/janus/tokenizer.json"
    c.data.sources = dict(
        imagenet=common.source("data/janus/imagenet/*.array_record"),  # class name as prompt
        captions=common.source("data/janus/captions/*.array_record"),
        chat=common.source("data/janus/chat/*.array_record"),
        text=common.source("data/janus/text/*.array_record"),
        dialogue=common.source("data/janus/dialogue/*.array_record"),
        pictures=common.source("data/janus/pictures/*.array_record"),
    )
    c.data.first_sentence = 0.25  # of generation prompts, cut to their first sentence
    sources = dict(understanding=dict(captions=1), text=dict(text=1), generation=dict(pictures=1))
    c.stages = common.pick_stages(
        stage,
        {
            "1": common.stage(
                mixture=(1, 0, 1), lr=1e-3, decay="cosine", warmup=300, steps=10_000, batch=256,
                und_slots=7, gen_slots=7,
                sources=dict(understanding=dict(captions=1), generation=dict(imagenet=1)),
            ),
            # Class-name prompts for the first 120_000 steps, then captions.
            "2": common.stage(
                mixture=(2, 3, 5), lr=1e-4, warmup=5_000, steps=180_000, batch=512,
                und_slots=4, gen_slots=8, sources=sources,
                phases=(
                    dict(
                        until=120_000,
                        sources=sources | dict(generation=dict(imagenet=1)),
                    ),
                ),
            ),
            "3": common.stage(
                mixture=(7, 3, 10), lr=2e-5, warmup=0, steps=24_000, batch=256, weight_decay=0.1,
                und_slots=6, gen_slots=8, template="chat",
                sources=dict(
                    understanding=dict(chat=1), text=dict(dialogue=1), generation=dict(pictures=1),
                ),
            ),
        },
    )  # fmt: skip
    return c
