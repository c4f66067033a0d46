"""Exact counts of tasks and sources in every block of every virtual shard."""

import importlib

import numpy as np
import pytest

from janus_jax.batch import TASKS, Example
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.mixture import Mixture, Phase, whole_ratio
from janus_jax.data.packing_stats import Lengths
from janus_jax.data.shards import BatchShape, Shard, Stream
from janus_jax.data.synthetic import TableSource
from janus_jax.errors import UserError
from janus_jax.recipe.stage import phases_of

RECIPES = (
    "tiny", "openmoji", "janus_1p3b", "pro_1b", "pro_7b",
    "tiny_flow", "openmoji_flow", "flow_1p3b", "flow_1p3b_256",
)  # fmt: skip


def tables():
    """Every phase of every stage of every config, once."""
    phases = {}
    for name in RECIPES:
        config = importlib.import_module(f"configs.{name}").get_config().to_dict()
        for settings in config["stages"].values():
            for phase in phases_of(settings):
                phases.setdefault(f"{phase.ratio} {phase.sources}", phase)
    return phases.values()


def blank(record, *, task, rng, record_id):
    return Example(
        np.zeros(record["tokens"], np.int32), None, TASKS.index(task), record_id=record_id
    )


@pytest.mark.parametrize("phase", tables(), ids=lambda p: ":".join(f"{n:g}" for n in p.ratio))
def test_every_block_of_every_shard_is_exact(phase):
    """First, middle and last of 1 to 64 shards: two blocks, and every round of a task's sources."""
    mixture = Mixture(phase)
    shares = zip(TASKS, phase.ratio, strict=True)
    weights = {task: phase.sources[task] for task, share in shares if share}
    lengths = Lengths(np.arange(3, 14), np.zeros(11, int))
    names = [name for own in weights.values() for name in own]
    streams = {n: Stream(TableSource(n, lengths), make=blank, seed=1) for n in names}
    size = sum(mixture.counts)
    for shards in range(1, 65):
        shape = BatchShape(shards, 1, 64, 0, 0, 8, 8, shards=shards)
        for number in {0, shards // 2, shards - 1}:
            shard = Shard(
                number,
                shape=shape,
                streams=streams,
                phases=[phase],
                unit="examples",
                bad_records=BadRecords(0.1, sources={}),
            )
            for _ in range(2 * size):
                shard._add_example(mixture)
            for i in range(2):
                tasks = [waiting.task for waiting in shard._window[i * size : (i + 1) * size]]
                assert [tasks.count(task) for task in TASKS] == list(mixture.counts)
            for task, own in weights.items():
                names = [waiting.source for waiting in shard._window if waiting.task == task]
                counts = whole_ratio(own.values())
                size_of_round = sum(counts)
                for i in range(len(names) // size_of_round):
                    one_round = names[i * size_of_round : (i + 1) * size_of_round]
                    assert [one_round.count(name) for name in own] == list(counts)


def test_sources_mix_by_weight_inside_a_task():
    sources = {"understanding": {"u": 1}, "generation": {"real": 1, "synthetic": 1, "rare": 0.5}}
    mixture = Mixture(Phase(1, (1, 0, 3), sources))
    picks = [mixture.pick(i, tokens={})[1] for i in range(400)]
    assert {n: picks.count(n) for n in set(picks)} == {
        "u": 100,
        "real": 120,
        "synthetic": 120,
        "rare": 60,
    }


def test_counting_tokens_instead_of_examples():
    mixture = Mixture(Phase(1, (1, 1, 2), {t: {t: 1} for t in TASKS}), unit="tokens")
    lengths = dict(zip(TASKS, (100, 10, 40), strict=True))
    counts = {task: (0, 0) for task in TASKS}  # examples and tokens
    for i in range(4000):
        task, _ = mixture.pick(i, tokens=counts)
        examples, tokens = counts[task]
        counts[task] = (examples + 1, tokens + lengths[task])
    tokens = np.array([counts[task][1] for task in TASKS])
    np.testing.assert_allclose(tokens / tokens.sum(), [0.25, 0.25, 0.5], atol=0.01)


def test_ratios_become_whole_numbers():
    assert whole_ratio((0.5, 0, 1.5)) == (1, 0, 3) and whole_ratio((20, 30, 50)) == (2, 3, 5)


def test_a_task_without_a_source_is_an_error():
    with pytest.raises(UserError, match="text"):
        Mixture(Phase(1, (1, 1, 0), {"understanding": {"u": 1}}))


def test_a_ratio_that_never_returns_is_an_error():
    with pytest.raises(UserError, match="10000"):
        whole_ratio((123_457, 765_433))
    assert whole_ratio((1 / 6, 5 / 6, 0)) == (1, 5, 0)
