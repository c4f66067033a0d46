"""Cross-entropy of the text head, without ever holding the logits of a whole batch."""

import chex
import jax
import jax.numpy as jnp
import optax


def text_cross_entropy(hidden, *, head, targets, weights, chunk=512):
    """Cross-entropy of next tokens.

    Target positions are moved to the front, and chunks that hold none are skipped, so the head runs on about as many
    positions as have a target.

    Args:
      hidden: float[P, D] hidden states.
      head: float[..., D] -> float[..., V].
      targets: int32[P] the token that follows each position.
      weights: float32[P], 1 where that token is a target.
      chunk: positions whose logits are held at once.

    Returns:
      losses float32[P] and whether each is the most likely token float32[P], both zero where no target is.
    """
    p, _ = hidden.shape
    chex.assert_shape([targets, weights], (p,))
    chunk = min(chunk, p)
    order = jnp.argsort(-weights, stable=True)
    chunks = jnp.pad(order, (0, -p % chunk), constant_values=p).reshape(-1, chunk)
    take = lambda x, where: jnp.take(x, where, axis=0, mode="fill", fill_value=0)

    def score(hidden, targets, weights):
        logits = head(hidden).astype(jnp.float32)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses * weights, (jnp.argmax(logits, axis=-1) == targets) * weights

    @jax.checkpoint  # around the condition: a branch would keep its own copy of the head for every chunk
    def body(_, where):
        w = take(weights, where)
        blank = lambda h, t, w: (jnp.zeros_like(w), jnp.zeros_like(w))
        return None, jax.lax.cond(w.any(), score, blank, take(hidden, where), take(targets, where), w)

    _, parts = jax.lax.scan(body, None, chunks)
    back = jnp.argsort(order)
    return tuple(part.reshape(-1)[back] for part in parts)
