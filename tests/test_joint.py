"""The joint objective on generation examples: mistakes that public trainers of Janus make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from tests.conftest import first_batch, fresh_params, loss_of, small


@pytest.fixture(scope="module")
def generation(data):
    """A stage, fresh parameters and a batch of generation examples only."""
    config = small(tiny.get_config(), data)
    config.stages.stage_2.mixture = (0, 0, 1)
    stage, batch = first_batch(config)
    return stage, fresh_params(stage.network), batch


def test_codes_use_their_own_table_and_adaptor(generation):
    """align-anything embeds codes with the text table; transformers has no image loss."""
    stage, params, batch = generation
    loss = lambda params: loss_of(stage.objective, params, batch)
    (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert value > 0
    assert metrics["loss_gen"] > 0
    for name in ("embed", "adaptor/fc_1", "adaptor/fc_2", "head/fc_1", "head/fc_2"):
        path = f"generation/{name}" if name == "embed" else f"generation/{name}/kernel"
        assert np.abs(gradients[path]).max() > 0, path
    rows = np.flatnonzero(np.abs(gradients["llm/embed"]).max(axis=1))
    image_id = int(batch.tokens.reshape(-1)[batch.gen_start[0, 0]])
    text_ids = set(np.unique(batch.tokens[batch.segment_ids > 0])) - {image_id}
    assert set(rows) <= text_ids


def test_the_loss_is_the_cross_entropy_of_every_code(generation):
    """One trainer drops the first code; another trains on logits after guidance."""
    stage, params, _ = generation
    model = stage.network.merge(params)
    generator = model.generator
    rng = np.random.default_rng(0)
    shape = (2, generator.num_tokens)
    hidden = jnp.asarray(rng.normal(size=(*shape, model.llm.embed.shape[1])), jnp.float32)
    codes = jnp.asarray(rng.integers(0, 32, shape), jnp.int32)
    loss = lambda hidden, codes: generator.loss(hidden, None, codes, None)[0]
    logits = np.asarray(model.generation.head(hidden), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logits, np.asarray(codes)[..., None], -1).sum(axis=(1, 2))
    np.testing.assert_allclose(loss(hidden, codes), expected, rtol=1e-5)
    gradients = jax.grad(lambda hidden: loss(hidden, codes).sum())(hidden)
    assert (np.abs(gradients).max(axis=-1) > 0).all(), "every code contributes, the first one too"
    changed = codes.at[0, 0].set((codes[0, 0] + 1) % 32)
    assert (loss(hidden, changed) != loss(hidden, codes)).tolist() == [True, False]


def test_the_state_at_boi_predicts_the_first_code(generation):
    stage, _, batch = generation
    assert stage.network.module.generator.read_shift == -1
    tokens = batch.tokens.reshape(len(batch.tokens), -1)
    starts = [
        (group, start)
        for group, row in enumerate(batch.gen_start)
        for start in row
        if start < tokens.shape[1]
    ]
    assert len(starts) >= 4
    assert len({int(tokens[group, start - 1]) for group, start in starts}) == 1
