"""Checks of a config before anything is built; every error names the field."""

from janus_jax import sharding
from janus_jax.batch import TASKS
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.objectives import OBJECTIVES
from janus_jax.recipe.freezing import TOKENIZER, stage_number


def complete(config):
    """A config with all its fields: those that a page left out of `tokenizer_training`, and those
    that configs of earlier versions lack, as checkpoints carry them along.
    """
    stages = {}
    for name, settings in config["stages"].items():
        default = "tokenizer" if name == TOKENIZER else "joint"
        stages[name] = {"objective": default} | settings
    generation = dict(config["model"]["generation"])
    if given := generation.get("tokenizer_training"):
        defaults = generation_path(generation["kind"]).Tokenizer.training_defaults
        generation["tokenizer_training"] = defaults | given
    model = config["model"] | {"generation": generation}
    return config | {"model": model, "stages": stages}


def check_stage(config, name):
    """Checks a stage's numbers.

    Raises:
      UserError: for a number that no run can have, with its field.
    """
    stage_number(name)
    settings = config["stages"][name]
    if settings["objective"] not in OBJECTIVES:
        raise UserError(
            f"config.stages.{name}.objective is {settings['objective']!r}; known: "
            f"{sorted(OBJECTIVES)}."
        )
    if OBJECTIVES[settings["objective"]].trains_tokenizer != (name == TOKENIZER):
        raise UserError(
            f"config.stages.{name}.objective is {settings['objective']!r}; the stage that trains "
            f"the tokenizer, and only that one, is named {TOKENIZER!r}."
        )
    _check_minima(config, name)
    _check_heads(config["model"])
    if config["ema"] >= 1:
        raise UserError(
            f"config.ema is {config['ema']}; the average would never move: it must be below 1."
        )
    if OBJECTIVES[settings["objective"]].trains_tokenizer:
        _check_tokenizer_training(config["model"]["generation"], name)
    for phase in ({"mixture": settings["mixture"]}, *settings["phases"]):
        unknown = sorted(set(phase) - {"until", "mixture", "sources"})
        shares = phase.get("mixture", settings["mixture"])
        if (
            unknown
            or len(shares) != len(TASKS)
            or (phase in settings["phases"] and "until" not in phase)
        ):
            raise UserError(
                f"config.stages.{name} has a phase {dict(phase)}; a phase has `until`, and "
                "`mixture` (three shares) "
                "or `sources` where these change."
            )


def _check_tokenizer_training(generation, name):
    training = generation.get("tokenizer_training")
    if not training:
        raise UserError(
            f"config.stages.{name} trains the tokenizer; give its losses in "
            "config.model.generation.tokenizer_training."
        )
    known = generation_path(generation["kind"]).Tokenizer.training_defaults
    if unknown := sorted(training.keys() - known):
        raise UserError(
            f"config.model.generation.tokenizer_training has no field {unknown[0]!r}; known: "
            f"{sorted(known)}."
        )


def _check_minima(config, name):
    settings = config["stages"][name]
    minima = {
        f"stages.{name}.{k}": (settings[k], 1)
        for k in ("steps", "batch", "rows", "length", "microbatches")
    }
    minima |= {f"stages.{name}.{k}": (settings[k], 0) for k in ("warmup", "und_slots", "gen_slots")}
    minima |= {
        k: (config[k], 1)
        for k in ("save_every", "log_every", "keep_checkpoints", "max_skipped_steps")
    }
    minima |= {
        "seed": (config["seed"], 0),
        "ema": (config["ema"], 0),
        "data.shards": (config["data"]["shards"], 1),
        "data.window": (config["data"]["window"], 1),
    }
    for field, (value, minimum) in minima.items():
        if value < minimum:
            raise UserError(f"config.{field} is {value}; it must be at least {minimum}.")


def _check_heads(model):
    llm = model["llm"]
    for name, net in {
        "llm": llm,
        "understanding.encoder": model["understanding"]["encoder"],
    }.items():
        if net["num_heads"] < 1 or net["embed_dim"] % net["num_heads"]:
            raise UserError(
                f"config.model.{name}: num_heads, {net['num_heads']}, does not divide "
                f"embed_dim, {net['embed_dim']}."
            )
    if llm["num_kv_heads"] < 1 or llm["num_heads"] % llm["num_kv_heads"]:
        raise UserError(
            f"config.model.llm: num_kv_heads, {llm['num_kv_heads']}, does not divide num_heads, "
            f"{llm['num_heads']}."
        )
    head_dim = llm["embed_dim"] // llm["num_heads"]
    if head_dim % 2:
        raise UserError(
            f"config.model.llm: embed_dim / num_heads is {head_dim}; rotary positions "
            "need an even number."
        )


def count_groups(settings, mesh):
    """Number of pack groups, S, of a stage's settings on a mesh.

    Raises:
      UserError: for sizes that do not divide, with the numbers.
    """
    batch, rows = settings["batch"], settings["rows"]
    if batch % rows:
        raise UserError(
            f"Batch {batch} does not divide into pack groups of {rows} rows (config.stages.*.rows)."
        )
    groups = batch // rows
    parts = sharding.batch_divisor(mesh) * settings["microbatches"]
    if groups % parts:
        raise UserError(
            f"Batch {batch} makes {groups} pack groups of {rows} rows, which do not divide over "
            "data x fsdp x "
            f"microbatches = {parts}; use a batch that is a multiple of {parts * rows}, fewer rows "
            "per group, or "
            "another --config.mesh."
        )
    return groups
