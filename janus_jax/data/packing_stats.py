"""How full rows can be, and how full the packer makes them, from a table of lengths alone."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from janus_jax.batch import TASKS, Example
from janus_jax.data.mixture import whole
from janus_jax.data.packing import pack_group


class Lengths(NamedTuple):
    """Whole examples of one task.

    Attributes:
      tokens: int[n], with picture tokens.
      pictures: int[n], to understand or to draw.
    """

    tokens: np.ndarray
    pictures: np.ndarray


class Fill(NamedTuple):
    """What packing came to.

    Attributes:
      token_fill, slot_fill: shares of positions and of picture slots that are used.
      examples: mean number in a group, by task.
      groups: how many were packed.
    """

    token_fill: float
    slot_fill: float
    examples: dict
    groups: int


def budgets(table, mixture, *, rows, length):
    """Picture slots of a group: the mean of the mixture where rows are full, rounded up, and one more.

    Args:
      table: {task: Lengths}.
      mixture: shares in the order of TASKS.
      rows: R.
      length: L.

    Returns:
      U, G, and the reasoning in a sentence.
    """
    shares = dict(zip(TASKS, np.array(mixture, float) / sum(mixture), strict=True))
    mean = {task: float(table[task].tokens.mean()) if shares[task] else 0.0 for task in TASKS}
    size = sum(shares[task] * mean[task] for task in TASKS)
    examples = rows * length / size
    pictures = {
        task: examples * shares[task] * float(table[task].pictures.mean()) if shares[task] else 0.0
        for task in ("understanding", "generation")
    }
    most = {task: int(table[task].pictures.max()) if shares[task] else 0 for task in pictures}  # of one example
    slots = [max(math.floor(n) + 2, most[task]) if n else 0 for task, n in pictures.items()]
    told = ", ".join(f"{task} {mean[task]:.0f}" for task in TASKS if shares[task])
    reasons = (
        f"mean tokens: {told}; a mixture's mean {size:.0f}, so {rows} rows of {length} hold {examples:.1f} examples with "
        f"{pictures['understanding']:.2f} pictures to understand and {pictures['generation']:.2f} to draw; one above: "
        f"und_slots={slots[0]}, gen_slots={slots[1]}"
    )
    return (*slots, reasons)


def simulate(table, mixture, *, rows, length, und_slots, gen_slots, window=128, groups=1000, seed=0):
    """Packs groups as a shard does, examples dealt out of the shuffled table, again and again, in the exact mixture.

    Returns:
      Fill.
    """
    rng = np.random.default_rng(seed)
    block = [task for task, count in zip(TASKS, whole(mixture), strict=True) for _ in range(count)]
    waiting, todo, held, decks = [], [], [], {task: [] for task in table}
    for _ in range(groups):
        while len(waiting) < window:
            if not todo:
                todo = [block[i] for i in rng.permutation(len(block))]
            task = todo.pop()
            if not decks[task]:
                decks[task] = rng.permutation(len(table[task].tokens)).tolist()
            waiting.append(_stand_in(table, task, decks[task].pop()))
        packed = pack_group(waiting, rows=rows, length=length, und_slots=und_slots, gen_slots=gen_slots)
        held += [[waiting[i] for i in row] for row in packed]
        used = {i for row in packed for i in row}
        waiting = [example for i, example in enumerate(waiting) if i not in used]
    tokens = sum(len(e.tokens) for row in held for e in row)
    pictures = sum(len(e.und_images) + len(e.gen_images) for row in held for e in row)
    count = {task: sum(e.task == i for row in held for e in row) / groups for i, task in enumerate(TASKS)}
    slots = groups * (und_slots + gen_slots)
    return Fill(tokens / (groups * rows * length), pictures / slots if slots else 1.0, count, groups)


def expected(table, mixture, *, tokens, picture_tokens):
    """The statistics of a batch that holds so many real tokens of this mixture, on average.

    Args:
      table: {task: Lengths}.
      mixture: shares in the order of TASKS.
      tokens: real positions.
      picture_tokens: T of a picture to understand, for the targets behind it.

    Returns:
      dict as `data.pipeline` measures it: tokens, attended, text_targets, und_pictures, gen_pictures, cached.
    """
    shares = dict(zip(TASKS, np.array(mixture, float) / sum(mixture), strict=True))
    mean = lambda of: sum(share * float(np.mean(of(task, table[task]))) for task, share in shares.items() if share)
    examples = tokens / mean(lambda _, of: of.tokens)
    around = {"understanding": 3, "text": 1}  # BOS, and BOI and EOI; the last token has no target of its own
    targets = lambda task, of: of.tokens - picture_tokens * of.pictures - around[task] if task in around else 0 * of.tokens
    pictures = lambda kind: examples * mean(lambda task, of: of.pictures * (task == kind))
    return {
        "tokens": tokens,
        "attended": examples * mean(lambda _, of: of.tokens * (of.tokens + 1) / 2),
        "text_targets": examples * mean(targets),
        "und_pictures": pictures("understanding"),
        "gen_pictures": pictures("generation"),
        "cached": False,
    }


def _stand_in(table, task, k):
    lengths = table[task]
    images = (None,) * int(lengths.pictures[k])
    kind = {"understanding": "und_images", "generation": "gen_images"}.get(task)
    return Example(np.empty(int(lengths.tokens[k]), np.int8), None, TASKS.index(task), **({kind: images} if kind else {}))


def bound(table, mixture, *, length):
    """The largest share of positions that any packing of whole examples in this mixture can use.

    The linear programme of cutting stock, by column generation (Gilmore and Gomory, 1961): as few rows as can be,
    fractions of rows allowed, so that no packer is better.
    """
    shares = np.array(mixture, float) / sum(mixture)
    demand = {}
    for task, share in zip(TASKS, shares, strict=True):
        if share:
            values, counts = np.unique(table[task].tokens, return_counts=True)
            for n, count in zip(values.tolist(), counts.tolist(), strict=True):
                demand[n] = demand.get(n, 0.0) + share * count / len(table[task].tokens)
    sizes, need = np.array(sorted(demand)), np.array([demand[n] for n in sorted(demand)])
    patterns = np.diag(length // sizes).astype(float)
    while True:
        solved = linprog(np.ones(patterns.shape[1]), A_ub=-patterns, b_ub=-need, method="highs")
        worth = -solved.ineqlin.marginals
        pattern, value = _knapsack(sizes, worth, length)
        if value <= 1 + 1e-7:
            return float(sizes @ need / (length * solved.fun))
        patterns = np.column_stack([patterns, pattern])


def _knapsack(sizes, worth, capacity):
    """The most valuable multiset of items in a row: counts, and their worth."""
    best, last = np.zeros(capacity + 1), np.full(capacity + 1, -1)
    for room in range(1, capacity + 1):
        fits = np.searchsorted(sizes, room, "right")
        best[room] = best[room - 1]
        if fits:
            gains = best[room - sizes[:fits]] + worth[:fits]
            k = int(np.argmax(gains))
            if gains[k] > best[room]:
                best[room], last[room] = gains[k], k
    counts, room = np.zeros(len(sizes)), capacity
    while room > 0:
        if last[room] < 0:
            room -= 1
        else:
            counts[last[room]] += 1
            room -= sizes[last[room]]
    return counts, best[capacity]
