"""The joint objective on images: what public trainers of Janus get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from tests.conftest import first_batch, fresh_params, loss_of, small


@pytest.fixture(scope="module")
def generation_only(data):
    """A stage, its fresh parameters, and a batch of generation examples only."""
    config = small(tiny.get_config(), data)
    config.stages.stage_2.mixture = (0, 0, 1)
    stage, batch = first_batch(config)
    return stage, fresh_params(stage.network), batch


def test_codes_have_their_own_embedding_and_adaptor(generation_only):
    """align-anything embeds codes with the text table; transformers has no image loss."""
    stage, params, batch = generation_only
    loss = lambda params: loss_of(stage.objective, params, batch)
    (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert value > 0 and metrics["loss_gen"] > 0
    for module in ("adaptor/fc_1", "adaptor/fc_2", "head/fc_1", "head/fc_2"):
        assert np.abs(gradients[f"generation/{module}/kernel"]).max() > 0
    assert np.abs(gradients["generation/embed"]).max() > 0
    rows = np.flatnonzero(np.abs(gradients["llm/embed"]).max(axis=1) > 0)
    placeholder = int(batch.tokens.reshape(-1)[batch.gen_start[0, 0]])
    text_ids = set(np.unique(batch.tokens[batch.segment_ids > 0])) - {placeholder}
    assert set(rows) <= text_ids


def test_the_loss_is_the_cross_entropy_of_every_code(generation_only):
    """One trainer shifts logits and drops the first code; another's loss is of guided logits."""
    stage, params, _ = generation_only
    model = stage.network.merge(params)
    generator, count = model.generator, model.generator.num_tokens
    rng = np.random.default_rng(0)
    dim = model.llm.embed.shape[1]
    hidden = jnp.asarray(rng.normal(size=(2, count, dim)), jnp.float32)
    codes = jnp.asarray(rng.integers(0, 32, (2, count)), jnp.int32)
    losses = lambda hidden, codes: generator.loss(hidden, None, codes, None)[0]
    logits = np.asarray(model.generation.head(hidden), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logits, np.asarray(codes)[..., None], -1).sum(axis=(1, 2))
    np.testing.assert_allclose(losses(hidden, codes), expected, rtol=1e-5)
    gradients = jax.grad(lambda hidden: losses(hidden, codes).sum())(hidden)
    assert (np.abs(gradients).max(axis=-1) > 0).all(), "every code has a loss, the first too"
    other = codes.at[0, 0].set((codes[0, 0] + 1) % 32)
    different = losses(hidden, other) != losses(hidden, codes)
    assert different.tolist() == [True, False]


def test_the_state_at_boi_predicts_the_first_code(generation_only):
    stage, params, batch = generation_only
    assert stage.network.merge(params).generator.read_shift == -1
    tokens = batch.tokens.reshape(len(batch.tokens), -1)
    length = tokens.shape[1]
    starts = [(s, p) for s, row in enumerate(batch.gen_start) for p in row if p < length]
    boi = {int(tokens[s, p - 1]) for s, p in starts}
    assert len(starts) >= 4 and len(boi) == 1
