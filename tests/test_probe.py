"""A linear probe reads from features what is in them."""

import jax.numpy as jnp

from configs import tiny
from janus_jax.benchmark import probe
from tests.conftest import sampler_of, stage_of


def test_probes_read_cells_and_not_what_was_erased(data, monkeypatch):
    config = tiny.get_config("3")
    config.model.understanding.encoder.update(num_layers=2, embed_dim=32, mlp_dim=64)
    config.model.llm.update(num_layers=2, embed_dim=32, mlp_dim=64)
    monkeypatch.setattr(probe, "IMAGES", 300)
    monkeypatch.setattr(probe, "TRAINING", 200)
    sampler = sampler_of(stage_of(config, "stage_3"), data)
    fresh = probe.probe(sampler)[0]
    assert fresh["features"] == "encoder" and fresh["occupied"] > 0.9 and fresh["cell"] > 0.9
    name = "understanding/encoder/position"
    sampler.params = sampler.params | {name: jnp.zeros_like(sampler.params[name])}
    assert probe.probe(sampler)[0]["cell"] < fresh["cell"] - 0.3
