"""How the autoregressive generation path chooses a code."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.generation.vq import VQGuidance, choose


def test_top_k_and_top_p_leave_the_most_probable_codes():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 200))
    keys = jax.random.split(jax.random.key(0), 200)
    chosen = lambda logits, guidance: set(np.asarray(choose(logits, keys, guidance)).tolist())
    assert chosen(logits, VQGuidance(top_k=2)) == {0, 1}
    assert chosen(logits, VQGuidance(top_p=0.9)) == {0, 1, 2}
    assert chosen(logits, VQGuidance()) == {0, 1, 2, 3}
    assert chosen(logits, VQGuidance(temperature=0)) == {0}
    equal = jnp.zeros((200, 4))  # no code is more probable than another
    assert chosen(equal, VQGuidance(top_k=1)) == {0, 1, 2, 3}


def test_a_k_above_the_vocabulary_and_a_p_of_one_remove_nothing(monkeypatch):
    logits = 3 * jax.random.normal(jax.random.key(0), (8, 16_384))
    keys = jax.random.split(jax.random.key(1), 8)
    count = lambda key, logits: jnp.isfinite(logits).sum()
    monkeypatch.setattr(jax.random, "categorical", count)
    for guidance in (VQGuidance(), VQGuidance(top_k=20_000), VQGuidance(top_p=1.0)):
        assert set(np.asarray(choose(logits, keys, guidance)).tolist()) == {16_384}
