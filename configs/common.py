"""What every config starts from. A model's own page names only what differs."""

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VQ_16 = dict(  # LlamaGen's 72M tokenizer, 16x down
    base_channels=128,
    channel_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    z_channels=256,
    codebook_size=16_384,
    codebook_dim=8,
    num_groups=32,
)
SDXL_VAE = dict(widths=(128, 256, 512, 512), num_res_blocks=2, latent_channels=4, num_groups=32)  # 8x down
SIGLIP_L_16_384 = dict(
    image_size=384,
    patch_size=16,
    num_layers=24,
    embed_dim=1024,
    num_heads=16,
    mlp_dim=4096,
    norm_eps=1e-6,
    remat="block",
)
LLM_1P3B = dict(  # of Janus-1.3B, Janus-Pro-1B and JanusFlow-1.3B
    vocab_size=102_400,
    num_layers=24,
    embed_dim=2048,
    num_heads=16,
    num_kv_heads=16,
    mlp_dim=5_632,
    rope_theta=10_000.0,
    norm_eps=1e-6,
    remat="block",
)
SYSTEM_PROMPT = (  # of the released models, before understanding conversations in stage 3
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def get_config():
    """Fields and defaults of every run."""
    c = ConfigDict()
    c.seed = 0
    c.dtype = "auto"  # of the LLM and the understanding encoder: bf16 on accelerators, fp32 on CPU
    c.init_from = ""  # workdirs or checkpoints, with commas between, whose parameters the first stage starts from
    c.init_fresh = ("understanding/adaptor", "generation/(embed|adaptor|head)")  # what may start without one
    c.log_every = 1
    c.profile_steps = ""  # "10:13" writes an XProf trace of these steps of every stage into WORKDIR/profile
    c.save_every = 1_000
    c.keep_checkpoints = 2
    c.samples = dict(prompts=(), guidance=5.0)  # what is drawn into workdir/samples at every checkpoint
    c.samples.shapes = ""  # a `shapes` folder whose first prompts are drawn and scored there, too
    c.held_out = dict(sources=ConfigDict(), batches=2)  # task -> {source: weight} whose losses are logged there, too
    c.ema = 0.0  # decay of the moving average of what trains; 0 keeps none
    c.max_skipped_steps = 10  # non-finite steps in a row before the run stops
    c.mesh = dict(data=1, fsdp=-1, tensor=1)  # -1 takes the devices that are left
    c.optimizer = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, clip=1.0, moments="float32")
    c.model = ConfigDict()
    c.data = dict(
        tokenizer="",  # a tokenizer.json
        sources=ConfigDict(),  # name -> kind, path, fields
        shards=8,  # virtual shards: fixed for the life of a run, a multiple of every host count it will meet
        workers=-1,  # threads of a host that decode pictures; -1 takes one a core
        window=128,  # examples a shard holds back for its packer
        mixture_unit="examples",
        roles=("User", "Assistant"),
        system_prompt="",
        caption_prompt="Describe the image in detail.",  # before captions in stages 1 and 2, not a target
        prompt_drop=0.1,
        first_sentence=0.0,
        crop="center",  # of pictures to draw, or "random"
        overlong="cut",
        bad_record_limit=0.01,
    )
    return c


def tiny_model(*, vocab_size):
    """The published architecture at 64 px: 16 features to understand and 64 codes to draw a picture."""
    transformer = dict(num_layers=4, embed_dim=128, mlp_dim=384, norm_eps=1e-6, remat="none")
    tokenizer = dict(
        base_channels=8,
        channel_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        z_channels=64,
        codebook_size=512,
        codebook_dim=8,
        num_groups=4,
    )
    training = dict(squared=1.0, absolute=1.0, commitment=0.25, revival=1.0, crop=32)
    return ConfigDict(
        dict(
            llm=dict(vocab_size=vocab_size, num_heads=2, num_kv_heads=2, rope_theta=100.0, **transformer),
            understanding=dict(
                encoder=dict(image_size=64, patch_size=16, num_heads=4, **transformer), adaptor="mlp", begin=False
            ),
            generation=dict(kind="vq", image_size=64, tokenizer=tokenizer, tokenizer_training=training),
        )
    )


def tiny_flow_model(*, vocab_size):
    """JanusFlow's architecture at 64 px: 16 features to understand and 16 latent tokens to draw a picture."""
    model = tiny_model(vocab_size=vocab_size)
    narrow = dict(embed_dim=64, mlp_dim=192)
    model.llm.update(narrow)
    model.understanding.encoder.update(narrow)
    model.understanding.update(adaptor="linear", begin=True)
    model.generation = dict(
        kind="flow",
        image_size=64,
        tokenizer=dict(widths=(8, 16, 32, 64), num_res_blocks=1, latent_channels=4, num_groups=4),
        tokenizer_training=dict(squared=1.0, absolute=1.0, divergence=5e-3, crop=32),
        unet=dict(dim=64, num_blocks=2, norm_eps=1e-6),
        alignment=dict(layer=2, feature_dim=64),
        sample_latents=False,
    )
    return model


def source(path, *, kind="array_record", fields=None, **options):
    """A source of records; `fields` maps our names to the data's own."""
    return ConfigDict(dict(kind=kind, path=path, fields=fields, **options))


def stage(*, mixture, sources, lr, warmup, steps, batch, **changes):
    """One stage. Mixture is understanding : text : generation; `sources` is {task: {source: weight}}."""
    fields = dict(
        objective="joint",  # what the stage minimises: a key of janus_jax/objectives
        mixture=mixture,
        sources=sources,
        phases=(),  # dicts of until (a step), mixture and sources, where these change during the stage
        lr=lr,  # or dict(default=1e-4, rows=(("understanding/encoder", 2e-5),)), rates by part
        decay="constant",
        warmup=warmup,
        steps=steps,
        stop_at=placeholder(int),  # ends the stage early, its schedule unchanged
        weight_decay=0.0,
        batch=batch,  # packed rows
        rows=2,  # R, rows of a pack group
        length=4096,  # L, tokens of a row
        und_slots=4,  # U and G: pictures a group holds, one above the mean of the mixture
        gen_slots=8,
        microbatches=1,
        template="plain",  # stage 3: "chat"
        frozen=placeholder(tuple),  # overrides the table of janus_jax/recipe/freezing.py
    )
    return ConfigDict(fields | changes)


def pick_stages(name, table):
    """All stages in order as `stage_1`, `stage_2`, ..., or the one whose name stands after the colon of --config."""
    if name != "all" and name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--config names no stage {name!r}; known stages: {list(table)}{hint}.")
    chosen = table if name == "all" else {name: table[name]}
    return ConfigDict({f"stage_{n}" if n.isdigit() else n: s for n, s in chosen.items()})
