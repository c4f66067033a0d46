"""Says what a run needs on accelerators that are not here: memory, FLOPs, days; and compiles its very step for them.

    python -m janus_jax.plan --config=configs/pro_7b.py:2 --topology=v5p:4x4x4              # by formula, in a second
    python -m janus_jax.plan --config=configs/pro_7b.py:2 --topology=v5e:16x16,h100:64 --compile --json
    python -m janus_jax.plan --papers                                                       # what the papers' runs reached
    python -m janus_jax.plan --table=docs/scale.md                                          # every recipe on every pod

Topologies are TPU slices by their shape in chips (v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4), several slices
(2xv5p:4x4x4), and GPUs by number (h100:8, h100:64, h200:8). Any field of the config can be changed, as in training:
--config.mesh.tensor=2, --config.stages.stage_2.microbatches=4.

Without --compile, bytes are what the state takes, exactly, and an estimate of the activations (in all, 0.8 to 1.3 of what
the compilers say in docs/scale.md). With it, the train step is
compiled by the compiler of that device (pip install -r requirements-plan.txt; no device is needed), and bytes are the
compiler's own; they are kept in ~/.cache/janus_jax, and the same program is not compiled again. Where a setting does not
divide or fit, nearby ones are tried, and the first that does is named.

Days are FLOPs that are useful (no padding, no recomputation) at --mfu of the chips' peak in bf16.
"""

import contextlib
import copy
import hashlib
import inspect
import json
import os
import re
import sys
import time
from pathlib import Path

import jax
import rich
import rich.console
import rich.progress
import rich.table
from absl import logging

from janus_jax import cli, hlo, sharding
from janus_jax.errors import UserError
from janus_jax.hardware import GIB
from janus_jax.plan import estimate, topology
from janus_jax.plan import table as scale
from janus_jax.recipe import assembly, states

TRIES = 8  # settings that are compiled for one stage and topology

CONFIG = cli.config_flag()
TOPOLOGY = cli.flags.DEFINE_list("topology", [], "Names like v5p:4x4x4, 2xv5p:4x4x4 or h100:64, commas between.")
COMPILE = cli.flags.DEFINE_bool("compile", False, "Compiles the train step for each topology.")
MFU = cli.define_finite("mfu", 0.45, "Share of the peak that days are counted at.", lower_bound=0.01, upper_bound=1.0)
EFFORT = cli.define_finite(
    "effort",
    -1.0,
    "How hard the compiler tries to be fast; 0 is what training uses, and takes longer.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
PAPERS = cli.flags.DEFINE_bool("papers", False, "What the papers' own runs come to.")
TABLE = cli.flags.DEFINE_string("table", None, "A page to make, cell by cell: every recipe's stages on every pod.")
JSON = cli.flags.DEFINE_bool("json", False, "Ends with one JSON object a stage and topology.")


def main():
    """Reads the flags and plans."""
    topology.without_devices()
    if PAPERS.value:
        rows = estimate.papers()
        show([_of_paper(row) for row in rows])
        return _json(rows)
    if TABLE.value:
        return scale.page(TABLE.value, plan, mfu=MFU.value)
    if CONFIG.value is None or not TOPOLOGY.value:
        raise UserError(
            "Name a config and a topology: python -m janus_jax.plan --config=configs/pro_7b.py:2 --topology=v5p:4x4x4."
        )
    config, found = CONFIG.value.to_dict(), []
    wanted = [topology.parse(name) for name in TOPOLOGY.value if name]
    for target in wanted if COMPILE.value else ():
        topology.devices(target)  # a shape that there is not is told before hours of compiling
    for stage in config["stages"]:
        for target in wanted:
            cell = plan(config, stage, target, name=cli.config_file(), compiled=COMPILE.value, mfu=MFU.value)
            show([{"what": name, "value": value} for name, value in figures_of(cell).items()])
            for line in cell["notes"]:
                rich.print(f"[dim]{cell['stage']} {cell['topology']}: {line}[/dim]")
            found.append(cell)
    _json(found)


def plan(config, stage, target, *, name, compiled, mfu):
    """One stage on one topology.

    Args:
      config: resolved config, a plain dict.
      stage: a key of config['stages'].
      target: Topology.
      name: of the config.
      compiled: whether its step is compiled; by formula otherwise.
      mfu: share of the peak that days are counted at.

    Returns:
      dict: figures of the config's own setting, or of the nearest one that divides and fits.

    Raises:
      UserError: for numbers that no run can have, where no setting divides, and where --compile lacks its compiler.
    """
    assembly.check_stage(config, stage)
    config = copy.deepcopy(config)
    config["dtype"] = "bfloat16" if config["dtype"] == "auto" else config["dtype"]
    network, first, notes, tried = assembly.build_network(config, stage), None, [], 0
    for changes, setting in estimate.settings(config, stage, target, network):
        cell = estimate.cell(setting, stage, target, network, mfu=mfu)
        if first and (cell["bytes_per_device"] > 1.5 * cell["bytes_limit"] or tried == TRIES):
            continue
        if compiled:
            tried += 1
            cell |= compile_step(setting, stage, target, changes) | {"compiler": topology.compiler(target)}
        cell |= {"config": name, "changes": changes, "notes": notes}
        if cell["fits"]:
            return cell
        notes.append(f"{_words(changes)}: {cell['bytes_per_device'] / GIB:.1f} GiB of {cell['bytes_limit'] / GIB:.1f}")
        first = first or cell
    if first is None:
        raise UserError(
            f"Stage {stage} does not divide over the {target.count} devices of {target.name}, nor does any setting near its "
            f"own ({estimate.misfit(config, stage, target, network)}); give --config.mesh, "
            f"--config.stages.{stage}.batch, rows or microbatches."
        )
    notes.append(f"no setting near it fits, of {TRIES} compiled at the most" if compiled else "no setting near it fits")
    return first


def _words(changes):
    return ", ".join(f"{k}={v}" for k, v in changes.items()) or "its own setting"


def compile_step(config, stage, target, changes):
    """Compiles the train step that `train` runs, for devices that are not here: figures of the compiler."""
    mesh = sharding.make_mesh(**config["mesh"], devices=list(topology.devices(target)))
    network = assembly.build_network(config, stage)
    tx, rate = assembly.build_optimizer(config, stage, network)
    start = time.perf_counter()
    with jax.set_mesh(mesh), _watched(f"{stage} for {target.name}, {_words(changes)}"):
        state, batch = states.abstract_state(config, stage, network, tx, mesh), states.abstract_batch(config, stage, mesh)
        step = states.jit_step(config, stage, network, tx, rate, state=state, mesh=mesh)
        jax.config.update("jax_exec_time_optimization_effort", EFFORT.value)
        lowered = step.trace(state, batch).lower(lowering_platforms=(target.platform,))
        kept = _kept(lowered, target)
        if kept.exists():
            return json.loads(kept.read_text())
        try:
            found = _figures(lowered.compile(), target)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = _does_not_fit(str(error))
    found["compile_seconds"] = time.perf_counter() - start
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found))
    partial.rename(kept)
    return found


def _kept(lowered, target):
    """The file of a program's figures, named after all that they depend on. (What these compilers make cannot be loaded
    where their devices are not, so jax's own cache of programs is of no use.)
    """
    readers = [inspect.getsource(hlo), inspect.getsource(_figures), inspect.getsource(_does_not_fit)]
    parts = [lowered.as_text(), target.name, str(EFFORT.value), topology.compiler(target), *readers]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus_jax/plan" / f"{name}.json"


def _figures(compiled, target):
    """What a compiled step needs of a device."""
    kinds, text, memory = hlo.memory(compiled), compiled.as_text(), compiled.memory_analysis()
    total = sum(kinds.values())
    return {
        "compiled": True,
        "fits": total <= target.chip.memory,
        "bytes_per_device": total,
        "bytes_by_kind": kinds,
        "host_bytes": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
        "collective_bytes": hlo.collectives(text),
        "largest": [{"bytes": size, "shape": shape, "from": origin} for size, shape, origin in hlo.largest(text)],
    }


def _does_not_fit(message):
    """What a compiler that ran out of memory says of it."""
    said = {"compiled": True, "fits": False}
    if told := re.search(r"([\d.]+)([KMGT])\)? exceeds", message):  # where it does not say how much, the estimate stays
        total = float(told[1]) * 1024 ** ("KMGT".index(told[2]) + 1)
        said |= {"bytes_per_device": total, "bytes_by_kind": {"all of it": total}}
    return said


@contextlib.contextmanager
def _watched(what):
    """Shows that something is compiled, and since when."""
    if not sys.stderr.isatty():
        logging.info("Compiling %s", what)
        yield
        return
    columns = (rich.progress.SpinnerColumn(), "{task.description}", rich.progress.TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as progress:
        progress.add_task(f"compiling {what}", total=None)
        yield


def _json(rows):
    """Where --json asks for it, an object a line."""
    for row in rows if JSON.value else ():
        print(json.dumps(row), flush=True)


def show(rows):
    """Prints dicts with the same keys as a table."""
    table = rich.table.Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    rich.print(table)


def _of_paper(row):
    """A paper's run in words."""
    return {
        "run": row["run"],
        "GPUs": row["gpus"],
        "tokens": f"{row['tokens'] / 1e9:.0f} B",
        "FLOPs": f"{row['flops']:.3g}",
        "tokens/s/GPU": f"{row['tokens_per_second']:,.0f}",
        "implied MFU": f"{row['mfu']:.1%}",
    }


def figures_of(cell):
    """A cell's figures in words."""
    changes = ", ".join(f"{k} {v}" for k, v in cell["changes"].items())
    mesh = " x ".join(str(n) for n in cell["mesh"].values())
    moved = cell["collective_bytes"]
    kinds = {kind: size for kind, size in cell["bytes_by_kind"].items() if size}
    parts = {part: count / cell["flops_per_step"] for part, count in cell["flops_by_part"].items() if count}
    row = {
        "stage": f"{cell['stage'].removeprefix('stage_')} on {cell['topology']}",
        "mesh, data x fsdp x tensor": mesh,
        "changed, to divide or fit": changes or "-",
        "fits": ("yes" if cell["fits"] else "NO") + ("" if cell["compiled"] else ", by estimate"),
        "GiB a device": f"{cell['bytes_per_device'] / GIB:.2f} of {cell['bytes_limit'] / GIB:.2f}",
        **{f"  {kind}": f"{size / GIB:.2f}" for kind, size in kinds.items()},
        "parameters, B": f"{cell['parameters'] / 1e9:.3f}, {cell['trainable_parameters'] / 1e9:.3f} train",
        "useful PFLOPs a step": f"{cell['flops_per_step'] / 1e15:.2f}",
        **{f"  {part}": f"{share:.1%}" for part, share in parts.items()},
        "real tokens a step, M": f"{cell['tokens_per_step'] / 1e6:.3f}",
        f"tokens a day at {cell['mfu']:.0%}, B": f"{cell['tokens_per_day'] / 1e9:.1f}",
        f"days at {cell['mfu']:.0%}": f"{cell['days']:.2f}",
        "MiB of cache a picture to draw": f"{cell['picture_cache_bytes'] / 2**20:.1f}",
    }
    if cell["compiled"] and moved is not None:
        row["GiB from other devices"] = f"{sum(moved.values()) / GIB:.2f}"
        row |= {f"  {kind}": f"{size / GIB:.2f}" for kind, size in moved.items()}
        row["largest arrays"] = "\n".join(
            f"{b['bytes'] / GIB:.2f} {b['shape']} {b['from'][-40:]}" for b in cell["largest"][:4]
        )
    return row | {"compiled in": f"{cell['compile_seconds']:.0f} s" if cell["compiled"] else "-"}


if __name__ == "__main__":
    cli.run(main, usage=__doc__)
