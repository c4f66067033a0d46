"""AdamW or Muon with clipping and the papers' schedules, over the trainable parameters only."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from janus_jax.errors import UserError

MOMENTS = ("float32", "bfloat16")


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


def make(learning_rate, *, kind, b1, b2, eps, weight_decay, clip, moments, abstract, axes):
    """The optimizer: 'adamw' (Janus, table 2: betas 0.9 and 0.95, gradient clip 1.0) or 'muon', for nets from scratch.

    Muon (Jordan 2024) orthogonalises the momentum of every matrix between two hidden spaces; tables, heads, norms and
    biases follow Adam. Its updates are scaled to Adam's size (Liu et al. 2025, equation 4), so rates mean the same.

    Args:
      learning_rate: step -> rate.
      kind: 'adamw' or 'muon'.
      b1, b2, eps: Adam's.
      weight_decay: on matrices and tables; norms and biases, whatever stack they are in, do not decay.
      clip: global norm of the trainable gradients.
      moments: dtype that Adam's and Muon's moments are held in between steps, 'float32' or 'bfloat16'; the step
        computes in fp32.
      abstract, axes: {path: ShapeDtypeStruct} and {path: logical axes of the trailing dimensions}, as a ModelSpec has.

    Raises:
      UserError: for another kind or dtype.
    """
    if moments not in MOMENTS:
        raise UserError(f"--config.optimizer.moments is {moments!r}; known: {list(MOMENTS)}.")
    if kind == "adamw":
        direction = optax.scale_by_adam(b1, b2, eps)
    elif kind == "muon":
        sides = {path: _sides(path, len(leaf.shape), axes[path]) for path, leaf in abstract.items()}
        direction = optax.contrib.muon(
            -1.0,  # the rate, and the sign with it, come last
            ns_steps=3,
            preconditioning="schatten",  # as exact in 3 steps as the usual norm in 5
            consistent_rms=0.2,
            eps=eps,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=lambda params: {path: sides[path] for path in params},
        )
    else:
        raise UserError(f"--config.optimizer.kind is {kind!r}; known: ['adamw', 'muon'].")
    decays = lambda params: {path: not path.endswith(("/bias", "/scale")) for path in params}
    return optax.chain(
        optax.clip_by_global_norm(clip),
        direction if moments == "float32" else _held_in(direction, jnp.dtype(moments)),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate),
    )


def _held_in(transform, dtype):
    """A transform whose fp32 state is held in another dtype between its updates."""
    cast = lambda tree, old, new: jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)

    def update(updates, state, params=None):
        updates, state = transform.update(updates, cast(state, dtype, jnp.float32), params)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformation(lambda params: cast(transform.init(params), jnp.float32, dtype), update)


def _sides(path, ndim, axes):
    """The input and output dimensions of a matrix that Muon orthogonalises; None for everything else."""
    if not path.endswith("/kernel") or "vocab" in axes:
        return None
    first, split = ndim - len(axes), ndim - (2 if axes[-1] == "head_dim" else 1)
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, ndim)))
