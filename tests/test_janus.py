"""The scales of a fresh model at the seam where all inputs of the LLM meet."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.conftest import fresh_params, stage_of


def rms(x):
    return float(jnp.sqrt(jnp.mean(x**2)))


def test_text_features_and_codes_reach_the_llm_at_one_scale(config):
    """Otherwise the smaller ones drown: a fresh model then answers and draws by chance."""
    network = stage_of(config).network
    params = fresh_params(network)
    codebook = params["generation/tokenizer/codebook"]
    unit = codebook / jnp.linalg.norm(codebook, axis=-1, keepdims=True)
    model = network.merge(params | {"generation/embed": unit})  # as a stage begins with
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    scales = (
        rms(model.embed_text(jnp.arange(200))),
        rms(model.understanding(images, dtype=jnp.float32)),
        rms(model.generator.embed(jnp.arange(len(codebook))[None])[0]),
    )
    assert max(scales) < 2 * min(scales), scales


def test_positions_of_the_encoder_are_as_large_as_its_patches(config):
    encoder = stage_of(config).network.merge(fresh_params(stage_of(config).network)).understanding
    positions = encoder.encoder.position[...]
    white = jnp.full((1, encoder.encoder.patch.kernel.shape[0]), 0.9)
    assert 0.5 < rms(positions) / rms(encoder.encoder.patch(white)) < 2
    assert jax.numpy.linalg.matrix_rank(positions) == len(positions)
