"""Losses on held-out records: of the given parameters, on any number of devices."""

import types

import jax
import pytest

from janus_jax import sharding
from janus_jax.recipe.data import held_out_batches
from janus_jax.recipe.stage import make_stage
from janus_jax.train.held_out import HeldOut


def test_losses_are_those_of_the_given_parameters(config):
    held_out = {"sources": {"understanding": {"captions": 1}}, "batches": 2}
    config = config.to_dict() | {"held_out": held_out}
    rows = []
    log = types.SimpleNamespace(write=lambda step, values: rows.append((step, values)))
    network = make_stage(config, "stage_2").network
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        stage = make_stage(config, "stage_2", mesh=mesh, network=network)
        with jax.set_mesh(mesh):
            shardings = sharding.param_shardings(mesh, network.abstract, network.axes)
            params = jax.device_put(network.init(jax.random.key(0)), shardings)
            batches, mixture = held_out_batches(stage, host=(0, 1))
            measure = HeldOut(stage, batches, mixture=mixture, log=log)
            measure(7, params)
            measure(7, jax.tree.map(lambda x: 2 * x, params))
    (step, one_device), (_, other_params), (_, eight_devices), _ = rows
    loss = one_device["held_out/loss"]
    assert step == 7 and 3 < loss < 9 and loss != other_params["held_out/loss"]
    assert loss == pytest.approx(one_device["held_out/loss_und"])  # the only task
    assert one_device == pytest.approx(eight_devices, rel=1e-4)


def test_without_held_out_records_nothing_is_measured(config):
    stage = make_stage(config.to_dict(), "stage_2", mesh=sharding.make_mesh())
    batches, mixture = held_out_batches(stage, host=(0, 1))
    assert not batches
    HeldOut(stage, batches, mixture=mixture, log=None)(7, {})
