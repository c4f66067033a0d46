"""What a stage needs by formula: bytes per device, FLOPs by part, days; and nearby settings."""

import copy
import itertools

from janus_jax import sharding
from janus_jax.data import packing_stats
from janus_jax.errors import UserError
from janus_jax.recipe.checks import count_groups
from janus_jax.recipe.data import expected_statistics, synthetic_lengths
from janus_jax.recipe.stage import Stage, make_stage

DAY = 86_400  # seconds
# Roughly what one step along each setting costs in speed; the cheapest are tried first.
COSTS = dict(microbatches=1.0, tensor=1.5, rows=2.5, moments=8.0, remat=12.0)


def candidates(stage, target):
    """Settings near a stage's own that divide over a topology, nearest first.

    They differ in microbatches, tensor parallelism, rows per group, the moments' dtype and the
    remat policy.

    Args:
      stage: Stage.
      target: Topology.

    Yields:
      ({field: value} that differ, Stage with them on the abstract mesh of the topology).
    """
    settings, config = stage.settings, stage.config
    powers = lambda n, count: [n * 2**k for k in range(count)]
    tensor = config["mesh"]["tensor"]
    table = dict(
        microbatches=powers(settings["microbatches"], 8),
        tensor=[-1] if tensor == -1 else powers(tensor, 4),
        rows=[settings["rows"] // 2**k for k in range(4) if settings["rows"] % 2**k == 0],
        moments=list(dict.fromkeys((config["optimizer"]["moments"], "bfloat16"))),
        remat=list(dict.fromkeys((stage.model["llm"]["remat"], "block", "offload"))),
    )
    lengths = synthetic_lengths(stage)
    choices = list(itertools.product(*(enumerate(values) for values in table.values())))
    cost = lambda choice: sum(
        weight * index for weight, (index, _) in zip(COSTS.values(), choice, strict=True)
    )
    for choice in sorted(choices, key=cost):
        values = {name: value for name, (_, value) in zip(table, choice, strict=True)}
        changes = {name: value for name, (index, value) in zip(table, choice, strict=True) if index}
        changed = _changed(stage, target, lengths, values)
        if misfit(changed, stage.name, target, stage.network) is None:
            yield changes, on_topology(changed, stage, target)


def on_topology(config, stage, target) -> Stage:
    """The stage with another config, on the abstract mesh of a topology."""
    mesh = sharding.abstract_mesh(*sharding.mesh_sizes(target.count, **config["mesh"]))
    return make_stage(config, stage.name, mesh=mesh, network=stage.network)


def misfit(config, name, target, network):
    """Why a stage does not divide over a topology, in a sentence, or None."""
    try:
        mesh = sharding.abstract_mesh(*sharding.mesh_sizes(target.count, **config["mesh"]))
        count_groups(config["stages"][name], mesh)
        sharding.param_shardings(mesh, network.abstract, network.axes)
    except UserError as error:
        return str(error)


def _changed(stage, target, lengths, values):
    """A copy of the config with these values, slices on `data`, and slots for that many rows."""
    config = copy.deepcopy(stage.config)
    settings, mesh = config["stages"][stage.name], config["mesh"]
    if values["rows"] != settings["rows"]:
        budgets = packing_stats.budgets(
            lengths, settings["mixture"], rows=values["rows"], length=settings["length"]
        )
        settings["und_slots"], settings["gen_slots"] = budgets[:2]
    settings["rows"], settings["microbatches"] = values["rows"], values["microbatches"]
    mesh["tensor"] = values["tensor"]
    mesh["data"] = max(mesh["data"], target.slices) if mesh["data"] != -1 else -1
    config["optimizer"]["moments"] = values["moments"]
    config["model"]["llm"]["remat"] = values["remat"]
    return config


def estimate(stage, target, *, mfu):
    """Figures of a stage on its mesh by formula, without any device: the keys of `plan --json`."""
    by_kind = stage.memory
    count = lambda params: sum(leaf.size for leaf in params.values())
    stats = expected_statistics(stage)
    flops = stage.flops(stats)
    tokens = stats["tokens"]
    seconds = sum(flops.values()) / (mfu * target.chip.peak * target.count)
    return {
        "stage": stage.name,
        "topology": target.name,
        "compiled": False,
        "fits": stage.bytes_per_device <= target.chip.memory,
        "bytes_per_device": stage.bytes_per_device,
        "bytes_limit": target.chip.memory,
        "bytes_by_kind": by_kind,
        "state_bytes": sum(by_kind[k] for k in ("parameters", "frozen", "moments", "average")),
        "collective_bytes": None,
        "parameters": count(stage.abstract_params),
        "trainable_parameters": count(stage.trainable),
        "flops_per_step": sum(flops.values()),
        "flops_by_part": flops,
        "tokens_per_step": tokens,
        "tokens_per_day": tokens / seconds * DAY,
        "days": stage.last_step * seconds / DAY,
        "mfu": mfu,
        "mesh": dict(stage.mesh.shape),
        "picture_cache_bytes": image_cache_bytes(stage),
        "compile_seconds": None,
    }


def image_cache_bytes(stage):
    """Bytes of keys and values that a guided image adds to those of its prompt."""
    llm = stage.model["llm"]
    per_position = (
        2 * llm["num_layers"] * llm["num_kv_heads"] * (llm["embed_dim"] // llm["num_heads"])
    )
    return 2 * stage.gen_tokens * per_position * stage.dtype.itemsize
