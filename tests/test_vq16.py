"""The VQ-16 tokenizer and the stage that trains it; tests/test_golden_janus.py has its numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.conftest import first_batch, first_state, fresh_params, jit_step, loss_of, stage_of


def test_the_tokenizer_stage_trains_the_tokenizer(config):
    config.stages.tokenizer.warmup = 0
    stage, batch = first_batch(config, "tokenizer")
    state = first_state(stage)
    after, metrics = jit_step(stage)(state, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"] and not state.frozen
    for path, array in state.trainable.items():
        assert path.startswith("generation/tokenizer/")
        assert (np.asarray(array) != np.asarray(after.trainable[path])).any(), path


def test_an_empty_slot_does_not_train_the_tokenizer(config):
    stage, batch = first_batch(config, "tokenizer")
    batch.gen_start[:, -1] = batch.tokens[0].size
    loss = jax.jit(lambda params, batch: loss_of(stage.objective, params, batch)[0])
    params = fresh_params(stage.network)
    before = loss(params, batch)
    noise = np.random.default_rng(0).integers(0, 256, batch.gen_images[:, -1].shape)
    batch.gen_images[:, -1] = noise
    assert loss(params, batch) == before


def test_codes_do_not_change_when_codebook_rows_are_rescaled(config):
    network = stage_of(config, "tokenizer").network
    params = fresh_params(network)
    pixels = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    name = "generation/tokenizer/codebook"
    book = params[name]
    scale = jnp.broadcast_to(jnp.linspace(0.3, 3.0, len(book))[:, None], book.shape)

    @jax.jit
    def encode(book):
        tokenizer = network.merge(params | {name: book}).tokenizer
        return tokenizer.nearest(tokenizer.encode(pixels))

    np.testing.assert_array_equal(encode(book), encode(book * scale))
