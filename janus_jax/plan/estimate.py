"""What a step needs, by formula: bytes on each device, FLOPs by part, days; and the settings near a config's own.

Bytes of the state are exact. Those of the activations are an estimate, there to choose what is worth compiling.
"""

import copy
import importlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax import cli, sharding
from janus_jax.data import packing_stats, synthetic
from janus_jax.errors import UserError
from janus_jax.recipe import assembly, freezing, states
from janus_jax.tokenizers.chunks import PIXELS_PER_CHUNK

LOGITS = 512  # positions of a group whose vocabulary logits live at once (`losses`)
DAY = 86_400
HASTE = dict(microbatches=1.0, tensor=1.5, rows=2.5, moments=8.0, remat=12.0)  # what a step of each costs in speed, roughly


def settings(config, stage, target, network):
    """Settings near the config's own that divide over a topology, nearest first.

    They differ in microbatches, tensor parallelism, rows of a group, the moments' dtype and what waits on the host.

    Yields:
      ({field: value} that differ, resolved config with them).
    """
    s, mesh = config["stages"][stage], config["mesh"]
    lengths, _ = made_up_lengths(config, stage, network)
    doubled = lambda n, times: [n * 2**k for k in range(times)]
    table = dict(
        microbatches=doubled(s["microbatches"], 8),
        tensor=[-1] if mesh["tensor"] == -1 else doubled(mesh["tensor"], 4),
        rows=[s["rows"] // 2**k for k in range(4) if s["rows"] % 2**k == 0],
        moments=list(dict.fromkeys((config["optimizer"]["moments"], "bfloat16"))),
        remat=list(dict.fromkeys((config["model"]["llm"]["remat"], "block", "offload"))),
    )
    choices = list(itertools.product(*(enumerate(values) for values in table.values())))
    cost = lambda choice: sum(weight * place for weight, (place, _) in zip(HASTE.values(), choice, strict=True))
    for choice in sorted(choices, key=cost):
        values = {name: value for name, (place, value) in zip(table, choice, strict=True)}
        changes = {name: value for (name, (place, value)) in zip(table, choice, strict=True) if place}
        setting = _changed(config, stage, target, lengths, **values)
        if misfit(setting, stage, target, network) is None:
            yield changes, setting


def misfit(config, stage, target, network):
    """Why a stage does not divide over a topology, in a sentence, or None."""
    try:
        mesh = sharding.abstract_mesh(*sharding.mesh_sizes(target.count, **config["mesh"]))
        assembly.check_division(config["stages"][stage], mesh)
        sharding.param_shardings(mesh, network.abstract, network.axes)
    except UserError as error:
        return str(error)


def _changed(config, stage, target, table, *, microbatches, tensor, rows, moments, remat):
    """A copy of the config with these numbers; slices lie along `data`, and fewer rows a group have fewer slots."""
    config = copy.deepcopy(config)
    s, mesh = config["stages"][stage], config["mesh"]
    if rows != s["rows"]:
        slots = packing_stats.budgets(table, s["mixture"], rows=rows, length=s["length"])
        s["und_slots"], s["gen_slots"] = slots[:2]
    s["rows"], s["microbatches"], mesh["tensor"] = rows, microbatches, tensor
    mesh["data"] = max(mesh["data"], target.slices) if mesh["data"] != -1 else -1
    config["optimizer"]["moments"], config["model"]["llm"]["remat"] = moments, remat
    return config


def cell(config, stage, target, network, *, mfu):
    """Figures of one stage on one topology by formula, for which nothing has to be there: the keys of `plan --json`."""
    tx, _ = assembly.build_optimizer(config, stage, network)
    mesh = sharding.abstract_mesh(*sharding.mesh_sizes(target.count, **config["mesh"]))
    state = states.abstract_state(config, stage, network, tx, mesh)
    s = config["stages"][stage]
    each = lambda tree: sum(a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))
    kinds = {
        "parameters": each(state.trainable),
        "frozen": each(state.frozen),
        "moments": each(state.opt_state),
        "average": each(state.ema),
        "gradients": each(state.trainable),
        "activations": _activations(config, stage, mesh, trainable=state.trainable),
    }
    count = lambda tree: sum(a.size for a in tree.values())
    parts, tokens = step_parts(config, stage, network, tuple(state.trainable))
    seconds = sum(parts.values()) / (mfu * target.chip.peak * target.count)
    return {
        "stage": stage,
        "topology": target.name,
        "compiled": False,
        "fits": sum(kinds.values()) <= target.chip.memory,
        "bytes_per_device": sum(kinds.values()),
        "bytes_limit": target.chip.memory,
        "bytes_by_kind": kinds,
        "state_bytes": sum(kinds[k] for k in ("parameters", "frozen", "moments", "average")),
        "collective_bytes": None,
        "parameters": count(state.trainable) + count(state.frozen),
        "trainable_parameters": count(state.trainable),
        "flops_per_step": sum(parts.values()),
        "flops_by_part": parts,
        "tokens_per_step": tokens,
        "tokens_per_day": tokens / seconds * DAY,
        "days": (s["stop_at"] or s["steps"]) * seconds / DAY,
        "mfu": mfu,
        "mesh": dict(mesh.shape),
        "picture_cache_bytes": picture_cache(config, gen_tokens=network.merge(network.abstract).path.num_tokens),
        "compile_seconds": None,
    }


def picture_cache(config, *, gen_tokens):
    """Bytes of keys and values that one guided picture adds to those of its prompt while it is drawn."""
    llm = config["model"]["llm"]
    position = 2 * llm["num_layers"] * llm["num_kv_heads"] * (llm["embed_dim"] // llm["num_heads"])
    return 2 * gen_tokens * position * jnp.dtype(cli.compute_dtype(config["dtype"])).itemsize


def step_parts(config, stage, network, trainable):
    """Useful FLOPs of a step by part, and its real tokens: rows as full as the packer gets them, lengths of `synthetic`."""
    s, table, (und_tokens, _) = config["stages"][stage], *made_up_lengths(config, stage, network)
    sizes = {k: s[k] for k in ("rows", "length", "und_slots", "gen_slots")}
    packed = packing_stats.simulate(table, s["mixture"], **sizes, window=config["data"]["window"], groups=100)
    tokens = s["batch"] * s["length"] * packed.token_fill
    stats = packing_stats.expected(table, s["mixture"], tokens=tokens, picture_tokens=und_tokens)
    return assembly.step_flops(config, stats, trainable=trainable), tokens


def made_up_lengths(config, stage, network):
    """Made-up lengths of examples with this model's pictures, and the tokens of a picture to understand and to draw."""
    encoder = config["model"]["understanding"]["encoder"]
    und_tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2
    gen_tokens = network.merge(network.abstract).path.num_tokens
    length = config["stages"][stage]["length"]
    if stage != freezing.TOKENIZER and length < max(und_tokens, gen_tokens) + 4:  # a picture's two marks, BOS, and a word
        raise UserError(f"Rows of {length} have no room for a picture of {max(und_tokens, gen_tokens)} tokens and words.")
    return synthetic.realistic(und_tokens=und_tokens, gen_tokens=gen_tokens, length=length), (und_tokens, gen_tokens)


def _activations(config, stage, mesh, *, trainable):
    """Bytes on a device beside the state: what blocks keep, one block at work, gathered weights and the gradients that are
    not cut yet, logits, pictures.
    """
    s, llm, generation = config["stages"][stage], config["model"]["llm"], config["model"]["generation"]
    trains = lambda part: any(path.startswith(part) for path in trainable)
    d, hidden, vocab = llm["embed_dim"], llm["mlp_dim"], llm["vocab_size"] // mesh.shape["tensor"]
    split = mesh.shape["tensor"]
    groups = s["batch"] // s["rows"] // sharding.batch_divisor(mesh) // s["microbatches"]
    tokens, pictures = groups * s["rows"] * s["length"], groups * s["gen_slots"]
    kept = {"none": 10 * d + 4 * hidden // split, "dots": 5 * d + 3 * hidden // split, "block": d, "offload": 0}[
        llm["remat"]
    ]
    work = tokens * (8 * d + 4 * hidden // split)
    layer = (4 * d * d + 3 * d * hidden) // split
    weights = 2 * layer + 4 * vocab * d + trains("llm/") * 2 * (layer + 2 * vocab * d)
    channels, levels = 128, 4  # of the tokenizers at full resolution, fp32, and how many such maps live at once
    picture = generation["image_size"] ** 2
    at_once = pictures * picture if trains("generation/tokenizer/") else max(PIXELS_PER_CHUNK, picture)
    seen = min(pictures * picture, at_once) * channels * 4 * levels
    logits = 3 * 4 * groups * LOGITS * vocab
    return 2 * (tokens * kept * llm["num_layers"] + work + weights) + max(logits, seen)


HAI_LLM = (  # run, config, GPUs, days, steps of stage 2: the editions of the papers differ in days and steps
    ("Janus-Pro-1B, 9 days, 270k", "pro_1b", 128, 9, 270_000),
    ("Janus-Pro-1B, 7 days, 270k", "pro_1b", 128, 7, 270_000),
    ("Janus-Pro-1B, 9 days, 360k", "pro_1b", 128, 9, 360_000),
    ("Janus-Pro-7B, 14 days, 270k", "pro_7b", 256, 14, 270_000),
    ("Janus-Pro-7B, 14 days, 360k", "pro_7b", 256, 14, 360_000),
    ("Janus-1.3B, 7 days", "janus_1p3b", 128, 7, 180_000),
    ("JanusFlow, 1 600 A100 days, 390k", "flow_1p3b", 160, 10, 390_000),
    ("JanusFlow, 1 600 A100 days, 380k", "flow_1p3b", 160, 10, 380_000),
)
A100 = 312e12  # FLOP/s in bf16 of the papers' cards
SAMPLE = {"understanding": 700, "text": 680, "generation": 650}  # tokens of a sample in the papers' runs, assumed


def papers():
    """What the papers' own runs come to, where rows of 4096 are full: a list of {run, gpus, tokens, flops,
    tokens_per_second, mfu}, rates a GPU.
    """
    table = {t: packing_stats.Lengths(np.array([n]), np.array([int(t != "text")])) for t, n in SAMPLE.items()}
    rows = []
    networks = {}
    for run, name, gpus, days, steps in HAI_LLM:
        config = importlib.import_module(f"configs.{name}").get_config().to_dict()
        networks[name] = networks.get(name) or assembly.build_network(config, "stage_2")
        tokens, useful = 0, 0
        for stage, s in config["stages"].items():
            trainable, _ = freezing.split(networks[name].abstract, assembly.frozen_patterns(config, stage))
            batch = s["batch"] * s["length"]
            stats = packing_stats.expected(table, s["mixture"], tokens=batch, picture_tokens=576)
            count = steps if stage == "stage_2" else s["steps"]
            tokens += count * batch
            useful += count * sum(assembly.step_flops(config, stats, trainable=trainable).values())
        seconds = gpus * days * DAY
        rows.append(
            {
                "run": run, "gpus": gpus, "tokens": tokens, "flops": useful,
                "tokens_per_second": tokens / seconds, "mfu": useful / seconds / A100,
            }
        )  # fmt: skip
    return rows
