"""Scores that the papers report, for comparison.

Values are as printed: percent, except for MME (points), GenEval (shares) and FID. JanusFlow is
listed by its image size in pixels; the other models use 384. Papers: Janus (arXiv 2410.13848),
Janus-Pro (2501.17811), JanusFlow (2411.07975).
"""

from typing import NamedTuple

from janus_jax.errors import UserError


class Row(NamedTuple):
    """What a paper reports of a model: {metric: value}, the table, the settings that it states."""

    model: str
    scores: dict
    source: str
    settings: str


class _Table(NamedTuple):
    """Columns are (benchmark, metric), rows {model: (source, values)}; None if not reported."""

    columns: tuple
    rows: dict


_JANUS, _PRO_1B, _PRO_7B, _FLOW_256, _FLOW_384 = (
    "Janus",
    "Janus-Pro-1B",
    "Janus-Pro-7B",
    "JanusFlow 256",
    "JanusFlow 384",
)
_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall")
_CATEGORIES = ("global", "entity", "attribute", "relation", "other", "overall")

_TABLES = (
    _Table(
        (
            ("pope", "accuracy/f1"),
            ("mme", "perception"),
            ("mmbench", "accuracy"),
            ("seed-bench", "accuracy"),
            ("vqav2", "accuracy"),
            ("gqa", "accuracy"),
            ("mmmu", "accuracy"),
            ("mm-vet", "judge score"),
            ("chartqa", "relaxed_accuracy"),
            ("textvqa", "accuracy"),
        ),
        {
            _JANUS: (
                "Janus, Table 2",
                (87.0, 1338.0, 69.4, 63.7, 77.3, 59.1, 30.5, 34.3, None, None),
            ),
            _PRO_1B: (
                "Janus-Pro, Table 3",
                (86.2, 1444.0, 75.5, 68.3, None, 59.3, 36.3, 39.8, None, None),
            ),
            _PRO_7B: (
                "Janus-Pro, Table 3",
                (87.4, 1567.1, 79.2, 72.1, None, 62.0, 41.0, 50.0, None, None),
            ),
            _FLOW_256: (
                "JanusFlow, appendix, Table 1",
                (85.3, 1203.0, 71.9, 67.6, 76.3, 58.4, None, 27.4, None, None),
            ),
            _FLOW_384: (
                "JanusFlow, Table 5",
                (88.0, 1333.1, 74.9, 70.5, 79.8, 60.3, 29.3, 30.9, 64.6, 55.5),
            ),
        },
    ),
    _Table(
        tuple(("geneval", tag) for tag in _TAGS),
        {
            _JANUS: ("Janus, Table 3", (0.97, 0.68, 0.30, 0.84, 0.46, 0.42, 0.61)),
            _PRO_1B: ("Janus-Pro, Table 4", (0.98, 0.82, 0.51, 0.89, 0.65, 0.56, 0.73)),
            _PRO_7B: ("Janus-Pro, Table 4", (0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80)),
            _FLOW_256: ("JanusFlow, appendix, Table 2", (0.98, 0.73, 0.54, 0.83, 0.63, 0.53, 0.70)),
            _FLOW_384: ("JanusFlow, Table 2", (0.97, 0.59, 0.45, 0.83, 0.53, 0.42, 0.63)),
        },
    ),
    _Table(
        tuple(("dpg", category) for category in _CATEGORIES),
        {
            _JANUS: ("Janus-Pro, Table 5", (82.33, 87.38, 87.70, 85.46, 86.41, 79.68)),
            _PRO_1B: ("Janus-Pro, Table 5", (87.58, 88.63, 88.17, 88.98, 88.30, 82.63)),
            _PRO_7B: ("Janus-Pro, Table 5", (86.90, 88.90, 89.40, 89.32, 89.48, 84.19)),
            _FLOW_256: ("JanusFlow, appendix, Table 3", (91.20, 88.83, 88.00, 87.60, 89.53, 81.23)),
            _FLOW_384: ("JanusFlow, Table 3", (87.03, 87.31, 87.39, 89.79, 88.10, 80.09)),
        },
    ),
    _Table(
        (("coco", "FID"), ("mjhq", "FID")),
        {
            _JANUS: ("Janus, Table 4", (8.53, 10.10)),
            _FLOW_256: ("JanusFlow, appendix, Table 3", (None, 12.70)),
            _FLOW_384: ("JanusFlow, Table 4", (None, 9.51)),
        },
    ),
)


def _nested():
    """{benchmark: {model: {metric: value}}} and {benchmark: {model: 'paper, table'}}."""
    scores, sources = {}, {}
    for table in _TABLES:
        for model, (source, values) in table.rows.items():
            for (benchmark, metric), value in zip(table.columns, values, strict=True):
                if value is not None:
                    scores.setdefault(benchmark, {}).setdefault(model, {})[metric] = value
                    sources.setdefault(benchmark, {})[model] = source
    return scores, sources


SCORES, SOURCES = _nested()

# What the papers state about benchmarks of understanding; none states whether answers were greedy.
_QUESTIONS = {
    "pope": "accuracy or F1: not stated",
    "mmbench": "JanusFlow: dev split; the others do not say which",
    "vqav2": "test split",
}
_GUIDANCE = {
    "Janus": "guidance 5",
    "Janus-Pro": "guidance not stated",
    "JanusFlow": "guidance and steps not stated",
}  # of GenEval and DPG, by paper


def rows(benchmark, model=None):
    """Published scores of a benchmark.

    A metric with a slash, such as POPE's accuracy/f1, is one of the two: the papers do not state
    which.

    Args:
      benchmark: name of the benchmark.
      model: one of the models; by default all.

    Returns:
      [Row], one per model, in the papers' order; empty if nothing was published.

    Raises:
      UserError: for a model that is in no paper.
    """
    models = (_JANUS, _PRO_1B, _PRO_7B, _FLOW_256, _FLOW_384)
    if model not in (None, *models):
        raise UserError(f"No paper reports on {model!r}; they report on {list(models)}.")
    return [
        Row(name, scores, SOURCES[benchmark][name], _settings(benchmark, SOURCES[benchmark][name]))
        for name, scores in SCORES.get(benchmark, {}).items()
        if model in (None, name)
    ]


def _settings(benchmark, source):
    """The settings that a paper states, and those that it does not."""
    paper = source.split(",")[0]  # Janus's DPG score, too, is from the paper of Janus-Pro
    match benchmark:
        case "geneval" | "dpg":
            unknown = "temperature, seeds, images per prompt, prompt rewriting: not stated"
            return f"{_GUIDANCE[paper]}; {unknown}"
        case "coco" | "mjhq":
            sampling = {
                "Janus": "guidance 5",
                "JanusFlow": "guidance 2, 30 Euler steps, computed as in GigaGAN",
            }[paper]
            return f"{sampling}; 30,000 images against 30,000"
        case _:
            return "; ".join(filter(None, (_QUESTIONS.get(benchmark), "greedy or not: not stated")))
