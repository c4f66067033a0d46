"""What the papers' own runs come to: tokens, FLOPs and the implied utilisation of their GPUs."""

import numpy as np

from janus_jax import cli
from janus_jax.data import packing_stats
from janus_jax.plan.estimate import DAY
from janus_jax.recipe.stage import make_stage

# Run, config, GPUs, days, steps of stage 2: the editions of the papers differ in days and steps
RUNS = (
    ("Janus-Pro-1B, 9 days, 270k", "pro_1b", 128, 9, 270_000),
    ("Janus-Pro-1B, 7 days, 270k", "pro_1b", 128, 7, 270_000),
    ("Janus-Pro-1B, 9 days, 360k", "pro_1b", 128, 9, 360_000),
    ("Janus-Pro-7B, 14 days, 270k", "pro_7b", 256, 14, 270_000),
    ("Janus-Pro-7B, 14 days, 360k", "pro_7b", 256, 14, 360_000),
    ("Janus-1.3B, 7 days", "janus_1p3b", 128, 7, 180_000),
    ("JanusFlow, 1 600 A100 days, 390k", "flow_1p3b", 160, 10, 390_000),
    ("JanusFlow, 1 600 A100 days, 380k", "flow_1p3b", 160, 10, 380_000),
)
A100_PEAK = 312e12  # FLOP/s in bf16 of the papers' GPUs
# Of a sample in the papers' runs, assumed
SAMPLE_TOKENS = {"understanding": 700, "text": 680, "generation": 650}


def implied_utilisation():
    """[{run, gpus, tokens, flops, tokens_per_second, mfu}] for full rows; the last two per GPU."""
    lengths = {
        task: packing_stats.Lengths(np.array([n]), np.array([int(task != "text")]))
        for task, n in SAMPLE_TOKENS.items()
    }
    networks, rows = {}, []
    for run, page, gpus, days, stage_2_steps in RUNS:
        config = cli.load_config(page).to_dict()
        total_tokens, total_flops = 0, 0
        for name in config["stages"]:
            stage = make_stage(config, name, network=networks.get(page))
            networks[page] = stage.network
            tokens = stage.settings["batch"] * stage.settings["length"]
            stats = packing_stats.expected(
                lengths, stage.settings["mixture"], tokens=tokens, und_tokens=stage.und_tokens
            )
            steps = stage_2_steps if name == "stage_2" else stage.settings["steps"]
            total_tokens += steps * tokens
            total_flops += steps * sum(stage.flops(stats).values())
        seconds = gpus * days * DAY
        rows.append(
            {
                "run": run,
                "gpus": gpus,
                "tokens": total_tokens,
                "flops": total_flops,
                "tokens_per_second": total_tokens / seconds,
                "mfu": total_flops / seconds / A100_PEAK,
            }
        )
    return rows
