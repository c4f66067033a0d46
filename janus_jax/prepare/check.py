"""The data doctor: walks every source of a config before a run does, and says what the run will make of it."""

import collections
import functools
import hashlib
import itertools
import types
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.progress
from PIL import Image, ImageDraw, ImageFont

from janus_jax.batch import TASKS, Example
from janus_jax.data import images, packing_stats
from janus_jax.data.bad_records import BadRecords, malformed_is_bad
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.images import BadRecord
from janus_jax.data.shards import Shard, Stream
from janus_jax.errors import UserError
from janus_jax.recipe.data import build_example_maker, build_layout, open_sources, source_names
from janus_jax.recipe.freezing import stage_number
from janus_jax.recipe.stage import make_stage

SEEN, GROUPS = 400, 300  # letters of a record that its script is told by; groups that a stage's packing is tried on
AT_ONCE = 4096  # records under way
SILENT = types.SimpleNamespace(good=lambda: None, bad=lambda record_id, error: None)  # what was told of once
RUN_THROUGH = 12_000  # groups of a stage up to which its epochs are counted, not estimated
TEXTS = ("text", "texts", "conversation", "caption", "question", "answer", "prompt")  # what of a record is content


class Use(NamedTuple):
    """A task that a stage gives a source, and what makes its examples."""

    stage: str
    task: str
    make: object


class Found:
    """What was found in a source, as a source: a record is its Finding, or None where it was unusable."""

    def __init__(self, name, findings, records):
        self.name, self._findings, self._records = name, findings, records

    def __len__(self):
        return self._records

    def __getitem__(self, index):
        return self._findings.get(index)


class Finding(NamedTuple):
    """What one record turned out to be.

    Attributes:
      error: why it cannot be used, or None.
      lengths: {(stage, task): (tokens, pictures)}.
      sizes: (width, height) of its pictures.
      script: that most of its letters belong to.
      digest: of its pictures and texts, equal for duplicates whatever their numbers and addresses.
    """

    error: str | None
    lengths: dict
    sizes: list
    script: str
    digest: bytes


def check(config, out=None):
    """Walks every source of every stage.

    Args:
      config: resolved config.
      out: folder for check.json, lengths.png and bad_records.jsonl; None writes nothing.

    Returns:
      {source: {records, unusable, pictures, scripts, duplicates, lengths, epochs}} and {stage: {budget, token_fill, ...}}.
    """
    stages = [make_stage(config, name) for name in sorted(config["stages"], key=stage_number)]
    names = sorted({name for stage in stages for name in source_names(stage)})
    stages = [stage for stage in stages if not stage.trains_tokenizer]
    makers = {stage.name: build_example_maker(stage)[0] for stage in stages}
    sources = open_sources(config, names)
    report = None if out is None else Path(out) / "bad_records.jsonl"
    if out is not None:
        make_folder(out)
        report.unlink(missing_ok=True)
    bad = BadRecords(1.0, sources=sources, report=report)
    found = {name: _walk(sources[name], _uses(stages, makers, name), bad, config) for name in names}
    by_source = {name: _sum_up(sources[name], list(findings.values())) for name, findings in found.items()}
    by_stage = {stage.name: _try_stage(stage, found, by_source) for stage in stages}
    if out is not None:
        write_json(Path(out) / "check.json", {"sources": by_source, "stages": by_stage})
        histogram({n: [t for f in found[n].values() for t, _ in f.lengths.values()] for n in names}).save(
            Path(out) / "lengths.png"
        )
    return by_source, by_stage


def _uses(stages, makers, name):
    def mixed(stage, i):
        return any(p.ratio[i] and name in (p.sources.get(TASKS[i]) or {}) for p in stage.phases)

    return [
        Use(stage.name, task, makers[stage.name]) for stage in stages for i, task in enumerate(TASKS) if mixed(stage, i)
    ]


def _walk(source, uses, bad, config):
    """{number: Finding} of the usable records; the others go into the report."""
    findings, slots = {}, {stage: (s["und_slots"], s["gen_slots"]) for stage, s in config["stages"].items()}
    with ThreadPoolExecutor() as pool, rich.progress.Progress() as bar:
        task = bar.add_task(source.name, total=len(source))
        for start in range(0, len(source), AT_ONCE):
            indices = range(start, min(start + AT_ONCE, len(source)))
            for index, finding in zip(indices, pool.map(lambda i: _look(source, i, uses, slots), indices), strict=True):
                if finding.error:
                    bad.bad(f"{source.name}/0/{index}", BadRecord(finding.error))
                else:
                    findings[index] = finding
                bar.advance(task)
    if uses and not findings:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in bad.reasons.most_common(3))
        raise UserError(f"Source {source.name!r} has no record that {uses[0].stage} can use for {uses[0].task}: {reasons}.")
    return findings


def _look(source, index, uses, slots):
    lengths, sizes, digest, seen = {}, [], hashlib.blake2b(digest_size=12), set()
    try:
        with malformed_is_bad():
            record = source[index]
            words = _words({field: record.get(field) for field in TEXTS})
            digest.update(words.encode())
            for use in uses:
                rng = np.random.default_rng((0, index))
                example = use.make(record, task=use.task, rng=rng, record_id=f"{source.name}/0/{index}")
                pictures = (example.und_images, example.gen_images)
                if any(len(held) > most for held, most in zip(pictures, slots[use.stage], strict=True)):
                    raise BadRecord("more pictures than slots")
                lengths[use.stage, use.task] = (len(example.tokens), sum(map(len, pictures)))
                for picture in itertools.chain(*pictures):
                    held = picture.tobytes() if isinstance(picture, np.ndarray) else picture.encoded
                    if held not in seen:
                        seen.add(held)
                        digest.update(held)
                        sizes += [] if isinstance(picture, np.ndarray) else [images.decode(picture).size]
    except BadRecord as error:
        return Finding(str(error), {}, [], "", b"")
    return Finding(None, lengths, sizes, _script(words), digest.digest())


def _words(value):
    """All text of a record in one string."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return " ".join(_words(v) for k, v in value.items() if k != "role")
    if isinstance(value, (list, tuple)):
        return " ".join(map(_words, value))
    return value if isinstance(value, str) else ""


def _script(text):
    """'LATIN', 'CJK', 'CYRILLIC', ...: what most letters belong to."""
    letters = [_script_of(c) for c in text[:SEEN] if c.isalpha()]
    return collections.Counter(letters).most_common(1)[0][0] if letters else "none"


@functools.cache
def _script_of(letter):
    return unicodedata.name(letter, "?").split()[0]


def _sum_up(source, findings):
    uses = {use for finding in findings for use in finding.lengths}
    lengths = {f"{stage} {task}": _spread([f.lengths[stage, task][0] for f in findings]) for stage, task in sorted(uses)}
    sides = [side for finding in findings for side in finding.sizes]
    return {
        "records": len(source),
        "unusable": len(source) - len(findings),
        "duplicates": len(findings) - len({f.digest for f in findings}),
        "pictures": len(sides),
        "widths": _spread([w for w, _ in sides]),
        "heights": _spread([h for _, h in sides]),
        "scripts": dict(collections.Counter(f.script for f in findings).most_common(5)),
        "tokens": lengths,
        "epochs": {},
    }


def _spread(values):
    """Smallest, median, largest."""
    return [int(v) for v in (min(values), np.median(values), max(values))] if values else []


def _try_stage(stage, found, by_source):
    """Packs a stage's phases on the lengths found: fill, budgets, and the epochs of every source, which it notes too."""
    s, start, told, drawn = stage.settings, 0, [], {}
    len_of = lambda name: by_source[name]["records"]
    sizes = dict(rows=s["rows"], length=s["length"])
    last = stage.last_step
    for phase in stage.phases:
        end = min(phase.until, last)
        if end <= start:
            continue
        table, shares = _table(phase, stage.name, found)
        und, gen, reasons = packing_stats.budgets(table, phase.ratio, **sizes)
        packed = packing_stats.simulate(
            table, phase.ratio, **sizes, und_slots=s["und_slots"], gen_slots=s["gen_slots"], window=stage.config["data"]["window"],
            groups=GROUPS,
        )  # fmt: skip
        groups = (end - start) * s["batch"] // s["rows"]
        for task, name in shares:
            records = groups * packed.examples[task] * shares[task, name] * len_of(name) / len(found[name])
            drawn[name, task] = drawn.get((name, task), 0) + records
        told.append(
            {
                "steps": [start, end],
                "mixture": list(phase.ratio),
                "token_fill": round(packed.token_fill, 4),
                "token_bound": round(packing_stats.bound(table, phase.ratio, length=s["length"]), 4),
                "slot_fill": round(packed.slot_fill, 4),
                "slots": [s["und_slots"], s["gen_slots"]],
                "advised_slots": [und, gen],
                "reasons": reasons,
            }
        )
        start = end
    exact = last * s["batch"] // s["rows"] <= RUN_THROUGH
    for (name, task), count in (_run_through(stage, found, len_of) if exact else drawn).items():
        by_source[name]["epochs"][f"{stage.name} {task}"] = round(count / len_of(name), 4)
    return [phase | {"epochs_are_exact": exact} for phase in told]


def _run_through(stage, found, len_of):
    """{(source, task): records read}: the stage's own shards to its end, on lengths alone."""
    read = collections.Counter()

    def make(finding, *, task, rng, record_id):
        read[record_id.rsplit("/", 2)[0], task] += 1
        if finding is None:
            raise BadRecord("as told")
        tokens, pictures = finding.lengths[stage.name, task]
        kind = {"understanding": "und_images", "generation": "gen_images"}.get(task)
        return Example(np.empty(tokens, np.int8), None, TASKS.index(task), **({kind: (None,) * pictures} if kind else {}))

    layout = build_layout(stage)
    streams = {n: Stream(Found(n, found[n], len_of(n)), make=make, seed=stage.seed) for n in source_names(stage)}
    told = dict(phases=stage.phases, unit=stage.config["data"]["mixture_unit"], bad=SILENT)
    for number in rich.progress.track(range(layout.shards), description=f"{stage.name}, run through"):
        shard = Shard(number, layout=layout, streams=streams, **told)
        for _ in range(stage.last_step * layout.groups // layout.shards):
            shard.next_group()
    return read


def _table(phase, stage, found, *, points=200):
    """{task: Lengths} of a phase, its sources in their weights, by `points` quantiles; {(task, source): share}."""
    table, shares = {}, {}
    for task, ratio in zip(TASKS, phase.ratio, strict=True):
        weights = dict(phase.sources.get(task) or {}) if ratio else {}
        rows = []
        for name, weight in weights.items():
            share = weight / sum(weights.values())
            shares[task, name] = share
            pairs = sorted(f.lengths[stage, task] for f in found[name].values())
            count = max(round(points * share), 1)
            rows += [pairs[int((k + 0.5) / count * len(pairs))] for k in range(count)]
        if rows:
            table[task] = packing_stats.Lengths(*np.array(rows).T)
    return table, shares


def histogram(lengths, *, width=760, height=90, bins=64):
    """A picture of how long examples are: {source: tokens of each}, a row of bars a source."""
    font, margin, top = ImageFont.load_default(12), 12, 30
    longest = max((max(v) for v in lengths.values() if v), default=1)
    picture = Image.new("RGB", (width, (height + top + margin) * len(lengths) + margin), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, values) in enumerate(lengths.items()):
        bottom = (i + 1) * (height + top + margin)
        counts, _ = np.histogram(values, bins=bins, range=(0, longest + 1))
        step = (width - 2 * margin) / bins
        draw.text(
            (margin, bottom - height - top + 8), f"{name}: {len(values)} examples, tokens 0 to {longest}", "black", font
        )
        for k, count in enumerate(counts.tolist()):
            tall = round(count / max(counts.max(), 1) * height)
            left = margin + k * step
            draw.rectangle((left, bottom - tall, left + step - 2, bottom), fill="#4477aa")
        draw.line((margin, bottom, width - margin, bottom), fill="black")
    return picture
