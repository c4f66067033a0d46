"""AdamW with clipping and the papers' schedules, over the trainable parameters only."""

import optax

from janus_jax.errors import UserError


def schedule(*, lr, steps, warmup, decay):
    """Linear warm-up from 0, then 'constant' or 'cosine' down to 0 at the last step.

    Raises:
      UserError: for another decay, and for a cosine that is all warm-up.
    """
    if decay == "cosine":
        if warmup >= steps:
            raise UserError(
                f"A cosine stage of {steps} steps cannot warm up for {warmup}; give it more steps or less warm-up."
            )
        return optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else lr, lr, warmup, steps)
    if decay == "constant":
        return optax.schedules.warmup_constant_schedule(0.0 if warmup else lr, lr, warmup)
    raise UserError(f"A stage's decay is {decay!r}; known: ['constant', 'cosine'].")


def make(learning_rate, *, b1, b2, eps, weight_decay, clip):
    """The optimizer (Janus, table 2: AdamW, betas 0.9 and 0.95, gradient clip 1.0).

    Args:
      learning_rate: step -> rate.
      b1, b2, eps: AdamW's.
      weight_decay: on matrices and tables; norms and biases, whatever stack they are in, do not decay.
      clip: global norm of the trainable gradients.
    """
    decays = lambda params: {path: not path.endswith(("/bias", "/scale")) for path in params}
    adamw = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(clip), adamw)
