"""One jitted function: loss -> gradients of the trainable part -> update -> metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from janus_jax.models.janus import count_targets


class TrainState(NamedTuple):
    """What a step changes, and what it reads.

    Attributes:
      step: int32 scalar, steps of this stage that are done.
      trainable: {path: fp32 array}.
      frozen: {path: array}, in the compute dtype; the tokenizer in fp32.
      opt_state: optax state of the trainable part.
      ema: {path: fp32 array}, the moving average of the trainable part; empty without one.
      skipped: int32 scalar, non-finite steps in a row.
    """

    step: Any
    trainable: Any
    frozen: Any
    opt_state: Any
    ema: Any
    skipped: Any


def make(network, tx, *, learning_rate, microbatches, seed, ema_decay=0.0):
    """Builds the train step.

    Args:
      network: ModelSpec whose module offers `loss`.
      tx: optax optimizer.
      learning_rate: step -> rate, for the log.
      microbatches: parts that a batch is cut into, one after the other.
      ema_decay: what the moving average keeps of itself at every step, where the state has one.
      seed: of the stage; with the step and a picture's global place it gives the picture's key.

    Returns:
      (TrainState, Batch) -> (TrainState, {metric: scalar}).
    """

    def step(state, batch):
        counts = count_targets(batch)
        groups, slots = batch.gen_start.shape
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(groups * slots)).reshape(groups, slots)

        def loss(trainable, batch, keys):
            return network.merge(trainable | state.frozen).loss(batch, counts=counts, keys=keys)

        gradient = jax.value_and_grad(loss, has_aux=True)
        if microbatches == 1:
            (value, metrics), grads = gradient(state.trainable, batch, keys)
        else:
            # Every device gives each microbatch a part of its own groups, so nothing moves between devices.
            cut = lambda x: x.reshape(groups // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
            parts = jax.tree.map(cut, (batch, keys))
            add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(state.trainable, *part)), None)
            like = jax.eval_shape(gradient, state.trainable, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            ((value, metrics), grads), _ = jax.lax.scan(add, zeros, parts)

        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
            trainable = keep(optax.apply_updates(state.trainable, updates), state.trainable)
            average = {p: e + (1 - ema_decay) * (trainable[p] - e) for p, e in state.ema.items()}
            opt_state, average = keep(opt_state, state.opt_state), keep(average, state.ema)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = metrics | {"loss": value, "grad_norm": norm, "lr": learning_rate(state.step), "skipped": skipped}
        return TrainState(
            step=state.step + 1,
            trainable=trainable,
            frozen=state.frozen,
            opt_state=opt_state,
            ema=average,
            skipped=skipped,
        ), metrics

    return step


def make_settle(network):
    """Builds (TrainState, Batch) -> TrainState with what a tokenizer in training measures of itself."""

    def settle(state, batch):
        measured = network.merge(state.trainable | state.frozen).settle(batch)
        pick = lambda part: {p: measured.get(p, a) for p, a in part.items()}
        return state._replace(trainable=pick(state.trainable), frozen=pick(state.frozen), ema=pick(state.ema))

    return settle
