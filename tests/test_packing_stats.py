"""How full rows get: the bound, the slot budgets, and a simulation of the packer."""

import itertools

import numpy as np
import pytest

from janus_jax.data import packing_stats, synthetic
from janus_jax.data.packing_stats import Lengths


def test_no_packing_exceeds_the_bound():
    """Compared with the best of all ways to put five examples into rows."""
    for seed in range(5):
        tokens = np.random.default_rng(seed).integers(5, 30, 5)
        table = {"text": Lengths(tokens, np.zeros(5, int))}
        bound = packing_stats.bound(table, (0, 1, 0), length=40)
        fewest_rows = min(
            max(rows) + 1
            for rows in itertools.product(range(5), repeat=5)
            if all(tokens[np.array(rows) == row].sum() <= 40 for row in range(5))
        )
        assert tokens.sum() / (40 * fewest_rows) <= bound + 1e-9 <= 1 + 1e-6
        limits = dict(rows=2, length=40, und_slots=0, gen_slots=0)
        packed = packing_stats.simulate(table, (0, 1, 0), **limits, window=32, groups=4000)
        # A window of examples is left over, so the simulation may exceed the bound a little.
        assert 0.9 * bound < packed.token_fill <= bound + 0.002


def test_rows_that_fit_no_second_example_have_the_bound_of_one():
    table = {"generation": Lengths(np.array([60]), np.array([1]))}
    assert packing_stats.bound(table, (0, 0, 1), length=100) == pytest.approx(0.6)
    assert packing_stats.budgets(table, (0, 0, 1), rows=2, length=60)[:2] == (0, 4)


def test_slots_hold_the_example_with_the_most_images():
    table = {"understanding": Lengths(np.array([50] * 9 + [100]), np.array([0] * 9 + [9]))}
    assert packing_stats.budgets(table, (1, 0, 0), rows=1, length=100)[:2] == (9, 0)


def test_eight_rows_of_real_lengths_are_full():
    table = synthetic.realistic(points=40)
    for mixture in ((2, 3, 5), (1, 0, 1), (1, 0, 3), (7, 3, 10), (5, 1, 4)):
        und, gen, _ = packing_stats.budgets(table, mixture, rows=8, length=4096)
        limits = dict(rows=8, length=4096, und_slots=und, gen_slots=gen)
        packed = packing_stats.simulate(table, mixture, **limits, groups=150)
        bound = packing_stats.bound(table, mixture, length=4096)
        assert packed.token_fill >= 0.97 * bound and packed.slot_fill >= 0.85, mixture
