"""The training loop: a `for` over the stages of a recipe, and in each a `for` over its steps."""

import jax
from absl import logging

from janus_jax import distributed, hardware, train_step
from janus_jax.data.pipeline import Prefetch
from janus_jax.layers.packed_attention import kernel_of
from janus_jax.recipe.data import build_pipeline, check_caches
from janus_jax.train import preflight, resume
from janus_jax.train.at_checkpoint import AtCheckpoint
from janus_jax.train.curves import write_curves
from janus_jax.train.metrics import Log, Profile, Reporter


def train(config, workdir, *, preempted=lambda step: False):
    """Runs the stages of a config in order, from wherever the workdir is.

    Args:
      config: ConfigDict, as a page of configs/ returns it.
      workdir: Path of the run's folder.
      preempted: step -> whether training must checkpoint and exit after it.

    Returns:
      whether it stopped because it was preempted.
    """
    for stage in preflight.open_run(config, workdir):
        if train_stage(stage, workdir, preempted=preempted):
            return True
    if distributed.is_primary():
        write_curves(workdir)
    return False


def train_stage(stage, workdir, *, preempted):
    """Sets up a stage, restores its state, trains to its end; returns True if it was preempted."""
    start = resume.newest_checkpoint(workdir)
    if resume.is_done(stage, start):
        logging.info("Stage %s: done, at step %d", stage.name, start.step)
        return False
    pipeline, tokenizer = build_pipeline(
        stage,
        host=distributed.host_share(stage.mesh),
        report=workdir / preflight.bad_records_file(),
    )
    with jax.set_mesh(stage.mesh):
        state, about = resume.restore_or_begin(stage, start, pipeline)
        check_caches(stage, pipeline.sources, state.params)
        about["tokenizer"] = tokenizer.text
        first_step = about["stage_start"]
        log = Log(workdir, resumed_step=first_step + int(state.step))
        logging.info("Stage %s: %s", stage.name, _describe(stage, state, start))
        at_checkpoint = AtCheckpoint(stage, about, tokenizer, workdir, log)
        try:
            profile = Profile(stage.config["profile_steps"], workdir / "profile")
            reporter = Reporter(stage, state, first_step, log, profile)
            return _steps(stage, state, pipeline, at_checkpoint, reporter, preempted)
        finally:
            at_checkpoint.close()
            log.close()


def _steps(stage, state, pipeline, at_checkpoint, reporter, preempted):
    """Trains to the end of the stage or until it is preempted; returns True in the latter case.

    The metrics of a step are read after the next one has been dispatched, so the device never waits
    for the host.
    """
    step = train_step.jit(stage, state)
    calibrate = train_step.jit_calibrate(stage, state)
    data = Prefetch(pipeline)
    try:
        for number in range(int(state.step) + 1, stage.last_step + 1):
            packed = next(data)
            batch = distributed.put_batch(stage.mesh, packed.batch)
            reporter.before(number)
            state, metrics = step(state, batch)
            reporter.add(number, packed, metrics)
            stopping = preempted(reporter.global_step)
            saving = (
                number % stage.config["save_every"] == 0 or number == stage.last_step or stopping
            )
            if stage.objective.calibrates(number, saving=saving):
                state = calibrate(state, batch)
            if saving:
                reporter.flush()
                at_checkpoint(state, batch, position=packed.state, stopping=stopping)
                reporter.checkpointed()
            if stopping:
                return True
        return False
    finally:
        data.close()
        reporter.close()


def _describe(stage, state, start):
    """Where the stage starts and what it trains, in a line."""
    count = lambda tree: f"{sum(a.size for a in tree.values()) / 1e6:.1f}M"
    origin = "starts from fresh parameters or init_from"
    if start:
        resumed = start.about["stage"] == stage.name
        origin = f"{'resumes at' if resumed else 'starts from'} step {start.step}"
    mesh = " x ".join(f"{axis}={size}" for axis, size in stage.mesh.shape.items())
    kernel = kernel_of(jax.devices()[0].device_kind, stage.settings["length"], stage.mask).__name__
    trained = f"{count(state.trainable)} parameters train, {count(state.frozen)} are frozen"
    needed = stage.bytes_per_device / hardware.GIB
    memory = f"about {needed:.2f} GiB per device"
    return f"{origin}; {trained}; mesh {mesh}; attention by {kernel}; {memory}"
