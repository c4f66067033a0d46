"""The same global batches for any number of hosts, and from any saved position."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.batch import TASKS, Example
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.images import encode_png
from janus_jax.data.mixture import Phase
from janus_jax.data.packing_stats import Lengths
from janus_jax.data.shards import BatchShape, Shard, Stream
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.data.synthetic import TableSource
from janus_jax.errors import UserError
from janus_jax.recipe.data import build_pipeline
from tests.conftest import stage_of


def pipeline(config, stage="stage_2", host=(0, 1)):
    return build_pipeline(stage_of(config, stage), host=host)[0]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_hosts_share_one_sequence_and_positions_move_between_them(config):
    """Saved on four hosts within a block and within an epoch, resumed on one and on eight."""
    config.data.shards = 8
    config.data.sources.text.path = str(few_texts(config, 3))
    whole = pipeline(config)
    expected = [next(whole) for _ in range(6)]
    for number in (2, 4, 8):
        hosts = [pipeline(config, host=(h, number)) for h in range(number)]
        for packed in expected[:3]:
            parts = [next(h) for h in hosts]
            same(
                packed.batch,
                jax.tree.map(lambda *parts: np.concatenate(parts), *(p.batch for p in parts)),
            )
        if number == 4:
            states = json.loads(json.dumps({v: s for p in parts for v, s in p.state.items()}))
    block = sum(config.stages.stage_2.mixture)
    assert any(state["drawn"] % block for state in states.values())
    assert any(state["next"]["text"] % 3 for state in states.values())
    for number in (1, 8):
        again = [pipeline(config, host=(h, number)) for h in range(number)]
        for p in again:
            p.set_state(states)
        for packed in expected[3:]:
            same(
                packed.batch,
                jax.tree.map(lambda *parts: np.concatenate(parts), *(next(p).batch for p in again)),
            )


def few_texts(config, count):
    """Writes a source of `count` texts; returns its path."""
    path = Path(config.data.tokenizer).parent / f"texts-{count}.array_record"
    write_array_record(path, [{"text": f"a text that says {i}"} for i in range(count)])
    return path


def test_threads_change_nothing(config):
    config.data.workers = 0
    alone = pipeline(config)
    expected = [next(alone) for _ in range(4)]
    for workers in (1, 2, 4):
        config.data.workers = workers
        threads = pipeline(config)
        for one in expected:
            other = next(threads)
            same(one.batch, other.batch)
            assert one.state == other.state
            assert one.record_ids == other.record_ids
            assert one.stats == other.stats
        threads.close()


def test_a_source_of_one_record_serves_every_shard(config):
    config.data.sources.text.path = str(few_texts(config, 1))
    p = pipeline(config)
    packed = [next(p) for _ in range(3)]
    assert packed[-1].stats["epochs"]["text"] > 3
    assert {i.rsplit("/", 1)[1] for b in packed for i in b.record_ids if i.startswith("text/")} == {
        "0"
    }


def test_a_new_source_leaves_the_order_of_the_others(config):
    order = lambda p: [p.shards[0]._streams["captions"].locate(k) for k in range(500)]
    before = order(pipeline(config))
    config.data.sources.aaa = dict(kind="array_record", path=config.data.sources.text.path)
    config.stages.stage_2.sources.text = {"aaa": 1}
    assert order(pipeline(config)) == before


def test_a_mixture_may_change_during_a_stage(config):
    state = next(pipeline(config)).state
    config.stages.stage_2.mixture = (0, 1, 1)
    changed = pipeline(config)
    changed.set_state(state, new_mixture=True)
    packed = [next(changed) for _ in range(12)]
    ratios = np.array([p.stats["ratio"] for p in packed])
    assert not ratios[:, 0].any()  # captions that waited are dropped: no task mixes them any more
    np.testing.assert_allclose(ratios[4:].mean(axis=0), [0, 0.5, 0.5], atol=0.03)
    ids = [i for p in packed for i in p.record_ids]
    assert len(set(ids)) == len(ids)


def test_every_shard_is_exact_and_every_record_comes_once_an_epoch():
    for shards in (1, 2, 7, 16, 64):
        shape = BatchShape(shards, 2, 64, 0, 0, 8, 8, window=20, shards=shards)
        lengths = Lengths(np.arange(3, 14), np.zeros(11, int))
        streams = {t: Stream(TableSource(t, lengths), make=blank, seed=1) for t in TASKS}
        records = {task: [] for task in TASKS}
        for number in range(shards):
            for task, position in positions_of_shard(number, shape, streams):
                records[task].append(streams[task].locate(position))
        for read in records.values():
            assert len(set(read)) == len(read), shards  # no record twice in an epoch, in any shard


def blank(record, *, task, rng, record_id):
    return Example(np.zeros(record["tokens"], np.int32), None, TASKS.index(task))


def positions_of_shard(number, shape, streams):
    """(task, position in the stream) of the reads of twelve groups; checks every block of ten."""
    shard = Shard(
        number,
        shape=shape,
        streams=streams,
        phases=[Phase(10**6, (2, 3, 5), {task: {task: 1} for task in TASKS})],
        unit="examples",
        bad_records=BadRecords(0.1, sources={}),
    )
    reads = []
    read = shard._read

    def noting_read(source, count, task):
        reads.append((task, shard._position(count)))
        return read(source, count, task)

    shard._read = noting_read
    for _ in range(12):
        shard.next_group()
    for block in range(len(reads) // 10):
        tasks = [task for task, _ in reads[10 * block : 10 * block + 10]]
        assert [tasks.count(task) for task in TASKS] == [2, 3, 5]
    return reads


def test_slots_point_at_image_tokens(config):
    p = pipeline(config)
    batch = next(p).batch
    tokens = batch.tokens.reshape(batch.tokens.shape[0], -1)
    image = p.shards[0]._streams["scenes"].make.tokenizer.image
    for starts in (batch.und_start, batch.gen_start):
        used = np.argwhere(starts < tokens.shape[1])
        assert len(used)
        for s, slot in used:
            assert (tokens[s, starts[s, slot] : starts[s, slot] + 16] == image).all()
    assert batch.und_images.max() > 0 and batch.gen_images.max() > 0


def test_broken_images_are_counted_and_stop_the_run(config, tmp_path):
    path = tmp_path / "bad.array_record"
    write_array_record(path, [{"image": b"<html>", "prompt": "x"}] * 5)
    config.data.sources["scenes"].path = str(path)
    with pytest.raises(UserError, match=r"bad_record_limit=1%.*HTML"):
        next(pipeline(config))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversation": [{"from": "human", "value": "hi"}]}, "KeyError 'role'"),
        ({"text": 3}, "'text'"),
        ({"conversation": []}, "empty conversation"),
    ],
)
def test_records_of_another_form_are_bad_records(config, tmp_path, record, reason):
    write_array_record(tmp_path / "odd.array_record", [record] * 5)
    config.data.sources["text"].path = str(tmp_path / "odd.array_record")
    with pytest.raises(UserError, match=f"bad_record_limit.*{reason}"):
        next(pipeline(config))


def test_an_example_with_more_images_than_slots_is_a_bad_record(config, tmp_path):
    image = encode_png(np.zeros((16, 16, 3), np.uint8))
    turns = [
        {"role": "user", "content": "<image_placeholder>" * 5},
        {"role": "assistant", "content": "five"},
    ]
    path = tmp_path / "many.array_record"
    write_array_record(path, [{"images": [image] * 5, "conversation": turns}] * 5)
    config.data.sources["captions"].path = str(path)
    config.stages.stage_2.update(und_slots=4, length=256)
    with pytest.raises(UserError, match="bad_record_limit.*slots"):
        next(pipeline(config))


def test_a_source_without_usable_records_ends_the_run_for_any_limit(config, tmp_path):
    write_array_record(tmp_path / "long.array_record", [{"text": "word " * 900}] * 5)
    config.data.sources["text"].path = str(tmp_path / "long.array_record")
    config.data.overlong = "skip"
    with pytest.raises(UserError, match="Source 'text' .* 1000 records.*example too long"):
        next(pipeline(config))
