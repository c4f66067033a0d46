"""Packed examples do not see each other, and what trains is what should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import train_step
from janus_jax.errors import UserError
from janus_jax.models.interleave import extract, insert
from janus_jax.models.janus import count_targets
from janus_jax.recipe import assembly, optimizer
from tests.conftest import first_batch, params_of, state_for, two_losses


@pytest.mark.parametrize("mixture, slots", [((1, 0, 0), "gen_slots"), ((0, 1, 0), "und_slots")])
def test_a_stage_may_have_no_pictures_of_a_kind(config, mixture, slots):
    config.stages.stage_2.update({"mixture": mixture, slots: 0})
    network, batch = first_batch(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)
    loss = lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys)[0]
    assert np.isfinite(jax.jit(loss)(params_of(network)))


def test_the_tokenizer_stage_trains_the_tokenizer(config):
    config.stages.tokenizer.warmup = 0
    network, batch = first_batch(config, "tokenizer")
    state, tx, rate = state_for(config, "tokenizer", network)
    step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=1, seed=0))
    after, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"] and not state.frozen
    assert all((np.asarray(a) != np.asarray(after.trainable[p])).any() for p, a in state.trainable.items())


def test_only_what_trains_has_moments(config):
    network, _ = first_batch(config)
    state, _, _ = state_for(config, "stage_2", network)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(m.size for m in moments) < 2.1 * sum(a.size for a in state.trainable.values()) + 10


def test_loss_is_the_same_however_the_batch_is_split(config):
    network, batch = first_batch(config)
    whole = two_losses(config, network, batch, devices=1, microbatches=1)
    for devices, microbatches in ((8, 1), (2, 4)):
        split = two_losses(config, network, batch, devices=devices, microbatches=microbatches)
        np.testing.assert_allclose(split, whole, rtol=1e-6, err_msg=f"{devices} devices, {microbatches} microbatches")


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
    rest = dict(b1=0.9, b2=0.95, eps=1e-8, clip=1.0, moments="float32", abstract=network.abstract, axes=network.axes)
    tx = optimizer.make(lambda _: 0.1, kind=kind, weight_decay=0.5, **rest)
    params = params_of(network)
    params = {p: jnp.ones_like(a) for p, a in params.items()}
    updates, _ = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p))(params)
    decayed = {p for p, u in updates.items() if np.abs(u).max() > 0}
    assert "llm/layers/mlp/gate/kernel" in decayed and "llm/embed" in decayed
    assert not any(p.endswith(("scale", "bias")) for p in decayed)


def test_muon_orthogonalises_the_matrices_between_hidden_spaces(config):
    network, _ = first_batch(config)
    shapes = dict(abstract=network.abstract, axes=network.axes)
    tx = optimizer.make(
        lambda _: 1.0, kind="muon", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1e9, moments="float32", **shapes
    )
    params, rng = params_of(network), np.random.default_rng(0)
    spectrum = np.geomspace(1, 30, 16)
    grads = {p: rng.normal(size=a.shape).astype(np.float32) for p, a in params.items()}
    tall = grads["llm/layers/mlp/gate/kernel"]
    u, _, v = np.linalg.svd(tall, full_matrices=False)
    grads["llm/layers/mlp/gate/kernel"] = ((u * np.resize(spectrum, u.shape[-1])) @ v).astype(np.float32)
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
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
