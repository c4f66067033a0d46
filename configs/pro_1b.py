r"""Janus-Pro-1B: SigLIP-L/16 + VQ-16 + 1.5B LLaMA-type LLM (Janus-Pro, tables 1 and 2).

    python -m janus_jax.train --config=configs/pro_1b.py:2 --workdir=runs/pro_1b

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
    c.data.tokenizer = "data/pro/tokenizer.json"
    c.data.sources = dict(
        imagenet=common.source(
            "data/pro/imagenet/*.array_record"
        ),  # class name as prompt, stage 1 only
        captions=common.source("data/pro/captions/*.array_record"),
        tables=common.source("data/pro/tables/*.array_record"),  # and charts and documents
        chat=common.source("data/pro/chat/*.array_record"),
        memes=common.source("data/pro/memes/*.array_record"),
        chinese_dialogue=common.source("data/pro/chinese_dialogue/*.array_record"),
        text=common.source("data/pro/text/*.array_record"),
        dialogue=common.source("data/pro/dialogue/*.array_record"),
        real=common.source("data/pro/real/*.array_record"),
        synthetic=common.source(
            "data/pro/synthetic/*.array_record"
        ),  # aesthetic, real : synthetic is 1 : 1
    )
    c.data.roles = ("<|User|>", "<|Assistant|>")
    c.stages = common.pick_stages(
        stage,
        {
            "1": common.stage(
                mixture=(1, 0, 3), lr=1e-3, warmup=600, steps=20_000, batch=256, und_slots=4,
                gen_slots=10,
                sources=dict(understanding=dict(captions=1), generation=dict(imagenet=1)),
            ),
            # The report's later edition stops early: --config.stages.stage_2.stop_at=270000.
            "2": common.stage(
                mixture=(2, 3, 5), lr=1e-4, warmup=5_000, steps=360_000, batch=512,
                und_slots=4, gen_slots=8,
                sources=dict(
                    understanding=dict(captions=1, tables=1), text=dict(text=1),
                    generation=dict(real=1, synthetic=1),
                ),
            ),
            "3": common.stage(
                mixture=(5, 1, 4), lr=4e-5, warmup=0, steps=80_000, batch=128,
                und_slots=7, gen_slots=6, template="chat",
                sources=dict(  # the report names these kinds of data, not their weights
                    understanding=dict(chat=1, tables=1, memes=1, chinese_dialogue=1),
                    text=dict(dialogue=1), generation=dict(real=1, synthetic=1),
                ),
            ),
        },
    )  # fmt: skip
    return c
