"""The way from sources to batches: virtual shards in a fixed order, their pictures decoded by threads.

A host owns whole shards, so the global batch sequence is the same for any number of hosts. Rows are packed on lengths,
pixels decoded last; threads write into their own slots, so the sequence is the same for any number of them too.
"""

import collections
import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from janus_jax.batch import TASKS, Batch
from janus_jax.data import images
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.examples import PIXELS
from janus_jax.data.images import BadRecord
from janus_jax.data.packing import empty_segment, lay_out
from janus_jax.data.shards import Shard, Stream
from janus_jax.errors import UserError

COUNTS = ("tokens", "positions", "examples", "attended", "text_targets", "und_pictures", "gen_pictures", "slots")
AT_ONCE = 4  # pictures of a thread's turn


class Packed(NamedTuple):
    """One step's data on this host.

    Attributes:
      batch: Batch of numpy arrays, this host's groups.
      stats: how full and how mixed it is, see `statistics`; `epochs` of every source so far in this stage; `cached`,
        whether pictures to draw bring their codes or latents along.
      record_ids: ids of every example in it.
      state: the position behind it, {shard number: plain JSON}.
    """

    batch: object
    stats: dict
    record_ids: list
    state: dict


class Pipeline:
    """This host's share of every global batch, in shard order."""

    def __init__(
        self, *, layout, sources, make, phases, seed, pad_id, unit="examples", bad_limit=0.01, report=None, host=(0, 1),
        workers=0,
    ):  # fmt: skip
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
          report: a file for a list of unusable records, or None.
          host: this host's number, and how many there are.
          workers: threads that decode pictures, and as many that pack the next batch meanwhile; 0 does all in the caller's.

        Raises:
          UserError: when shards, groups and hosts do not divide.
        """
        index, hosts = host
        if layout.groups % layout.shards or layout.shards % hosts:
            raise UserError(
                f"{layout.groups} pack groups, {layout.shards} virtual shards and {hosts} hosts do not divide: "
                "config.data.shards must divide the stage's groups (batch / rows) and be a multiple of the hosts."
            )
        streams = {name: Stream(source, make=make, seed=seed) for name, source in sources.items()}
        layout = layout._replace(kept=_kept(streams, phases))
        self._layout, self._pad_id, self._hosts, self.sources = layout, pad_id, hosts, sources
        self._bad = BadRecords(bad_limit, sources=sources, report=report)
        share = layout.shards // hosts
        mine = range(index * share, (index + 1) * share)
        self.shards = {v: Shard(v, layout=layout, streams=streams, phases=phases, unit=unit, bad=self._bad) for v in mine}
        self._packers, self._decoders = (ThreadPoolExecutor(workers) if workers else None for _ in range(2))
        self._under_way = collections.deque()  # batches whose pictures are being decoded

    def __next__(self):
        """The next batch; groups of one shard stand together."""
        while len(self._under_way) < (2 if self._decoders else 1):
            self._under_way.append(self._pack())
        batch, slots, outcomes, rows, state = self._under_way.popleft()
        for (group, row, segment), error in zip(slots, outcomes, strict=True):
            if error is not None:  # the example is emptied, wherever its other pictures lie
                self._bad.bad(rows[group][row][segment - 1].record_id, error)
                empty_segment(
                    Batch(*(a if a is None else a[group] for a in batch)), row=row, segment=segment, pad_id=self._pad_id
                )
        ids = [example.record_id for group in rows for row in group for example in row]
        taken = {name: sum(shard["next"][name] for shard in state.values()) * self._hosts for name in self.sources}
        epochs = {name: taken[name] / len(source) for name, source in self.sources.items()}
        cached = self._layout.kept != PIXELS
        return Packed(batch, statistics(counts(batch)) | {"epochs": epochs, "cached": cached}, ids, state)

    def _pack(self):
        """Lays the next batch out and starts to decode its pictures.

        Returns:
          Batch whose pixels are still being written; for every picture (group, row, segment), and None or a BadRecord
          to come; the examples; the position behind the batch.
        """
        layout = self._layout
        per_shard = layout.groups // layout.shards
        pack = lambda shard: [shard.next_group() for _ in range(per_shard)]
        packed = (self._packers.map if self._packers else map)(pack, self.shards.values())  # a shard knows nothing of others
        rows = [group for groups in packed for group in groups]
        state = {str(v): shard.get_state() for v, shard in self.shards.items()}  # it has packed further by the time of use
        sizes = dict(length=layout.length, pad_id=self._pad_id, und_slots=layout.und_slots, gen_slots=layout.gen_slots)
        groups, und, gen = zip(*(lay_out(group, **sizes) for group in rows), strict=True)
        batch = Batch(*(None if x[0] is None else np.stack(x) for x in zip(*groups, strict=True)))
        und = [(g, *picture) for g, pictures in enumerate(und) for picture in pictures]
        gen = [(g, *picture) for g, pictures in enumerate(gen) for picture in pictures]
        kept, *shape = layout.kept
        square = lambda slots, size: np.zeros((len(rows), slots, size, size, 3), np.uint8)
        batch = batch._replace(und_images=square(layout.und_slots, layout.und_size))
        if kept == "codes":
            codes = np.zeros((len(rows), layout.gen_slots, *shape), np.int32)
            for group, slot, ids, _ in gen:
                codes[group, slot] = ids
            batch = batch._replace(gen_codes=codes)
        else:
            batch = batch._replace(gen_images=square(layout.gen_slots, layout.gen_size))
        if kept == "latents":
            latents = np.zeros((len(rows), layout.gen_slots, *shape), np.float32)
            for group, slot, picture, _ in gen:
                latents[group, slot] = picture.latents
            batch = batch._replace(gen_latents=latents)
        work = [(images.for_understanding, batch.und_images, picture) for picture in und]
        work += [] if kept == "codes" else [(images.for_generation, batch.gen_images, picture) for picture in gen]
        places = [(group, *place) for _, _, (group, _, _, place) in work]
        outcomes = (self._decoders.map if self._decoders else map)(
            _decode, (work[i : i + AT_ONCE] for i in range(0, len(work), AT_ONCE))
        )
        return batch, places, itertools.chain.from_iterable(outcomes), rows, state

    def set_state(self, states, *, new_mixture=False):
        """Goes to saved positions; `states` may hold other hosts' shards too."""
        missing = [v for v in self.shards if str(v) not in states]
        if missing:
            raise UserError(
                f"The checkpoint holds the data positions of shards {sorted(states, key=int)}, not of {missing[0]}; "
                "config.data.shards may not change during a stage."
            )
        for v, shard in self.shards.items():
            shard.set_state(states[str(v)], new_mixture=new_mixture)

    def close(self):
        """Ends the threads."""
        for pool in filter(None, (self._packers, self._decoders)):
            pool.shutdown(cancel_futures=True)


def _decode(work):
    """Decodes pictures into their slots: for each None, or the BadRecord it turned out to be."""
    outcomes = []
    for fit, pixels, (group, slot, picture, _) in work:
        out = pixels[group, slot]
        try:
            where = {"crop": picture.crop} if fit is images.for_generation else {}
            out[...] = fit(images.decode(picture), size=len(out), **where)
            outcomes.append(None)
        except BadRecord as error:
            outcomes.append(error)
        picture.opened.close()  # its pixels, which would be held for as long as its example
    return outcomes


def _kept(streams, phases):
    """What pictures to draw bring along, as `tasks.kept`: the same in all sources of a stage, or the user is told."""
    drawn = TASKS.index("generation")
    names = {n for p in phases if p.ratio[drawn] for n in p.sources.get("generation") or {}}
    found = {name: streams[name].kept() for name in sorted(names)}
    found = {name: kind for name, kind in found.items() if kind}
    if len(set(found.values())) > 1:
        raise UserError(
            "Pictures to draw come as "
            + " and as ".join(f"{kind[0]} {kind[1:] or ''} from {name!r}" for name, kind in found.items())
            + "; cache every source that a stage draws from with the same tokenizer, or none of them."
        )
    return next(iter(found.values()), PIXELS)


def counts(batch):
    """What is in a packed batch, on the host; batches of several hosts add up.

    Args:
      batch: Batch of numpy arrays.

    Returns:
      dict: `tokens` real ones, of so many `positions`; `examples` by task; `attended`, the sum over examples of
      n (n + 1) / 2; `text_targets`; `und_pictures` and `gen_pictures`, in so many `slots`.
    """
    segments = batch.segment_ids.reshape(-1, batch.segment_ids.shape[-1])
    row_tokens = batch.tokens.shape[1] * batch.tokens.shape[2]
    used = lambda start: int((start < row_tokens).sum())
    most = int(segments.max()) + 1  # segments of a row, its padding included
    name = segments + most * np.arange(len(segments))[:, None]  # of a segment, among all rows
    sizes = np.bincount(name.ravel(), minlength=most * len(segments)).reshape(-1, most)[:, 1:]
    task = np.zeros(most * len(segments), int)
    task[name.ravel()] = batch.task_ids.ravel()
    examples = np.bincount(task.reshape(-1, most)[:, 1:][sizes > 0], minlength=len(TASKS))
    return {
        "tokens": int((segments > 0).sum()),
        "positions": segments.size,
        "examples": examples.tolist(),
        "attended": int((sizes * (sizes + 1) // 2).sum()),
        "text_targets": int(batch.text_weights.sum()),
        "und_pictures": used(batch.und_start),
        "gen_pictures": used(batch.gen_start),
        "slots": batch.und_start.size + batch.gen_start.size,
    }


def statistics(counts):
    """Counts of a batch, see `counts`, and beside them `token_fill`, `slot_fill` and the `ratio` of examples by task."""
    pictures = counts["und_pictures"] + counts["gen_pictures"]
    return counts | {
        "token_fill": counts["tokens"] / counts["positions"],
        "slot_fill": pictures / counts["slots"] if counts["slots"] else 1.0,
        "ratio": [round(n / max(sum(counts["examples"]), 1), 4) for n in counts["examples"]],
    }


class Prefetch:
    """Makes batches a few ahead in a thread."""

    def __init__(self, pipeline, *, depth=2):
        self._pipeline = pipeline
        self._queue, self._stop = queue.Queue(depth), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                item = (next(self._pipeline), None)
            except Exception as error:  # handed over to the training thread, which raises it
                item = (None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[-1] is not None:
                return

    def __next__(self):
        packed, error = self._queue.get()
        if error is not None:
            raise error
        return packed

    def close(self):
        """Ends the threads."""
        self._stop.set()
        self._thread.join()
        self._pipeline.close()
