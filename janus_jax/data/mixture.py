"""Task and source of the next example: exact counts in every block of a mixture.

A block is the smallest whole ratio, such as 2:3:5, with its ten examples interleaved as evenly as
possible. Within a task, sources are interleaved by weight in the same way. The choice at index k
depends on k alone, so saving the index saves the mixture.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

from janus_jax.batch import TASKS
from janus_jax.errors import UserError

MAX_BLOCK = 10_000  # examples of the longest block, after which the ratio is exact


class Phase(NamedTuple):
    """A part of a stage with one mixture.

    Attributes:
      until: the stage's step at which it ends.
      ratio: understanding : text : generation.
      sources: {task: {source name: weight}} for every task with a share.
    """

    until: int
    ratio: tuple[float, float, float]
    sources: dict


class Mixture:
    """Chooses the task and source of every example of one phase."""

    def __init__(self, phase, *, unit="examples"):
        """Checks a phase and computes its block.

        Args:
          phase: Phase.
          unit: 'examples' counts examples; 'tokens' gives each task its share of tokens.

        Raises:
          UserError: for a ratio without a share, or a task with a share but no source.
        """
        if unit not in ("examples", "tokens"):
            raise UserError(f"config.data.mixture_unit is {unit!r}; known: ['examples', 'tokens'].")
        self.unit = unit
        self.counts = whole_ratio(phase.ratio)
        self.block = _interleave(self.counts)
        self.sources = {}
        for task, count in zip(TASKS, self.counts, strict=True):
            if not count:
                continue
            weights = dict(phase.sources.get(task) or {})
            if not weights:
                raise UserError(
                    f"The mixture {tuple(phase.ratio)} has a share of {task} examples, but "
                    f"`sources` names no source of {task}."
                )
            names = list(weights)
            self.sources[task] = [names[i] for i in _interleave(whole_ratio(weights.values()))]

    def pick(self, index, *, tokens):
        """Task and source of an example.

        Args:
          index: number of examples of this phase before it.
          tokens: for the unit 'tokens', {task: (examples, tokens)} of this phase before it.

        Returns:
          task, source name.
        """
        if self.unit == "tokens":
            task_index = self._most_underrepresented({t: tokens[t][1] for t in TASKS})
            rank = tokens[TASKS[task_index]][0]
        else:
            block, offset = divmod(index, len(self.block))
            task_index = self.block[offset]
            rank = block * self.counts[task_index] + self.block[:offset].count(task_index)
        task = TASKS[task_index]
        names = self.sources[task]
        return task, names[rank % len(names)]

    def _most_underrepresented(self, tokens):
        """Index of the task whose tokens are furthest below its share."""
        total = sum(tokens.values()) + 1

        def deficit(i):
            share = self.counts[i] * total / sum(self.counts)
            return self.counts[i] > 0, share - tokens[TASKS[i]]

        return max(range(len(TASKS)), key=deficit)


def whole_ratio(ratio):
    """The smallest whole numbers in a ratio: (0.5, 0, 1.5) -> (1, 0, 3).

    Raises:
      UserError: for negative or only zero shares, and for ratios with a very long block.
    """
    parts = [Fraction(str(share)).limit_denominator(1000) for share in ratio]
    if not parts or min(parts) < 0 or not sum(parts):
        raise UserError(f"A mixture needs shares >= 0 with a positive sum, not {tuple(ratio)}.")
    if any(share > 0 and not part for share, part in zip(ratio, parts, strict=True)):
        raise UserError(
            f"One of the shares {tuple(ratio)} is too small: it would never be chosen. Raise it to "
            "0.001, or remove it."
        )
    scale = math.lcm(*(part.denominator for part in parts))
    numbers = [int(part * scale) for part in parts]
    divisor = math.gcd(*numbers)
    block = sum(numbers) // divisor
    if block > MAX_BLOCK:
        raise UserError(
            f"The shares {tuple(ratio)} make blocks of {block} examples, more than {MAX_BLOCK}; "
            "round them."
        )
    return tuple(n // divisor for n in numbers)


@functools.cache
def _interleave(counts):
    """Indices of a block, each as often as its count, evenly spaced: the largest deficit first."""
    order = []
    used = [0] * len(counts)
    for k in range(1, sum(counts) + 1):
        deficits = [
            k * count / sum(counts) - n if n < count else -math.inf
            for count, n in zip(counts, used, strict=True)
        ]
        pick = deficits.index(max(deficits))
        used[pick] += 1
        order.append(pick)
    return tuple(order)
