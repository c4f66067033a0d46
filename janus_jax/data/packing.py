"""Examples into rows: an exact subset sum over a window of waiting examples, oldest first.

A group of R rows shares its picture slots. Each row starts with the oldest example that fits and is then filled with
the subset of the window that leaves the fewest tokens over, older examples preferred; so nothing waits for longer
than the window has examples.
"""

import numpy as np

from janus_jax.batch import Batch


def pack_group(window, *, rows, length, und_slots, gen_slots):
    """Chooses the examples of one pack group.

    Args:
      window: waiting Examples, oldest first.
      rows: R.
      length: L.
      und_slots: U, understanding pictures the group may hold.
      gen_slots: G, generation pictures the group may hold.

    Returns:
      list of R lists of indices into the window.
    """
    group, taken, und_left, gen_left = [], set(), und_slots, gen_slots
    for _ in range(rows):
        candidates, und, gen = [], 0, 0
        for i, example in enumerate(window):
            u, g = len(example.und_images), len(example.gen_images)
            if i not in taken and und + u <= und_left and gen + g <= gen_left:
                candidates.append(i)
                und, gen = und + u, gen + g
        row = [candidates[k] for k in fill_row([len(window[i].tokens) for i in candidates], length)]
        taken.update(row)
        und_left -= sum(len(window[i].und_images) for i in row)
        gen_left -= sum(len(window[i].gen_images) for i in row)
        group.append(row)
    return group


def fill_row(lengths, capacity):
    """The first item, and the subset of the rest that fills a row best.

    Args:
      lengths: tokens of each candidate, in order of preference.
      capacity: L.

    Returns:
      indices, ascending; no other subset with the first item leaves fewer tokens over.
    """
    if not lengths:
        return []
    mask = (1 << (capacity - lengths[0] + 1)) - 1
    reached = [1]  # bit n of entry k: n tokens can be had from the first k items after the oldest
    for n in lengths[1:]:
        reached.append((reached[-1] | reached[-1] << n) & mask)
        if reached[-1] >> (capacity - lengths[0]):
            break
    total, row = reached[-1].bit_length() - 1, [0]
    for k in range(len(reached) - 1, 0, -1):
        if not reached[k - 1] >> total & 1:  # a sum that needs item k; otherwise leave the younger one waiting
            row.append(k)
            total -= lengths[k]
    return sorted(row)


def lay_out(rows, *, length, pad_id, und_slots, gen_slots):
    """Writes one packed group, its pictures left for later.

    Args:
      rows: R lists of Examples.
      length: L.
      pad_id: what fills the rest of a row.
      und_slots: U.
      gen_slots: G.

    Returns:
      Batch of numpy arrays without its group axis, pictures None; and the lists of (slot, picture, example's place as
      (row, segment)) for understanding and for generation.
    """
    shape = (len(rows), length)
    tokens, positions = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    segments, tasks = np.zeros(shape, np.int32), np.zeros(shape, np.int8)
    weights = np.zeros(shape, np.float32)
    unused = len(rows) * length
    und_start, gen_start = np.full(und_slots, unused, np.int32), np.full(gen_slots, unused, np.int32)
    und, gen = [], []
    for r, row in enumerate(rows):
        begin = 0
        for s, example in enumerate(row, start=1):
            n = len(example.tokens)
            here = slice(begin, begin + n)
            tokens[r, here], weights[r, here] = example.tokens, example.text_weights
            positions[r, here], segments[r, here], tasks[r, here] = np.arange(n), s, example.task
            segments[r, begin + example.unseen[0] : begin + example.unseen[1]] = 0
            for picture, start in zip(example.und_images, example.und_starts, strict=True):
                und_start[len(und)] = r * length + begin + start
                und.append((len(und), picture, (r, s)))
            for picture, start in zip(example.gen_images, example.gen_starts, strict=True):
                gen_start[len(gen)] = r * length + begin + start
                gen.append((len(gen), picture, (r, s)))
            begin += n
    return Batch(tokens, positions, segments, weights, tasks, None, und_start, None, gen_start), und, gen


def empty_segment(group, *, row, segment, pad_id):
    """Takes an example out of a laid-out group in place: padding instead of tokens, its slots unused."""
    hole = group.segment_ids[row] == segment
    places = row * hole.size + np.flatnonzero(hole)
    for start in (group.und_start, group.gen_start):
        start[np.isin(start, places)] = group.tokens.size
    group.tokens[row, hole], group.segment_ids[row, hole] = pad_id, 0
    group.positions[row, hole], group.text_weights[row, hole] = 0, 0
