"""AdamW or Muon with clipping and the papers' schedules, over the trainable parameters only, with
rates by part.
"""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.recipe.freezing import matching

MOMENTS = ("float32", "bfloat16")


def schedule(lr, *, steps, warmup, decay):
    """Linear warm-up from 0, then 'constant' or 'cosine' down to 0 at the last step: step -> rate.

    Raises:
      UserError: for another decay, and for a cosine that is all warm-up.
    """
    if decay == "cosine":
        if warmup >= steps:
            raise UserError(
                f"A cosine stage of {steps} steps cannot warm up for {warmup}; give it more steps "
                "or less warm-up."
            )
        return optax.schedules.warmup_cosine_decay_schedule(
            0.0 if warmup else lr, lr, warmup, steps
        )
    if decay == "constant":
        return optax.schedules.warmup_constant_schedule(0.0 if warmup else lr, lr, warmup)
    raise UserError(f"A stage's decay is {decay!r}; known: ['constant', 'cosine'].")


def rates_by_path(lr, paths):
    """The peak learning rate of every trainable parameter.

    Args:
      lr: a number, or {'default': number, 'rows': ((pattern, number), ...)}; the first row that
        matches a path wins.
      paths: of the trainable parameters.

    Returns:
      {path: number}, and the default.

    Raises:
      UserError: for other fields, and for a pattern that matches no trainable parameter.
    """
    if isinstance(lr, int | float):
        return dict.fromkeys(paths, lr), lr
    if not isinstance(lr, dict) or lr.keys() - {"default", "rows"} or "default" not in lr:
        raise UserError(
            f"A stage's lr is {lr!r}; write a number, or dict(default=1e-4, "
            "rows=((pattern, rate), ...))."
        )
    rates = dict.fromkeys(paths, lr["default"])
    for pattern, rate in reversed(lr.get("rows", ())):
        rates |= dict.fromkeys(matching([pattern], paths, what="Learning-rate pattern"), rate)
    return rates, lr["default"]


def make(network, scale, *, kind, weight_decay, clip, moments, **adam):
    """The optimizer: 'adamw' (Janus, table 2: betas 0.9 and 0.95, gradient clip 1.0) or 'muon', for
    nets from scratch.

    Muon (Jordan 2024) orthogonalises the momentum of every matrix between two hidden spaces;
    tables, heads, norms and biases follow Adam. Its updates are scaled to Adam's size (Liu et al.
    2025, equation 4), so rates mean the same.

    Args:
      network: ModelSpec, whose logical axes tell matrices from tables.
      scale: the last transformation, from `scale_by_rates`.
      kind: 'adamw' or 'muon'.
      weight_decay: on matrices and tables; norms and biases, whatever stack they are in, do not
        decay.
      clip: global norm of the gradients.
      moments: dtype of Adam's and Muon's moments between steps, 'float32' or 'bfloat16'; the step
        computes in fp32.
      adam: `b1`, `b2` and `eps`.

    Raises:
      UserError: for another kind or dtype.
    """
    if moments not in MOMENTS:
        raise UserError(f"--config.optimizer.moments is {moments!r}; known: {list(MOMENTS)}.")
    if kind == "adamw":
        direction = optax.scale_by_adam(**adam)
    elif kind == "muon":
        matrices = {
            path: _matrix_dims(path, a.ndim, network.axes[path])
            for path, a in network.abstract.items()
        }
        direction = optax.contrib.muon(
            -1.0,  # the rate, and the sign with it, come last
            ns_steps=3,
            preconditioning="schatten",  # as exact in 3 steps as the usual norm in 5
            consistent_rms=0.2,
            eps=adam["eps"],
            adam_b1=adam["b1"],
            adam_b2=adam["b2"],
            muon_weight_dimension_numbers=lambda params: {path: matrices[path] for path in params},
        )
    else:
        raise UserError(f"--config.optimizer.kind is {kind!r}; known: ['adamw', 'muon'].")
    decays = lambda params: {path: not path.endswith(("/bias", "/scale")) for path in params}
    return optax.chain(
        optax.clip_by_global_norm(clip),
        direction if moments == "float32" else _store_state_in(direction, jnp.dtype(moments)),
        optax.add_decayed_weights(weight_decay, mask=decays),
        scale,
    )


def by_group(optimizers, group_of):
    """One optimizer out of several, each for its group of parameters; its state is {group: state}.

    A single optimizer is returned as it is.

    Args:
      optimizers: {group: optax transformation}.
      group_of: {path: group}.
    """
    if len(optimizers) == 1:
        (only,) = optimizers.values()
        return only
    part = lambda tree, group: {
        path: leaf for path, leaf in tree.items() if group_of[path] == group
    }

    def init(params):
        return {group: tx.init(part(params, group)) for group, tx in optimizers.items()}

    def update(updates, state, params):
        merged, new_state = {}, {}
        for group, tx in optimizers.items():
            new, new_state[group] = tx.update(
                part(updates, group), state[group], part(params, group)
            )
            merged |= new
        return merged, new_state

    return optax.GradientTransformation(init, update)


def abstract_state(tx, trainable, mesh):
    """The optimizer's state as ShapeDtypeStructs: moments are sharded like their parameters,
    counters replicated.

    Args:
      tx: optax transformation.
      trainable: {path: ShapeDtypeStruct with its sharding}.
      mesh: of the run.
    """

    def place(keys, leaf):
        paths = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey) and k.key in trainable]
        like_parameter = paths and trainable[paths[-1]].shape == leaf.shape
        where = trainable[paths[-1]].sharding if like_parameter else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map_with_path(place, jax.eval_shape(tx.init, trainable))


def scale_by_rates(rates, make_schedule):
    """Multiplies every update by -rate of its parameter at this step; the state is that of
    `optax.scale_by_schedule`.

    Args:
      rates: {path: peak learning rate} of the trainable parameters.
      make_schedule: peak rate -> (step -> rate).
    """
    schedules = {rate: make_schedule(rate) for rate in set(rates.values())}

    def update(updates, state, params=None):
        now = {rate: -schedule(state.count) for rate, schedule in schedules.items()}
        updates = {path: jnp.array(now[rates[path]], u.dtype) * u for path, u in updates.items()}
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
    )


def _store_state_in(transform, dtype):
    """A transform whose fp32 state has another dtype between its updates."""
    cast = lambda tree, old, new: jax.tree.map(
        lambda x: x.astype(new) if x.dtype == old else x, tree
    )

    def update(updates, state, params=None):
        updates, state = transform.update(updates, cast(state, dtype, jnp.float32), params)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformation(
        lambda params: cast(transform.init(params), jnp.float32, dtype), update
    )


def _matrix_dims(path, ndim, axes):
    """The input and output dimensions of a matrix that Muon orthogonalises; None for everything
    else.
    """
    if not path.endswith("/kernel") or "vocab" in axes:
        return None
    first, split = ndim - len(axes), ndim - (2 if axes[-1] == "head_dim" else 1)
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, ndim)))
