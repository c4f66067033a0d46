"""Exact counts in every block of every virtual shard, whatever the hosts."""

import importlib

import numpy as np
import pytest

from janus_jax import assembly
from janus_jax.batch import TASKS
from janus_jax.data.mixture import Mixture, Phase, whole
from janus_jax.errors import UserError


@pytest.mark.parametrize("name", ["tiny", "openmoji", "janus_1p3b", "pro_1b", "pro_7b"])
def test_every_block_of_every_stage_is_exact(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    for s in config["stages"].values():
        for phase in assembly.phases_of(s):
            mixture = Mixture(phase)
            size = sum(mixture.counts)
            for block in range(5):
                picks = [mixture.pick(block * size + i, tokens={}) for i in range(size)]
                assert [sum(t == task for t, _ in picks) for task in TASKS] == list(mixture.counts)


def test_sources_mix_by_weight_inside_a_task():
    sources = {"understanding": {"u": 1}, "generation": {"real": 1, "synthetic": 1, "rare": 0.5}}
    mixture = Mixture(Phase(1, (1, 0, 3), sources))
    picks = [mixture.pick(i, tokens={})[1] for i in range(400)]
    assert {n: picks.count(n) for n in set(picks)} == {"u": 100, "real": 120, "synthetic": 120, "rare": 60}


def test_counting_tokens_instead_of_examples():
    mixture = Mixture(Phase(1, (1, 1, 2), {t: {t: 1} for t in TASKS}), unit="tokens")
    lengths, drawn = dict(zip(TASKS, (100, 10, 40), strict=True)), {t: (0, 0) for t in TASKS}
    for i in range(4000):
        task, _ = mixture.pick(i, tokens=drawn)
        drawn[task] = (drawn[task][0] + 1, drawn[task][1] + lengths[task])
    total = sum(n for _, n in drawn.values())
    np.testing.assert_allclose([drawn[t][1] / total for t in TASKS], [0.25, 0.25, 0.5], atol=0.01)


def test_ratios_become_whole_numbers():
    assert whole((0.5, 0, 1.5)) == (1, 0, 3) and whole((20, 30, 50)) == (2, 3, 5)


def test_a_task_without_a_source_is_an_error():
    with pytest.raises(UserError, match="asks for text examples, but no source"):
        Mixture(Phase(1, (1, 1, 0), {"understanding": {"u": 1}}))


def test_a_ratio_that_never_returns_is_an_error():
    with pytest.raises(UserError, match="more than 10000; round them"):
        whole((123_457, 765_433))
    assert whole((1 / 6, 5 / 6, 0)) == (1, 5, 0)
