"""Training runs of a small recipe in child processes: its config page, and what a run logs."""

import json
from pathlib import Path

PAGE = """
from pathlib import Path
from configs import tiny
from tests.conftest import small

def get_config(stage="all"):
    config = small(tiny.get_config(stage), Path({data!r}))
    config.init_fresh = (".*",)
    for name in {{"tokenizer", "stage_3"}} & set(config.stages):
        del config.stages[name]
    return config
"""
TIMES = ("seconds", "tokens_per_second", "mfu")  # differ from run to run


def write_recipe(folder, data):
    """Writes the page of a small recipe, stages 1 and 2 with fresh parameters; returns its path."""
    path = Path(folder) / "test_recipe.py"
    path.write_text(PAGE.format(data=str(data)))
    return path


def read_metrics(workdir):
    """The lines of a run's metrics.jsonl as dicts, without what depends on the machine's speed."""
    text = (Path(workdir) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    names = [name for name in rows[-1] if name not in TIMES]
    return [{name: row.get(name) for name in names} for row in rows]


def count_steps(workdir):
    """Number of steps that a run has logged so far."""
    path = Path(workdir) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
