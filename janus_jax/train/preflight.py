"""Checks before a run: the workdir, the config, and for each stage its memory and its data."""

import glob
import os
from pathlib import Path

import jax
from absl import logging

from janus_jax import checkpoint, cli, distributed, hardware, sharding
from janus_jax.data.files import make_folder
from janus_jax.errors import UserError
from janus_jax.recipe.data import source_names
from janus_jax.recipe.freezing import stage_number
from janus_jax.recipe.stage import make_stage
from janus_jax.train.resume import newest_checkpoint


def open_run(config, workdir):
    """Checks a config against a workdir and this machine, and makes the workdir.

    Args:
      config: ConfigDict, as a page of configs/ returns it.
      workdir: Path of the run's folder.

    Returns:
      list of Stage that are still to be trained, in order.

    Raises:
      UserError: for a workdir that is past the stage, for memory that does not suffice, and for
        missing data.
    """
    text, config = config.to_json_best_effort(indent=1), config.to_dict()
    names = sorted(config["stages"], key=stage_number)
    newest = newest_checkpoint(workdir)
    reached = stage_number(newest.about["stage"]) if newest else -1
    if len(names) == 1 and reached > stage_number(names[0]):
        raise UserError(
            f"{str(workdir)!r} is already at {newest.about['stage']}, after {names[0]}; name "
            "another --workdir, with --config.init_from to start from one of these checkpoints."
        )
    mesh = sharding.make_mesh(**config["mesh"])
    done = [name for name in names if stage_number(name) < reached]
    stages = [make_stage(config, name, mesh=mesh) for name in names if name not in done]
    for stage in stages:
        check_machine(stage)
    make_folder(workdir)
    cli.enable_compile_cache(workdir / ".jax_cache")
    if distributed.is_primary():
        checkpoint.set_damaged_aside(workdir, newer_than=newest.step if newest else -1)
        (workdir / "config.json").write_text(text)
    if done:
        logging.info("Already trained: %s", ", ".join(done))
    return stages


def check_machine(stage):
    """Checks that a stage fits into memory and that its data exist.

    Raises:
      UserError: with all that is missing.
    """
    needed, limit = stage.bytes_per_device, device_memory()
    absent = absent_data(stage)
    missing, remedies = [], []
    if needed > limit:
        missing.append(
            f"stage {stage.name} needs {needed / hardware.GIB:.1f} GiB per device and there are "
            f"{limit / hardware.GIB:.1f}"
        )
        remedies.append(
            "run on more devices (--config.mesh shards the state), with more microbatches or "
            "bfloat16 moments (`python -m janus_jax.plan` finds a setting that fits)"
        )
    if absent:
        missing.append(f"there are no data at {absent}")
        remedies.append(
            "name your data with --config.data.sources.NAME.path=... and "
            "--config.data.tokenizer=..., or make a built-in set with "
            "`python -m janus_jax.prepare shapes --out=data/shapes`"
        )
    if missing:
        raise UserError(f"Cannot train here: {' and '.join(missing)}; {', and '.join(remedies)}.")


def device_memory():
    """Bytes that a program may use per local device; CPU devices share the machine's memory."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit is None:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    return limit


def absent_data(stage):
    """Paths of the stage's sources, and of the text tokenizer, where there is nothing."""
    data = stage.config["data"]
    names = [name for name in source_names(stage) if name in data["sources"]]
    paths = [*(data["sources"][name]["path"] for name in names), data["tokenizer"]]
    exists = lambda path: (
        Path(path).expanduser().exists() or glob.glob(os.path.expanduser(path), recursive=True)
    )
    return [path for path in paths if not exists(path)]


def bad_records_file():
    """Name of this process's list of unusable records in the workdir."""
    return (
        "bad_records.jsonl"
        if jax.process_count() == 1
        else f"bad_records_{jax.process_index()}.jsonl"
    )
