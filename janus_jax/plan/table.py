"""The page of every recipe on every pod, made cell by cell: each is compiled once and kept beside the page."""

import importlib
import json
from pathlib import Path

import jax
from absl import logging

from janus_jax.hardware import GIB
from janus_jax.plan import topology

PODS = ("v5p:4x4x4", "v5e:16x16", "v6e:16x16", "h100:64")
RECIPES = ("pro_7b", "pro_1b", "janus_1p3b", "flow_1p3b", "flow_1p3b_256")
CELLS = (  # config, stage, topology, batch in rows where it is not the config's own
    *(("pro_7b", "2", pod, None) for pod in (*PODS, "v5e:8x8", "h200:8")),
    ("pro_7b_h200", "3", "h200:1", None),
    ("pro_7b", "2", "v5e:8x8", 128),  # beside v5e:16x16 at 512: the same rows on every chip
    ("pro_7b", "2", "v5p:4x4x4", 128),
    ("pro_7b", "2", "v5p:8x8x4", 512),
    *(("pro_7b", "2", pod, None) for pod in ("2xv5p:4x4x4", "tpu7x:4x4x4", "h100:8")),
    *(("pro_7b", stage, pod, None) for stage in "13" for pod in PODS),
    ("pro_1b", "2", "v5e:4x4", None),
    *((name, stage, pod, None) for name in RECIPES[1:] for stage in "213" for pod in PODS),
)
HEAD = """# Every recipe on every pod

    . launch/xla_flags.sh; python -m janus_jax.plan --table=docs/scale.md

makes this page and goes on where it stopped; the cells lie in `{cells}`, each with the compiler's version and flags, and
those of another compiler are made anew.
No accelerator was there: the train step of `janus_jax.train`, at the papers' global batch, was compiled by each device's
own compiler (jax {jax}) with the flags of `launch/`, and the bytes are that compiler's. Nothing was run, on a TPU or on a
GPU, so how fast it is was not measured: days are useful FLOPs at {mfu:.0%} of the peak.

*changed*: what differs from the config, where its own setting does not divide over the devices or does not fit. *GiB*:
what a device needs, of what it has. *state*: parameters, moments and averages alone. *moved*: bytes a device gets from
others in a step, by XLA's collectives, counted as often as they run. On TPUs the gradients' reduce-scatters are half of it:
this compiler makes each an all-reduce, twice the bytes, and cuts the shard out of it, one written by hand
(`lax.psum_scatter`) too. *compiled in*: on 2 CPU cores, often with other work beside it, the longest halted meanwhile, at
the compiler's lowest effort for speed (`--effort`). Training's own effort, 0, moves less: of pro_1b's stage 2 with four
layers on v5p:4x4x4, 6.0 GB instead of 6.5.
The cells were made over two days, while this code changed, and those of TPUs from before the field `compiler` was there had
it added afterwards: the flags and the environment had not changed.
"""


def page(path, plan, *, mfu):
    """Makes what is missing of the table and writes the page.

    Args:
      path: of the page; the cells lie beside it, in a file of the same name that ends in .jsonl.
      plan: (config, stage, Topology, name, compiled, mfu) -> cell, a dict.
      mfu: share of the peak that days are counted at.
    """
    path = Path(path)
    kept = path.with_suffix(".jsonl")
    cells = {_key(c): c for c in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    for number, (name, stage, pod, batch) in enumerate(CELLS, 1):
        key, target = (name, f"stage_{stage}", pod, batch), topology.parse(pod)
        if key in cells and cells[key]["compiler"] == topology.compiler(target):
            continue
        logging.info("Cell %d of %d: %s, stage %s, %s", number, len(CELLS), name, stage, pod)
        config = importlib.import_module(f"configs.{name}").get_config(stage).to_dict()
        if batch:
            config["stages"][f"stage_{stage}"]["batch"] = batch
        found = plan(config, f"stage_{stage}", target, name=name, compiled=True, mfu=mfu)
        cells[key] = found | {"batch": batch}
        _write(path, cells, mfu)
    _write(path, cells, mfu)


def _key(cell):
    return cell["config"], cell["stage"], cell["topology"], cell["batch"]


def _write(path, cells, mfu):
    """The cells that there are, and the page of them, in the order of the list."""
    order = [(name, f"stage_{stage}", pod, batch) for name, stage, pod, batch in CELLS]
    kept = [cells[key] for key in order if key in cells]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in kept))
    lines = [HEAD.format(cells=path.with_suffix(".jsonl").name, mfu=mfu, jax=jax.__version__)]
    for name in dict.fromkeys(name for name, *_ in CELLS):
        rows = [cell for cell in kept if cell["config"] == name]
        if not rows:
            continue
        lines += [f"## configs/{name}.py", ""]
        lines += ["| stage | topology | mesh | changed | GiB | state | moved GiB | days | compiled in |", "|" + "---|" * 9]
        lines += [_line(cell, mfu) for cell in sorted(rows, key=lambda cell: cell["stage"])] + [""]
    path.write_text("\n".join(lines + _scaling(cells)))


def _scaling(cells):
    """How memory and traffic change from 64 chips to 256: lines of the page, none until their cells are there."""
    arguments = lambda cell: cell["bytes_by_kind"]["arguments"] / 2**20
    moved = lambda cell: sum(cell["collective_bytes"].values()) / GIB
    key = lambda pod, batch: ("pro_7b", "stage_2", pod, batch)
    pairs = (
        ("arguments (state and batch), MiB, of the same batch", arguments, key("v5p:4x4x4", None), key("v5p:8x8x4", 512)),
        ("bytes from others in a step, GiB, with the batch", moved, key("v5p:4x4x4", 128), key("v5p:8x8x4", 512)),
        ("bytes from others in a step, GiB, with the batch", moved, key("v5e:8x8", 128), key("v5e:16x16", None)),
    )
    lines = []
    for what, value, small, large in pairs:
        if small in cells and large in cells:
            few, many = value(cells[small]), value(cells[large])
            lines.append(f"| {what} | {small[2]}: {few:.1f} | {large[2]}: {many:.1f} | {many / few:.3f} |")
    head = [
        "## From 64 chips to 256",
        "",
        "Stage 2 of configs/pro_7b.py: one batch on more chips, and as many rows on each.",
        "",
    ]
    head += ["| of each chip | 64 | 256 | ratio |", "|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


def _line(cell, mfu):
    changes = {"batch": cell["batch"]} if cell["batch"] else {}
    changes = ", ".join(f"{k} {v}" for k, v in (changes | cell["changes"]).items()) or "-"
    mesh = " x ".join(str(n) for n in cell["mesh"].values())
    fits = "" if cell["fits"] else " **does not fit**"
    moved = sum((cell["collective_bytes"] or {}).values()) / GIB
    return (
        f"| {cell['stage'].removeprefix('stage_')} | {cell['topology']} | {mesh} | {changes} "
        f"| {cell['bytes_per_device'] / GIB:.1f} of {cell['bytes_limit'] / GIB:.1f}{fits} | {cell['state_bytes'] / GIB:.2f} "
        f"| {moved:.1f} | {cell['days'] * cell['mfu'] / mfu:.1f} | {cell['compile_seconds']:.0f} s |"
    )
