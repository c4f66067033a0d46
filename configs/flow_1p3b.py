r"""JanusFlow-1.3B: SigLIP-L/16 + SDXL-VAE + 1.3B LLaMA-type LLM, 384 px, rectified flow
(JanusFlow, table 1).

    python -m janus_jax.train --config=configs/flow_1p3b.py:2 --workdir=runs/flow_1p3b

The text after the colon is the stage; by default the whole recipe runs. The autoencoder, the
understanding encoder and the LLM start from imported weights, separated by commas:
--config.init_from=towers/llm,towers/siglip,towers/vae.
"""

from configs import common


def get_config(stage="all", *, image_size=384):
    """Mixtures are understanding : text : generation; batches count packed rows of 4096 tokens.

    The paper prints mixtures as understanding : generation : text. Its arXiv edition trains stage 2
    for 390 000 steps, the CVPR edition for 380 000: --config.stages.stage_2.steps=380_000.
    """
    c = common.get_config()
    c.ema = 0.99
    c.samples.guidance = 2.0
    c.init_fresh = ("understanding/(adaptor|begin)", "generation/(?!tokenizer).*")
    c.model.llm = common.LLM_1P3B
    encoder = common.SIGLIP_L_16_384 | dict(image_size=image_size)
    c.model.understanding = dict(encoder=encoder, adaptor="linear", begin=True)
    c.model.generation = dict(
        kind="flow",
        image_size=image_size,
        tokenizer=common.SDXL_VAE,
        tokenizer_training=None,
        unet=dict(dim=768, num_blocks=2, norm_eps=1e-6),
        alignment=dict(layer=6, feature_dim=encoder["embed_dim"]),
        sample_latents=False,
    )
    c.data.shards = 64  # the number of groups of the smallest batch; for up to 64 processes
    c.data.system_prompt = common.SYSTEM_PROMPT
    c.data.tokenizer = "data/janus/tokenizer.json"
    c.data.crop = "random"
    c.data.caption_prompt = "Generate the caption of this picture. "
    c.data.sources = dict(
        captions=common.source("data/janus/captions/*.array_record"),
        chat=common.source("data/janus/chat/*.array_record"),
        text=common.source("data/janus/text/*.array_record"),
        dialogue=common.source("data/janus/dialogue/*.array_record"),
        imagenet=common.source("data/janus/imagenet/*.array_record"),  # class name as prompt
        pictures=common.source("data/janus/pictures/*.array_record"),
        one_sentence=common.source("data/janus/one_sentence/*.array_record"),
    )
    generation = dict(pictures=3, one_sentence=1)  # a quarter of the captions: one sentence long
    sources = dict(understanding=dict(captions=1), text=dict(text=1), generation=generation)
    c.stages = common.pick_stages(
        stage,
        {
            "1": common.stage(
                mixture=(50, 0, 50), lr=1e-4, warmup=2_000, steps=10_000, batch=512,
                und_slots=7, gen_slots=7, sources=sources | dict(generation=dict(imagenet=1)),
            ),
            # More understanding for the first 10_000 steps.
            "2": common.stage(
                mixture=(14, 6, 80), lr=1e-4, warmup=2_000, steps=390_000, batch=512,
                und_slots=5, gen_slots=12, sources=sources,
                phases=(dict(until=10_000, mixture=(30, 20, 50)),),
            ),
            "3": common.stage(
                mixture=(21, 9, 70), lr=2e-5, warmup=1_000, steps=26_000, batch=256,
                und_slots=4, gen_slots=10, template="chat",
                sources=dict(
                    understanding=dict(chat=1), text=dict(dialogue=1), generation=generation
                ),
            ),
        },
    )  # fmt: skip
    return c
