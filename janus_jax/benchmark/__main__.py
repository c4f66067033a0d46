"""Measures speed with made-up data or a config's own, and probes a trained encoder's features.

    # 384 px JPEGs, rows of 4096; then images to generate as cached codes
    python -m janus_jax.benchmark data
    python -m janus_jax.benchmark data --codes
    # a stage's own data, and the lengths of a dimensions file
    python -m janus_jax.benchmark data --config=configs/mine.py:2 --json
    python -m janus_jax.benchmark data --dims=docs/small.json --rows=8
    # every ratio of the papers, R = 8 to 1
    python -m janus_jax.benchmark fill
    # on a GPU
    python -m janus_jax.benchmark train --config=configs/pro_7b_h200.py:3
    # taking turns with PyTorch
    python -m janus_jax.benchmark train --dims=docs/small.json --peer=transformers
    python -m janus_jax.benchmark draw --dims=docs/small.json --batch=16
    python -m janus_jax.benchmark ask --dims=docs/small.json --peer=transformers
    # what a linear probe reads from the features of a model trained on shapes
    python -m janus_jax.benchmark probe --checkpoint=runs/quickstart

train      the train step on packed rows: a stage of --config (its batch, rows and mesh), or the
           model of --dims
draw       generating --batch images at once, from prompt to pixels
ask        answering --batch questions at once, each about an image
data       from records to packed batches on this host: records, tokens and images per second, how
           full rows and image slots are, the bound that no packer exceeds, the useful share of the
           executed FLOPs; decoding alone, and the whole pipeline, compared with a bare loop of PIL
           over the same images and threads; and how many cores one accelerator needs
fill       how full packed rows and image slots get, and which slots to give, without any data
probe      accuracies of linear probes of shape, color and cell on the features of the encoder and
           behind its adaptor, for models of `shapes` in cells

Every time is the median of --repeats after a warm-up. MFU is the useful FLOPs (no padding, no
recomputation) as a share of the device's peak; on CPU, of the rate of a jitted product, best of 30.
mfu_raw counts padding too. Images to generate are encoded in the step, except with --codes and
--dims. With --json the last line is one JSON object.

--peer=transformers does the same work with PyTorch in the same process, taking turns: rows padded
to the longest of their batch, and rows padded to the full length.
"""

import itertools
import json
import os

import jax
import numpy as np
import rich
import rich.console
import rich.progress
import rich.table

from janus_jax import cli, sharding
from janus_jax.batch import TASKS
from janus_jax.benchmark import data, probe, timing, workload
from janus_jax.data import synthetic
from janus_jax.errors import UserError
from janus_jax.recipe.checks import complete
from janus_jax.recipe.load import load_sampler

CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "probe: a workdir or a checkpoint.")
DIMS = cli.flags.DEFINE_string(
    "dims", None, "A dimensions file: model and example lengths; no data are needed."
)
MIXTURE = cli.flags.DEFINE_string(
    "mixture", None, "understanding:text:generation; by default the config's, or 2:3:5."
)
ROWS = cli.flags.DEFINE_integer(
    "rows", None, "R, rows per pack group; by default the config's own, or 8.", 1
)
CODES = cli.flags.DEFINE_bool(
    "codes", False, "Images to generate come as cached codes (made-up data)."
)
CORES = cli.flags.DEFINE_integer(
    "cores", os.cpu_count(), "Threads that decode; say how many cores they have.", 1
)
RATE = cli.define_finite(
    "accelerator", 11_000.0, "Tokens per second that one accelerator consumes.", lower_bound=1
)
BATCH = cli.flags.DEFINE_integer(
    "batch", 1, "draw, ask: images or questions at once.", lower_bound=1
)
PEER = cli.flags.DEFINE_enum(
    "peer", None, ["transformers"], "train, draw, ask: a baseline that takes turns with ours."
)
REPEATS = cli.flags.DEFINE_integer("repeats", 7, "Timed repeats.", lower_bound=3)
JSON = cli.flags.DEFINE_bool("json", False, "Ends with one JSON object.")

# The flags that each command reads, besides --json
SHARED = ("config", "dims", "repeats")
APPLIES = {
    "train": (*SHARED, "mixture", "rows", "codes", "peer"),
    "draw": (*SHARED, "batch", "peer"),
    "ask": (*SHARED, "batch", "peer"),
    "data": (*SHARED, "mixture", "rows", "codes", "cores", "accelerator"),
    "fill": ("dims", "mixture", "rows"),
    "probe": ("checkpoint",),
}

# All stages of all recipes
MIXTURES = ("1:0:1", "2:3:5", "7:3:10", "1:0:3", "5:1:4", "30:20:50", "14:6:80", "21:9:70")


def main(command):
    """Runs one benchmark and prints it."""
    _check_flags(command)
    if PEER.value:  # it needs a share of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    commands = {"train": train, "draw": draw, "ask": ask, "data": measure_data, "fill": fill}
    commands["probe"] = probe_features
    figures = commands[command]()
    lines = figures.get("table") or [{"what": k, "value": v} for k, v in figures.items()]
    table = rich.table.Table(*lines[0])
    for line in lines:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in line.values()))
    rich.print(table)
    if JSON.value:
        print(json.dumps(figures), flush=True)


def _check_flags(command):
    """A flag that would be ignored is an error.

    Raises:
      UserError: for such a flag, and for both --config and --dims.
    """
    flags = {name: cli.flags.FLAGS[name] for names in APPLIES.values() for name in names}
    given = [name for name, flag in flags.items() if flag.value != flag.default]
    for name in given:
        if name not in APPLIES[command]:
            raise UserError(f"--{name} does not apply to {command}.")
    if {"config", "dims"} <= set(given):
        raise UserError("--config and --dims exclude each other.")
    made_up = [name for name in given if name in ("mixture", "rows", "codes")]
    if command == "data" and "config" in given and made_up:
        raise UserError(
            f"--{made_up[0]} changes made-up data; with --config, data reads the config's own."
        )


def train():
    """The train step on packed rows: a dict of figures."""
    work = _workload()
    if CODES.value and "codebook_size" not in work.config["model"]["generation"]["tokenizer"]:
        raise UserError("--codes needs a model whose image tokenizer has a codebook.")
    settings = work.settings
    baseline_rows = settings["batch"]
    if work.dims or MIXTURE.value or ROWS.value:
        workload.set_mixture(
            settings, work.lengths, mixture=MIXTURE.value, rows=ROWS.value or settings["rows"]
        )
    if work.dims:
        settings["batch"] = settings["rows"] * jax.device_count()
    stage = work.stage(mesh=sharding.make_mesh(**work.config["mesh"]))
    return timing.train(
        stage,
        work.lengths,
        codes=CODES.value or bool(work.dims),
        repeats=REPEATS.value,
        baseline_tasks=_baseline_tasks(work) if PEER.value else None,
        baseline_rows=baseline_rows,
    )


def _baseline_tasks(work):
    """Tasks of the baseline: the dimensions file's cycle, or the mixture in a random order."""
    if work.dims and not MIXTURE.value:
        tasks = dict(und="understanding", text="text", gen="generation")
        return [tasks[kind] for kind in work.number("train", "kind_cycle")]
    shares = np.array(work.settings["mixture"])
    shares = shares / np.gcd.reduce(np.array(shares, int))
    return np.random.default_rng(0).permutation(np.repeat(TASKS, shares.astype(int))).tolist()


def draw():
    """Generating images from a prompt: a dict of figures."""
    work = _workload()
    prompt = work.number("draw", "prompt_tokens") if work.dims else 30
    return timing.draw(
        work.stage(),
        prompt=prompt,
        batch=BATCH.value,
        repeats=REPEATS.value,
        baseline=bool(PEER.value),
    )


def ask():
    """Answering a question: a dict of figures."""
    work = _workload()
    question, answer = 60, 64
    if work.dims:
        question, answer = (work.number("ask", name) for name in ("text_tokens", "answer_tokens"))
    if question < 4:
        raise UserError(
            f"A question of {question} tokens is too short for BOS, its image's two "
            "marks and a word."
        )
    return timing.ask(
        work.stage(),
        question=question,
        answer=answer,
        batch=BATCH.value,
        repeats=REPEATS.value,
        baseline=bool(PEER.value),
    )


def _workload():
    """The workload that --dims or --config names."""
    return workload.from_dims(DIMS.value) if DIMS.value else workload.from_config(CONFIG.value)


def measure_data():
    """From records to packed batches: a dict of figures."""
    return data.run(
        CONFIG.value,
        DIMS.value,
        mixture=MIXTURE.value,
        rows=ROWS.value,
        codes=CODES.value,
        cores=CORES.value,
        repeats=REPEATS.value,
        accelerator_rate=RATE.value,
    )


def fill():
    """How full rows get at the papers' ratios, or at the flags' ratio: a dict with a table."""
    if DIMS.value:
        work = workload.from_dims(DIMS.value)
    else:
        config = complete(cli.load_config("pro_1b", "2").to_dict())
        work = workload.Workload(config, "stage_2", synthetic.realistic())
    mixtures = (MIXTURE.value,) if MIXTURE.value else MIXTURES
    cases = list(itertools.product(mixtures, (ROWS.value,) if ROWS.value else (8, 4, 2, 1)))
    table, network = [], work.stage().network
    for mixture, rows in rich.progress.track(
        cases, description="fill", console=rich.console.Console(stderr=True)
    ):
        workload.set_mixture(work.settings, work.lengths, mixture=mixture, rows=rows)
        figures = workload.fill_figures(work.stage(network=network), work.lengths)
        figures.pop("groups")
        slots = {name: work.settings[name] for name in ("rows", "und_slots", "gen_slots")}
        table.append({"mixture": mixture, **slots, **figures})
    return {"name": "fill", "length": work.settings["length"], "table": table}


def probe_features():
    """What a linear probe reads from the features of --checkpoint: a dict with a table."""
    if not CHECKPOINT.value:
        raise UserError("Name a trained model: --checkpoint=runs/quickstart.")
    sampler = load_sampler(CHECKPOINT.value)
    with jax.set_mesh(sampler.mesh):
        return {"name": "probe", "table": probe.probe(sampler)}


if __name__ == "__main__":
    cli.run_commands(
        main, commands=("train", "draw", "ask", "data", "fill", "probe"), usage=__doc__
    )
