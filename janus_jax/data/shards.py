"""Virtual shards: each an endless run of packed groups, with its own mixture, window and packer.

Every *source* is shuffled globally and dealt out to the shards, and the mixture happens inside a shard. A shard's
position is a small JSON dict: how far each source was read, which examples wait in the window (by index, they are read
again), what was drawn.
"""

import zlib
from typing import NamedTuple

import grain
import numpy as np

from janus_jax.batch import TASKS
from janus_jax.data.bad_records import malformed_is_bad
from janus_jax.data.examples import PIXELS, kept
from janus_jax.data.images import BadRecord
from janus_jax.data.mixture import Mixture
from janus_jax.data.packing import pack_group
from janus_jax.errors import UserError

IN_MEMORY = 1_000_000  # records of a source whose order is held; Grain shuffles larger ones by index, slow for small ones

MOST_IN_A_ROW = 1_000  # unusable records of a source, and all that a shard has of it, after which it has nothing to give


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
      kept: what every picture to draw brings along, see `tasks.kept`.
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
    kept: tuple = PIXELS


class Stream:
    """One source, shuffled anew every epoch, as examples by position: any position can be read at any time."""

    def __init__(self, source, *, make, seed):
        """Sets up the order, which depends on the seed and the source's name, not on the other sources.

        Args:
          source: Source.
          make: ExampleMaker.
          seed: of the run and stage.
        """
        number = zlib.crc32(source.name.encode())
        self.source, self._make, self._words = source, make, (seed, number)
        self._large = grain.MapDataset.range(len(source)).seed((seed + 7919 * number) % 2**31).shuffle().repeat(None)
        self._orders = {}  # epoch: its order

    def place(self, position):
        """Epoch and index of the record at a position of the endless stream."""
        epoch, number = divmod(position, len(self.source))
        if len(self.source) > IN_MEMORY:
            return epoch, int(self._large[position])
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((*self._words, epoch)).permutation(len(self.source))
            held = self._orders if len(self._orders) < 3 else {}  # shards are at most a few windows apart
            self._orders = held | {epoch: order}  # in one go: shards may be packed by several threads
        return epoch, int(order[number])

    def example(self, position, *, task):
        """The example at a position; raises BadRecord."""
        epoch, index = self.place(position)
        rng = np.random.default_rng((*self._words, epoch, index))
        with malformed_is_bad():
            return self._make(self.source[index], task=task, rng=rng, record_id=self.record_id(position))

    def kept(self):
        """What this source's pictures to draw bring along, as `tasks.kept`; None where none of the first is usable."""
        for position in range(min(len(self.source), 100)):
            try:
                return kept(*self.example(position, task="generation").gen_images)
            except BadRecord:
                continue
        return None

    def record_id(self, position):
        """'source/epoch/index', to name a record in reports."""
        epoch, index = self.place(position)
        return f"{self.source.name}/{epoch}/{index}"


class Shard:
    """One virtual shard."""

    def __init__(self, number, *, layout, streams, phases, unit, bad):
        self._number, self._layout, self._streams, self._bad = number, layout, streams, bad
        self._phases = [(phase.until, Mixture(phase, unit=unit)) for phase in phases]
        self._groups, self._phase, self._drawn = 0, 0, 0
        self._tokens = {task: (0, 0) for task in TASKS}
        self.next = dict.fromkeys(streams, 0)  # records taken of each source, by this shard
        self._window = []  # (source, place, task, Example), oldest first

    def next_group(self):
        """R lists of examples."""
        layout = self._layout
        step = self._groups // (layout.groups // layout.shards)
        phase = next((i for i, (until, _) in enumerate(self._phases) if step < until), len(self._phases) - 1)
        if phase != self._phase:
            self._start_phase(phase)
        while len(self._window) < layout.window:
            self._draw(self._phases[phase][1])
        slots = dict(und_slots=layout.und_slots, gen_slots=layout.gen_slots)
        waiting = [entry[-1] for entry in self._window]
        rows = pack_group(waiting, rows=layout.rows, length=layout.length, **slots)
        used = {i for row in rows for i in row}
        self._window = [entry for i, entry in enumerate(self._window) if i not in used]
        self._groups += 1
        return [[waiting[i] for i in row] for row in rows]

    def _start_phase(self, phase):
        self._phase, self._drawn, self._tokens = phase, 0, {task: (0, 0) for task in TASKS}

    def _draw(self, mixture):
        """Adds the next good example of the mixture's choice to the window."""
        task, source = mixture.pick(self._drawn, tokens=self._tokens)
        stream, first = self._streams[source], self.next[source]
        while True:
            place = self.next[source]
            self.next[source] += 1
            try:
                example = self._read(source, place, task)
                break
            except BadRecord as error:
                self._bad.bad(stream.record_id(self._position(place)), error)
                if place - first >= max(MOST_IN_A_ROW, len(stream.source) // self._layout.shards):
                    raise UserError(
                        f"Source {source!r} gave no example of {task} in {place - first} records; the last one: {error}."
                    ) from None
        self._bad.good()
        self._drawn += 1
        examples, tokens = self._tokens[task]
        self._tokens[task] = (examples + 1, tokens + len(example.tokens))
        self._window.append((source, place, task, example))

    def _position(self, place):
        """Where the shard's n-th record of a source lies in its stream, which is dealt out like cards."""
        return self._number + place * self._layout.shards

    def _read(self, source, place, task):
        example = self._streams[source].example(self._position(place), task=task)
        if len(example.und_images) > self._layout.und_slots or len(example.gen_images) > self._layout.gen_slots:
            raise BadRecord("more pictures than slots")  # no group could ever hold it
        if any(kept(picture) != self._layout.kept for picture in example.gen_images):
            raise BadRecord(f"not cached as {self._layout.kept[0]} like the others")
        return example

    def get_state(self):
        """The position, plain JSON."""
        return {
            "groups": self._groups,
            "phase": self._phase,
            "drawn": self._drawn,
            "tokens": {task: list(pair) for task, pair in self._tokens.items()},
            "next": dict(self.next),
            "window": [list(entry[:-1]) for entry in self._window],
        }

    def set_state(self, state, *, new_mixture=False):
        """Goes to a saved position; the waiting examples are read again. A new mixture starts anew."""
        self._groups, self._phase, self._drawn = state["groups"], state["phase"], state["drawn"]
        self._tokens = {task: tuple(pair) for task, pair in state["tokens"].items()}
        self.next = dict.fromkeys(self.next, 0) | state["next"]
        self._window = []
        for source, place, task in state["window"]:
            if source not in self._streams:  # no longer mixed
                continue
            try:
                self._window.append((source, place, task, self._read(source, place, task)))
            except BadRecord as error:  # slots may have become fewer
                self._bad.bad(self._streams[source].record_id(self._position(place)), error)
        if new_mixture:
            self._start_phase(-1)  # next_group finds which
