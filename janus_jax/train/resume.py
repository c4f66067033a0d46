"""Where a stage starts: its own checkpoint, an earlier stage's, init_from, or fresh parameters."""

import sys

import jax
from absl import logging

from janus_jax import checkpoint, distributed, train_step
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.recipe import freezing
from janus_jax.recipe.checks import complete
from janus_jax.recipe.stage import to_json
from janus_jax.train_step import TrainState

# May change in the middle of a stage
MIXTURE_FIELDS = ("mixture", "phases", "sources", "und_slots", "gen_slots")


def newest_checkpoint(workdir):
    """The newest checkpoint, on which all processes must agree; exits with 75 where they do not."""
    newest = checkpoint.newest(workdir)
    mine = newest.step if newest else -1
    primary = distributed.from_primary(mine)
    if mine != primary:
        logging.error(
            "This process finds checkpoint %d in %s and process 0 finds %d: do all processes share "
            "the workdir's filesystem?",
            mine,
            workdir,
            primary,
        )
        sys.exit(distributed.PREEMPTED)
    return newest


def is_resumed(stage, start):
    """Whether the newest checkpoint, or None, is one of this stage."""
    return start is not None and start.about["stage"] == stage.name


def is_done(stage, start):
    """Whether the newest checkpoint is the end of this stage."""
    return is_resumed(stage, start) and start.step - start.about["stage_start"] >= stage.last_step


def restore_or_begin(stage, start, pipeline):
    """A stage's state, and the data at its position.

    Args:
      stage: Stage.
      start: Saved, the workdir's newest checkpoint, or None.
      pipeline: Pipeline, which goes to the saved position.

    Returns:
      TrainState, and what every checkpoint of the stage carries: stage, stage_start, config,
        mixtures.

    Raises:
      UserError: for a config that changed what may not change, and for parameters that nothing
        provides.
    """
    about = {"stage": stage.name, "config": to_json(stage.config)}
    if not is_resumed(stage, start):
        mixtures = [{"from_step": 0, **_mixture(stage, pipeline.sources)}]
        return _begin(stage, start), about | {
            "stage_start": start.step if start else 0,
            "mixtures": mixtures,
        }
    _check_unchanged(stage, start.about["config"])
    mixtures, changed = _mixtures(stage, start, pipeline.sources)
    pipeline.set_state(start.about["data"], new_mixture=changed)
    return _restore(stage, start), about | {
        "stage_start": start.about["stage_start"],
        "mixtures": mixtures,
    }


def _restore(stage, saved):
    """The state that a checkpoint of this very stage holds, on today's mesh."""
    abstract = train_step.abstract_state(stage)
    params = checkpoint.load_params(saved, abstract.params)
    names = ("opt_state", "step", "skipped")
    restored = checkpoint.load_optimizer(saved, {name: getattr(abstract, name) for name in names})
    return TrainState(
        trainable={path: params[path] for path in abstract.trainable},
        frozen={path: params[path] for path in abstract.frozen},
        ema=checkpoint.load_ema(saved, abstract.ema),
        **restored,
    )


def _begin(stage, saved):
    """A stage's first state: parameters of an earlier stage or init_from, or fresh if allowed."""
    config = stage.config
    origins = (
        [saved]
        if saved
        else [checkpoint.open_saved(path) for path in filter(None, config["init_from"].split(","))]
    )
    abstract, params = stage.abstract_params, {}
    for origin in origins:
        stored = checkpoint.param_structs(origin)
        params |= checkpoint.load_params(
            origin, {p: a for p, a in abstract.items() if p in stored and p not in params}
        )
    missing = [path for path in abstract if path not in params]
    if not stage.trains_tokenizer:
        _check_missing(stage, missing, origins)
    if missing:
        fresh = {path: abstract[path] for path in missing}
        params |= train_step.init_params(stage.network, fresh, jax.random.key(config["seed"]))
    if not stage.trains_tokenizer:
        params |= {path: a for path, a in _from_tokenizer(stage, params).items() if path in missing}
    return train_step.first_state(stage, params)


def _from_tokenizer(stage, params):
    """Initial values that come from the trained tokenizer, such as a code embedding table."""
    own = {
        p.removeprefix("generation/"): a for p, a in params.items() if p.startswith("generation/")
    }
    values = generation_path(stage.model["generation"]["kind"]).Nets.initial_values(own)
    return {f"generation/{path}": value for path, value in values.items()}


def _check_missing(stage, missing, origins):
    """Raises UserError for parameters that neither a checkpoint nor init_fresh provides."""
    allowed = freezing.matching(stage.config["init_fresh"], missing)
    absent = sorted({"/".join(path.split("/")[:2]) for path in missing if path not in allowed})
    if not absent:
        return
    if not origins:
        raise UserError(
            f"Stage {stage.name} has no checkpoint to start from: nothing provides {absent}. Run "
            "the stage before it in this workdir, or name a workdir or checkpoint that holds them "
            "with --config.init_from=DIR."
        )
    where = ", ".join(repr(str(origin.directory / str(origin.step))) for origin in origins)
    raise UserError(
        f"{where} has no {absent}. To start them fresh, add their names to --config.init_fresh."
    )


def _mixture(stage, sources):
    """What a stage draws from now: MIXTURE_FIELDS, and the number of records of every source."""
    records = {name: len(source) for name, source in sources.items()}
    return {name: to_json(stage.settings[name]) for name in MIXTURE_FIELDS} | {"records": records}


def _mixtures(stage, start, sources):
    """The mixtures of a stage so far, each with its first step; and whether the last one is new."""
    before, now = start.about["mixtures"], _mixture(stage, sources)
    last = {name: before[-1].get(name) for name in now}
    if last == now:
        return before, False
    step = start.step - start.about["stage_start"]
    logging.info(
        "The mixture changes at step %d of the stage, from %s to %s",
        step,
        last["mixture"],
        now["mixture"],
    )
    for name, count in now["records"].items():
        if (earlier := (last["records"] or {}).get(name, count)) != count:
            logging.warning(
                "Source %r had %d records and now has %d: it is shuffled again from here",
                name,
                earlier,
                count,
            )
    return [*before, {"from_step": step, **now}], True


def _check_unchanged(stage, saved_config):
    """Raises UserError if anything changed that the arrays or the data position depend on."""
    may_change = ("steps", "stop_at", "microbatches", *MIXTURE_FIELDS)

    def fields(config):
        settings = config["stages"][stage.name].items()
        generation = dict(config["model"]["generation"])
        if not stage.trains_tokenizer:
            generation.pop("tokenizer_training", None)  # nothing here depends on it
        return {
            "seed": config["seed"],
            "model": config["model"] | {"generation": generation},
            "optimizer": config["optimizer"],
            "ema": config.get("ema", 0.0),
            "data.shards": config["data"]["shards"],
            **{
                f"stages.{stage.name}.{name}": value
                for name, value in settings
                if name not in may_change
            },
        }

    before, now = fields(complete(saved_config)), fields(to_json(stage.config))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"Stage {stage.name} has begun and config.{name} has changed from {before.get(name)} "
            f"to {now[name]}; keep it, or start the stage again in another --workdir with "
            "--config.init_from."
        )
