"""What lies beside the results of a benchmark: settings, from its first drawing or answer on, and the report at its end."""

import rich.console
import rich.table
from absl import logging

from janus_jax import cli, distributed
from janus_jax.data.files import write_json
from janus_jax.errors import UserError
from janus_jax.evaluate import papers
from janus_jax.evaluate.understanding.base import read_json


def pin(out, settings):
    """Keeps the settings beside the results.

    Raises:
      UserError: where results in the folder were made with others.
    """
    path = out / "settings.json"
    if path.exists():
        before = read_json(path)
        other = [key for key in {**before, **settings} if before.get(key) != cli.plain(settings).get(key)]
        if other:
            key = other[0]
            raise UserError(
                f"{str(out)!r} holds results made with {key} = {before.get(key)!r}, and this run has {settings.get(key)!r}; "
                "name another folder with --out."
            )
    elif distributed.is_primary():
        write_json(path, settings)


def write(out, name, scores, settings, count):
    """evaluation.json, evaluation.md, and the table that a person reads: papers, ours, settings.

    Args:
      out: folder.
      name: of the benchmark.
      scores: {metric: value}; empty where a scorer or a judge has the word.
      settings: {name: value} that they depend on.
      count: prompts drawn, or questions answered.
    """
    published = papers.rows(name)
    found = {"scores": scores, "count": count, "settings": settings, "published": [row._asdict() for row in published]}
    write_json(out / "evaluation.json", found)
    metrics = dict.fromkeys(metric for row in (*published, papers.Row("", scores, "", "")) for metric in row.scores)
    show = lambda value: "" if value is None else f"{round(value, 3):.9g}"
    head = [name, *(row.model for row in published), "ours"]
    lines = [[m, *(show(row.scores.get(m)) for row in published), show(scores.get(m))] for m in metrics]
    notes = [f"{row.model} ({row.source}): {row.settings}" for row in published]
    table = rich.table.Table(*(rich.table.Column(name, overflow="fold") for name in head))
    for line in lines:
        table.add_row(*line)
    console = rich.console.Console()
    console.print(table)
    ours = ", ".join(f"{key} {value}" for key, value in settings.items())
    console.print("\n".join([*notes, f"ours: {count} done; {ours}"]), markup=False, highlight=False)
    page = [f"# {name}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    page += [f"| {' | '.join(line)} |" for line in lines]
    page += ["", "What the papers say of theirs:", "", *(f"- {note}" for note in notes)] if notes else []
    page += ["", f"Settings of ours, {count} done:", "", *(f"- {key}: {value}" for key, value in settings.items()), ""]
    (out / "evaluation.md").write_text("\n".join(page), encoding="utf-8")
    logging.info("Wrote %s and evaluation.md beside it", out / "evaluation.json")
