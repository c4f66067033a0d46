"""Exact counts in every block of every virtual shard, whatever the hosts."""

import importlib

import numpy as np
import pytest

from janus_jax.batch import TASKS, Example
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.mixture import Mixture, Phase, whole
from janus_jax.data.packing_stats import Lengths
from janus_jax.data.shards import Layout, Shard, Stream
from janus_jax.data.synthetic import TableSource
from janus_jax.errors import UserError
from janus_jax.recipe.stage import phases_of

RECIPES = ["tiny", "openmoji", "janus_1p3b", "pro_1b", "pro_7b", "tiny_flow", "openmoji_flow", "flow_1p3b", "flow_1p3b_256"]


def tables():
    """Every phase of every stage of every config, once."""
    found = {}
    for name in RECIPES:
        for s in importlib.import_module(f"configs.{name}").get_config().to_dict()["stages"].values():
            for phase in phases_of(s):
                found.setdefault(f"{phase.ratio} {phase.sources}", phase)
    return [pytest.param(phase, id=":".join(f"{n:g}" for n in phase.ratio)) for phase in found.values()]


def blank(record, *, task, rng, record_id):
    return Example(np.zeros(record["tokens"], np.int32), None, TASKS.index(task), record_id=record_id)


@pytest.mark.parametrize("phase", tables())
def test_every_block_of_every_shard_is_exact(phase):
    """The first, a middle and the last of 1 to 64 shards: two blocks, and every round of sources inside a task."""
    mixture = Mixture(phase)
    weights = {task: phase.sources[task] for task, share in zip(TASKS, phase.ratio, strict=True) if share}
    lengths = Lengths(np.arange(3, 14), np.zeros(11, int))
    streams = {n: Stream(TableSource(n, lengths), make=blank, seed=1) for own in weights.values() for n in own}
    size = sum(mixture.counts)
    for shards in range(1, 65):
        layout = Layout(shards, 1, 64, 0, 0, 8, 8, shards=shards)
        for number in {0, shards // 2, shards - 1}:
            bad = BadRecords(0.1, sources={})
            shard = Shard(number, layout=layout, streams=streams, phases=[phase], unit="examples", bad=bad)
            for _ in range(2 * size):
                shard._draw(mixture)
            drawn = [(task, source) for source, _, task, _ in shard._window]
            for block in (drawn[i * size : (i + 1) * size] for i in range(2)):
                assert [sum(task == t for task, _ in block) for t in TASKS] == list(mixture.counts)
            for task, own in weights.items():
                names, shares = [n for t, n in drawn if t == task], whole(own.values())
                for i in range(len(names) // sum(shares)):
                    turn = names[i * sum(shares) : (i + 1) * sum(shares)]
                    assert [turn.count(n) for n in own] == list(shares)


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
