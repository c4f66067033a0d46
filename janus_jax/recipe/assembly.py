"""From a resolved config, a plain dict, to the parts of a run: network, mesh, data, optimizer."""

import functools
import os

import jax
import jax.numpy as jnp

from janus_jax import checkpoint, cli, flops, hardware, sharding
from janus_jax.batch import TASKS
from janus_jax.convert.layouts import tables
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.examples import ExampleMaker
from janus_jax.data.mixture import Phase
from janus_jax.data.pipeline import Pipeline
from janus_jax.data.shards import Layout
from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.inference.sampler import Sampler
from janus_jax.models.functional import ModelSpec
from janus_jax.models.janus import Janus, TokenizerTrainer, pick_path
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.recipe import freezing, optimizer
from janus_jax.tokenizers.sdxl_vae import VAE
from janus_jax.tokenizers.vq16 import VQTokenizer


def build_network(config, stage):
    """The network a stage trains: the whole model, or the generation tokenizer alone."""
    dtype, model = jnp.dtype(cli.compute_dtype(config["dtype"])), config["model"]
    if stage == freezing.TOKENIZER:
        return ModelSpec(functools.partial(TokenizerTrainer, generation=model["generation"], dtype=dtype))
    return ModelSpec(functools.partial(Janus, **model, dtype=dtype))


def build_tower(layout, model):
    """The parameters of a tower alone, where they lie in the whole model.

    Args:
      layout: of `weights.tables.TOWERS`.
      model: the part of `config.model` that describes it.

    Returns:
      {path: ShapeDtypeStruct} and {path: logical axes}.
    """
    into = tables.INTO[layout]
    settings = functools.reduce(dict.__getitem__, into.split("/"), model)
    module = {"llama": Llama, "siglip": Siglip, "llamagen_vq": VQTokenizer, "diffusers_vae": VAE}[layout]
    network = ModelSpec(functools.partial(module, **settings))
    put = lambda flat: {f"{into}/{path}": leaf for path, leaf in flat.items()}
    return put(network.abstract), put(network.axes)


def load_sampler(path, *, mesh=None, weights="ema", dtype=None):
    """A trained model from a checkpoint, ready to draw and answer.

    Args:
      path: a workdir (its newest complete step) or one checkpoint.
      mesh: where the parameters go, in the compute dtype, the tokenizer in fp32; `inference_mesh` without one.
      weights: 'ema', the moving average where the run kept one, or 'raw'.
      dtype: what to compute in; the config's own without it.
    """
    saved = checkpoint.open_saved(path)
    config, stage = saved.about["config"], saved.about["stage"]
    if stage == freezing.TOKENIZER:
        raise UserError(
            f"The newest checkpoint of {str(path)!r} holds a picture tokenizer alone; train its next stage first."
        )
    if config is None:
        raise UserError(f"{str(path)!r} holds a tower alone; train a model from it with --config.init_from.")
    config = config | {"dtype": dtype or config["dtype"]}
    network = build_network(config, stage)
    places = sharding.param_shardings(mesh or inference_mesh(network, config), network.abstract, network.axes)
    dtypes = held_dtypes(network, config, frozen=network.abstract)
    held = checkpoint.param_structs(saved)
    wanted = {p: jax.ShapeDtypeStruct(a.shape, dtypes[p], sharding=places[p]) for p, a in network.abstract.items()}
    wanted = {p: a for p, a in wanted.items() if p in held or not p.startswith("generation/")}  # to answer without
    if saved.about["tokenizer"] is None:
        raise UserError(f"{str(path)!r} carries no text tokenizer; import it again from a folder with a tokenizer.json.")
    tokenizer = text_tokenizer.TextTokenizer(saved.about["tokenizer"])
    template = "chat" if stage == freezing.IMPORTED else config["stages"][stage]["template"]
    params = checkpoint.load_params(saved, wanted, weights=weights)
    return Sampler(network, params, tokenizer, config, template=template)


def inference_mesh(network, config):
    """The mesh of all devices on which to draw and answer: no weight travels between two tokens.

    Each device holds all weights, or its share of heads, MLP and vocabulary where they would fill more than a third of it:
    the loop keeps the LLM's layers once more (`decode.stepper`), and the caches want room.
    """
    dtypes = held_dtypes(network, config, frozen=network.abstract)
    needed = sum(a.size * dtypes[p].itemsize for p, a in network.abstract.items())
    room = hardware.find_chip(jax.devices()[0].device_kind).memory / 3 or needed
    tensor = 1
    while needed > room * tensor and jax.device_count() % (2 * tensor) == 0:
        tensor *= 2
    return sharding.make_mesh(data=-1, fsdp=1, tensor=tensor)


def held_dtypes(network, config, *, frozen):
    """{path: dtype} that parameters are held in: fp32 where they train and in the tokenizer, whose ids bf16 changes."""
    compute = jnp.dtype(cli.compute_dtype(config["dtype"]))
    low = lambda path: path in frozen and not path.startswith("generation/tokenizer/")
    return {path: compute if low(path) else jnp.dtype("float32") for path in network.abstract}


def build_optimizer(config, stage, network):
    """The stage's optimizer and its learning-rate schedule."""
    s = config["stages"][stage]
    rate = optimizer.schedule(lr=s["lr"], steps=s["steps"], warmup=s["warmup"], decay=s["decay"])
    shapes = dict(abstract=network.abstract, axes=network.axes)
    return optimizer.make(rate, weight_decay=s["weight_decay"], **shapes, **config["optimizer"]), rate


def step_flops(config, stats, *, trainable):
    """Useful FLOPs of a step, {part: FLOPs}.

    Args:
      config: resolved config.
      stats: figures of a batch (`data.pipeline`, or expected ones of `data.fill`).
      trainable: paths of the parameters that train.
    """
    model, trains = config["model"], lambda prefix: any(path.startswith(prefix) for path in trainable)
    llm, understanding, generation = (model[part] for part in ("llm", "understanding", "generation"))
    eyes = flops.encoder(understanding["encoder"])
    picture = pick_path(generation["kind"]).flops(generation, embed_dim=llm["embed_dim"], encoder=eyes, trains=trains)
    return flops.step(stats, llm=llm, understanding=understanding, picture=picture, trains=trains)


def frozen_patterns(config, stage):
    """What the stage freezes: the table of `stages`, or the config's own."""
    own = config["stages"][stage]["frozen"]
    return freezing.FROZEN[stage] if own is None else tuple(own)


def build_pipeline(config, stage, network, *, mesh, host, report=None):
    """The stage's data on this host.

    Args:
      config, stage: what to train.
      network: ModelSpec, for the numbers of tokens a picture takes.
      mesh: the pack groups must divide over it.
      host: this host's number, and how many there are.
      report: a file for a list of unusable records.

    Returns:
      Pipeline and the TextTokenizer.

    Raises:
      UserError: for missing data, and for sizes that do not divide.
    """
    data, s, model = config["data"], config["stages"][stage], config["model"]
    groups = check_division(s, mesh)
    phases = phases_of(s)
    names = source_names(s)
    for task, slots in (("understanding", "und_slots"), ("generation", "gen_slots")):
        if not s[slots] and any(p.ratio[TASKS.index(task)] for p in phases):
            raise UserError(f"Stage {stage} mixes {task} pictures but config.stages.{stage}.{slots} is 0.")
    make, tokenizer = build_maker(config, stage, network)
    encoder = model["understanding"]["encoder"]
    layout = Layout(
        groups=groups,
        und_size=encoder["image_size"],
        gen_size=model["generation"]["image_size"],
        window=data["window"],
        shards=data["shards"],
        **{k: s[k] for k in ("rows", "length", "und_slots", "gen_slots")},
    )
    pipeline = Pipeline(
        layout=layout,
        sources=open_sources(config, names),
        make=make,
        phases=phases,
        seed=stage_seed(config, stage),
        pad_id=tokenizer.pad,
        unit=data["mixture_unit"],
        bad_limit=data["bad_record_limit"],
        report=report,
        host=host,
        workers=os.cpu_count() if data["workers"] < 0 else data["workers"],
    )
    return pipeline, tokenizer


def held_out_batches(config, stage, network, *, mesh, host):
    """The first batches of config.held_out.sources, none where the stage has no use for them, and their mixture.

    `build_pipeline` tells of the arguments.
    """
    held_out, s = config["held_out"], config["stages"][stage]
    mixture = [share if held_out["sources"].get(task) else 0 for task, share in zip(TASKS, s["mixture"], strict=True)]
    if stage == freezing.TOKENIZER or not any(mixture):
        return [], mixture
    own = s | {"sources": held_out["sources"], "mixture": mixture, "phases": ()}
    config = config | {"stages": {stage: own}, "data": config["data"] | {"prompt_drop": 0.0}}
    pipeline, _ = build_pipeline(config, stage, network, mesh=mesh, host=host)
    try:
        return [next(pipeline).batch for _ in range(held_out["batches"])], mixture
    finally:
        pipeline.close()


def open_sources(config, names):
    """{name: Source}; a name that config.data.sources lacks is an error."""
    sources = config["data"]["sources"]
    unknown = [name for name in names if name not in sources]
    if unknown:
        raise UserError(f"A stage mixes source {unknown[0]!r}; config.data.sources has {sorted(sources)}.")
    return {name: Source(name, **sources[name]) for name in names}


def build_maker(config, stage, network):
    """What makes a stage's examples of records: ExampleMaker, and the TextTokenizer it uses."""
    data, s, model = config["data"], config["stages"][stage], config["model"]
    tokenizer = text_tokenizer.load(data["tokenizer"])
    if tokenizer.size > model["llm"]["vocab_size"]:
        raise UserError(
            f"The text tokenizer has {tokenizer.size} tokens, config.model.llm.vocab_size is {model['llm']['vocab_size']}."
        )
    encoder, path = model["understanding"]["encoder"], network.merge(network.abstract).path
    make = ExampleMaker(
        tokenizer,
        template=s["template"],
        und_tokens=(encoder["image_size"] // encoder["patch_size"]) ** 2,
        gen_tokens=path.num_tokens,
        prefix_tokens=path.prefix_tokens,
        attend_to_dropped_prompt=path.attend_to_dropped_prompt,
        max_length=s["length"],
        **{
            k: data[k]
            for k in ("roles", "system_prompt", "caption_prompt", "prompt_drop", "first_sentence", "crop", "overlong")
        },
    )
    return make, tokenizer


def check_stage(config, stage):
    """Looks at a stage's numbers before anything is built.

    Raises:
      UserError: for a number that no run can have, with its field.
    """
    s = config["stages"][stage]
    least = {f"stages.{stage}.{k}": (s[k], 1) for k in ("steps", "batch", "rows", "length", "microbatches")}
    least |= {f"stages.{stage}.{k}": (s[k], 0) for k in ("warmup", "und_slots", "gen_slots")}
    least |= {k: (config[k], 1) for k in ("save_every", "log_every", "keep_checkpoints", "max_skipped_steps")}
    least |= {
        "seed": (config["seed"], 0),
        "ema": (config["ema"], 0),
        "data.shards": (config["data"]["shards"], 1),
        "data.window": (config["data"]["window"], 1),
    }
    for field, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"config.{field} is {value}; it must be at least {smallest}.")
    llm, encoder = config["model"]["llm"], config["model"]["understanding"]["encoder"]
    for name, net in {"llm": llm, "understanding.encoder": encoder}.items():
        if net["num_heads"] < 1 or net["embed_dim"] % net["num_heads"]:
            raise UserError(f"config.model.{name}: {net['num_heads']} heads do not divide embed_dim, {net['embed_dim']}.")
    if llm["num_kv_heads"] < 1 or llm["num_heads"] % llm["num_kv_heads"]:
        raise UserError(
            f"config.model.llm: num_kv_heads, {llm['num_kv_heads']}, do not divide num_heads, {llm['num_heads']}."
        )
    if llm["embed_dim"] // llm["num_heads"] % 2:
        raise UserError("config.model.llm: embed_dim / num_heads, of which positions rotate pairs, is odd.")
    if config["ema"] >= 1:
        raise UserError(f"config.ema is {config['ema']}; the average would never move: it must be below 1.")
    for phase in ({"mixture": s["mixture"]}, *s["phases"]):
        unknown = sorted(set(phase) - {"until", "mixture", "sources"})
        if (
            unknown
            or len(phase.get("mixture", s["mixture"])) != len(TASKS)
            or (phase in s["phases"] and "until" not in phase)
        ):
            raise UserError(
                f"config.stages.{stage} has a phase {dict(phase)}; a phase holds `until`, and `mixture` (three shares) "
                "or `sources` where these change."
            )
    if stage == freezing.TOKENIZER and s["microbatches"] > 1:
        raise UserError(
            f"Stage {stage} cannot be cut into microbatches: its tokenizer looks at all pictures of a step at once."
        )


def phases_of(s):
    """A stage's phases; the last one lasts to its end."""
    phases = [Phase(p["until"], p.get("mixture", s["mixture"]), p.get("sources", s["sources"])) for p in s["phases"]]
    return [*phases, Phase(s["steps"], s["mixture"], s["sources"])]


def source_names(s):
    """Names of the sources that a stage mixes in any of its phases."""
    shares = [(p.sources.get(task) or {}, share) for p in phases_of(s) for task, share in zip(TASKS, p.ratio, strict=True)]
    return sorted({name for sources, share in shares if share for name in sources})


def check_division(s, mesh):
    """Number of pack groups, S; sizes that do not divide are an error with the numbers."""
    if s["batch"] % s["rows"]:
        raise UserError(f"Batch {s['batch']} does not divide into pack groups of {s['rows']} rows (config.stages.*.rows).")
    groups, parts = s["batch"] // s["rows"], sharding.batch_divisor(mesh) * s["microbatches"]
    if groups % parts:
        raise UserError(
            f"Batch {s['batch']} makes {groups} pack groups of {s['rows']} rows, which do not divide over data x fsdp x "
            f"microbatches = {parts}; use a batch that is a multiple of {parts * s['rows']}, fewer rows a group, or "
            "another --config.mesh."
        )
    return groups


def stage_seed(config, stage):
    """Stages draw differently from one seed."""
    return config["seed"] * len(freezing.ORDER) + freezing.ORDER.index(stage)
