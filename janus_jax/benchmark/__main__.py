"""Measures, with made-up data that needs no files, or with the data of a config.

    python -m janus_jax.benchmark data                                             # 384 px JPEGs, rows of 4096
    python -m janus_jax.benchmark data --codes                                     # pictures to draw come as cached codes
    python -m janus_jax.benchmark data --config=configs/mine.py:2 --json           # a stage's own data
    python -m janus_jax.benchmark data --dims=docs/small.json --rows=8          # the lengths of a shape file
    python -m janus_jax.benchmark fill                                             # every ratio of the papers, R = 8 to 1
    python -m janus_jax.benchmark train --config=configs/pro_1b.py:2 --config.stages.stage_2.batch=16     # on a GPU, say
    python -m janus_jax.benchmark train --dims=docs/small.json --peer=transformers # beside PyTorch, by turns
    python -m janus_jax.benchmark draw --dims=docs/small.json --batch=16
    python -m janus_jax.benchmark ask --dims=docs/small.json

train      the train step on packed rows: a stage of --config (its batch, rows and mesh), or the model of --dims
draw       drawing --batch pictures at once, from prompt to pixels
ask        answering --batch questions at once, each about a picture
data       the way from records to packed batches on this host: records, tokens and pictures a second, how full rows and
           picture slots are, the bound that no packer passes, the share of executed FLOPs that is useful; decoding
           alone, and the whole way with its reading, tokenising and packing, beside a bare loop of PIL over the same
           pictures and threads; and how many cores one accelerator needs
fill       how full packed rows and picture slots get, and which slots to give, without any data

Every time is the median of --repeats after a warm-up. MFU is the share of the device's peak (on CPU, of the rate of a
jitted product, best of 30) that useful FLOPs are: no padding, no recomputation; mfu_raw counts padding too. Pictures to
draw are encoded in the step, but for --codes and --dims. With --json the last line is one JSON object.

--peer=transformers does the same work with PyTorch by turns in the same process: rows padded to the longest of their
batch, and rows padded to the full length.
"""

import importlib
import io
import itertools
import json
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import rich
import rich.console
import rich.progress
import rich.table
from PIL import Image

from janus_jax import cli, sharding
from janus_jax.batch import TASKS
from janus_jax.benchmark import timing, torch_baseline
from janus_jax.data import images, packing_stats, synthetic
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.plan import estimate
from janus_jax.recipe import assembly, freezing

CONFIG = cli.config_flag()
DIMS = cli.flags.DEFINE_string("dims", None, "A shape file: model and example lengths; no data are needed.")
MIXTURE = cli.flags.DEFINE_string("mixture", None, "understanding:text:generation, 2:3:5 without it or a config.")
ROWS = cli.flags.DEFINE_integer("rows", None, "R, rows of a pack group; the config's own, or 8, without it.", 1)
CODES = cli.flags.DEFINE_bool("codes", False, "Pictures to draw come as cached codes (made-up data).")
CORES = cli.flags.DEFINE_integer("cores", os.cpu_count(), "Threads that decode; say how many cores they have.", 1)
RATE = cli.define_finite("accelerator", 11_000.0, "Tokens a second of the accelerator to feed.", lower_bound=1)
BATCH = cli.flags.DEFINE_integer("batch", 1, "draw, ask: pictures or questions at once.", lower_bound=1)
PEER = cli.flags.DEFINE_enum("peer", None, ["transformers"], "train, draw, ask: what to run beside it, by turns.")
REPEATS = cli.flags.DEFINE_integer("repeats", 7, "Timed repeats.", lower_bound=3)
JSON = cli.flags.DEFINE_bool("json", False, "Ends with one JSON object.")


PAPERS = ("1:0:1", "2:3:5", "7:3:10", "1:0:3", "5:1:4", "30:20:50", "14:6:80", "21:9:70")  # all stages of all recipes


def main(command):
    """Runs one benchmark and prints it."""
    if CONFIG.value is not None and (DIMS.value or command == "fill"):
        raise UserError("--config and --dims exclude each other, and fill takes --dims alone.")
    if PEER.value:  # which needs a share of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    figures = {"data": data, "fill": fills, "train": train, "draw": draw, "ask": ask}[command]()
    lines = figures["table"] if command == "fill" else [{"what": k, "value": v} for k, v in figures.items()]
    table = rich.table.Table(*lines[0])
    for line in lines:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in line.values()))
    rich.print(table)
    if JSON.value:
        print(json.dumps(figures), flush=True)


def train():
    """The train step, packed: a dict of figures."""
    config, stage, lengths, tokens, dims = _model()
    s, order = config["stages"][stage], None
    peer_rows = s["batch"]
    if dims:
        _mix(s, lengths, mixture=MIXTURE.value, rows=ROWS.value or s["rows"])
        s["batch"] = s["rows"] * jax.device_count()
        names = dict(und=TASKS[0], text=TASKS[1], gen=TASKS[2])
        if PEER.value and not MIXTURE.value:
            order = [names[kind] for kind in _asked(dims, "train", "kind_cycle")]
    elif MIXTURE.value or ROWS.value:
        _mix(s, lengths, mixture=MIXTURE.value, rows=ROWS.value or s["rows"])
    if PEER.value and not order:  # two of every five examples, say, in an order that is no order
        shares = np.array(s["mixture"]) / np.gcd.reduce(np.array(s["mixture"], int))
        order = np.random.default_rng(0).permutation(np.repeat(TASKS, shares.astype(int))).tolist()
    return timing.train(
        config, stage, lengths, tokens=tokens, codes=CODES.value or bool(dims), repeats=REPEATS.value,
        against=tuple(torch_baseline.WAYS) if PEER.value else (), order=order, rows=peer_rows,
    )  # fmt: skip


def draw():
    """Drawing from a prompt: a dict of figures."""
    config, stage, *_, dims = _model()
    prompt = _asked(dims, "draw", "prompt_tokens") if dims else 30
    return timing.draw(config, stage, prompt=prompt, batch=BATCH.value, repeats=REPEATS.value, against=PEER.value)


def ask():
    """Answering a question: a dict of figures."""
    config, stage, *_, dims = _model()
    question, answer = (_asked(dims, "ask", name) for name in ("text_tokens", "answer_tokens")) if dims else (60, 64)
    if question < 4:
        raise UserError(f"A question of {question} tokens has no room for a word beside BOS and its picture's two marks.")
    return timing.ask(
        config, stage, question=question, answer=answer, batch=BATCH.value, repeats=REPEATS.value, against=PEER.value
    )


def _model():
    """Config, stage, length table, tokens of a picture to understand and to draw, and a shape file's content or None."""
    if DIMS.value:
        config, lengths, dims = _read_dims()
        return config, "stage_2", lengths, (dims["image"]["tokens"],) * 2, dims
    config = (CONFIG.value or importlib.import_module("configs.pro_1b").get_config("2")).to_dict()
    stage = _last_stage(config)
    assembly.check_stage(config, stage)
    s = config["stages"][stage]
    s["sources"], s["phases"] = {task: {task: 1} for task in TASKS}, ()
    return config, stage, *estimate.made_up_lengths(config, stage, assembly.build_network(config, stage)), None


def data():
    """From records to packed batches: a dict of figures."""
    with tempfile.TemporaryDirectory() as folder:
        if DIMS.value:
            config, stage, pipeline, lengths = _of_dims()
        else:
            config, stage, pipeline, lengths = _of_config(Path(folder))
        s = config["stages"][stage]
        seconds, packed = [], []
        for _ in range(2):  # the first fills every shard's window
            next(pipeline)
        for _ in range(REPEATS.value):
            start = time.perf_counter()
            packed.append(next(pipeline))
            seconds.append(time.perf_counter() - start)
        decoding = _decoding(pipeline.sources, config, CODES.value or bool(DIMS.value))
    median = float(np.median(seconds))
    mean = lambda name: float(np.mean([p.stats[name] for p in packed]))
    padded = packed[0].batch.tokens.size
    figures = {
        "name": "data", "seconds_median": median, "min": min(seconds), "max": max(seconds), "n": len(seconds),
        "tokens_real": mean("tokens"), "tokens_padded": padded, "tokens_per_second": mean("tokens") / median,
        "records_per_second": float(np.mean([len(p.record_ids) for p in packed])) / median,
        "images_per_second": (mean("und_pictures") + mean("gen_pictures")) / median,
        "token_fill": mean("token_fill"), "slot_fill": mean("slot_fill"), "cores": CORES.value,
    }  # fmt: skip
    if decoding:
        drawn = 0 if packed[0].stats["cached"] else mean("gen_pictures")
        per_second = {
            way: (mean("und_pictures") + drawn) / (mean("und_pictures") / rates[0] + drawn / rates[-1])
            for way, rates in decoding.items()
        }
        figures |= {
            "decoded_per_second": per_second["ours"],
            "decoded_per_second_bare": per_second["bare"],
            "decoding_over_bare": per_second["ours"] / per_second["bare"],
            "pipeline_over_bare": (mean("und_pictures") + drawn) / median / per_second["bare"],
        }
    figures["cores_for_one_accelerator"] = CORES.value * RATE.value / figures["tokens_per_second"]
    if lengths:
        figures |= _fill(config, stage, lengths, trainable=_trainable(config, stage))
    return figures | {"mixture": list(s["mixture"]), "rows": s["rows"], "length": s["length"], "mfu": None, "device": "cpu"}


def fills():
    """How full rows get at the ratios of the papers, or at the flags' own: a dict with a list of figures."""
    if DIMS.value:
        config, lengths, _ = _read_dims()
    else:
        config, lengths = importlib.import_module("configs.pro_1b").get_config("2").to_dict(), synthetic.realistic()
    s, table, trainable = config["stages"]["stage_2"], [], _trainable(config, "stage_2")
    mixtures, sizes = (MIXTURE.value,) if MIXTURE.value else PAPERS, (ROWS.value,) if ROWS.value else (8, 4, 2, 1)
    cases = list(itertools.product(mixtures, sizes))
    for mixture, rows in rich.progress.track(cases, description="fill", console=rich.console.Console(stderr=True)):
        _mix(s, lengths, mixture=mixture, rows=rows)
        found = _fill(config, "stage_2", lengths, trainable=trainable)
        found.pop("groups")
        table.append({"mixture": mixture, **{k: s[k] for k in ("rows", "und_slots", "gen_slots")}, **found})
    return {"name": "fill", "length": s["length"], "table": table}


def _read_dims():
    """Config, length table and content of a shape file."""
    try:
        dims = json.loads(Path(DIMS.value).read_text())
        config = importlib.import_module("configs.dims").get_config(DIMS.value).to_dict()
        config["stages"]["stage_2"]["sources"] = {task: {task: 1} for task in TASKS}
        return config, synthetic.table(dims), dims
    except KeyError as error:
        raise UserError(f"--dims={DIMS.value} is no shape file: it has no {error}.") from None
    except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"--dims={DIMS.value} is no shape file: {error}.") from None


def _last_stage(config):
    """The last stage of a config, which alone trains what draws and answers."""
    if not (known := config["stages"].keys() - {freezing.TOKENIZER}):
        raise UserError(
            "The config's stage trains the picture tokenizer alone; name another one, --config=configs/tiny.py:2."
        )
    return max(known, key=freezing.ORDER.index)


def _asked(dims, part, name):
    """A number of a shape file that not every benchmark needs."""
    value = dims.get(part, {}).get(name)
    if not value or (isinstance(value, int) and value < 1):
        raise UserError(f"--dims={DIMS.value} does not say {part}.{name}, which this benchmark needs, above 0.")
    return value


def _of_dims():
    """Config, stage, pipeline and length table of a shape file."""
    config, lengths, dims = _read_dims()
    _mix(config["stages"]["stage_2"], lengths, mixture=MIXTURE.value, rows=ROWS.value or 8)
    tokens = (dims["image"]["tokens"],) * 2
    packed = timing.pipeline(config, "stage_2", lengths, tokens=tokens, workers=CORES.value, groups=4)
    return config, "stage_2", packed, lengths


def _mix(s, lengths, *, mixture, rows):
    """Gives a stage a mixture like '2:3:5' (None keeps its own), its rows, and the picture slots that follow from them."""
    if mixture:
        if not re.fullmatch(r"(\d+(\.\d+)?(:|$)){3}", mixture) or not any(shares := [*map(float, mixture.split(":"))]):
            raise UserError(f"--mixture={mixture} is no ratio like 2:3:5.")
        s["mixture"] = tuple(shares)
    s["rows"] = rows
    s["und_slots"], s["gen_slots"], _ = packing_stats.budgets(lengths, s["mixture"], rows=rows, length=s["length"])


def _of_config(folder):
    """The same of a config's stage, with its own data or, without --config, with made-up ones at Janus-Pro's sizes."""
    lengths = None
    if CONFIG.value is not None:
        config = CONFIG.value.to_dict()
        stage = _last_stage(config)
        s = config["stages"][stage]
    else:
        config, stage = importlib.import_module("configs.pro_1b").get_config("2").to_dict(), "stage_2"
        s, lengths = config["stages"][stage], synthetic.realistic()
        _mix(s, lengths, mixture=MIXTURE.value, rows=ROWS.value or 8)
        _made_up(config, s, folder)
    shards = config["data"]["shards"]
    s["batch"], config["data"]["workers"] = shards * s["rows"], CORES.value
    network, mesh = assembly.build_network(config, stage), sharding.make_mesh(devices=jax.devices()[:1])
    return config, stage, assembly.build_pipeline(config, stage, network, mesh=mesh, host=(0, 1))[0], lengths


def _made_up(config, s, folder):
    """Writes made-up records, and points the config at them."""
    rng = np.random.default_rng(0)
    (folder / "tokenizer.json").write_text(synthetic.text_tokenizer(rng))
    config["data"]["tokenizer"] = str(folder / "tokenizer.json")
    config["data"]["sources"] = {}
    for task, records in synthetic.records(rng, size=384, codes=576 if CODES.value else 0).items():
        write_array_record(folder / f"{task}.array_record", records)
        config["data"]["sources"][task] = dict(kind="array_record", path=str(folder / f"{task}.array_record"))
    s["sources"] = {task: {task: 1} for task in TASKS}


def _decoding(sources, config, cached, *, count=64):
    """Pictures a second of decoding and resizing alone, on the same pictures and threads.

    Returns:
      {'ours': [to understand, to draw], 'bare': the same of PIL alone}, without the second where codes are cached; None
      without pictures.
    """
    pictures = []
    for source in sources.values():
        for index in range(min(len(source), count)):
            try:
                picture = images.as_picture(source[index].get("image"))
                images.decode(picture)
                pictures.append(picture.encoded)
            except images.BadRecord:
                continue
    if not pictures:
        return None
    fits = [(images.for_understanding, config["model"]["understanding"]["encoder"]["image_size"])]
    fits += [] if cached else [(images.for_generation, config["model"]["generation"]["image_size"])]
    rates = {"ours": [], "bare": []}
    for fit, size in fits:
        ways = {
            "ours": lambda encoded, fit=fit, size=size: fit(images.decode(encoded), size=size),
            "bare": lambda encoded, size=size: np.asarray(
                Image.open(io.BytesIO(encoded)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            ),
        }
        seconds = {way: [] for way in ways}
        for _ in range(REPEATS.value):
            for way, read in ways.items():  # by turns
                start = time.perf_counter()
                with ThreadPoolExecutor(CORES.value) as pool:
                    list(pool.map(read, pictures))
                seconds[way].append(time.perf_counter() - start)
        for way, taken in seconds.items():
            rates[way].append(len(pictures) / float(np.median(taken)))
    return rates


def _trainable(config, stage):
    """Paths of what a stage trains."""
    return tuple(freezing.split(assembly.build_network(config, stage).abstract, assembly.frozen_patterns(config, stage))[0])


def _fill(config, stage, lengths, *, trainable):
    """What a thousand groups of these lengths come to, beside the bound, and the useful share of FLOPs.

    Executed is the same network on every position and every picture slot, attention within segments.
    """
    s, model = config["stages"][stage], config["model"]
    sizes = {k: s[k] for k in ("rows", "length", "und_slots", "gen_slots")}
    packed = packing_stats.simulate(lengths, s["mixture"], **sizes, window=config["data"]["window"])
    bound = packing_stats.bound(lengths, s["mixture"], length=s["length"])
    positions = packed.groups * s["rows"] * s["length"]
    side = model["understanding"]["encoder"]["image_size"] // model["understanding"]["encoder"]["patch_size"]
    useful = packing_stats.expected(lengths, s["mixture"], tokens=packed.token_fill * positions, picture_tokens=side**2)
    useful["cached"] = True
    executed = useful | {
        "tokens": positions,
        "und_pictures": packed.groups * s["und_slots"],
        "gen_pictures": packed.groups * s["gen_slots"],
    }
    count = lambda stats: sum(assembly.step_flops(config, stats, trainable=trainable).values())
    return {
        "groups": packed.groups, "token_fill": packed.token_fill, "token_bound": bound,
        "share_of_bound": packed.token_fill / bound, "slot_fill": packed.slot_fill,
        "useful_share_of_flops": count(useful) / count(executed),
    }  # fmt: skip


if __name__ == "__main__":
    cli.run_commands(main, commands=("train", "draw", "ask", "data", "fill"), usage=__doc__)
