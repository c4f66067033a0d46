"""Rows are filled as well as possible within their limits, oldest examples first."""

import itertools

import numpy as np

from janus_jax.batch import Example
from janus_jax.data.packing import fill_row, lay_out, pack_group


def example(n, und=0, gen=0):
    tokens = np.arange(n, dtype=np.int32)
    starts = lambda k: tuple(range(1, 1 + k))
    weights = np.ones(n, np.float32)
    return Example(tokens, weights, 0, (b"",) * und, starts(und), (b"",) * gen, starts(gen))


def test_no_subset_with_the_oldest_fills_a_row_better():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 40, size=9).tolist()
        row = fill_row(lengths, 64)
        sums = [
            sum(lengths[i] for i in (0, *rest))
            for k in range(9)
            for rest in itertools.combinations(range(1, 9), k)
        ]
        assert 0 in row and len(set(row)) == len(row), seed
        assert sum(lengths[i] for i in row) == max(n for n in sums if n <= 64), seed


def test_groups_respect_token_and_image_limits():
    rng = np.random.default_rng(0)
    window = [
        example(int(rng.integers(5, 30)), *((1, 0), (0, 1), (0, 0))[i % 3]) for i in range(60)
    ]
    rows = pack_group(window, rows=4, length=64, und_slots=3, gen_slots=5)
    flat = [i for row in rows for i in row]
    assert len(flat) == len(set(flat)) and 0 in rows[0]
    assert all(sum(len(window[i].tokens) for i in row) <= 64 for row in rows)
    assert sum(len(window[i].und_images) for i in flat) <= 3
    assert sum(len(window[i].gen_images) for i in flat) <= 5


def test_layout_restarts_positions_and_numbers_segments():
    rows = [[example(3), example(4, gen=1)], []]
    group, und, gen = lay_out(rows, length=10, pad_id=9, und_slots=1, gen_slots=2)
    assert group.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 2, 2, 0, 0, 0]
    assert group.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 0, 0]
    assert group.tokens[1].tolist() == [9] * 10
    assert (
        group.gen_start.tolist() == [4, 20]
        and group.und_start.tolist() == [20]
        and not und
        and len(gen) == 1
    )
