"""The VQ-16 tokenizer and the stage that trains it; tests/test_golden_janus.py has its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.layers.pixels import to_float
from janus_jax.models.functional import ModelSpec
from janus_jax.tokenizers.base import reconstruction_errors
from janus_jax.tokenizers.vq16 import CHOOSING_STEPS, VQTokenizer, fill_codebook, normalize
from tests.conftest import (
    OFFICIAL_DATA,
    first_batch,
    first_state,
    fresh_params,
    image_keys,
    jit_step,
    loss_of,
    stage_of,
)

RELEASED_CODEBOOK = OFFICIAL_DATA / "janus_pro_codebook"


@pytest.mark.usefixtures("one_device")
def test_the_tokenizer_stage_trains_the_tokenizer(config):
    config.stages.tokenizer.warmup = 0
    stage, batch = first_batch(config, "tokenizer")
    state = first_state(stage)
    after, metrics = jit_step(stage)(state, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"] and not state.frozen
    for path, array in state.trainable.items():
        assert path.startswith("generation/tokenizer/")
        assert (np.asarray(array) != np.asarray(after.trainable[path])).any(), path


def test_the_first_steps_do_not_quantise_and_the_codebook_then_comes_from_the_data(config):
    config.model.generation.tokenizer_training.codebook_from_data = (2, 40)
    stage, batch = first_batch(config, "tokenizer")
    objective, book = stage.objective, "generation/tokenizer/codebook"
    params, keys = fresh_params(stage.network), image_keys(batch)

    @jax.jit
    def gradient(params, step):
        counts = objective.batch_statistics(params, batch, keys, step=step)
        loss = lambda params: objective.loss(params, batch, counts, keys)[0]["model"]
        return jax.grad(loss)(params)

    of_book = [jnp.abs(gradient(params, step)[book]).max() for step in (1, 2)]
    assert of_book[0] == 0 < of_book[1]
    moments = [step for step in range(99) if objective.calibrates(step, saving=step == 60)]
    assert moments == [*range(2, 2 + CHOOSING_STEPS), *range(40, 40 + CHOOSING_STEPS)]
    measured = jax.jit(objective.calibrate)(params, batch, step=jnp.int32(2))
    assert measured.keys() == {book}
    tokenizer = stage.network.merge(params).tokenizer
    images = batch.gen_images[batch.gen_start < batch.tokens[0].size]
    vectors = normalize(tokenizer.encode(to_float(images, jnp.float32))).reshape(-1, 8)
    codes = np.asarray(measured[book])
    distances = jnp.linalg.norm(codes[:, None] - vectors[None], axis=-1).min(axis=1)
    free = codes[:, 0] == -1
    np.testing.assert_array_equal(codes[0], np.eye(8)[0])
    assert 1 < (~free).sum() and (distances[1:][~free[1:]] < 1e-5).all()
    # A later step keeps the codes that have been chosen; a later choice does not.
    noise = np.random.default_rng(0).integers(0, 256, batch.gen_images.shape).astype(np.uint8)
    other = batch._replace(gen_images=noise)
    for step, kept in ((3, True), (40, False)):
        again = objective.calibrate(params | measured, other, step=jnp.int32(step))[book]
        same = np.abs(again - codes).max(axis=1) < 1e-6
        assert same[~free].all() == kept, step


def test_a_codebook_cannot_come_from_data_before_the_first_step(config):
    config.model.generation.tokenizer_training.codebook_from_data = (0, 5)
    with pytest.raises(UserError, match="codebook_from_data"):
        stage_of(config, "tokenizer")


def test_fields_of_tokenizer_training_have_defaults_and_unknown_ones_are_named(config):
    config.model.generation.tokenizer_training = dict(crop=8)
    stage = stage_of(config, "tokenizer")
    assert stage.model["generation"]["tokenizer_training"]["commitment"] == 0.25
    assert stage.bytes_per_device > 0
    config.model.generation.tokenizer_training = dict(comitment=0.5)
    with pytest.raises(UserError, match="comitment"):
        stage_of(config, "tokenizer")


def test_seeding_reaches_every_cluster_once_and_no_vector_of_an_empty_slot():
    rng = np.random.default_rng(0)
    pole = np.eye(8)[:1]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    centers = unit(np.concatenate([pole, pole + 0.1, rng.normal(size=(18, 8))]))
    members = np.repeat(np.arange(20), 50)
    vectors = unit(centers[members] + 0.01 * rng.normal(size=(1000, 8)))
    codebook = np.concatenate([pole, -np.repeat(pole, 29, axis=0)])
    fill = lambda codebook, used, **more: np.asarray(
        fill_codebook(
            *(jnp.asarray(x, jnp.float32) for x in (codebook, vectors)),
            jnp.asarray(used),
            key=jax.random.key(0),
            **more,
        )
    )
    nearest = lambda codes: np.linalg.norm(codes[:, None] - centers, axis=-1).argmin(axis=1)
    chosen = fill(codebook, members < 19)
    assert nearest(chosen[:19]).tolist()[0] == 0
    assert sorted(nearest(chosen[:19])) == list(range(19))  # each once
    np.testing.assert_array_equal(chosen[19:], codebook[19:])
    # The next images bring what the first ones did not have.
    more = fill(chosen, members >= 0)
    np.testing.assert_array_equal(more[:19], chosen[:19])
    assert nearest(more[19:20]) == 19 and (more[20:] == codebook[20:]).all()
    # What is near the pole belongs to it: cluster 1 gets no code of its own.
    far = fill(codebook, members < 19, pole_distance=0.5)
    assert sorted(nearest(far[:18])) == [0, *range(2, 19)]


def test_background_weighs_less_than_what_is_in_front_of_it():
    pixels = np.full((1, 8, 8, 3), 0.9, np.float32)
    pixels[0, 2:6, 2:6] = (-1.0, 0.5, 0.9)
    output = np.zeros_like(pixels)
    plain, weighted = (
        reconstruction_errors(output, pixels, foreground=weight)[0] for weight in (0.0, 3.0)
    )
    of_object = (pixels[0, 2:6, 2:6] ** 2).sum() / pixels.size
    np.testing.assert_allclose(weighted - plain, 3 * of_object, rtol=1e-5)


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


@pytest.mark.skipif(not RELEASED_CODEBOOK.is_dir(), reason="no released codebook")
def test_codes_of_the_released_codebook_are_exact():
    codebook = np.load(RELEASED_CODEBOOK / "codebook_entry_embedding.npy")
    embed = np.load(RELEASED_CODEBOOK / "gen_embed.npy")
    assert codebook.shape == embed.shape == (16_384, 8)
    rng = np.random.default_rng(0)
    near_codes = codebook[rng.integers(0, len(codebook), 200)] * 1.7
    vectors = np.concatenate([rng.normal(size=(200, 8)), near_codes]).astype(np.float32)
    settings = dict(base_channels=32, channel_mult=[1], num_res_blocks=1, z_channels=32)
    network = ModelSpec(
        functools.partial(VQTokenizer, codebook_size=len(codebook), codebook_dim=8, **settings)
    )
    params = fresh_params(network) | {"codebook": jnp.asarray(codebook)}
    nearest = jax.jit(lambda params, x: network.merge(params).nearest(x))
    codes = np.asarray(nearest(params, vectors.reshape(1, 20, 20, 8)))[0]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = unit(vectors.astype(np.float64)) @ unit(codebook.astype(np.float64)).T
    best, second = np.sort(cosines, axis=1)[:, [-1, -2]].T
    clear = best - second > 1e-6
    assert (codes == cosines.argmax(axis=1))[clear].all()
    assert (np.take_along_axis(cosines, codes[:, None], axis=1)[:, 0] >= best - 1e-6).all()
    # The generation path's embedding starts from the directions of the codes.
    assert (unit(embed) * unit(codebook)).sum(axis=1).mean() > 0.99
