"""The way from sources to batches: V virtual shards, each with its own mixture and packer, in a fixed order.

Every *source* is shuffled globally and dealt out to the shards, and the mixture happens inside a shard. A host owns
whole shards, so the global batch sequence is the same for any number of hosts, and a shard's position is a small JSON
dict: how far each source was read, which examples wait in the window (by index, they are read again), what was drawn.
"""

import collections
import queue
import threading
from typing import NamedTuple

import grain
import numpy as np
from absl import logging

from janus_jax.batch import TASKS
from janus_jax.data import image_ops
from janus_jax.data.image_ops import BadRecord, Picture, TooLong
from janus_jax.data.mixture import Mixture
from janus_jax.data.packing import empty_segment, lay_out, pack_group
from janus_jax.errors import UserError


class Layout(NamedTuple):
    """The fixed shape of a batch.

    Attributes:
      groups: S, pack groups in the global batch.
      rows: R, rows a group.
      length: L, tokens a row.
      und_slots: U.
      gen_slots: G.
      und_size: pixels a side of pictures to understand.
      gen_size: pixels a side of pictures to draw.
      window: examples that wait in each shard for the packer.
      shards: V, virtual shards; a divisor of S, and a multiple of the number of hosts.
    """

    groups: int
    rows: int
    length: int
    und_slots: int
    gen_slots: int
    und_size: int
    gen_size: int
    window: int = 128
    shards: int = 8


class Stream:
    """One source, shuffled anew every epoch, as examples by position: any position can be read at any time."""

    def __init__(self, source, *, make, seed, number):
        """Sets up the order.

        Args:
          source: Source.
          make: ExampleMaker.
          seed: of the run and stage.
          number: this source's own, so that sources draw differently.
        """
        self.name, self._source, self._make, self._words = source.name, source, make, (seed, number)
        shuffled = grain.MapDataset.range(len(source)).seed(seed + 7919 * number).shuffle()
        self._order = shuffled.repeat(None)

    def example(self, position, *, task):
        """The example at a position of the endless stream; raises BadRecord, with the record's id attached."""
        epoch, index = position // len(self._source), int(self._order[position])
        rng = np.random.default_rng((*self._words, epoch, index))
        record_id = f"{self.name}/{epoch}/{index}"
        try:
            return self._make(self._source[index], task=task, rng=rng, record_id=record_id)
        except BadRecord as error:
            raise type(error)(f"{record_id}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # fields that are not what they should be
            raise BadRecord(f"{record_id}: malformed record ({type(error).__name__} {error})") from None


class BadRecords:
    """Counts unusable records by source and reason, tells of them, and stops the run when there are too many."""

    def __init__(self, limit):
        self.limit, self.seen, self.reasons, self.too_long = limit, 0, collections.Counter(), 0
        self._lock = threading.Lock()

    def good(self):
        """Notes a usable record."""
        with self._lock:
            self.seen += 1

    def bad(self, error):
        """Notes an unusable one; its first, tenth, hundredth, ... fellow is told in the log.

        Raises:
          UserError: when their share passes the limit (counted over at least a hundred records). Examples that are
            left out because they are too long, as config.data.overlong='skip' asks, do not count towards it.
        """
        record_id, reason = str(error).split(": ", 1)
        reason = f"{record_id.split('/')[0]}: {reason}"
        with self._lock:
            self.seen += 1
            self.reasons[reason] += 1
            self.too_long += isinstance(error, TooLong)
            alike, count = self.reasons[reason], self.reasons.total() - self.too_long
        if 10 ** (len(str(alike)) - 1) == alike:
            logging.warning("Left out %d record%s of %s (lately %s)", alike, "s" * (alike > 1), reason, record_id)
        if count > self.limit * max(self.seen, 100):
            raise UserError(
                f"{count} of {self.seen} records are unusable, more than config.data.bad_record_limit="
                f"{self.limit:.0%}: {dict(self.reasons)}, lately {record_id!r}. Mend the data or raise the limit."
            )


class Shard:
    """One virtual shard: an endless run of packed groups, with a position that can be saved."""

    def __init__(self, number, *, layout, streams, phases, unit, bad):
        self._number, self._layout, self._streams, self._bad = number, layout, streams, bad
        self._phases = [(phase.until, Mixture(phase, unit=unit)) for phase in phases]
        self._groups, self._phase, self._drawn = 0, 0, 0
        self._tokens = {task: (0, 0) for task in TASKS}
        self._next = dict.fromkeys(streams, 0)
        self._window = []  # (source, place, task, Example), oldest first

    def next_group(self):
        """R lists of examples."""
        layout = self._layout
        step = self._groups // (layout.groups // layout.shards)
        phase = next((i for i, (until, _) in enumerate(self._phases) if step < until), len(self._phases) - 1)
        if phase != self._phase:
            self._phase, self._drawn, self._tokens = phase, 0, {task: (0, 0) for task in TASKS}
        while len(self._window) < layout.window:
            self._draw(self._phases[phase][1])
        slots = dict(und_slots=layout.und_slots, gen_slots=layout.gen_slots)
        waiting = [entry[-1] for entry in self._window]
        rows = pack_group(waiting, rows=layout.rows, length=layout.length, **slots)
        used = {i for row in rows for i in row}
        self._window = [entry for i, entry in enumerate(self._window) if i not in used]
        self._groups += 1
        return [[waiting[i] for i in row] for row in rows]

    def _draw(self, mixture):
        """Adds the next good example of the mixture's choice to the window."""
        task, source = mixture.pick(self._drawn, tokens=self._tokens)
        while True:
            place = self._next[source]
            self._next[source] += 1
            try:
                example = self._read(source, place, task)
                break
            except BadRecord as error:
                self._bad.bad(error)
        self._bad.good()
        self._drawn += 1
        examples, tokens = self._tokens[task]
        self._tokens[task] = (examples + 1, tokens + len(example.tokens))
        self._window.append((source, place, task, example))

    def _read(self, source, place, task):
        """The shard's n-th example of a source: the source's stream is dealt out like cards."""
        position = self._number + place * self._layout.shards
        example = self._streams[source].example(position, task=task)
        if len(example.und_images) > self._layout.und_slots or len(example.gen_images) > self._layout.gen_slots:
            raise BadRecord(f"{example.record_id}: more pictures than slots")  # no group could ever hold it
        return example

    def get_state(self):
        """The position, plain JSON."""
        return {
            "groups": self._groups,
            "phase": self._phase,
            "drawn": self._drawn,
            "tokens": {task: list(pair) for task, pair in self._tokens.items()},
            "next": dict(self._next),
            "window": [list(entry[:-1]) for entry in self._window],
        }

    def set_state(self, state):
        """Goes to a saved position; the waiting examples are read again."""
        self._groups, self._phase, self._drawn = state["groups"], state["phase"], state["drawn"]
        self._tokens = {task: tuple(pair) for task, pair in state["tokens"].items()}
        self._next = dict.fromkeys(self._next, 0) | state["next"]
        self._window = [(*entry, self._read(*(entry[i] for i in (0, 1, 2)))) for entry in state["window"]]


class Packed(NamedTuple):
    """One step's data on this host.

    Attributes:
      batch: Batch of numpy arrays, this host's groups.
      stats: how full and how mixed it is: token_fill, slot_fill, tokens, ratio, and the sums that FLOPs depend on.
      record_ids: ids of every example in it.
    """

    batch: object
    stats: dict
    record_ids: list


class Pipeline:
    """This host's share of every global batch, in shard order."""

    def __init__(self, *, layout, sources, make, phases, seed, pad_id, unit="examples", bad_limit=0.01, host=(0, 1)):
        """Sets up the shards this host owns.

        Args:
          layout: Layout.
          sources: {name: Source}.
          make: ExampleMaker.
          phases: list of Phase.
          seed: of the run and stage.
          pad_id: what fills rows.
          unit: what the mixture counts.
          bad_limit: share of unusable records that stops the run.
          host: this host's number, and how many there are.

        Raises:
          UserError: when shards, groups and hosts do not divide.
        """
        index, hosts = host
        if layout.groups % layout.shards or layout.shards % hosts:
            raise UserError(
                f"{layout.groups} pack groups, {layout.shards} virtual shards and {hosts} hosts do not divide: "
                "config.data.shards must divide the stage's groups (batch / rows) and be a multiple of the hosts."
            )
        self._layout, self._pad_id, self._bad = layout, pad_id, BadRecords(bad_limit)
        numbers = {name: n for n, name in enumerate(sorted(sources))}
        streams = {n: Stream(s, make=make, seed=seed, number=numbers[n]) for n, s in sources.items()}
        share = layout.shards // hosts
        mine = range(index * share, (index + 1) * share)
        self.shards = {v: Shard(v, layout=layout, streams=streams, phases=phases, unit=unit, bad=self._bad) for v in mine}

    def __next__(self):
        """The next batch; groups of one shard stand together."""
        per_shard = self._layout.groups // self._layout.shards
        groups = [shard.next_group() for shard in self.shards.values() for _ in range(per_shard)]
        pictures = [picture for rows in groups for row in rows for e in row for picture in e.gen_images]
        codes = next((len(p) for p in pictures if isinstance(p, list)), 0)
        latents = [p.latents.shape for p in pictures if isinstance(p, Picture) and p.latents is not None]
        if len(set(latents)) > 1:
            raise UserError(f"Cached latents differ in shape: {sorted(set(latents))}; make the cache anew.")
        shape = latents[0] if pictures and len(latents) == len(pictures) else None
        laid_out = [self._decode(rows, codes=codes, latents=shape) for rows in groups]
        batch = type(laid_out[0])(*(None if x[0] is None else np.stack(x) for x in zip(*laid_out, strict=True)))
        ids = [e.record_id for rows in groups for row in rows for e in row]
        return Packed(batch, statistics(batch), ids)

    def _decode(self, rows, *, codes, latents):
        """Lays a group out and decodes its pictures; an example whose picture fails is emptied and counted.

        `codes` is the number of cached codes a picture, 0 where pictures to draw come as pixels; `latents` the shape
        of the cached latents beside the pixels, None where not every picture of the batch has them.
        """
        layout = self._layout
        slots = dict(und_slots=layout.und_slots, gen_slots=layout.gen_slots)
        group, und, gen = lay_out(rows, length=layout.length, pad_id=self._pad_id, **slots)
        und_images = np.zeros((layout.und_slots, layout.und_size, layout.und_size, 3), np.uint8)
        gen_images = np.zeros((layout.gen_slots, layout.gen_size, layout.gen_size, 3), np.uint8)
        to_draw = lambda p: image_ops.for_generation(image_ops.decode(p), size=layout.gen_size, crop=p.crop)
        to_understand = lambda p: image_ops.for_understanding(image_ops.decode(p), size=layout.und_size)
        for pictures, out, fit in ((und, und_images, to_understand), ([] if codes else gen, gen_images, to_draw)):
            for slot, encoded, (row, segment) in pictures:
                try:
                    out[slot] = fit(encoded)
                except BadRecord as error:
                    self._bad.bad(BadRecord(f"{rows[row][segment - 1].record_id}: {error}"))
                    empty_segment(group, row=row, segment=segment, pad_id=self._pad_id)
        group = group._replace(und_images=und_images)
        if codes:
            gen_codes = np.zeros((layout.gen_slots, codes), np.int32)
            for slot, ids, _ in gen:
                gen_codes[slot] = ids
            return group._replace(gen_codes=gen_codes)
        if latents is None:
            return group._replace(gen_images=gen_images)
        gen_latents = np.zeros((layout.gen_slots, *latents), np.float32)
        for slot, picture, _ in gen:
            gen_latents[slot] = picture.latents
        return group._replace(gen_images=gen_images, gen_latents=gen_latents)

    def get_state(self):
        """{shard number: position} of this host's shards, plain JSON."""
        return {str(v): shard.get_state() for v, shard in self.shards.items()}

    def set_state(self, states):
        """Goes to saved positions; `states` may hold other hosts' shards too."""
        missing = [v for v in self.shards if str(v) not in states]
        if missing:
            raise UserError(
                f"The checkpoint holds the data positions of shards {sorted(states, key=int)}, not of {missing[0]}; "
                "config.data.shards may not change during a stage."
            )
        for v, shard in self.shards.items():
            shard.set_state(states[str(v)])


def statistics(batch):
    """Figures of a packed batch, on the host.

    Args:
      batch: Batch of numpy arrays.

    Returns:
      dict: `tokens` real ones; `token_fill`, `slot_fill`; `ratio` of examples by task; `attended`, the sum over
      examples of n (n + 1) / 2; `text_targets`; `und_pictures`, `gen_pictures`.
    """
    segments = batch.segment_ids.reshape(-1, batch.segment_ids.shape[-1])
    row_tokens = batch.tokens.shape[1] * batch.tokens.shape[2]
    used = lambda start: int((start < row_tokens).sum())
    examples = np.zeros(len(TASKS), int)
    attended = 0
    for row, tasks in zip(segments, batch.task_ids.reshape(segments.shape), strict=True):
        names, first, sizes = np.unique(row, return_index=True, return_counts=True)
        real = names > 0
        attended += int((sizes[real] * (sizes[real] + 1) // 2).sum())
        examples += np.bincount(tasks[first[real]], minlength=len(TASKS))
    und, gen = used(batch.und_start), used(batch.gen_start)
    slots = batch.und_start.size + batch.gen_start.size
    return {
        "tokens": int((segments > 0).sum()),
        "token_fill": float((segments > 0).mean()),
        "slot_fill": (und + gen) / slots if slots else 1.0,
        "ratio": [round(float(n) / max(examples.sum(), 1), 4) for n in examples],
        "attended": attended,
        "text_targets": int(batch.text_weights.sum()),
        "und_pictures": und,
        "gen_pictures": gen,
    }


class Prefetch:
    """Makes batches a few ahead in a thread; the state it reports belongs to the last batch handed out."""

    def __init__(self, pipeline, *, depth=2):
        self._pipeline, self._state = pipeline, pipeline.get_state()
        self._queue, self._stop = queue.Queue(depth), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                item = (next(self._pipeline), self._pipeline.get_state(), None)
            except Exception as error:  # handed over to the training thread, which raises it
                item = (None, None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[-1] is not None:
                return

    def __next__(self):
        packed, state, error = self._queue.get()
        if error is not None:
            raise error
        self._state = state
        return packed

    def get_state(self):
        """As `Pipeline.get_state`, after the last batch handed out."""
        return self._state

    def close(self):
        """Ends the thread."""
        self._stop.set()
        self._thread.join()
