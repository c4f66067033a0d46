"""From sources to batches: virtual shards in a fixed order, with images decoded by threads.

A host owns whole shards, so the global sequence of batches is the same for any number of hosts.
Rows are packed by lengths and pixels are decoded last; every thread writes into its own slots, so
the sequence is the same for any number of threads too.
"""

import collections
import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from janus_jax.batch import TASKS, Batch
from janus_jax.data import images
from janus_jax.data.examples import PIXELS
from janus_jax.data.images import BadRecord
from janus_jax.data.packing import SlotImage, empty_segment, lay_out
from janus_jax.data.shards import Shard
from janus_jax.errors import UserError

COUNTS = (
    "tokens",
    "positions",
    "examples",
    "attended",
    "text_targets",
    "und_pictures",
    "gen_pictures",
    "slots",
)
IMAGES_PER_JOB = 4  # that a thread decodes in one job


class Packed(NamedTuple):
    """One step's data on this host.

    Attributes:
      batch: Batch of numpy arrays, this host's groups.
      stats: see `statistics`; also `epochs` of every source so far in this stage, and `cached`,
        whether images to generate come with codes or latents.
      record_ids: ids of every example in it.
      state: the position after it, {shard number: plain JSON}.
    """

    batch: Batch
    stats: dict
    record_ids: list
    state: dict


class _Pending(NamedTuple):
    """A batch whose images are being decoded.

    Attributes:
      batch: Batch; threads still write its pixels.
      examples: of each group, R lists of Examples.
      state: the position after it.
      images: list of (group, SlotImage), those that are being decoded.
      errors: iterator of None or BadRecord, one for each of `images`.
    """

    batch: Batch
    examples: list
    state: dict
    images: list[tuple[int, SlotImage]]
    errors: Iterator


class Pipeline:
    """This host's share of every global batch, in shard order."""

    def __init__(
        self,
        shape,
        *,
        streams,
        phases,
        pad_id,
        bad_records,
        unit="examples",
        host=(0, 1),
        workers=0,
    ):
        """Creates the shards that this host owns.

        Args:
          shape: BatchShape; its `gen_form` is replaced by that of the streams.
          streams: {source name: Stream}.
          phases: list of Phase.
          pad_id: fills rows.
          bad_records: BadRecords.
          unit: what the mixture counts, see Mixture.
          host: this host's index, and the number of hosts.
          workers: number of threads that decode images, and of those that meanwhile pack the next
            batch; 0 does everything in the caller's thread.

        Raises:
          UserError: if shards, groups and hosts do not divide.
        """
        index, hosts = host
        if shape.groups % shape.shards or shape.shards % hosts:
            raise UserError(
                f"{shape.groups} pack groups, {shape.shards} virtual shards and {hosts} hosts do "
                "not divide: config.data.shards must divide the stage's groups (batch / rows) and "
                "be a multiple of the number of hosts."
            )
        shape = shape._replace(gen_form=_common_form(streams, phases))
        per_host = shape.shards // hosts
        self.sources = {name: stream.source for name, stream in streams.items()}
        self.shards = {
            number: Shard(
                number,
                shape=shape,
                streams=streams,
                phases=phases,
                unit=unit,
                bad_records=bad_records,
            )
            for number in range(index * per_host, (index + 1) * per_host)
        }
        self._shape = shape
        self._pad_id = pad_id
        self._bad_records = bad_records
        self._hosts = hosts
        self._packers = ThreadPoolExecutor(workers) if workers else None
        self._decoders = ThreadPoolExecutor(workers) if workers else None
        self._pending = collections.deque()  # _Pending batches

    def __next__(self):
        """The next batch; groups of one shard are adjacent."""
        while len(self._pending) < (2 if self._decoders else 1):
            self._pending.append(self._start_batch())
        pending = self._pending.popleft()
        self._remove_bad_examples(pending)
        rows = itertools.chain.from_iterable(pending.examples)
        record_ids = [example.record_id for row in rows for example in row]
        stats = statistics(counts(pending.batch)) | {
            "epochs": self._epochs(pending.state),
            "cached": self._shape.gen_form != PIXELS,
        }
        return Packed(pending.batch, stats, record_ids, pending.state)

    def _remove_bad_examples(self, pending):
        """Waits for the pixels; an image that cannot be decoded removes its whole example."""
        for (group, image), error in zip(pending.images, pending.errors, strict=True):
            if error is None:
                continue
            example = pending.examples[group][image.row][image.segment - 1]
            self._bad_records.count_bad(example.record_id, error)
            arrays = [None if array is None else array[group] for array in pending.batch]
            empty_segment(Batch(*arrays), row=image.row, segment=image.segment, pad_id=self._pad_id)

    def _epochs(self, state):
        """{source name: epochs read so far}, of all hosts if they are at the same position."""
        epochs = {}
        for name, source in self.sources.items():
            records = sum(shard["next"][name] for shard in state.values()) * self._hosts
            epochs[name] = records / len(source)
        return epochs

    def _start_batch(self):
        """Packs the next batch and starts to decode its images: _Pending."""
        shape = self._shape
        per_shard = shape.groups // shape.shards

        def next_groups(shard):
            return [shard.next_group() for _ in range(per_shard)]

        # Shards share nothing, so they may be packed at the same time.
        of_shards = list(_map(self._packers, next_groups, self.shards.values()))
        examples = [group for groups in of_shards for group in groups]
        # Taken now: when the batch is used, the shards have packed further.
        state = {str(number): shard.get_state() for number, shard in self.shards.items()}
        groups, und, gen = [], [], []
        for i, rows in enumerate(examples):
            group, und_images, gen_images = lay_out(
                rows,
                length=shape.length,
                pad_id=self._pad_id,
                und_slots=shape.und_slots,
                gen_slots=shape.gen_slots,
            )
            groups.append(group)
            und += [(i, image) for image in und_images]
            gen += [(i, image) for image in gen_images]
        batch = self._with_slots(_stack(groups), gen)
        jobs = [(images.for_understanding, batch.und_images, *image) for image in und]
        if batch.gen_images is not None:
            jobs += [(images.for_generation, batch.gen_images, *image) for image in gen]
        chunks = [jobs[i : i + IMAGES_PER_JOB] for i in range(0, len(jobs), IMAGES_PER_JOB)]
        errors = itertools.chain.from_iterable(_map(self._decoders, _decode, chunks))
        decoded = [(group, image) for _, _, group, image in jobs]
        return _Pending(batch, examples, state, decoded, errors)

    def _with_slots(self, batch, gen):
        """Adds zeroed pixels to be filled, and the cached codes or latents of `gen`."""
        shape, form = self._shape, self._shape.gen_form
        und_images = _pixels(len(batch.tokens), shape.und_slots, shape.und_size)
        batch = batch._replace(und_images=und_images)
        if form.kind == "codes":
            codes = np.zeros((len(batch.tokens), shape.gen_slots, *form.shape), np.int32)
            for group, image in gen:
                codes[group, image.slot] = image.image
            return batch._replace(gen_codes=codes)
        gen_images = _pixels(len(batch.tokens), shape.gen_slots, shape.gen_size)
        batch = batch._replace(gen_images=gen_images)
        if form.kind == "latents":
            latents = np.zeros((len(batch.tokens), shape.gen_slots, *form.shape), np.float32)
            for group, image in gen:
                latents[group, image.slot] = image.image.latents
            batch = batch._replace(gen_latents=latents)
        return batch

    def set_state(self, states, *, new_mixture=False):
        """Continues at saved positions; `states` may also have those of other hosts' shards."""
        missing = [number for number in self.shards if str(number) not in states]
        if missing:
            raise UserError(
                f"The checkpoint has data positions of shards {sorted(states, key=int)}, but not "
                f"of {missing[0]}; config.data.shards may not change during a stage."
            )
        for number, shard in self.shards.items():
            shard.set_state(states[str(number)], new_mixture=new_mixture)

    def close(self):
        """Ends the threads."""
        for pool in (self._packers, self._decoders):
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _map(pool, function, items):
    """`map` in the threads of a pool; in the caller's thread if there is none."""
    return map(function, items) if pool is None else pool.map(function, items)


def _stack(groups):
    """Batches without group axis -> one Batch."""
    fields = zip(*groups, strict=True)
    return Batch(*(None if field[0] is None else np.stack(field) for field in fields))


def _pixels(groups, slots, size):
    return np.zeros((groups, slots, size, size, 3), np.uint8)


def _decode(jobs):
    """Decodes images into their slots.

    Args:
      jobs: list of (function that resizes, uint8[S, slots, h, w, 3], group, SlotImage).

    Returns:
      for each image None, or a BadRecord if it cannot be decoded.
    """
    errors = []
    for resize, pixels, group, image in jobs:
        slot = pixels[group, image.slot]
        encoded = image.image
        options = {"crop": encoded.crop} if resize is images.for_generation else {}
        try:
            slot[...] = resize(images.decode(encoded), size=len(slot), **options)
            errors.append(None)
        except BadRecord as error:
            errors.append(error)
        encoded.pil_image.close()  # frees the pixels, which would live as long as the example
    return errors


def _common_form(streams, phases):
    """The ImageForm of all sources of images to generate.

    Raises:
      UserError: if sources provide different forms.
    """
    index = TASKS.index("generation")
    names = {
        name
        for phase in phases
        if phase.ratio[index]
        for name in phase.sources.get("generation") or {}
    }
    forms = {name: streams[name].gen_form() for name in sorted(names)}
    forms = {name: form for name, form in forms.items() if form is not None}
    if len(set(forms.values())) > 1:
        listed = " and as ".join(f"{form} from {name!r}" for name, form in forms.items())
        raise UserError(
            f"Images to generate come as {listed}; within a stage, cache all of these sources with "
            "the same tokenizer, or none."
        )
    return next(iter(forms.values()), PIXELS)


def counts(batch):
    """What a packed batch has, on the host; counts of several hosts are added.

    Args:
      batch: Batch of numpy arrays.

    Returns:
      dict: `tokens`, without padding, and `positions`, with it; `examples` by task; `attended`, the
      sum over examples of n (n + 1) / 2; `text_targets`; `und_pictures` and `gen_pictures`, images,
      and their `slots`.
    """
    segments = batch.segment_ids.reshape(-1, batch.segment_ids.shape[-1])
    row_tokens = batch.tokens.shape[1] * batch.tokens.shape[2]
    segments_per_row = int(segments.max()) + 1  # including padding
    # Numbers the segments of all rows consecutively.
    numbers = segments + segments_per_row * np.arange(len(segments))[:, None]
    total = segments_per_row * len(segments)
    sizes = np.bincount(numbers.ravel(), minlength=total).reshape(-1, segments_per_row)[:, 1:]
    tasks = np.zeros(total, int)
    tasks[numbers.ravel()] = batch.task_ids.ravel()
    tasks = tasks.reshape(-1, segments_per_row)[:, 1:]
    return {
        "tokens": int((segments > 0).sum()),
        "positions": segments.size,
        "examples": np.bincount(tasks[sizes > 0], minlength=len(TASKS)).tolist(),
        "attended": int((sizes * (sizes + 1) // 2).sum()),
        "text_targets": int(batch.text_weights.sum()),
        "und_pictures": int((batch.und_start < row_tokens).sum()),
        "gen_pictures": int((batch.gen_start < row_tokens).sum()),
        "slots": batch.und_start.size + batch.gen_start.size,
    }


def statistics(counts):
    """Counts of a batch, see `counts`, with `token_fill`, `slot_fill` and the `ratio` of tasks."""
    images_used = counts["und_pictures"] + counts["gen_pictures"]
    examples = max(sum(counts["examples"]), 1)
    return counts | {
        "token_fill": counts["tokens"] / counts["positions"],
        "slot_fill": images_used / counts["slots"] if counts["slots"] else 1.0,
        "ratio": [round(n / examples, 4) for n in counts["examples"]],
    }


class Prefetch:
    """Makes batches in a thread, a few in advance."""

    def __init__(self, pipeline, *, depth=2):
        self._pipeline = pipeline
        self._queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                item = (next(self._pipeline), None)
            except Exception as error:  # the training thread raises it
                item = (None, error)
            self._put(item)
            if item[1] is not None:
                return

    def _put(self, item):
        """Waits until the queue has space, or until `close`."""
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __next__(self):
        """The next Packed; raises what the pipeline raised in the thread."""
        packed, error = self._queue.get()
        if error is not None:
            raise error
        return packed

    def close(self):
        """Ends the threads."""
        self._stop.set()
        self._thread.join()
        self._pipeline.close()
