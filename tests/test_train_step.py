"""The train step: what it changes, and that splitting a batch changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from janus_jax.batch import used_slots
from janus_jax.layers.linear import Linear
from janus_jax.models.functional import ModelSpec
from janus_jax.objectives import OBJECTIVES
from janus_jax.objectives.base import Objective, mean_over_images
from janus_jax.recipe import optimizer
from tests.conftest import (
    first_batch,
    first_state,
    fresh_params,
    image_keys,
    jit_step,
    loss_of,
    two_losses,
)
from tests.paths import flow


def test_a_stage_may_have_no_images_of_a_kind(config):
    without_generation = {"mixture": (1, 0, 0), "gen_slots": 0, "und_slots": 6}
    text_only = {"mixture": (0, 1, 0), "gen_slots": 6, "und_slots": 0}
    for changes in (without_generation, text_only):
        config.stages.stage_2.update(changes)
        stage, batch = first_batch(config)
        loss = jax.jit(lambda p, s=stage, b=batch: loss_of(s.objective, p, b)[0])
        assert np.isfinite(loss(fresh_params(stage.network))), changes


def test_only_what_trains_has_moments(config):
    stage, _ = first_batch(config)
    state = first_state(stage)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert moments < 2.1 * sum(a.size for a in state.trainable.values()) + 10


def test_a_finite_step_moves_what_trains_and_nothing_else(config):
    config.stages.stage_2.warmup = 0
    stage, batch = first_batch(config)
    state = first_state(stage)
    after, metrics = jit_step(stage)(state, batch)
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0 and after.step == 1
    assert state.trainable and state.frozen
    for path, array in state.trainable.items():
        assert (np.asarray(array) != np.asarray(after.trainable[path])).any(), path
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)


def test_a_non_finite_step_changes_nothing(config):
    config.stages.stage_2.warmup = 0
    stage, batch = first_batch(config)
    state = first_state(stage)
    scale = state.trainable["llm/norm/scale"] * np.nan
    bad = state._replace(trainable=state.trainable | {"llm/norm/scale": scale})
    after, metrics = jit_step(stage)(bad, batch)
    assert metrics["skipped"] == after.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, bad.opt_state)
    jax.tree.map(np.testing.assert_array_equal, after.trainable, bad.trainable)


def test_loss_is_the_same_however_the_batch_is_split(config):
    config.stages.stage_2.warmup = 0  # the second loss is that of parameters that have moved
    _, batch = first_batch(config)
    whole = two_losses(config, batch, devices=1, microbatches=1)
    assert whole[0] != whole[1]
    for devices, microbatches in ((8, 1), (2, 4)):
        split = two_losses(config, batch, devices=devices, microbatches=microbatches)
        case = f"{devices} devices, {microbatches} microbatches"
        np.testing.assert_allclose(split, whole, rtol=1e-6, err_msg=case)


@pytest.mark.parametrize("kind", ["vq", "flow"])
def test_the_loss_of_a_tokenizer_is_the_same_however_the_batch_is_split(config, data, kind):
    """Also the share of codes in use, which depends on all images of the step."""
    config = flow.get_config(data) if kind == "flow" else config
    config.stages.tokenizer.warmup = 0
    stage, batch = first_batch(config, "tokenizer")
    batch.gen_start[:, -1] = batch.tokens[0].size  # an empty slot in every group
    assert 0 < used_slots(batch).sum() < batch.gen_start.size
    if kind == "vq":
        statistics = jax.jit(stage.objective.batch_statistics)
        params, step = fresh_params(stage.network), 10**6  # after the steps without quantiser
        _, usage = statistics(params, batch, image_keys(batch), step=step)
        assert 0 < usage.share < 1
    whole = two_losses(config, batch, name="tokenizer", devices=1, microbatches=1)
    assert whole[0] != whole[1]
    split = two_losses(config, batch, name="tokenizer", devices=2, microbatches=2)
    np.testing.assert_allclose(split, whole, rtol=1e-6)


class MinMaxModel(nnx.Module):
    """A generator of colors, and a discriminator that tells them from the colors of images."""

    def __init__(self, rngs):
        self.generator = Linear(rngs, 3, 3, axes=("embed", "embed_out"))
        self.discriminator = Linear(rngs, 3, 4, axes=("embed", "embed_out"))

    def score(self, colors):
        """float[M, 3] -> float[M]."""
        return jnp.tanh(self.discriminator(colors)).mean(axis=-1)


class MinMax(Objective):
    """Two losses of opposite sign over the same batch: each group must follow its own."""

    groups = {"generator": ("generator",), "discriminator": (".*",)}

    @staticmethod
    def build_network(model, *, dtype):
        return ModelSpec(MinMaxModel)

    def optimizer_settings(self, default):
        return {
            "generator": default | {"kind": "adamw", "b1": 0.5},
            "discriminator": default | {"kind": "muon", "clip": 0.02},
        }

    def loss(self, params, batch, counts, keys):
        model = self.network.merge(params)
        pixels = jnp.asarray(batch.gen_images, jnp.float32) / 255
        real = pixels.mean(axis=(2, 3)).reshape(-1, 3)
        generated = model.generator(real[:, ::-1])
        used = used_slots(batch).reshape(-1)
        mean = lambda values: mean_over_images(values, used=used, count=counts.images)
        score_of_generated = mean(model.score(generated))
        score_of_real = mean(model.score(real))
        losses = {
            "generator": -score_of_generated,
            "discriminator": score_of_generated - 2 * score_of_real,
        }
        return losses, {"loss_gen": score_of_generated}


@pytest.fixture
def min_max(config, monkeypatch):
    """The stage of the objective with two groups, and a batch."""
    monkeypatch.setitem(OBJECTIVES, "min_max", MinMax)
    settings = config.stages.stage_2
    settings.lr = dict(default=1e-2, rows=(("discriminator", 3e-2),))
    settings.update(objective="min_max", mixture=(0, 0, 1), und_slots=0, frozen=())
    settings.update(warmup=0, weight_decay=0.1)
    return first_batch(config)


def run_alone(stage, batch, group, *, steps):
    """What a run of one group alone would do, while the other group follows its own run.

    Returns:
      [{path: array}] of the group after each step, and [loss] before each.
    """
    objective = stage.objective
    params = fresh_params(stage.network)
    counts = objective.batch_statistics(params, batch, keys=None, step=0)
    settings = objective.optimizer_settings(stage.config["optimizer"])
    rates = {"generator": 1e-2, "discriminator": 3e-2}
    own = lambda tree, name: {p: a for p, a in tree.items() if p.startswith(name)}
    optimizers, states = {}, {}
    for name in rates:
        mine = own(params, name)
        scale = optimizer.scale_by_rates(
            dict.fromkeys(mine, rates[name]), lambda rate: lambda _: rate
        )
        optimizers[name] = optimizer.make(stage.network, scale, weight_decay=0.1, **settings[name])
        states[name] = optimizers[name].init(mine)

    def value(mine, others, name):
        return objective.loss(others | mine, batch, counts, None)[0][name]

    value_and_grad = jax.jit(jax.value_and_grad(value), static_argnums=2)
    trajectory, losses = [], []
    for _ in range(steps):
        updates, values = {}, {}
        for name, tx in optimizers.items():
            mine = own(params, name)
            values[name], grads = value_and_grad(mine, params, name)
            updates[name], states[name] = jax.jit(tx.update)(grads, states[name], mine)
        params = params | {
            path: a
            for name in rates
            for path, a in optax.apply_updates(own(params, name), updates[name]).items()
        }
        trajectory.append(own(params, group))
        losses.append(float(values[group]))
    return trajectory, losses


@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_group_of_an_objective_follows_its_own_loss_with_its_own_optimizer(
    min_max, microbatches
):
    stage, batch = min_max
    batch.gen_start[:, -1] = batch.tokens[0].size
    assert set(stage.group_of.values()) == {"generator", "discriminator"}
    state, step = first_state(stage), jit_step(stage, microbatches=microbatches)
    states, metrics = [], []
    for _ in range(3):
        state, values = step(state, batch)
        states.append(state)
        metrics.append(values)
    assert state.opt_state.keys() == {"generator", "discriminator"}
    for group in ("generator", "discriminator"):
        trajectory, losses = run_alone(stage, batch, group, steps=3)
        for after, expected in zip(states, trajectory, strict=True):
            for path, array in expected.items():
                np.testing.assert_allclose(
                    after.trainable[path], array, rtol=1e-4, atol=1e-6, err_msg=path
                )
        np.testing.assert_allclose([m[f"loss/{group}"] for m in metrics], losses, rtol=1e-5)
    both = metrics[0]["loss/generator"] + metrics[0]["loss/discriminator"]
    np.testing.assert_allclose(metrics[0]["loss"], both, rtol=1e-6)
