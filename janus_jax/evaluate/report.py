"""Files of an evaluation: settings.json, evaluation.json and evaluation.md."""

import json

import rich.console
import rich.table
from absl import logging

from janus_jax import distributed
from janus_jax.data.files import write_json
from janus_jax.errors import UserError
from janus_jax.evaluate import papers


def check_settings(out, settings):
    """Writes settings.json, or compares `settings` with the file of an earlier run.

    Raises:
      UserError: if the results in the folder were made with other settings.
    """
    path = out / "settings.json"
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not path.exists():
        if distributed.is_primary():
            write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is not JSON: {error}; remove it with the results in its folder."
        ) from error
    for key in {**before, **settings}:
        if before.get(key) != settings.get(key):
            raise UserError(
                f"{str(out)!r} has results made with {key} = {before.get(key)!r}, but this run has "
                f"{settings.get(key)!r}; name another folder with --out."
            )


def write(out, name, scores, settings, count):
    """Writes evaluation.json and evaluation.md, and prints the published and the new scores.

    Args:
      out: folder.
      name: of the benchmark.
      scores: {metric: value}; empty if the official scorer or a judge computes the score.
      settings: {name: value} that the scores depend on.
      count: prompts or questions.
    """
    published = papers.rows(name)
    report = {
        "scores": scores,
        "count": count,
        "settings": settings,
        "published": [row._asdict() for row in published],
    }
    write_json(out / "evaluation.json", report)
    columns = [name, *(row.model for row in published), "ours"]
    table = _table(published, scores)
    notes = [f"{row.model} ({row.source}): {row.settings}" for row in published]
    _print(columns, table, notes, settings, count)
    (out / "evaluation.md").write_text(
        _markdown(columns, table, notes, settings, count), encoding="utf-8"
    )
    logging.info("Wrote evaluation.json and evaluation.md to %s", out)


def _table(published, scores):
    """Rows of strings: metric, its published values, the model's own."""
    text = lambda value: "" if value is None else f"{round(value, 3):.9g}"
    metrics = dict.fromkeys(metric for row in published for metric in row.scores) | dict.fromkeys(
        scores
    )
    return [
        [metric, *(text(row.scores.get(metric)) for row in published), text(scores.get(metric))]
        for metric in metrics
    ]


def _print(columns, rows, notes, settings, count):
    table = rich.table.Table(*(rich.table.Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*row)
    console = rich.console.Console()
    console.print(table)
    values = ", ".join(f"{key} {value}" for key, value in settings.items())
    console.print(
        "\n".join([*notes, f"ours: {count} tasks; {values}"]), markup=False, highlight=False
    )


def _markdown(columns, rows, notes, settings, count):
    lines = [f"# {columns[0]}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if notes:
        lines += ["", "Settings that the papers state:", "", *(f"- {note}" for note in notes)]
    lines += [
        "",
        f"Our settings, {count} tasks:",
        "",
        *(f"- {key}: {value}" for key, value in settings.items()),
        "",
    ]
    return "\n".join(lines)
