"""The fields and defaults of every config. A model's own config sets only what differs."""

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

VQ_16 = dict(  # LlamaGen's tokenizer: 72M parameters, 16x downsampling
    base_channels=128,
    channel_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    z_channels=256,
    codebook_size=16_384,
    codebook_dim=8,
    num_groups=32,
)
# 8x downsampling
SDXL_VAE = dict(widths=(128, 256, 512, 512), num_res_blocks=2, latent_channels=4, num_groups=32)
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
# Of the released models; it precedes understanding conversations in stage 3.
SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


def get_config():
    """Fields and defaults of every run."""
    c = ConfigDict()
    c.seed = 0
    c.dtype = "auto"  # of the LLM and the understanding encoder: bf16 on accelerators, fp32 on CPU
    # Workdirs or checkpoints, separated by commas: the first stage starts from their parameters.
    c.init_from = ""
    # Patterns of parameters that may be initialised randomly, because no checkpoint has them.
    c.init_fresh = ("understanding/adaptor", "generation/(embed|adaptor|head)")
    c.log_every = 1
    c.profile_steps = ""  # "10:13" writes an XProf trace of steps 10 to 12 of every stage
    c.save_every = 1_000
    c.keep_checkpoints = 2
    # Prompts of the images that are generated into WORKDIR/samples at every checkpoint, and how.
    # `sample draw` and `evaluate` sample in the same way.
    c.samples = dict(prompts=(), guidance=5.0, temperature=placeholder(float))
    c.samples.shapes = ""  # a `shapes` folder: images of its first prompts are scored as well
    # Sources, as {task: {source: weight}}, whose losses are logged at every checkpoint.
    c.held_out = dict(sources=ConfigDict(), batches=2)
    c.ema = 0.0  # decay of the moving average of the trainable parameters; 0 switches it off
    c.max_skipped_steps = 10  # non-finite steps in a row before the run stops
    c.mesh = dict(data=1, fsdp=-1, tensor=1)  # one may be -1: all remaining devices
    c.optimizer = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, clip=1.0, moments="float32")
    c.model = ConfigDict()
    c.data = dict(
        tokenizer="",  # a tokenizer.json
        sources=ConfigDict(),  # name -> kind, path, fields
        shards=8,  # virtual shards: fixed during a run, a multiple of every number of processes
        workers=-1,  # threads per process that decode images; -1: one per core
        window=128,  # examples per shard that the packer chooses from
        mixture_unit="examples",
        roles=("User", "Assistant"),
        system_prompt="",
        # The instruction before captions in stages 1 and 2; it is not a target.
        caption_prompt="Describe the image in detail.",
        prompt_drop=0.1,
        first_sentence=0.0,
        crop="center",  # of images to generate; or "random"
        overlong="cut",
        bad_record_limit=0.01,
    )
    return c


def tiny_model(*, vocab_size, image_size=48):
    """The published architecture; at 48 px 9 features to understand and 36 codes to generate.

    For its minutes of training, few layers are better than many.
    """
    transformer = dict(embed_dim=128, mlp_dim=256, norm_eps=1e-6, remat="none")
    tokenizer = dict(
        base_channels=16,
        channel_mult=(1, 2, 2, 4),
        num_res_blocks=1,
        z_channels=64,
        codebook_size=768,
        codebook_dim=8,
        num_groups=4,
    )
    training = dict(
        squared=1.0, absolute=1.0, foreground=4.0, commitment=0.25, sparsity=0.05,
        codebook_from_data=(250, 450), crop=0,
    )  # fmt: skip
    return ConfigDict(
        dict(
            llm=dict(
                vocab_size=vocab_size,
                num_layers=2,
                num_heads=4,
                num_kv_heads=4,
                rope_theta=10_000.0,
                **transformer,
            ),
            understanding=dict(
                encoder=dict(
                    image_size=image_size, patch_size=16, num_layers=1, num_heads=4, **transformer
                ),
                adaptor="mlp",
                begin=False,
            ),
            generation=dict(
                kind="vq",
                image_size=image_size,
                tokenizer=tokenizer,
                tokenizer_training=training,
            ),
        )
    )


def tiny_flow_model(*, vocab_size):
    """JanusFlow's architecture at 48 px: 9 features to understand, 9 latent tokens to generate."""
    model = tiny_model(vocab_size=vocab_size)
    model.understanding.update(adaptor="linear", begin=True)
    model.generation = dict(
        kind="flow",
        image_size=48,
        tokenizer=dict(widths=(16, 32, 32, 64), num_res_blocks=1, latent_channels=4, num_groups=4),
        tokenizer_training=dict(squared=1.0, absolute=1.0, foreground=4.0, divergence=5e-4, crop=0),
        unet=dict(dim=64, num_blocks=2, norm_eps=1e-6),
        alignment=dict(layer=1, feature_dim=128),
        sample_latents=False,
    )
    return model


def source(path, *, kind="array_record", fields=None, **options):
    """A source of records; `fields` maps the names of our fields to those of the data."""
    return ConfigDict(dict(kind=kind, path=path, fields=fields, **options))


def stage(*, mixture, sources, lr, warmup, steps, batch, **changes):
    """A stage: `mixture` is understanding : text : generation, `sources` {task: {name: weight}}."""
    fields = dict(
        objective="joint",  # what the stage minimises: a key of janus_jax/objectives
        mixture=mixture,
        sources=sources,
        phases=(),  # dicts (until: a step, mixture, sources) for changes during the stage
        # A number, or rates by part: dict(default=1e-4, rows=(("understanding/encoder", 2e-5),)).
        lr=FieldReference(lr, field_type=object),
        decay="constant",
        warmup=warmup,
        steps=steps,
        stop_at=placeholder(int),  # ends the stage early; the schedule is that of `steps`
        weight_decay=0.0,
        batch=batch,  # packed rows
        rows=2,  # R, rows per pack group
        length=4096,  # L, tokens per row
        und_slots=4,  # U, images to understand per group: one above the mean of the mixture
        gen_slots=8,  # G, images to generate per group
        microbatches=1,
        template="plain",  # stage 3: "chat"
        frozen=placeholder(tuple),  # overrides the table of janus_jax/recipe/freezing.py
    )
    return ConfigDict(fields | changes)


def pick_stages(name, table):
    """The stages of `table` as `stage_1`, `stage_2`, ...: all in order, or the one called `name`.

    Raises:
      ValueError: for a name that the table does not have.
    """
    if name != "all" and name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--config names no stage {name!r}; known stages: {list(table)}{hint}.")
    chosen = table if name == "all" else {name: table[name]}
    return ConfigDict({f"stage_{n}" if n.isdigit() else n: s for n, s in chosen.items()})
