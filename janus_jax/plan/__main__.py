"""Says what a run needs on accelerators that are not attached, and compiles its step for them.

    # by formula, in seconds
    python -m janus_jax.plan --config=configs/pro_7b.py:2 --topology=v5p:4x4x4
    # by the compiler of the device
    python -m janus_jax.plan --config=configs/pro_7b.py:2 --topology=v5e:16x16,h100:64 --compile
    # what the papers' runs reached
    python -m janus_jax.plan --papers
    # every recipe on every pod
    python -m janus_jax.plan --table=docs/scale.md

Topologies are TPU slices by their shape in chips (v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16,
tpu7x:4x4x4), several slices (2xv5p:4x4x4), and GPUs by number (h100:8, h100:64, h200:8). Any field
of the config can be changed, as in training: --config.mesh.tensor=2,
--config.stages.stage_2.microbatches=4.

By default, bytes are what the state takes, exactly, and an estimate of the activations; `train`
checks the same sum before a run. With --compile, the train step is compiled by the compiler of that
device (pip install -r requirements-plan.txt; no device is needed), and bytes are the compiler's
own. They are cached in ~/.cache/janus_jax. Where a setting does not divide or fit, nearby ones are
tried, and the first that does is named.

Days are useful FLOPs (no padding, no recomputation) at --mfu of the chips' peak in bf16.
"""

import copy
import json

import rich
import rich.table

from janus_jax import cli
from janus_jax.errors import UserError
from janus_jax.hardware import GIB
from janus_jax.plan import compiled, estimate, papers, table, topology
from janus_jax.recipe.stage import make_stage

MAX_COMPILED = 8  # settings that are compiled for one stage and topology

CONFIG = cli.config_flag()
TOPOLOGY = cli.flags.DEFINE_list(
    "topology", [], "Names like v5p:4x4x4, 2xv5p:4x4x4 or h100:64, separated by commas."
)
COMPILE = cli.flags.DEFINE_bool("compile", False, "Compiles the train step for each topology.")
MFU = cli.define_finite(
    "mfu", 0.45, "Share of the peak at which days are counted.", lower_bound=0.01, upper_bound=1.0
)
EFFORT = cli.define_finite(
    "effort",
    -1.0,
    "How hard the compiler optimises for speed; 0 is what training uses, and takes longer.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
PAPERS = cli.flags.DEFINE_bool("papers", False, "What the papers' own runs come to.")
TABLE = cli.flags.DEFINE_string(
    "table", None, "A page to make, cell by cell: every recipe's stages on every pod."
)
JSON = cli.flags.DEFINE_bool("json", False, "Ends with one JSON object per stage and topology.")


def main():
    """Reads the flags and plans."""
    topology.without_devices()
    if PAPERS.value:
        rows = papers.implied_utilisation()
        show([describe_paper(row) for row in rows])
        return print_json(rows)
    if TABLE.value:
        return table.write_page(TABLE.value, plan, mfu=MFU.value)
    if CONFIG.value is None or not TOPOLOGY.value:
        raise UserError(
            "Name a config and a topology: python -m janus_jax.plan --config=configs/pro_7b.py:2 "
            "--topology=v5p:4x4x4."
        )
    config = CONFIG.value.to_dict()
    targets = [topology.parse(name) for name in TOPOLOGY.value if name]
    for target in targets if COMPILE.value else ():
        topology.devices(target)  # reports an unknown shape before hours of compiling
    cells = []
    for name in config["stages"]:
        for target in targets:
            cell = plan(
                config,
                name,
                target,
                page=cli.config_file(),
                compile_step=COMPILE.value,
                mfu=MFU.value,
            )
            show([{"what": what, "value": value} for what, value in describe(cell).items()])
            for line in cell["notes"]:
                rich.print(f"[dim]{cell['stage']} {cell['topology']}: {line}[/dim]")
            cells.append(cell)
    print_json(cells)


def plan(config, name, target, *, page, compile_step, mfu):
    """One stage on one topology.

    Args:
      config: resolved config, a plain dict.
      name: a key of config['stages'].
      target: Topology.
      page: name of the config.
      compile_step: whether the train step is compiled; by formula otherwise.
      mfu: share of the peak at which days are counted.

    Returns:
      dict: figures of the config's own setting, or of the nearest one that divides and fits.

    Raises:
      UserError: for numbers that no run can have, where no setting divides, and where --compile
        lacks its compiler.
    """
    config = copy.deepcopy(config)
    config["dtype"] = "bfloat16" if config["dtype"] == "auto" else config["dtype"]
    stage = make_stage(config, name)
    first, notes, tried = None, [], 0
    for changes, candidate in estimate.candidates(stage, target):
        cell = estimate.estimate(candidate, target, mfu=mfu)
        if first and (
            cell["bytes_per_device"] > 1.5 * cell["bytes_limit"] or tried == MAX_COMPILED
        ):
            continue
        if compile_step:
            tried += 1
            cell |= compiled.compile_step(
                candidate, target, effort=EFFORT.value, note=describe_changes(changes)
            )
            cell |= {"compiler": topology.compiler(target)}
        cell |= {"config": page, "changes": changes, "notes": notes}
        if cell["fits"]:
            return cell
        gib = f"{cell['bytes_per_device'] / GIB:.1f} GiB of {cell['bytes_limit'] / GIB:.1f}"
        notes.append(f"{describe_changes(changes)}: {gib}")
        first = first or cell
    if first is None:
        why = estimate.misfit(config, name, target, stage.network)
        raise UserError(
            f"Stage {name} does not divide over the {target.count} devices of {target.name}, nor "
            f"does any setting near its own ({why}); give --config.mesh, "
            f"--config.stages.{name}.batch, rows or microbatches."
        )
    limit = f", of at most {MAX_COMPILED} compiled" if compile_step else ""
    notes.append(f"no setting near it fits{limit}")
    return first


def print_json(rows):
    """With --json, one object per line."""
    for row in rows if JSON.value else ():
        print(json.dumps(row), flush=True)


def show(rows):
    """Prints dicts with the same keys as a table."""
    grid = rich.table.Table(*rows[0])
    for row in rows:
        grid.add_row(*map(str, row.values()))
    rich.print(grid)


def describe_changes(changes):
    """Changed fields in words."""
    return ", ".join(f"{k}={v}" for k, v in changes.items()) or "its own setting"


def describe_paper(row):
    """A paper's run in words."""
    return {
        "run": row["run"],
        "GPUs": row["gpus"],
        "tokens": f"{row['tokens'] / 1e9:.0f} B",
        "FLOPs": f"{row['flops']:.3g}",
        "tokens/s/GPU": f"{row['tokens_per_second']:,.0f}",
        "implied MFU": f"{row['mfu']:.1%}",
    }


def describe(cell):
    """A cell's figures in words."""
    changes = ", ".join(f"{k} {v}" for k, v in cell["changes"].items())
    mesh = " x ".join(str(n) for n in cell["mesh"].values())
    moved = cell["collective_bytes"]
    by_kind = {kind: size for kind, size in cell["bytes_by_kind"].items() if size}
    parts = {
        part: count / cell["flops_per_step"]
        for part, count in cell["flops_by_part"].items()
        if count
    }
    row = {
        "stage": f"{cell['stage'].removeprefix('stage_')} on {cell['topology']}",
        "mesh, data x fsdp x tensor": mesh,
        "changed, to divide or fit": changes or "-",
        "fits": ("yes" if cell["fits"] else "NO") + ("" if cell["compiled"] else ", by estimate"),
        "GiB per device": f"{cell['bytes_per_device'] / GIB:.2f} of "
        f"{cell['bytes_limit'] / GIB:.2f}",
        **{f"  {kind}": f"{size / GIB:.2f}" for kind, size in by_kind.items()},
        "parameters, B": f"{cell['parameters'] / 1e9:.3f}, "
        f"{cell['trainable_parameters'] / 1e9:.3f} train",
        "useful PFLOPs per step": f"{cell['flops_per_step'] / 1e15:.2f}",
        **{f"  {part}": f"{share:.1%}" for part, share in parts.items()},
        "real tokens per step, M": f"{cell['tokens_per_step'] / 1e6:.3f}",
        f"tokens per day at {cell['mfu']:.0%}, B": f"{cell['tokens_per_day'] / 1e9:.1f}",
        f"days at {cell['mfu']:.0%}": f"{cell['days']:.2f}",
        "MiB of KV cache per generated image": f"{cell['picture_cache_bytes'] / 2**20:.1f}",
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
