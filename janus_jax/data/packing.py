"""Examples into rows: an exact subset sum over a window of waiting examples, oldest first.

A group of R rows shares its image slots. Each row starts with the oldest example that fits and is
then filled with the subset of the window that leaves the fewest tokens unused, older examples
preferred. So no example waits for more groups than the window has examples.
"""

from typing import Any, NamedTuple

import numpy as np

from janus_jax.batch import Batch


class SlotImage(NamedTuple):
    """An image of a group, and the slot that it fills.

    Attributes:
      slot: index among the group's understanding or generation slots.
      image: EncodedImage, or int32[T] codes.
      row: of its example.
      segment: of its example, from 1.
    """

    slot: int
    image: Any
    row: int
    segment: int


def pack_group(window, *, rows, length, und_slots, gen_slots):
    """Chooses the examples of one pack group.

    Args:
      window: waiting Examples, oldest first.
      rows: R.
      length: L.
      und_slots: U, understanding images that the group can hold.
      gen_slots: G, generation images that the group can hold.

    Returns:
      list of R lists of indices into the window.
    """
    group = []
    taken = set()
    und_left, gen_left = und_slots, gen_slots
    for _ in range(rows):
        candidates = []
        und, gen = 0, 0
        for i, example in enumerate(window):
            u, g = len(example.und_images), len(example.gen_images)
            if i not in taken and und + u <= und_left and gen + g <= gen_left:
                candidates.append(i)
                und, gen = und + u, gen + g
        chosen = fill_row([len(window[i].tokens) for i in candidates], length)
        row = [candidates[k] for k in chosen]
        taken.update(row)
        und_left -= sum(len(window[i].und_images) for i in row)
        gen_left -= sum(len(window[i].gen_images) for i in row)
        group.append(row)
    return group


def fill_row(lengths, capacity):
    """The first item, and the subset of the others that fills a row best.

    Args:
      lengths: tokens of each candidate, in order of preference.
      capacity: L.

    Returns:
      indices, ascending; no other subset with the first item leaves fewer tokens unused.
    """
    if not lengths:
        return []
    capacity -= lengths[0]
    mask = (1 << (capacity + 1)) - 1
    reachable = [
        1
    ]  # bit n of entry k: some subset of the first k items after the oldest has n tokens
    for n in lengths[1:]:
        reachable.append((reachable[-1] | reachable[-1] << n) & mask)
        if reachable[-1] >> capacity:
            break
    total = reachable[-1].bit_length() - 1
    row = [0]
    for k in range(len(reachable) - 1, 0, -1):
        if not reachable[k - 1] >> total & 1:  # item k is needed; otherwise prefer older ones
            row.append(k)
            total -= lengths[k]
    return sorted(row)


def lay_out(rows, *, length, pad_id, und_slots, gen_slots):
    """Writes the tokens of one packed group; pixels are written later.

    Args:
      rows: R lists of Examples.
      length: L.
      pad_id: fills the rest of a row.
      und_slots: U.
      gen_slots: G.

    Returns:
      Batch of numpy arrays without its group axis, images None; and two lists of SlotImage, to
      understand and to generate.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, pad_id, np.int32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    tasks = np.zeros(shape, np.int8)
    unused = len(rows) * length
    und_start = np.full(und_slots, unused, np.int32)
    gen_start = np.full(gen_slots, unused, np.int32)
    und, gen = [], []
    for r, row in enumerate(rows):
        begin = 0
        for s, example in enumerate(row, start=1):
            n = len(example.tokens)
            span = slice(begin, begin + n)
            tokens[r, span] = example.tokens
            positions[r, span] = np.arange(n)
            segments[r, span] = s
            weights[r, span] = example.text_weights
            tasks[r, span] = example.task
            hidden_begin, hidden_end = example.hidden_span
            segments[r, begin + hidden_begin : begin + hidden_end] = 0
            for image, start in zip(example.und_images, example.und_starts, strict=True):
                und_start[len(und)] = r * length + begin + start
                und.append(SlotImage(len(und), image, r, s))
            for image, start in zip(example.gen_images, example.gen_starts, strict=True):
                gen_start[len(gen)] = r * length + begin + start
                gen.append(SlotImage(len(gen), image, r, s))
            begin += n
    group = Batch(tokens, positions, segments, weights, tasks, None, und_start, None, gen_start)
    return group, und, gen


def empty_segment(group, *, row, segment, pad_id):
    """Removes an example from a group in place: its tokens become padding, its slots unused."""
    removed = group.segment_ids[row] == segment
    flat_positions = row * removed.size + np.flatnonzero(removed)
    for start in (group.und_start, group.gen_start):
        start[np.isin(start, flat_positions)] = group.tokens.size
    group.tokens[row, removed] = pad_id
    group.segment_ids[row, removed] = 0
    group.positions[row, removed] = 0
    group.text_weights[row, removed] = 0
