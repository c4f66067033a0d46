"""What a batch says about itself."""

import numpy as np

from janus_jax.batch import TASKS, count_targets, used_slots
from tests.conftest import first_batch


def test_counts_are_those_of_the_batch(config):
    _, batch = first_batch(config)
    counts = count_targets(batch)
    assert counts.text == batch.text_weights.sum()
    of_task = lambda task: batch.text_weights[batch.task_ids == TASKS.index(task)].sum()
    assert counts.und_text == of_task("understanding") > 0
    assert counts.pure_text == of_task("text") > 0
    assert counts.images == (batch.gen_start < 2 * 128).sum() > 0  # rows of 128 tokens, in twos
    np.testing.assert_array_equal(used_slots(batch), batch.gen_start < 2 * 128)
