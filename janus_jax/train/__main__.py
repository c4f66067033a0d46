"""Trains a recipe, stage after stage, in one workdir, and picks up where it stopped.

    python -m janus_jax.train --config=configs/tiny.py --workdir=runs/tiny
    python -m janus_jax.train --config=configs/pro_7b.py:2 --workdir=runs/pro_7b --config.init_from=runs/other

Without :STAGE all stages of the config run in order. Any field can be changed: --config.seed=1,
--config.stages.stage_2.steps=500, --config.data.sources.captions.path='/data/*.array_record'.

A stage starts from the first of these that exists:
    1. its own newest checkpoint in the workdir: everything continues, bit for bit
    2. the newest checkpoint of a stage before it in the workdir: parameters only
    3. --config.init_from, a workdir or a checkpoint: parameters only
    4. nothing, where --config.init_fresh lets every parameter start fresh

The workdir holds checkpoints/, metrics.jsonl (one JSON object a step), TensorBoard events, config.json, and samples/,
contact sheets of config.samples.prompts as the model draws them at every checkpoint; then the losses on
config.held_out.sources and the scores on config.samples.shapes are logged, too.
"""

import glob
import math
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging

from janus_jax import checkpoint, cli, distributed, hardware, sharding, train_step
from janus_jax.data.files import make_folder
from janus_jax.data.pipeline import COUNTS, Prefetch, statistics
from janus_jax.errors import UserError
from janus_jax.layers.packed_attention import kernel_of
from janus_jax.models.janus import pick_path
from janus_jax.prepare import cache
from janus_jax.recipe import assembly, freezing, states
from janus_jax.train.held_out import HeldOut
from janus_jax.train.metrics import Log, Profile, Progress, readable
from janus_jax.train.samples import SampleLogger
from janus_jax.train_step import TrainState

CONNECTED = cli.distributed_flags()
CONFIG = cli.config_flag()
WORKDIR = cli.flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> without it.")


def main():
    """Reads the flags and trains; after SIGTERM the state is saved and the exit code is 75."""
    if CONFIG.value is None:
        raise UserError("Name a config: python -m janus_jax.train --config=configs/tiny.py.")
    workdir = WORKDIR.value or f"runs/{Path(cli.config_file()).stem}"
    if "://" in workdir:
        raise UserError(f"--workdir={workdir} is no folder; mount the bucket (gcsfuse, say) and name the mounted folder.")
    with CONNECTED():
        if train(CONFIG.value, Path(workdir).absolute(), preempted=distributed.preemption()):
            sys.exit(distributed.PREEMPTED)


def train(config, workdir, *, preempted=lambda step: False):
    """Runs the stages of a config in order, from wherever the workdir is.

    Args:
      config: ConfigDict, as a page of configs/ returns it.
      workdir: Path of the run's folder.
      preempted: whether the run must save and stop behind a step.

    Returns:
      whether it stopped so.
    """
    text, config = config.to_json_best_effort(indent=1), config.to_dict()
    chosen = sorted(config["stages"], key=_order)
    for stage in chosen:
        assembly.check_stage(config, stage)
    newest = _newest(workdir)
    reached = _order(newest.about["stage"]) if newest else -1
    if len(chosen) == 1 and reached > _order(chosen[0]):
        raise UserError(
            f"{str(workdir)!r} is already at {newest.about['stage']}, after {chosen[0]}; name another --workdir, with "
            "--config.init_from to start from one of these checkpoints."
        )
    mesh = sharding.make_mesh(**config["mesh"])
    networks = {stage: assembly.build_network(config, stage) for stage in chosen if _order(stage) >= reached}
    for stage, network in networks.items():
        _check_room(config, stage, network, mesh)
    make_folder(workdir)
    cli.enable_compile_cache(workdir / ".jax_cache")
    if distributed.is_primary():
        checkpoint.set_damaged_aside(workdir, newer_than=newest.step if newest else -1)
        (workdir / "config.json").write_text(text)
    logging.info("Done before: %s", ", ".join(set(chosen) - networks.keys())) if len(networks) < len(chosen) else None
    return any(
        train_stage(config, stage, workdir, network=network, mesh=mesh, preempted=preempted)
        for stage, network in networks.items()
    )


def train_stage(config, stage, workdir, *, network, mesh, preempted):
    """Sets a stage up, restores it, and loops to its end.

    Args:
      config: resolved config, a plain dict.
      stage: a key of config['stages'].
      workdir: folder of the run.
      network: of the stage.
      mesh: where it trains.
      preempted: whether the run must save and stop behind a step.

    Returns:
      whether it stopped so.
    """
    s = config["stages"][stage]
    last = s["stop_at"] or s["steps"]
    start = _newest(workdir)
    resumed = start if start and start.about["stage"] == stage else None
    if resumed and resumed.step - resumed.about["stage_start"] >= last:
        logging.info("Stage %s: done, at step %d", stage, resumed.step)
        return False
    if resumed:
        _check_same(resumed.about["config"], cli.plain(config), stage)

    report = workdir / ("bad_records.jsonl" if jax.process_count() == 1 else f"bad_records_{jax.process_index()}.jsonl")
    host = distributed.host_share(mesh)
    pipeline, tokenizer = assembly.build_pipeline(config, stage, network, mesh=mesh, host=host, report=report)
    tx, rate = assembly.build_optimizer(config, stage, network)
    with jax.set_mesh(mesh):
        if resumed:
            state = _resume(resumed, config, stage, network, tx, mesh)
            mixtures, changed = _mixtures(resumed, s, pipeline.sources)
            pipeline.set_state(resumed.about["data"], new_mixture=changed)
            stage_start = resumed.about["stage_start"]
        else:
            state = _begin(start, config, stage, network, tx, mesh)
            mixtures, stage_start = [{"from_step": 0, **_mixed(s, pipeline.sources)}], start.step if start else 0
        cache.check(pipeline.sources, state.trainable | state.frozen, config, stage)
        log = Log(workdir, resumed_step=stage_start + int(state.step))
        logging.info("Stage %s: %s", stage, _describe(state, mesh, resumed, start, length=s["length"]))
        about = {
            "stage": stage, "stage_start": stage_start, "config": cli.plain(config), "mixtures": mixtures,
            "tokenizer": tokenizer.text,
        }  # fmt: skip
        step = states.jit_step(config, stage, network, tx, rate, state=state, mesh=mesh)
        settle = lambda state, batch: state
        if stage == freezing.TOKENIZER:  # at every checkpoint, so that a stage may start from any of them
            settle = jax.jit(train_step.make_settle(network), out_shardings=jax.tree.map(lambda x: x.sharding, state))
        writer = checkpoint.Writer(workdir, keep=config["keep_checkpoints"])
        sample_logger = SampleLogger(network, tokenizer, config, stage, folder=workdir / "samples", log=log)
        unseen, mixture = assembly.held_out_batches(config, stage, network, mesh=mesh, host=host)
        held_out = HeldOut(network, unseen, mixture=mixture, mesh=mesh, log=log)
        profile = Profile(config["profile_steps"], workdir / "profile")
        try:
            return _loop(
                step, state, pipeline, mesh=mesh, config=config, stage=stage, last=last, about=about, log=log,
                writer=writer, sample_logger=sample_logger, held_out=held_out, settle=settle, profile=profile, preempted=preempted,
            )  # fmt: skip
        finally:
            writer.wait()
            log.close()


def _newest(workdir):
    """The newest checkpoint, which all processes must see alike."""
    found = checkpoint.newest(workdir)
    mine, first = (found.step if found else -1), distributed.from_primary(found.step if found else -1)
    if mine != first:
        logging.error("This process finds checkpoint %d in %s and the first one %d: is it one disk?", mine, workdir, first)
        sys.exit(distributed.PREEMPTED)
    return found


def _loop(
    step, state, pipeline, *, mesh, config, stage, last, about, log, writer, sample_logger, held_out, settle, profile, preempted
):
    """Steps to the end of the stage, or to where the run is preempted, and says whether it was.

    Metrics are read one step late, when the next step is already on its way.
    """
    trainable = tuple(state.trainable)
    peak, offset, done = hardware.peak_flops(), about["stage_start"], int(state.step)
    progress = Progress(f"stage {stage}", done=done, total=last)
    data = Prefetch(pipeline)
    pending, saved_at, before, stopped = None, offset + done, time.perf_counter(), False

    def report(late):
        nonlocal before
        number, packed, counts, metrics = late
        values, counts = readable(jax.device_get(metrics)), {k: np.asarray(n).tolist() for k, n in counts.items()}
        stats = packed.stats | statistics(counts)
        seconds, before = time.perf_counter() - before, time.perf_counter()
        useful = sum(assembly.step_flops(config, stats, trainable=trainable).values())
        skipped = values.pop("skipped")
        values |= {k: stats[k] for k in ("token_fill", "slot_fill", "ratio")}
        values |= {f"epochs/{name}": round(share, 4) for name, share in stats["epochs"].items()}
        values |= {
            "tokens_per_second": stats["tokens"] / seconds,
            "mfu": useful / seconds / peak,
            "seconds": seconds,
        }
        if number % config["log_every"] == 0 or number == last:
            log.write(offset + number, {"stage": stage, **values})
        progress.update(number, f"loss {values['loss']:.4f}  {values['tokens_per_second']:.0f} tokens/s")
        if skipped >= config["max_skipped_steps"]:
            raise UserError(
                f"Loss or gradient was not finite at {skipped} steps in a row, the last one {offset + number}, with "
                f"records {packed.record_ids[:8]}; the last good checkpoint is step {saved_at}. Lower "
                f"config.stages.{stage}.lr or look at these records."
            )

    try:
        while done < last and not stopped:
            packed = next(data)
            batch = distributed.put_batch(mesh, packed.batch)
            counts = distributed.sum_over_hosts(mesh, {name: packed.stats[name] for name in COUNTS})
            profile.before(done + 1)
            state, metrics = step(state, batch)
            if pending:
                report(pending)
            done += 1
            profile.after(done, metrics)
            pending, stopped = (done, packed, counts, metrics), preempted(offset + done)
            if done % config["save_every"] == 0 or done == last or stopped:
                report(pending)
                pending = None
                state = settle(state, batch)
                _save(writer, offset + done, state, about | {"data": distributed.merge_dicts(packed.state)})
                saved_at = offset + done
                if not stopped:
                    held_out(saved_at, state.trainable | state.frozen)
                    sample_logger(saved_at, state.trainable | state.frozen | state.ema, batch)
                    sample_logger.score(saved_at, state.trainable | state.frozen | state.ema)
                before = time.perf_counter()
        return stopped
    finally:
        profile.close()
        data.close()
        progress.close()


def _save(writer, number, state, about):
    optimizer = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    writer.save(number, params=state.trainable | state.frozen, optimizer=optimizer, ema=state.ema, about=about)


def _begin(saved, config, stage, network, tx, mesh):
    """A stage's first state: parameters of the stage before or of init_from, fresh ones where allowed."""
    origins = [saved] if saved else [checkpoint.open_saved(path) for path in filter(None, config["init_from"].split(","))]
    abstract = states.abstract_params(config, stage, network, mesh)
    loaded = {}
    for origin in origins:
        held = checkpoint.param_structs(origin)
        loaded |= checkpoint.load_params(origin, {p: a for p, a in abstract.items() if p in held and p not in loaded})
    missing = [path for path in abstract if path not in loaded]
    if stage != freezing.TOKENIZER:
        _check_missing(missing, origins, config, stage)
    fresh = {}
    if missing:
        fresh = states.fresh_params(network, {p: abstract[p] for p in missing}, jax.random.key(config["seed"]))
    params = loaded | fresh
    if stage != freezing.TOKENIZER:
        params = _start_from_tokenizer(params, missing, config)
    return states.first_state(config, stage, params, tx, mesh)


def _start_from_tokenizer(params, missing, config):
    """Fresh parts that take their start from the tokenizer, as the path says."""
    inside = {p.removeprefix("generation/"): a for p, a in params.items() if p.startswith("generation/")}
    started = pick_path(config["model"]["generation"]["kind"]).start_from_tokenizer(inside)
    return params | {f"generation/{p}": a for p, a in started.items() if f"generation/{p}" in missing}


def _check_missing(missing, origins, config, stage):
    """Parameters that neither a checkpoint nor init_fresh provides are an error that names the way out."""
    allowed = freezing.matching(config["init_fresh"], missing)
    lacking = sorted({"/".join(p.split("/")[:2]) for p in missing if p not in allowed})
    if not lacking:
        return
    if not origins:
        raise UserError(
            f"Stage {stage} has no checkpoint to start from: nothing provides {lacking}. Run the stage before it in "
            "this workdir, or name a workdir or checkpoint that holds them with --config.init_from=DIR."
        )
    where = ", ".join(repr(str(o.directory / str(o.step))) for o in origins)
    raise UserError(f"{where} has no {lacking}. To start them fresh, add their names to --config.init_fresh.")


def _resume(saved, config, stage, network, tx, mesh):
    """The state a checkpoint of this very stage holds, on today's mesh."""
    wanted = states.abstract_state(config, stage, network, tx, mesh)
    params = checkpoint.load_params(saved, wanted.trainable | wanted.frozen)
    restored = checkpoint.load_optimizer(saved, {name: getattr(wanted, name) for name in ("opt_state", "step", "skipped")})
    return TrainState(
        step=restored["step"],
        trainable={p: params[p] for p in wanted.trainable},
        frozen={p: params[p] for p in wanted.frozen},
        opt_state=restored["opt_state"],
        ema=checkpoint.load_ema(saved, wanted.ema),
        skipped=restored["skipped"],
    )


def _check_room(config, stage, network, mesh):
    """Says before anything runs when data lack or the state cannot fit: 16 bytes where it trains, 20 with EMA."""
    params = states.abstract_params(config, stage, network, mesh)
    trainable, frozen = freezing.split(params, assembly.frozen_patterns(config, stage))
    size = lambda leaf, width: width * math.prod(leaf.sharding.shard_shape(leaf.shape))
    each = 20 if config["ema"] else 16  # parameter, two moments, gradient, average
    need = sum(size(a, each) for a in trainable.values()) + sum(size(a, a.dtype.itemsize) for a in frozen.values())
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit is None:
        limit, need = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), need * jax.local_device_count()
    absent = _absent_data(config, stage)
    if need <= limit and not absent:
        return
    memory = f"stage {stage} needs {need / 2**30:.1f} GiB a device for its state and there are {limit / 2**30:.1f}"
    ways = []
    if need > limit:
        ways.append("run on more devices (--config.mesh spreads it)")
    if absent:
        ways.append(
            "name your data with --config.data.sources.NAME.path=... and --config.data.tokenizer=..., or make a "
            "built-in set with `python -m janus_jax.prepare shapes --out=data/shapes`"
        )
    missing = " and ".join(([memory] if need > limit else []) + ([f"no data lie at {absent}"] if absent else []))
    raise UserError(f"Cannot train here: {missing}; {', and '.join(ways)}.")


def _absent_data(config, stage):
    """Paths of the stage's sources, and the text tokenizer's, where nothing lies."""
    used = assembly.source_names(config["stages"][stage])
    paths = [config["data"]["sources"][n]["path"] for n in used if n in config["data"]["sources"]]
    return [
        path
        for path in [*paths, config["data"]["tokenizer"]]
        if not (Path(path).expanduser().exists() or glob.glob(os.path.expanduser(path), recursive=True))
    ]


def _order(stage):
    if stage == freezing.IMPORTED:
        return -1
    if stage not in freezing.ORDER:
        raise UserError(f"config.stages has {stage!r}; known stages: {list(freezing.ORDER)}.")
    return freezing.ORDER.index(stage)


MIXED = ("mixture", "phases", "sources", "und_slots", "gen_slots")  # what may change while a stage is under way


def _mixed(s, sources):
    return {name: cli.plain(s[name]) for name in MIXED} | {
        "records": {name: len(source) for name, source in sources.items()}
    }


def _mixtures(resumed, s, sources):
    """The mixtures of a stage so far, each with the step it came at; and whether today's is another than the last."""
    before, now = resumed.about["mixtures"], _mixed(s, sources)
    last = {name: before[-1].get(name) for name in now}
    if last == now:
        return before, False
    step = resumed.step - resumed.about["stage_start"]
    logging.info("The mixture changes at step %d of the stage, from %s to %s", step, last["mixture"], now["mixture"])
    for name, count in now["records"].items():
        if (earlier := (last["records"] or {}).get(name, count)) != count:
            logging.warning("Source %r had %d records and has %d: it is shuffled anew from here", name, earlier, count)
    return [*before, {"from_step": step, **now}], True


def _check_same(saved, config, stage):
    """What may not change while a stage is under way: everything its arrays and its data's position depend on."""
    fields = lambda c: {
        "seed": c["seed"], "model": c["model"], "optimizer": c["optimizer"], "ema": c.get("ema", 0.0),
        "data.shards": c["data"]["shards"],
        **{
            f"stages.{stage}.{k}": v
            for k, v in c["stages"][stage].items()
            if k not in ("steps", "stop_at", "microbatches", *MIXED)
        },
    }  # fmt: skip
    before, now = fields(saved), fields(config)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"Stage {stage} is under way and config.{changed[0]} has changed from {before.get(changed[0])} to "
            f"{now[changed[0]]}; keep it, or start the stage anew in another --workdir with --config.init_from."
        )


def _describe(state, mesh, resumed, start, *, length):
    count = lambda tree: f"{sum(a.size for a in tree.values()) / 1e6:.1f}M"
    origin = f"continues at step {resumed.step}" if resumed else f"starts from step {start.step}" if start else "starts"
    shape = " x ".join(f"{a}={n}" for a, n in mesh.shape.items())
    kernel = kernel_of(jax.devices()[0].device_kind, length).__name__
    counts = f"{count(state.trainable)} parameters train, {count(state.frozen)} are frozen"
    return f"{origin}; {counts}; mesh {shape}; attention by {kernel}"


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
