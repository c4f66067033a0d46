"""Cross-entropy of the text head, without ever holding the logits of a whole batch."""

import chex
import jax
import jax.numpy as jnp
import optax


def text_cross_entropy(hidden, *, head, targets, weights, chunk=512):
    """Cross-entropy of next tokens.

    Target positions are moved to the front of their group, and chunks that hold none are skipped, so the head runs
    on about as many positions as have a target.

    Args:
      hidden: float[S, P, D] hidden states of each group's rows, laid end to end.
      head: float[..., D] -> float[..., V].
      targets: int32[S, P] the token that follows each position.
      weights: float32[S, P], 1 where that token is a target.
      chunk: positions of a group whose logits are held at once.

    Returns:
      losses float32[S, P] and whether each is the most likely token float32[S, P], both zero where no target is.
    """
    s, p, d = hidden.shape
    chex.assert_shape([targets, weights], (s, p))
    chunk = min(chunk, p)
    order = jnp.argsort(-weights, axis=1, stable=True)
    padded = jnp.pad(order, ((0, 0), (0, -p % chunk)), constant_values=p)
    chunks = padded.reshape(s, -1, chunk).swapaxes(0, 1)  # [chunks, S, chunk]
    take = lambda x, where, fill: jax.vmap(lambda x, w: x.at[w].get(mode="fill", fill_value=fill))(x, where)

    def score(hidden, targets, weights):
        logits = head(hidden).astype(jnp.float32)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses * weights, (jnp.argmax(logits, axis=-1) == targets) * weights

    @jax.checkpoint  # around the condition: a branch would keep its own copy of the head for every chunk
    def body(_, where):
        w = take(weights, where, 0.0)
        blank = lambda h, t, w: (jnp.zeros_like(w), jnp.zeros_like(w))
        return None, jax.lax.cond(w.any(), score, blank, take(hidden, where, 0), take(targets, where, 0), w)

    _, parts = jax.lax.scan(body, None, chunks)
    back = jnp.argsort(order, axis=1)
    unsort = lambda x: jnp.take_along_axis(x.swapaxes(0, 1).reshape(s, -1)[:, :p], back, axis=1)
    return tuple(map(unsort, parts))
