"""Compiles a stage's train step for accelerators that are not attached, and reads its figures."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import sys
import time
from pathlib import Path

import jax
import rich.console
import rich.progress
from absl import logging

from janus_jax import hlo, sharding, train_step
from janus_jax.data.files import write_whole
from janus_jax.plan import topology
from janus_jax.recipe.stage import make_stage


def compile_step(stage, target, *, effort, note):
    """Compiles the train step that `train` runs.

    Args:
      stage: Stage on the abstract mesh of the topology.
      target: Topology.
      effort: how hard the compiler optimises for speed, from -1 to 1.
      note: shown with the progress, such as the changed settings.

    Returns:
      dict: the compiler's figures, keys of `plan --json`.
    """
    mesh = sharding.make_mesh(**stage.config["mesh"], devices=list(topology.devices(target)))
    stage = make_stage(stage.config, stage.name, mesh=mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh), _progress(f"{stage.name} for {target.name}, {note}"):
        state, batch = train_step.abstract_state(stage), train_step.abstract_batch(stage)
        jax.config.update("jax_exec_time_optimization_effort", effort)
        lowered = (
            train_step.jit(stage, state)
            .trace(state, batch)
            .lower(lowering_platforms=(target.platform,))
        )
        cache = _cache_file(lowered, target, effort)
        if cache.exists():
            return json.loads(cache.read_text())
        try:
            figures = _figures(lowered.compile(), target)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            figures = _out_of_memory(str(error))
    figures["compile_seconds"] = time.perf_counter() - start
    write_whole(cache, json.dumps(figures).encode())
    return figures


def _cache_file(lowered, target, effort):
    """The file of a program's figures, named after everything that they depend on.

    An executable cannot be loaded without its devices, so jax's own compilation cache does not
    help.
    """
    readers = [
        inspect.getsource(hlo),
        inspect.getsource(_figures),
        inspect.getsource(_out_of_memory),
    ]
    parts = [lowered.as_text(), target.name, str(effort), topology.compiler(target), *readers]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "janus_jax/plan"
        / f"{name}.json"
    )


def _figures(compiled, target):
    """What a compiled step needs of a device."""
    by_kind, text, memory = hlo.memory(compiled), compiled.as_text(), compiled.memory_analysis()
    total = sum(by_kind.values())
    return {
        "compiled": True,
        "fits": total <= target.chip.memory,
        "bytes_per_device": total,
        "bytes_by_kind": by_kind,
        "host_bytes": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
        "collective_bytes": hlo.collectives(text),
        "largest": [
            {"bytes": size, "shape": shape, "from": origin}
            for size, shape, origin in hlo.largest(text)
        ],
    }


def _out_of_memory(message):
    """The figures of a compiler that ran out of memory; where it does not say how much it needs,
    the estimate stays.
    """
    figures = {"compiled": True, "fits": False}
    if match := re.search(r"([\d.]+)([KMGT])\)? exceeds", message):
        total = float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)
        figures |= {"bytes_per_device": total, "bytes_by_kind": {"all of it": total}}
    return figures


@contextlib.contextmanager
def _progress(what):
    """Shows what is being compiled, and for how long."""
    if not sys.stderr.isatty():
        logging.info("Compiling %s", what)
        yield
        return
    columns = (
        rich.progress.SpinnerColumn(),
        "{task.description}",
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(
        *columns, console=rich.console.Console(stderr=True), transient=True
    ) as progress:
        progress.add_task(f"compiling {what}", total=None)
        yield
