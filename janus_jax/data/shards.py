"""Virtual shards: each one an endless sequence of packed groups, with its own mixture and window.

Every *source* is shuffled globally and divided among the shards, and the mixture is made within a
shard. A shard's position is a small JSON dict: how many records of each source it has read, which
examples wait in its window (by index; they are read again), and how far its mixture is.
"""

import zlib
from typing import Any, NamedTuple

import grain
import numpy as np

from janus_jax.batch import TASKS
from janus_jax.data.bad_records import malformed_as_bad_record
from janus_jax.data.examples import PIXELS, ImageForm, form_of
from janus_jax.data.images import BadRecord
from janus_jax.data.mixture import Mixture
from janus_jax.data.packing import pack_group
from janus_jax.errors import UserError

# Up to here the order of a source's records is an array in memory. Grain shuffles larger sources by
# index, which is slow for small ones.
MAX_IN_MEMORY = 1_000_000
MAX_CONSECUTIVE_BAD = 1_000  # unusable records of a source, after which it is given up


class BatchShape(NamedTuple):
    """The fixed shape of a batch, and how its groups are made.

    Attributes:
      groups: S, pack groups in the global batch.
      rows: R, rows per group.
      length: L, tokens per row.
      und_slots: U.
      gen_slots: G.
      und_size: height and width of images to understand, in pixels.
      gen_size: height and width of images to generate, in pixels.
      window: examples that wait in each shard for the packer.
      shards: V, virtual shards; a divisor of S, and a multiple of the number of hosts.
      gen_form: ImageForm of all images to generate.
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
    gen_form: ImageForm = PIXELS


class Stream:
    """One source, shuffled again in each epoch; any position can be read at any time."""

    def __init__(self, source, *, make, seed):
        """Sets the order, which depends on the seed and this source's name, not on other sources.

        Args:
          source: Source.
          make: ExampleMaker.
          seed: of the run and stage.
        """
        number = zlib.crc32(source.name.encode())
        self.source = source
        self.make = make
        self._seed = (seed, number)
        grain_seed = (seed + 7919 * number) % 2**31
        self._large = grain.MapDataset.range(len(source)).seed(grain_seed).shuffle().repeat(None)
        self._orders = {}  # epoch: permutation

    def locate(self, position):
        """Epoch and record index at a position of the endless stream."""
        epoch, offset = divmod(position, len(self.source))
        if len(self.source) > MAX_IN_MEMORY:
            return epoch, int(self._large[position])
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((*self._seed, epoch)).permutation(len(self.source))
            recent = self._orders if len(self._orders) < 3 else {}  # shards are in nearby epochs
            self._orders = recent | {epoch: order}  # atomic: threads pack several shards at once
        return epoch, int(order[offset])

    def example(self, position, *, task):
        """The example at a position; raises BadRecord."""
        epoch, index = self.locate(position)
        rng = np.random.default_rng((*self._seed, epoch, index))
        record_id = self.record_id(position)
        with malformed_as_bad_record():
            return self.make(self.source[index], task=task, rng=rng, record_id=record_id)

    def gen_form(self):
        """ImageForm of this source's images to generate; None if no example shows it.

        A cache states it in its about.json. Other sources, and caches made before version 0.2, are
        asked for their first usable example.
        """
        cache = self.source.cache
        if "shape" in cache:
            return ImageForm(cache["field"], tuple(cache["shape"]))
        for position in range(min(len(self.source), 100)):
            try:
                (image,) = self.example(position, task="generation").gen_images
            except BadRecord:
                continue
            return form_of(image)
        return None

    def record_id(self, position):
        """'source/epoch/index', to name a record in reports."""
        epoch, index = self.locate(position)
        return f"{self.source.name}/{epoch}/{index}"


class WaitingExample(NamedTuple):
    """An example in a shard's window.

    Attributes:
      source: name.
      count: records of this source that the shard had read before it.
      task: one of TASKS.
      example: Example.
    """

    source: str
    count: int
    task: str
    example: Any


class Shard:
    """One virtual shard."""

    def __init__(self, number, *, shape, streams, phases, unit, bad_records):
        """Starts at the beginning of a stage.

        Args:
          number: of the shard, from 0.
          shape: BatchShape.
          streams: {source name: Stream}.
          phases: list of Phase.
          unit: what the mixture counts, see Mixture.
          bad_records: BadRecords.
        """
        self._number = number
        self._shape = shape
        self._streams = streams
        self._bad_records = bad_records
        self._phases = [(phase.until, Mixture(phase, unit=unit)) for phase in phases]
        self._groups = 0
        self._window = []  # WaitingExamples, oldest first
        self.read_counts = dict.fromkeys(streams, 0)  # records of each source read by this shard
        self._start_phase(0)

    def next_group(self):
        """R lists of examples."""
        shape = self._shape
        step = self._groups // (shape.groups // shape.shards)
        last_phase = len(self._phases) - 1
        phase = next((i for i, (until, _) in enumerate(self._phases) if step < until), last_phase)
        if phase != self._phase:
            self._start_phase(phase)
        while len(self._window) < shape.window:
            self._add_example(self._phases[phase][1])
        rows = pack_group(
            [waiting.example for waiting in self._window],
            rows=shape.rows,
            length=shape.length,
            und_slots=shape.und_slots,
            gen_slots=shape.gen_slots,
        )
        examples = [[self._window[i].example for i in row] for row in rows]
        packed = {i for row in rows for i in row}
        self._window = [waiting for i, waiting in enumerate(self._window) if i not in packed]
        self._groups += 1
        return examples

    def _start_phase(self, phase):
        self._phase = phase
        self._mixture_index = 0
        self._tokens = {task: (0, 0) for task in TASKS}  # (examples, tokens) of this phase

    def _add_example(self, mixture):
        """Adds the next usable example of the mixture's choice to the window."""
        task, source = mixture.pick(self._mixture_index, tokens=self._tokens)
        stream, first = self._streams[source], self.read_counts[source]
        limit = max(MAX_CONSECUTIVE_BAD, len(stream.source) // self._shape.shards)
        while True:
            count = self.read_counts[source]
            self.read_counts[source] += 1
            try:
                example = self._read(source, count, task)
                break
            except BadRecord as error:
                self._bad_records.count_bad(stream.record_id(self._position(count)), error)
                if count - first >= limit:
                    raise UserError(
                        f"Source {source!r} has no usable {task} example in {count - first} "
                        f"records; the last error is: {error}."
                    ) from None
        self._bad_records.count_usable()
        self._mixture_index += 1
        examples, tokens = self._tokens[task]
        self._tokens[task] = (examples + 1, tokens + len(example.tokens))
        self._window.append(WaitingExample(source, count, task, example))

    def _position(self, count):
        """Position in a source's stream of this shard's record number `count`: every V-th."""
        return self._number + count * self._shape.shards

    def _read(self, source, count, task):
        example = self._streams[source].example(self._position(count), task=task)
        shape = self._shape
        too_many_to_understand = len(example.und_images) > shape.und_slots
        too_many_to_generate = len(example.gen_images) > shape.gen_slots
        if too_many_to_understand or too_many_to_generate:
            raise BadRecord("more images than slots")  # no group could hold it
        if any(form_of(image) != shape.gen_form for image in example.gen_images):
            raise BadRecord(f"image to generate is not given as {shape.gen_form.kind}")
        return example

    def get_state(self):
        """The position as plain JSON."""
        return {
            "groups": self._groups,
            "phase": self._phase,
            "drawn": self._mixture_index,
            "tokens": {task: list(pair) for task, pair in self._tokens.items()},
            "next": dict(self.read_counts),
            "window": [[waiting.source, waiting.count, waiting.task] for waiting in self._window],
        }

    def set_state(self, state, *, new_mixture=False):
        """Continues at a saved position, reading waiting examples again; a new mixture restarts."""
        self._groups = state["groups"]
        self._phase = state["phase"]
        self._mixture_index = state["drawn"]
        self._tokens = {task: tuple(pair) for task, pair in state["tokens"].items()}
        self.read_counts = dict.fromkeys(self.read_counts, 0) | state["next"]
        self._window = []
        for source, count, task in state["window"]:
            if source not in self._streams:  # the new mixture does not use it
                continue
            try:
                example = self._read(source, count, task)
            except BadRecord as error:  # there may be fewer slots than before
                record_id = self._streams[source].record_id(self._position(count))
                self._bad_records.count_bad(record_id, error)
            else:
                self._window.append(WaitingExample(source, count, task, example))
        if new_mixture:
            self._start_phase(-1)  # next_group finds the phase
