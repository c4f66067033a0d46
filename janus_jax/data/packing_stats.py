"""How full rows can be, and how full the packer makes them, computed from a table of lengths."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from janus_jax.batch import TASKS, Example
from janus_jax.data.mixture import whole_ratio
from janus_jax.data.packing import pack_group


class Lengths(NamedTuple):
    """Whole examples of one task.

    Attributes:
      tokens: int[n], including those of images.
      images: int[n], number of images to understand or to generate.
    """

    tokens: np.ndarray
    images: np.ndarray


class Fill(NamedTuple):
    """The result of a simulation.

    Attributes:
      token_fill: share of positions with a token.
      slot_fill: share of image slots with an image.
      examples: {task: mean number of examples in a group}.
      groups: number of groups packed.
    """

    token_fill: float
    slot_fill: float
    examples: dict
    groups: int


def budgets(table, mixture, *, rows, length):
    """Image slots of a group: the mean number of images in full rows, and at least one more.

    Args:
      table: {task: Lengths}.
      mixture: shares in the order of TASKS.
      rows: R.
      length: L.

    Returns:
      U, G, and the reasoning in a sentence.
    """
    shares = _shares(mixture)
    mean_tokens = {
        task: float(table[task].tokens.mean()) if share else 0.0 for task, share in shares.items()
    }
    mean_of_mixture = sum(shares[task] * mean_tokens[task] for task in TASKS)
    examples = rows * length / mean_of_mixture
    mean_images, slots = {}, {}
    for task in ("understanding", "generation"):
        mean_images[task], slots[task] = 0.0, 0
        if shares[task]:
            counts = table[task].images
            mean_images[task] = examples * shares[task] * float(counts.mean())
            largest = int(counts.max())  # of one example
            slots[task] = (
                max(math.floor(mean_images[task]) + 2, largest) if mean_images[task] else 0
            )
    und, gen = slots["understanding"], slots["generation"]
    means = ", ".join(f"{task} {mean_tokens[task]:.0f}" for task in TASKS if shares[task])
    reasons = (
        f"mean tokens: {means}; mean of the mixture: {mean_of_mixture:.0f}; so {rows} rows of "
        f"{length} have {examples:.1f} examples with {mean_images['understanding']:.2f} images to "
        f"understand and {mean_images['generation']:.2f} to generate; with one more: "
        f"und_slots={und}, gen_slots={gen}"
    )
    return und, gen, reasons


def simulate(table, mixture, *, rows, length, und_slots, gen_slots, window=128, groups=1000):
    """Packs groups as a shard does, with examples of the shuffled table in the exact mixture.

    Args:
      table: {task: Lengths}; a task's table is shuffled again whenever all of it has been used.
      mixture: shares in the order of TASKS.
      rows: R.
      length: L.
      und_slots: U.
      gen_slots: G.
      window: examples that wait for the packer.
      groups: number of groups.

    Returns:
      Fill.
    """
    rng = np.random.default_rng(0)
    block = [
        task for task, count in zip(TASKS, whole_ratio(mixture), strict=True) for _ in range(count)
    ]
    waiting, tasks, packed_rows = [], [], []
    remaining = {task: [] for task in table}  # shuffled indices into the table
    for _ in range(groups):
        while len(waiting) < window:
            if not tasks:
                tasks = [block[i] for i in rng.permutation(len(block))]
            task = tasks.pop()
            if not remaining[task]:
                remaining[task] = rng.permutation(len(table[task].tokens)).tolist()
            waiting.append(_example(table, task, remaining[task].pop()))
        group = pack_group(
            waiting, rows=rows, length=length, und_slots=und_slots, gen_slots=gen_slots
        )
        packed_rows += [[waiting[i] for i in row] for row in group]
        packed = {i for row in group for i in row}
        waiting = [example for i, example in enumerate(waiting) if i not in packed]
    examples = [example for row in packed_rows for example in row]
    tokens = sum(len(example.tokens) for example in examples)
    images = sum(len(example.und_images) + len(example.gen_images) for example in examples)
    slots = groups * (und_slots + gen_slots)
    per_task = np.bincount([example.task for example in examples], minlength=len(TASKS))
    return Fill(
        token_fill=tokens / (groups * rows * length),
        slot_fill=images / slots if slots else 1.0,
        examples={task: int(per_task[i]) / groups for i, task in enumerate(TASKS)},
        groups=groups,
    )


def _example(table, task, index):
    """An Example with the lengths of an entry of the table, and no content."""
    tokens = np.empty(int(table[task].tokens[index]), np.int8)
    images = (None,) * int(table[task].images[index])
    return Example(
        tokens,
        None,
        TASKS.index(task),
        und_images=images if task == "understanding" else (),
        gen_images=images if task == "generation" else (),
    )


def _shares(mixture):
    """{task: share}, which sum to 1."""
    return dict(zip(TASKS, np.array(mixture, float) / sum(mixture), strict=True))


def expected(table, mixture, *, tokens, und_tokens):
    """Mean statistics of batches with a given number of tokens in this mixture.

    Args:
      table: {task: Lengths}.
      mixture: shares in the order of TASKS.
      tokens: positions without padding.
      und_tokens: T of an image to understand, to count text targets.

    Returns:
      dict with keys of `data.pipeline.statistics`: tokens, attended, text_targets, und_pictures,
      gen_pictures, cached.
    """
    shares = _shares(mixture)
    no_targets = {"understanding": 3, "text": 1}  # BOS, BOI and EOI; BOS

    def mean(count):
        """Mean of `count(task, Lengths)` over the examples of the mixture."""
        return sum(
            share * float(np.mean(count(task, table[task])))
            for task, share in shares.items()
            if share
        )

    def text_targets(task, lengths):
        if task not in no_targets:
            return 0 * lengths.tokens
        return lengths.tokens - und_tokens * lengths.images - no_targets[task]

    examples = tokens / mean(lambda _, lengths: lengths.tokens)
    return {
        "tokens": tokens,
        "attended": examples * mean(lambda _, lengths: lengths.tokens * (lengths.tokens + 1) / 2),
        "text_targets": examples * mean(text_targets),
        "und_pictures": examples * mean(lambda task, n: n.images * (task == "understanding")),
        "gen_pictures": examples * mean(lambda task, n: n.images * (task == "generation")),
        "cached": False,
    }


def bound(table, mixture, *, length):
    """The largest share of positions that any packing of whole examples in this mixture can use.

    The linear programme of the cutting stock problem, solved by column generation (Gilmore and
    Gomory, 1961). It allows fractions of rows, so no packer uses fewer rows.
    """
    demand = {}  # {tokens of an example: share of examples}
    for task, share in _shares(mixture).items():
        if share:
            values, counts = np.unique(table[task].tokens, return_counts=True)
            for n, count in zip(values.tolist(), counts.tolist(), strict=True):
                demand[n] = demand.get(n, 0.0) + share * count / len(table[task].tokens)
    sizes = np.array(sorted(demand))
    need = np.array([demand[n] for n in sorted(demand)])
    patterns = np.diag(length // sizes).astype(float)
    while True:
        costs = np.ones(patterns.shape[1])
        solution = linprog(costs, A_ub=-patterns, b_ub=-need, method="highs")
        pattern, value = _knapsack(sizes, -solution.ineqlin.marginals, length)
        if value <= 1 + 1e-7:
            return float(sizes @ need / (length * solution.fun))
        patterns = np.column_stack([patterns, pattern])


def _knapsack(sizes, values, capacity):
    """The most valuable multiset of items in a row: float[items] counts, and their total value."""
    best = np.zeros(capacity + 1)
    last = np.full(capacity + 1, -1)  # item that was added last; -1 leaves a position empty
    for space in range(1, capacity + 1):
        best[space] = best[space - 1]
        fitting = np.searchsorted(sizes, space, "right")
        if not fitting:
            continue
        gains = best[space - sizes[:fitting]] + values[:fitting]
        item = int(np.argmax(gains))
        if gains[item] > best[space]:
            best[space] = gains[item]
            last[space] = item
    counts = np.zeros(len(sizes))
    space = capacity
    while space > 0:
        item = last[space]
        if item < 0:
            space -= 1
        else:
            counts[item] += 1
            space -= sizes[item]
    return counts, best[capacity]
