"""Which task and which source the next example comes from: exact counts in every block, at any index.

A block is the smallest whole ratio, 2:3:5 say, its ten examples spread as evenly as can be. Inside a task the sources
mix by weight in the same way. The choice at index k depends on k alone, so a saved index is a saved mixture.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

from janus_jax.batch import TASKS
from janus_jax.errors import UserError

MAX_BLOCK = 10_000  # examples until the exact ratio returns


class Phase(NamedTuple):
    """A stretch of a stage with one mixture.

    Attributes:
      until: the stage's step at which it ends.
      ratio: understanding : text : generation.
      sources: {task: {source name: weight}} for every task with a share.
    """

    until: int
    ratio: tuple[float, float, float]
    sources: dict


class Mixture:
    """The examples of one phase."""

    def __init__(self, phase, *, unit="examples"):
        """Checks a phase and lays out its block.

        Args:
          phase: Phase.
          unit: 'examples' counts examples; 'tokens' gives each task its share of tokens.

        Raises:
          UserError: for a ratio without a share, or a task with a share but no source.
        """
        if unit not in ("examples", "tokens"):
            raise UserError(f"config.data.mixture_unit is {unit!r}; known: ['examples', 'tokens'].")
        self.unit, self.counts = unit, whole(phase.ratio)
        self.block = _spread(self.counts)
        self.sources = {}
        for task, count in zip(TASKS, self.counts, strict=True):
            if not count:
                continue
            weights = dict(phase.sources.get(task) or {})
            if not weights:
                raise UserError(f"The mixture {tuple(phase.ratio)} asks for {task} examples, but no source gives any.")
            order = _spread(whole(weights.values()))
            self.sources[task] = [list(weights)[i] for i in order]

    def pick(self, index, *, tokens):
        """Task and source of an example.

        Args:
          index: how many examples this phase has drawn before.
          tokens: for the unit 'tokens', {task: (examples, tokens)} drawn before in this phase.

        Returns:
          task, source name.
        """
        if self.unit == "tokens":
            total = sum(tokens[t][1] for t in TASKS) + 1
            lacking = lambda i: self.counts[i] * total / sum(self.counts) - tokens[TASKS[i]][1]
            place = max(range(len(TASKS)), key=lambda i: (self.counts[i] > 0, lacking(i)))
            rank = tokens[TASKS[place]][0]
        else:
            block, offset = divmod(index, len(self.block))
            place = self.block[offset]
            rank = block * self.counts[place] + self.block[:offset].count(place)
        order = self.sources[TASKS[place]]
        return TASKS[place], order[rank % len(order)]


def whole(ratio):
    """The smallest whole numbers in a ratio: (0.5, 0, 1.5) -> (1, 0, 3)."""
    parts = [Fraction(str(r)).limit_denominator(1000) for r in ratio]
    if not parts or min(parts) < 0 or not sum(parts):
        raise UserError(f"A mixture needs shares >= 0 with a positive sum, not {tuple(ratio)}.")
    if any(r > 0 and not p for r, p in zip(ratio, parts, strict=True)):
        raise UserError(f"The shares {tuple(ratio)} hold one that would never be drawn; raise it to 0.001, or leave it out.")
    scale = math.lcm(*(p.denominator for p in parts))
    numbers = [int(p * scale) for p in parts]
    divisor = math.gcd(*numbers)
    if sum(numbers) // divisor > MAX_BLOCK:
        raise UserError(
            f"The shares {tuple(ratio)} make blocks of {sum(numbers) // divisor} examples, more than {MAX_BLOCK}; "
            "round them."
        )
    return tuple(n // divisor for n in numbers)


@functools.cache
def _spread(counts):
    """Indices in a block with these counts, each as evenly spaced as can be (largest deficit first)."""
    order, given = [], [0] * len(counts)
    for k in range(1, sum(counts) + 1):
        behind = [k * c / sum(counts) - g if g < c else -math.inf for c, g in zip(counts, given, strict=True)]
        pick = behind.index(max(behind))
        given[pick] += 1
        order.append(pick)
    return tuple(order)
