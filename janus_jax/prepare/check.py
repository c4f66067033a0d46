"""`check`: reads every record of a config's sources before a run, and predicts the run's stages.

A record is laid out once for every stage and task that use its source, so its errors are those that
the run would meet. Stages are predicted from lengths alone: how full rows get, which slots suit
them, and how many epochs each source is read.
"""

import collections
import functools
import hashlib
import types
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.progress
from PIL import Image, ImageDraw, ImageFont

from janus_jax.batch import TASKS, Example
from janus_jax.data import images, packing_stats
from janus_jax.data.bad_records import BadRecords, malformed_as_bad_record
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.images import BadRecord
from janus_jax.data.shards import Shard, Stream
from janus_jax.errors import UserError
from janus_jax.recipe.data import build_batch_shape, build_example_maker, open_sources, source_names
from janus_jax.recipe.freezing import stage_number
from janus_jax.recipe.stage import Stage, make_stage

LETTERS = 400  # of a record's text, which decide its script
READ_AT_ONCE = 4096  # records
SIMULATED_GROUPS = 300  # pack groups of a phase
COUNTED_GROUPS = 12_000  # a stage of more pack groups gets estimated epochs, not counted ones
TABLE_POINTS = 200  # quantiles of the lengths of a task
TEXT_FIELDS = ("text", "texts", "conversation", "caption", "question", "answer", "prompt")
IMAGE_FIELDS = {"understanding": "und_images", "generation": "gen_images"}  # of an Example, by task
NO_REPORT = types.SimpleNamespace(
    count_usable=lambda: None, count_bad=lambda record_id, error: None
)


class Use(NamedTuple):
    """A task for which a stage reads a source.

    Attributes:
      stage: Stage.
      task: one of TASKS.
      make: ExampleMaker of the stage.
    """

    stage: Stage
    task: str
    make: Any


class CheckedRecord(NamedTuple):
    """What is known of a record after it has been read.

    Attributes:
      error: why it cannot be used, or None.
      lengths: {(stage, task): (tokens, images)}.
      sizes: [(width, height)] of its images.
      script: Unicode script of most of its letters.
      digest: hash of its texts and images, the same for duplicates.
    """

    error: str | None
    lengths: dict
    sizes: list
    script: str
    digest: bytes


class CheckedSource:
    """A source whose records are CheckedRecords, or None for unusable ones."""

    def __init__(self, name, records, count):
        """`records` are {index: CheckedRecord} of the usable ones among `count`."""
        self.name = name
        self._records = records
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._records.get(index)


def check(config, out=None):
    """Reads every source that a stage of a config mixes.

    Args:
      config: resolved config.
      out: folder for check.json, lengths.png and bad_records.jsonl; None writes nothing.

    Returns:
      {source: counts and sizes} and {stage: [prediction of each phase]}, as in check.json.

    Raises:
      UserError: for a source without a usable record.
    """
    stages = [make_stage(config, name) for name in sorted(config["stages"], key=stage_number)]
    names = sorted({name for stage in stages for name in source_names(stage)})
    stages = [stage for stage in stages if not stage.trains_tokenizer]
    makers = {stage.name: build_example_maker(stage)[0] for stage in stages}
    sources = open_sources(config, names)
    report = None
    if out is not None:
        make_folder(out)
        report = Path(out) / "bad_records.jsonl"
        report.unlink(missing_ok=True)
    bad = BadRecords(1.0, sources=sources, report=report)
    records = {
        name: _check_source(sources[name], _uses(stages, makers, name), bad) for name in names
    }
    summaries = {name: _summarize(sources[name], list(records[name].values())) for name in names}
    predictions = {stage.name: _predict_stage(stage, records, summaries) for stage in stages}
    if out is not None:
        write_json(Path(out) / "check.json", {"sources": summaries, "stages": predictions})
        tokens = {name: _all_tokens(records[name].values()) for name in names}
        histogram(tokens).save(Path(out) / "lengths.png")
    return summaries, predictions


def _uses(stages, makers, source_name):
    """The Uses of a source in all stages."""
    return [
        Use(stage, task, makers[stage.name])
        for stage in stages
        for i, task in enumerate(TASKS)
        if any(p.ratio[i] and source_name in (p.sources.get(task) or {}) for p in stage.phases)
    ]


def _all_tokens(records):
    """Number of tokens of every example of some CheckedRecords."""
    return [tokens for record in records for tokens, _ in record.lengths.values()]


def _check_source(source, uses, bad):
    """{index: CheckedRecord} of the usable records; the others are added to the report."""
    checked = {}
    with ThreadPoolExecutor() as pool, rich.progress.Progress() as bar:
        task = bar.add_task(source.name, total=len(source))
        for start in range(0, len(source), READ_AT_ONCE):
            indices = range(start, min(start + READ_AT_ONCE, len(source)))
            records = pool.map(lambda index: _check_record(source, index, uses), indices)
            for index, record in zip(indices, records, strict=True):
                if record.error:
                    bad.count_bad(_record_id(source, index), BadRecord(record.error))
                else:
                    checked[index] = record
                bar.advance(task)
    if uses and not checked:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in bad.reasons.most_common(3))
        raise UserError(
            f"Source {source.name!r} has no record that {uses[0].stage.name} can use for "
            f"{uses[0].task}: {reasons}."
        )
    return checked


def _record_id(source, index):
    return f"{source.name}/0/{index}"


def _check_record(source, index, uses):
    """Reads a record, makes the example of every use, and decodes its images: CheckedRecord."""
    try:
        with malformed_as_bad_record():
            record = source[index]
            text = _text_of({field: record.get(field) for field in TEXT_FIELDS})
            lengths, all_images = {}, {}
            for use in uses:
                example = _make_example(use, source, index, record)
                example_images = (*example.und_images, *example.gen_images)
                lengths[use.stage.name, use.task] = (len(example.tokens), len(example_images))
                all_images |= {_content(image): image for image in example_images}
            sizes = [
                images.decode(image).size
                for image in all_images.values()
                if not isinstance(image, np.ndarray)
            ]
    except BadRecord as error:
        return CheckedRecord(str(error), {}, [], "", b"")
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    for content in all_images:
        digest.update(content)
    return CheckedRecord(None, lengths, sizes, _script(text), digest.digest())


def _make_example(use, source, index, record):
    """The example of a record; raises BadRecord for more images than the stage has slots."""
    rng = np.random.default_rng((0, index))
    record_id = _record_id(source, index)
    example = use.make(record, task=use.task, rng=rng, record_id=record_id)
    settings = use.stage.settings
    if (
        len(example.und_images) > settings["und_slots"]
        or len(example.gen_images) > settings["gen_slots"]
    ):
        raise BadRecord("more images than slots")
    return example


def _content(image):
    """The bytes of an image's file, or of its cached codes."""
    return image.tobytes() if isinstance(image, np.ndarray) else image.encoded


def _text_of(value):
    """All text of a record, or of a part of it, in one string."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return " ".join(_text_of(v) for k, v in value.items() if k != "role")
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text_of, value))
    return value if isinstance(value, str) else ""


def _script(text):
    """'LATIN', 'CJK', 'CYRILLIC', ...: the script of most letters; 'none' without letters."""
    scripts = [_script_of(c) for c in text[:LETTERS] if c.isalpha()]
    return collections.Counter(scripts).most_common(1)[0][0] if scripts else "none"


@functools.cache
def _script_of(letter):
    return unicodedata.name(letter, "?").split()[0]


def _summarize(source, records):
    """The counts of a source for check.json; `epochs` are filled in by `_predict_stage`."""
    uses = sorted({use for record in records for use in record.lengths})
    sizes = [size for record in records for size in record.sizes]
    return {
        "records": len(source),
        "unusable": len(source) - len(records),
        "duplicates": len(records) - len({record.digest for record in records}),
        "pictures": len(sizes),
        "widths": _spread([width for width, _ in sizes]),
        "heights": _spread([height for _, height in sizes]),
        "scripts": dict(collections.Counter(r.script for r in records).most_common(5)),
        "tokens": {
            f"{stage} {task}": _spread([r.lengths[stage, task][0] for r in records])
            for stage, task in uses
        },
        "epochs": {},
    }


def _spread(values):
    """Smallest, median and largest; empty for no values."""
    return [int(v) for v in (min(values), np.median(values), max(values))] if values else []


def _predict_stage(stage, records, summaries):
    """Predicts the phases of a stage, and writes the epochs of its sources into their summaries.

    Args:
      stage: Stage.
      records: {source: {index: CheckedRecord}}.
      summaries: {source: dict}, as `_summarize` returns them.

    Returns:
      a list of dicts, one per phase.
    """
    totals = {name: summary["records"] for name, summary in summaries.items()}
    batch, rows = stage.settings["batch"], stage.settings["rows"]
    phases, reads = [], collections.Counter()
    start = 0
    for phase in stage.phases:
        end = min(phase.until, stage.last_step)
        if end <= start:
            continue
        prediction, examples = _predict_phase(stage, phase, records)
        groups = (end - start) * batch // rows
        for (name, task), count in examples.items():
            records_per_example = totals[name] / len(records[name])
            reads[name, task] += groups * count * records_per_example
        phases.append({"steps": [start, end]} | prediction)
        start = end
    exact = stage.last_step * batch // rows <= COUNTED_GROUPS
    if exact:
        reads = _count_reads(stage, records, totals)
    for (name, task), count in reads.items():
        summaries[name]["epochs"][f"{stage.name} {task}"] = round(count / totals[name], 4)
    return [phase | {"epochs_are_exact": exact} for phase in phases]


def _predict_phase(stage, phase, records):
    """Packs examples of a phase's lengths: its prediction, {(source, task): examples per group}."""
    settings = stage.settings
    und_slots, gen_slots = settings["und_slots"], settings["gen_slots"]
    sizes = dict(rows=settings["rows"], length=settings["length"])
    table, shares = _lengths_of_phase(phase, stage.name, records)
    advised_und, advised_gen, reasons = packing_stats.budgets(table, phase.ratio, **sizes)
    bound = packing_stats.bound(table, phase.ratio, length=settings["length"])
    packed = packing_stats.simulate(
        table,
        phase.ratio,
        **sizes,
        und_slots=und_slots,
        gen_slots=gen_slots,
        window=stage.config["data"]["window"],
        groups=SIMULATED_GROUPS,
    )
    prediction = {
        "mixture": list(phase.ratio),
        "token_fill": round(packed.token_fill, 4),
        "token_bound": round(bound, 4),
        "slot_fill": round(packed.slot_fill, 4),
        "slots": [und_slots, gen_slots],
        "advised_slots": [advised_und, advised_gen],
        "reasons": reasons,
    }
    examples = {
        (name, task): packed.examples[task] * share for (name, task), share in shares.items()
    }
    return prediction, examples


def _lengths_of_phase(phase, stage_name, records):
    """{task: Lengths}, its sources by their weights, and {(source, task): share of the task}."""
    table, shares = {}, {}
    for task, ratio in zip(TASKS, phase.ratio, strict=True):
        weights = dict(phase.sources.get(task) or {}) if ratio else {}
        points = []
        for name, weight in weights.items():
            share = weight / sum(weights.values())
            shares[name, task] = share
            lengths = sorted(record.lengths[stage_name, task] for record in records[name].values())
            count = max(round(TABLE_POINTS * share), 1)
            points += [lengths[int((k + 0.5) / count * len(lengths))] for k in range(count)]
        if points:
            table[task] = packing_stats.Lengths(*np.array(points).T)
    return table, shares


def _count_reads(stage, records, totals):
    """Runs the stage's shards to its end on lengths alone: {(source, task): records read}."""
    reads = collections.Counter()

    def make(record, *, task, rng, record_id):
        source_name, _, _ = record_id.rsplit("/", 2)
        reads[source_name, task] += 1
        if record is None:
            raise BadRecord("unusable")
        tokens, count = record.lengths[stage.name, task]
        example = Example(np.empty(tokens, np.int8), None, TASKS.index(task))
        if task not in IMAGE_FIELDS:
            return example
        return example._replace(**{IMAGE_FIELDS[task]: (None,) * count})

    shape = build_batch_shape(stage)
    streams = {}
    for name in source_names(stage):
        source = CheckedSource(name, records[name], totals[name])
        streams[name] = Stream(source, make=make, seed=stage.seed)
    for number in rich.progress.track(range(shape.shards), description=f"{stage.name}, epochs"):
        shard = Shard(
            number,
            shape=shape,
            streams=streams,
            phases=stage.phases,
            unit=stage.config["data"]["mixture_unit"],
            bad_records=NO_REPORT,
        )
        for _ in range(stage.last_step * shape.groups // shape.shards):
            shard.next_group()
    return reads


def histogram(lengths, *, width=760, height=90, bins=64):
    """Bar charts of the lengths of examples, one per source: {source: tokens of each} -> image."""
    font = ImageFont.load_default(12)
    margin, title_height = 12, 30
    row_height = height + title_height + margin
    longest = max((max(values) for values in lengths.values() if values), default=1)
    chart = Image.new("RGB", (width, row_height * len(lengths) + margin), "white")
    draw = ImageDraw.Draw(chart)
    step = (width - 2 * margin) / bins
    for i, (name, values) in enumerate(lengths.items()):
        bottom = (i + 1) * row_height
        title = f"{name}: {len(values)} examples, tokens 0 to {longest}"
        draw.text((margin, bottom - height - title_height + 8), title, "black", font)
        counts, _ = np.histogram(values, bins=bins, range=(0, longest + 1))
        for k, count in enumerate(counts.tolist()):
            bar_height = round(count / max(counts.max(), 1) * height)
            left = margin + k * step
            draw.rectangle((left, bottom - bar_height, left + step - 2, bottom), fill="#4477aa")
        draw.line((margin, bottom, width - margin, bottom), fill="black")
    return chart
