"""The page of every recipe on every pod: each cell is compiled once and stored next to the page."""

import json
from pathlib import Path

import jax
from absl import logging

from janus_jax import cli
from janus_jax.hardware import GIB
from janus_jax.plan import topology

PODS = ("v5p:4x4x4", "v5e:16x16", "v6e:16x16", "h100:64")
RECIPES = ("pro_7b", "pro_1b", "janus_1p3b", "flow_1p3b", "flow_1p3b_256")
CELLS = (  # config, stage, topology, batch in rows where it is not the config's own
    *(("pro_7b", "2", pod, None) for pod in (*PODS, "v5e:8x8", "h200:8")),
    ("pro_7b_h200", "3", "h200:1", None),
    ("pro_7b", "2", "v5e:8x8", 128),  # as many rows per chip as v5e:16x16 at 512
    ("pro_7b", "2", "v5p:4x4x4", 128),
    ("pro_7b", "2", "v5p:8x8x4", 512),
    *(("pro_7b", "2", pod, None) for pod in ("2xv5p:4x4x4", "tpu7x:4x4x4", "h100:8")),
    *(("pro_7b", stage, pod, None) for stage in "13" for pod in PODS),
    ("pro_1b", "2", "v5e:4x4", None),
    *((name, stage, pod, None) for name in RECIPES[1:] for stage in "213" for pod in PODS),
)
HEAD = """# Every recipe on every pod

    . launch/xla_flags.sh; python -m janus_jax.plan --table=docs/scale.md

computes the missing cells and writes this page. The cells are stored in `{cells}`, each with
the version and flags of its compiler; cells of another compiler are computed again, cells of
another commit are not. No accelerator is needed: the train step, at the papers' global batch, is
compiled by each device's own compiler (jax {jax}) with the flags of `launch/`, and the bytes are
that compiler's. Nothing is run, so speed is not measured: days are useful FLOPs at {mfu:.0%} of the
peak.

*changed*: what differs from the config where its own setting does not divide over the devices or
does not fit. *GiB*: what a device needs, of what it has. *state*: parameters, moments and
averages only. *moved*: bytes that a device receives from others in a step by XLA's collectives,
with their loop counts. On TPUs the reduce-scatters of the gradients are half of it: this compiler
turns each into an all-reduce, which moves twice the bytes, also when written as
`lax.psum_scatter`. *compiled in*: on 2 CPU cores, at the compiler's lowest effort for speed
(`--effort`). At training's own effort, 0, less is moved: 6.0 GB instead of 6.5 for stage 2 of
pro_1b with four layers on v5p:4x4x4.
"""


def write_page(path, plan, *, mfu):
    """Computes the missing cells of the table and writes the page.

    Args:
      path: of the page; the cells are stored next to it, with the suffix .jsonl.
      plan: (config, stage name, Topology, page, compile_step, mfu) -> cell, a dict.
      mfu: share of the peak at which days are counted.
    """
    path = Path(path)
    store = path.with_suffix(".jsonl")
    cells = (
        {_key(c): c for c in map(json.loads, store.read_text().splitlines())}
        if store.exists()
        else {}
    )
    for number, (name, stage, pod, batch) in enumerate(CELLS, 1):
        key, target = (name, f"stage_{stage}", pod, batch), topology.parse(pod)
        if key in cells and cells[key]["compiler"] == topology.compiler(target):
            continue
        logging.info("Cell %d of %d: %s, stage %s, %s", number, len(CELLS), name, stage, pod)
        config = cli.load_config(name, stage).to_dict()
        if batch:
            config["stages"][f"stage_{stage}"]["batch"] = batch
        cell = plan(config, f"stage_{stage}", target, page=name, compile_step=True, mfu=mfu)
        cells[key] = cell | {"batch": batch}
        _write(path, cells, mfu)
    _write(path, cells, mfu)


def _key(cell):
    return cell["config"], cell["stage"], cell["topology"], cell["batch"]


def _write(path, cells, mfu):
    """Writes the cells, and the page of them, in the order of CELLS."""
    order = [(name, f"stage_{stage}", pod, batch) for name, stage, pod, batch in CELLS]
    done = [cells[key] for key in order if key in cells]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in done))
    lines = [HEAD.format(cells=path.with_suffix(".jsonl").name, mfu=mfu, jax=jax.__version__)]
    for name in dict.fromkeys(name for name, *_ in CELLS):
        rows = [cell for cell in done if cell["config"] == name]
        if not rows:
            continue
        lines += [f"## configs/{name}.py", ""]
        lines += [
            "| stage | topology | mesh | changed | GiB | state | moved GiB | days | compiled in |",
            "|" + "---|" * 9,
        ]
        lines += [_line(cell, mfu) for cell in sorted(rows, key=lambda cell: cell["stage"])] + [""]
    path.write_text("\n".join(lines + _scaling(cells)))


def _scaling(cells):
    """Lines of the page on 64 and 256 chips: memory and traffic; none until their cells exist."""
    arguments = lambda cell: cell["bytes_by_kind"]["arguments"] / 2**20
    moved = lambda cell: sum(cell["collective_bytes"].values()) / GIB
    key = lambda pod, batch: ("pro_7b", "stage_2", pod, batch)
    pairs = (
        (
            "arguments (state and batch), MiB",
            arguments,
            key("v5p:4x4x4", None),
            key("v5p:8x8x4", 512),
        ),
        (
            "bytes from others in a step, GiB",
            moved,
            key("v5p:4x4x4", 128),
            key("v5p:8x8x4", 512),
        ),
        (
            "bytes from others in a step, GiB",
            moved,
            key("v5e:8x8", 128),
            key("v5e:16x16", None),
        ),
    )
    lines = []
    for what, value, small, large in pairs:
        if small in cells and large in cells:
            few, many = value(cells[small]), value(cells[large])
            lines.append(
                f"| {what} | {small[2]}: {few:.1f} | {large[2]}: {many:.1f} | {many / few:.3f} |"
            )
    head = [
        "## From 64 chips to 256",
        "",
        "Stage 2 of configs/pro_7b.py. First row: the same batch on more chips. Other rows: the",
        "same number of rows per chip.",
        "",
    ]
    head += ["| per chip | 64 | 256 | ratio |", "|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


def _line(cell, mfu):
    changes = {"batch": cell["batch"]} if cell["batch"] else {}
    changes = ", ".join(f"{k} {v}" for k, v in (changes | cell["changes"]).items()) or "-"
    mesh = " x ".join(str(n) for n in cell["mesh"].values())
    fits = "" if cell["fits"] else " **does not fit**"
    moved = sum((cell["collective_bytes"] or {}).values()) / GIB
    return (
        f"| {cell['stage'].removeprefix('stage_')} | {cell['topology']} | {mesh} | {changes} "
        f"| {cell['bytes_per_device'] / GIB:.1f} of {cell['bytes_limit'] / GIB:.1f}{fits} | "
        f"{cell['state_bytes'] / GIB:.2f} | {moved:.1f} "
        f"| {cell['days'] * cell['mfu'] / mfu:.1f} | {cell['compile_seconds']:.0f} s |"
    )
