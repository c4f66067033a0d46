"""Cross-entropy of the text head; the logits of a whole batch are never in memory at once."""

import chex
import jax
import jax.numpy as jnp
import optax


def text_cross_entropy(hidden, *, head, targets, weights, chunk=512):
    """Cross-entropy of next tokens.

    Positions with a target are moved to the front, and chunks without any are skipped, so that the
    head runs on about as many positions as there are targets.

    Args:
      hidden: float[P, D] hidden states.
      head: float[..., D] -> float[..., V].
      targets: int32[P] the token that follows each position.
      weights: float32[P], 1 where that token is a target.
      chunk: positions whose logits are in memory at once.

    Returns:
      losses float32[P], and float32[P], 1 where the target is the most likely token; both are 0
      where there is no target.
    """
    num_positions, _ = hidden.shape
    chex.assert_shape([targets, weights], (num_positions,))
    chunk = min(chunk, num_positions)
    order = jnp.argsort(-weights, stable=True)
    padding = (0, -num_positions % chunk)
    chunks = jnp.pad(order, padding, constant_values=num_positions).reshape(-1, chunk)
    take = lambda x, indices: jnp.take(x, indices, axis=0, mode="fill", fill_value=0)

    def score(hidden, targets, weights):
        logits = head(hidden).astype(jnp.float32)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses * weights, (jnp.argmax(logits, axis=-1) == targets) * weights

    def skip(hidden, targets, weights):
        return jnp.zeros_like(weights), jnp.zeros_like(weights)

    # Rematerialised as a whole: a checkpoint inside the branch would store the head per chunk.
    @jax.checkpoint
    def score_chunk(_, indices):
        arrays = [take(x, indices) for x in (hidden, targets, weights)]
        return None, jax.lax.cond(arrays[2].any(), score, skip, *arrays)

    _, scores = jax.lax.scan(score_chunk, None, chunks)
    inverse = jnp.argsort(order)
    return tuple(score.reshape(-1)[inverse] for score in scores)
