"""The same global batches for any number of hosts, and from any saved position."""

import json

import jax
import numpy as np
import pytest

from janus_jax import assembly, sharding
from janus_jax.batch import TASKS
from janus_jax.data import shapes
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError


def pipeline(config, stage="stage_2", host=(0, 1)):
    config = config.to_dict()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return assembly.build_pipeline(config, stage, assembly.build_network(config, stage), mesh=mesh, host=host)[0]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_hosts_share_one_sequence_and_positions_move_between_them(config):
    whole = pipeline(config)
    expected = [next(whole).batch for _ in range(6)]
    hosts = [pipeline(config, host=(h, 4)) for h in range(4)]
    for batch in expected[:3]:
        same(batch, jax.tree.map(lambda *parts: np.concatenate(parts), *(next(h).batch for h in hosts)))
    states = json.loads(json.dumps({v: s for h in hosts for v, s in h.get_state().items()}))
    for number in (1, 2):
        again = [pipeline(config, host=(h, number)) for h in range(number)]
        for p in again:
            p.set_state(states)
        for batch in expected[3:]:
            same(batch, jax.tree.map(lambda *parts: np.concatenate(parts), *(next(p).batch for p in again)))


@pytest.mark.parametrize("stage", ["stage_1", "stage_2", "stage_3"])
def test_each_shard_draws_the_exact_ratio(config, stage):
    config.data.shards = 8
    p = pipeline(config, stage)
    ratio = np.array(config.stages[stage].mixture)
    for shard in p.shards.values():
        drawn = []
        read = shard._read
        shard._read = lambda source, place, task, read=read, drawn=drawn: (drawn.append(task), read(source, place, task))[1]
        for _ in range(4):
            shard.next_group()
        block = int(ratio.sum())
        for i in range(len(drawn) // block):
            assert [drawn[i * block : (i + 1) * block].count(t) for t in TASKS] == ratio.tolist()


def test_slots_point_at_picture_tokens(config):
    p = pipeline(config)
    batch = next(p).batch
    tokens = batch.tokens.reshape(batch.tokens.shape[0], -1)
    image = p.shards[0]._streams["scenes"]._make.tokenizer.image
    for starts in (batch.und_start, batch.gen_start):
        used = np.argwhere(starts < tokens.shape[1])
        assert len(used)
        for s, slot in used:
            assert (tokens[s, starts[s, slot] : starts[s, slot] + 16] == image).all()
    assert batch.und_images.max() > 0 and batch.gen_images.max() > 0


def test_broken_pictures_are_skipped_counted_and_stop_the_run(config, tmp_path):
    write_array_record(tmp_path / "bad.array_record", [{"image": b"<html>", "prompt": "x"}] * 5)
    config.data.sources["scenes"].path = str(tmp_path / "bad.array_record")
    with pytest.raises(UserError, match=r"unusable.*bad_record_limit=1%.*undecodable picture"):
        next(pipeline(config))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversation": [{"from": "human", "value": "hi"}]}, "malformed record .KeyError 'content'"),
        ({"text": 3}, "empty 'text'"),
        ({"conversation": []}, "empty conversation"),
    ],
)
def test_records_of_another_form_are_bad_records(config, tmp_path, record, reason):
    write_array_record(tmp_path / "odd.array_record", [record] * 5)
    config.data.sources["text"].path = str(tmp_path / "odd.array_record")
    with pytest.raises(UserError, match=f"unusable.*({reason})"):
        next(pipeline(config))


def test_an_example_with_more_pictures_than_slots_is_a_bad_record(config, tmp_path):
    picture = shapes.encode_png(np.zeros((16, 16, 3), np.uint8))
    turns = [{"role": "user", "content": "<image_placeholder>" * 5}, {"role": "assistant", "content": "five"}]
    write_array_record(tmp_path / "many.array_record", [{"images": [picture] * 5, "conversation": turns}] * 5)
    config.data.sources["captions"].path = str(tmp_path / "many.array_record")
    config.stages.stage_2.update(und_slots=4, length=256)
    with pytest.raises(UserError, match="unusable.*more pictures than slots"):
        next(pipeline(config))
