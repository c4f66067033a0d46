"""Packed examples do not see each other, and what trains is what should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import assembly, optimizer, sharding, stages, train_step
from janus_jax.errors import UserError
from janus_jax.models import llama
from janus_jax.models.interleave import extract, insert
from janus_jax.models.janus import count_targets


def first_batch(config, stage="stage_2"):
    config = config.to_dict()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    network = assembly.build_network(config, stage)
    pipeline, _ = assembly.build_pipeline(config, stage, network, mesh=mesh, host=(0, 1))
    return network, jax.tree.map(np.array, next(pipeline).batch)


@pytest.mark.parametrize("mixture, slots", [((1, 0, 0), "gen_slots"), ((0, 1, 0), "und_slots")])
def test_a_stage_may_have_no_pictures_of_a_kind(config, mixture, slots):
    config.stages.stage_2.update({"mixture": mixture, slots: 0})
    network, batch = first_batch(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)
    loss = lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys)[0]
    assert np.isfinite(jax.jit(loss)(params_of(network)))


def params_of(network):
    return jax.jit(network.fresh)(jax.random.key(0))


def owned(batch, mine):
    """bool[S, U] and bool[S, G]: which slots hold pictures of the examples marked in `mine`, bool[S, R, L]."""
    flat = np.pad(mine.reshape(len(mine), -1), ((0, 0), (0, 1)))
    return [np.take_along_axis(flat, start, axis=1) for start in (batch.und_start, batch.gen_start)]


def example_loss(network, params, batch, mine, drawn, *, embeds=None):
    """The model's own loss of one example among the others, its text and its picture, as a function of embeddings.

    `mine` bool[S, R, L] marks its tokens, `drawn` bool[S, G] its picture. The text loss is read with every picture in
    its place; the picture loss counts all pictures of a batch, so there the others are taken out.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)
    model, counts, unused = network.merge(params), count_targets(batch), batch.tokens[0].size
    if embeds is not None:
        model.embed_text = lambda _: embeds
    text = batch._replace(text_weights=batch.text_weights * mine)
    picture = batch._replace(gen_start=jnp.where(drawn, batch.gen_start, unused))
    _, written = model.loss(text, counts=counts, keys=keys)
    _, painted = model.loss(picture, counts=counts, keys=keys)
    return written["understanding_sum"] + written["text_sum"] + painted["loss_gen"]


@pytest.fixture
def leak_case(config):
    """A group, and the marks of every example in its fullest row."""
    network, batch = first_batch(config)
    batch = jax.tree.map(lambda x: x[:1], batch)
    row = int(np.argmax(batch.segment_ids[0].max(axis=-1)))
    assert batch.segment_ids[0, row].max() >= 2
    here = np.arange(batch.tokens.shape[1])[None, :, None] == row
    marks = [here & (batch.segment_ids == n) for n in range(1, batch.segment_ids[0, row].max() + 1)]
    return network, params_of(network), batch, marks


def embedding_leaks(network, params, batch, marks):
    """For each example the largest gradient of its loss with respect to other examples' embeddings, and its own."""
    embeds = network.merge(params).embed_text(batch.tokens)
    gradient = jax.jit(jax.grad(lambda e, *m: example_loss(network, params, batch, *m, embeds=e)))
    for mine in marks:
        grads = np.abs(gradient(embeds, mine, owned(batch, mine)[1]))
        yield grads[~mine].max(), grads[mine].max()


def test_no_gradient_between_packed_examples(leak_case):
    for other, own in embedding_leaks(*leak_case):
        assert other == 0 and own > 0


def test_a_broken_mask_would_be_noticed(leak_case, monkeypatch):
    causal = lambda ids: jnp.tril(jnp.ones((ids.shape[-1],) * 2, bool))[None, None]
    monkeypatch.setattr(llama, "segment_mask", causal)
    assert max(other for other, _ in embedding_leaks(*leak_case)) > 0


def test_replacing_the_neighbours_changes_nothing(leak_case):
    network, params, batch, marks = leak_case
    run, rng = jax.jit(lambda b, *m: example_loss(network, params, b, *m)), np.random.default_rng(0)
    for mine in marks:
        und, gen = (slots[..., None, None, None] for slots in owned(batch, mine))
        noise = lambda pictures: rng.integers(0, 256, pictures.shape, np.uint8)
        other = batch._replace(
            tokens=np.where(mine, batch.tokens, 7),
            und_images=np.where(und, batch.und_images, noise(batch.und_images)),
            gen_images=np.where(gen, batch.gen_images, noise(batch.gen_images)),
        )
        drawn = owned(batch, mine)[1]
        assert run(batch, mine, drawn) == run(other, mine, drawn) != 0


def test_pixels_of_other_examples_get_no_gradient(leak_case):
    network, params, batch, marks = leak_case
    loss = lambda pixels, *m: example_loss(network, params, batch._replace(und_images=pixels), *m)
    gradient, seen = jax.jit(jax.grad(loss)), 0
    for mine in marks:
        und, gen = owned(batch, mine)
        grads = np.abs(gradient(jnp.asarray(batch.und_images, jnp.float32), mine, gen)).max(axis=(2, 3, 4))
        assert (grads[~und] == 0).all() and (grads[und] > 0).all()
        seen += und.sum()
    assert seen


def state_for(config, stage, network, mesh=None):
    config = config.to_dict()
    trainable, frozen = stages.split(params_of(network), assembly.frozen_patterns(config, stage))
    tx, rate = assembly.build_optimizer(config, stage, network)
    zero = jnp.zeros((), jnp.int32)
    return train_step.TrainState(zero, trainable, frozen, tx.init(trainable), {}, zero), tx, rate


@pytest.mark.parametrize("stage", ["tokenizer", "stage_1", "stage_2", "stage_3"])
@pytest.mark.parametrize("table", ["tiny", "papers"])
def test_frozen_stays_and_everything_else_moves(config, stage, table):
    if table == "papers":
        if stage == "tokenizer":
            pytest.skip("the papers' tables have no tokenizer stage")
        config.stages[stage].frozen = stages.FROZEN[stage]
    config.stages[stage].warmup = 0
    network, batch = first_batch(config, stage)
    state, tx, rate = state_for(config, stage, network)
    step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=1, seed=0))
    after, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
    for path in state.frozen:
        np.testing.assert_array_equal(state.frozen[path], after.frozen[path])
    still = [p for p in state.trainable if (np.asarray(state.trainable[p]) == np.asarray(after.trainable[p])).all()]
    assert not still
    moments = jax.tree.leaves(after.opt_state)
    assert sum(m.size for m in moments) < 2.1 * sum(a.size for a in state.trainable.values()) + 10


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 2), (1, 4), (2, 1), (8, 1), (2, 2)])
def test_loss_is_the_same_however_the_batch_is_split(config, devices, microbatches):
    network, batch = first_batch(config)

    def losses(devices, microbatches):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            state, tx, rate = state_for(config, "stage_2", network)
            places = sharding.param_shardings(mesh, network.abstract, network.axes)
            put = lambda part: {p: jax.device_put(a, places[p]) for p, a in part.items()}
            trainable = put(state.trainable)
            state = state._replace(trainable=trainable, frozen=put(state.frozen), opt_state=jax.jit(tx.init)(trainable))
            step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=microbatches, seed=0))
            out = []
            for _ in range(2):
                state, metrics = step(state, sharding.put_batch(mesh, batch))
                out.append(metrics["loss"].item())
        return out

    np.testing.assert_allclose(losses(devices, microbatches), losses(1, 1), rtol=1e-6)


def test_a_non_finite_step_changes_nothing(config):
    network, batch = first_batch(config)
    state, tx, rate = state_for(config, "stage_2", network)
    bad = state._replace(trainable=state.trainable | {"llm/norm/scale": state.trainable["llm/norm/scale"] * np.nan})
    step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=1, seed=0))
    after, metrics = step(bad, batch)
    assert metrics["skipped"] == after.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, bad.opt_state)
    np.testing.assert_array_equal(after.trainable["llm/embed"], bad.trainable["llm/embed"])


def test_unused_slots_are_neither_written_nor_read():
    x = jnp.arange(12.0).reshape(1, 6, 2)
    start = jnp.array([[1, 6]])
    out = insert(x, jnp.full((1, 2, 2, 2), -1.0), start=start)
    np.testing.assert_array_equal(out[0, :, 0], [0, -1, -1, 6, 8, 10])
    read = extract(x, start=start, length=2, shift=-1)
    np.testing.assert_array_equal(read[0, :, :, 0], [[0, 2], [0, 0]])


def test_counts_are_those_of_the_batch(config):
    _, batch = first_batch(config)
    counts = count_targets(batch)
    assert counts.text == batch.text_weights.sum() and counts.pictures == (batch.gen_start < 256).sum()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_spares_norms_and_biases(config, kind):
    network, _ = first_batch(config)
    rest = dict(b1=0.9, b2=0.95, eps=1e-8, clip=1.0, abstract=network.abstract, axes=network.axes)
    tx = optimizer.make(lambda _: 0.1, kind=kind, weight_decay=0.5, **rest)
    params = params_of(network)
    params = {p: jnp.ones_like(a) for p, a in params.items()}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    decayed = {p for p, u in updates.items() if np.abs(u).max() > 0}
    assert "llm/layers/mlp/gate/kernel" in decayed and "llm/embed" in decayed
    assert not any(p.endswith(("scale", "bias")) for p in decayed)


def test_muon_orthogonalises_the_matrices_between_hidden_spaces(config):
    network, _ = first_batch(config)
    shapes = dict(abstract=network.abstract, axes=network.axes)
    tx = optimizer.make(lambda _: 1.0, kind="muon", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1e9, **shapes)
    params, rng = params_of(network), np.random.default_rng(0)
    spectrum = np.geomspace(1, 30, 16)
    grads = {p: rng.normal(size=a.shape).astype(np.float32) for p, a in params.items()}
    tall = grads["llm/layers/mlp/gate/kernel"]
    u, _, v = np.linalg.svd(tall, full_matrices=False)
    grads["llm/layers/mlp/gate/kernel"] = ((u * np.resize(spectrum, u.shape[-1])) @ v).astype(np.float32)
    updates, _ = tx.update(grads, tx.init(params), params)
    values = np.linalg.svd(np.asarray(updates["llm/layers/mlp/gate/kernel"]), compute_uv=False)
    assert values.max() / values.min() < 3  # of 30
    square = np.sqrt(np.mean(np.square(updates["llm/layers/attention/query/kernel"])))
    assert 0.1 < square < 0.3  # the size of an Adam step
    np.testing.assert_allclose(np.abs(updates["llm/embed"]), 1.0, atol=0.5)  # Adam's first step


def test_an_unknown_optimizer_is_named(config):
    config.optimizer.kind = "sgd"
    with pytest.raises(UserError, match=r"optimizer.kind is 'sgd'; known"):
        assembly.build_optimizer(config.to_dict(), "stage_1", assembly.build_network(config.to_dict(), "stage_1"))


def test_an_empty_slot_does_not_train_the_tokenizer(config):
    network, batch = first_batch(config, "tokenizer")
    batch.gen_start[:, -1] = batch.tokens.shape[1] * batch.tokens.shape[2]
    keys = jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)
    loss = jax.jit(lambda p, b: network.merge(p).loss(b, counts=count_targets(b), keys=keys)[0])
    before = loss(params_of(network), batch)
    batch.gen_images[:, -1] = np.random.default_rng(0).integers(0, 256, batch.gen_images[:, -1].shape)
    assert loss(params_of(network), batch) == before
