"""The training state and the jitted step over it: objective -> gradients -> update -> metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from janus_jax import sharding
from janus_jax.batch import Batch
from janus_jax.recipe import optimizer
from janus_jax.recipe.freezing import split


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

    @property
    def params(self):
        """{path: array} of all parameters, as they train."""
        return self.trainable | self.frozen

    @property
    def averaged_params(self):
        """{path: array} of all parameters, with the moving average where there is one."""
        return self.trainable | self.frozen | self.ema


def make(objective, tx, *, group_of, learning_rate, microbatches, seed, ema_decay=0.0):
    """Builds the train step.

    Args:
      objective: Objective.
      tx: optax optimizer of all trainable parameters.
      group_of: {path: group of the objective} of the trainable parameters; each group follows its
        own loss.
      learning_rate: step -> rate, for the log.
      microbatches: parts that a batch is cut into, one after the other.
      seed: of the stage; with the step and an image's position in the global batch it gives the
        image's key.
      ema_decay: decay of the moving average, where the state has one.

    Returns:
      (TrainState, Batch) -> (TrainState, {metric: scalar}).
    """
    groups = tuple(dict.fromkeys(group_of.values()))

    def gradients(trainable, frozen, counts, batch, keys):
        """({group: loss}, {metric: scalar}), {path: gradient} of a microbatch."""
        outputs, grads = None, {}
        for group in groups:
            mine = {path: a for path, a in trainable.items() if group_of[path] == group}

            def loss(mine, group=group):
                losses, metrics = objective.loss(trainable | mine | frozen, batch, counts, keys)
                return losses[group], (losses, metrics)

            (_, outputs), grad = jax.value_and_grad(loss, has_aux=True)(mine)
            grads |= grad
        return outputs, grads

    def accumulate(state, counts, batch, keys):
        """`gradients` of a whole batch, summed over its microbatches."""
        if microbatches == 1:
            return gradients(state.trainable, state.frozen, counts, batch, keys)
        # Every device gives each microbatch a part of its own groups, so nothing moves between
        # devices.
        cut = lambda x: x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        parts = jax.tree.map(cut, (batch, keys))
        of_part = lambda part: gradients(state.trainable, state.frozen, counts, *part)
        add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)
        shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def step(state, batch):
        slots = batch.gen_start.shape
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(slots[0] * slots[1])
        ).reshape(slots)
        counts = objective.batch_statistics(state.params, batch, keys, step=state.step)
        (losses, metrics), grads = accumulate(state, counts, batch, keys)

        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
            loss = sum(losses.values())
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
            trainable = keep(optax.apply_updates(state.trainable, updates), state.trainable)
            average = {p: e + (1 - ema_decay) * (trainable[p] - e) for p, e in state.ema.items()}
            opt_state, average = keep(opt_state, state.opt_state), keep(average, state.ema)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        if len(losses) > 1:
            metrics = metrics | {f"loss/{group}": value for group, value in losses.items()}
        metrics = {"loss": loss} | metrics  # an objective may log its own
        metrics = metrics | {
            "grad_norm": norm,
            "lr": learning_rate(state.step),
            "skipped": skipped,
        }
        state = state._replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
        return state._replace(ema=average, skipped=skipped), metrics

    return step


def jit(stage, state):
    """A stage's train step, compiled for the shardings of `state`, which holds arrays or shapes.

    The state that is passed in is donated; metrics are replicated.
    """
    step = make(
        stage.objective,
        stage.tx,
        group_of=stage.group_of,
        learning_rate=stage.learning_rate,
        microbatches=stage.settings["microbatches"],
        seed=stage.seed,
        ema_decay=stage.ema,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(stage.mesh))
    )


def jit_calibrate(stage, state):
    """(TrainState, Batch) -> TrainState with what the objective measures of its network."""

    def calibrate(state, batch):
        measured = stage.objective.calibrate(state.params, batch, step=state.step)
        replace = lambda part: {path: measured.get(path, a) for path, a in part.items()}
        return state._replace(
            trainable=replace(state.trainable), frozen=replace(state.frozen), ema=replace(state.ema)
        )

    return jax.jit(calibrate, out_shardings=jax.tree.map(lambda x: x.sharding, state))


def abstract_state(stage):
    """A stage's TrainState of ShapeDtypeStructs."""
    trainable, frozen = split(stage.abstract_params, stage.frozen)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(stage.mesh))
    return TrainState(
        step=scalar,
        trainable=trainable,
        frozen=frozen,
        opt_state=optimizer.abstract_state(stage.tx, trainable, stage.mesh),
        ema=dict(trainable) if stage.ema else {},
        skipped=scalar,
    )


def first_state(stage, params):
    """The TrainState that a stage begins with, of parameters {path: array on the mesh}."""
    trainable, frozen = split(params, stage.frozen)
    shardings = jax.tree.map(
        lambda x: x.sharding, optimizer.abstract_state(stage.tx, stage.trainable, stage.mesh)
    )
    zero = lambda: jax.device_put(jnp.zeros((), jnp.int32), sharding.replicated(stage.mesh))
    return TrainState(
        step=zero(),
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.jit(stage.tx.init, out_shardings=shardings)(trainable),
        ema={path: jnp.copy(a) for path, a in trainable.items()} if stage.ema else {},
        skipped=zero(),
    )


def init_params(network, abstract, key):
    """Freshly initialised parameters.

    Args:
      network: ModelSpec.
      abstract: {path: ShapeDtypeStruct with its sharding}, any of the network's.
      key: decides them all.

    Returns:
      {path: array}.
    """
    make = lambda key: {
        p: a.astype(abstract[p].dtype) for p, a in network.init(key).items() if p in abstract
    }
    # It runs once
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(
        make, out_shardings={p: a.sharding for p, a in abstract.items()}, compiler_options=quick
    )(key)


def abstract_batch(stage):
    """Batch of ShapeDtypeStructs: images as pixels, nothing cached."""
    settings, model = stage.settings, stage.model
    where = sharding.batch_sharding(stage.mesh)
    struct = lambda dtype, *shape: jax.ShapeDtypeStruct(
        (stage.groups, *shape), dtype, sharding=where
    )
    images = lambda slots, size: struct(jnp.uint8, slots, size, size, 3)
    rows = (settings["rows"], settings["length"])
    return Batch(
        tokens=struct(jnp.int32, *rows),
        positions=struct(jnp.int32, *rows),
        segment_ids=struct(jnp.int32, *rows),
        text_weights=struct(jnp.float32, *rows),
        task_ids=struct(jnp.int8, *rows),
        und_images=images(settings["und_slots"], model["understanding"]["encoder"]["image_size"]),
        und_start=struct(jnp.int32, settings["und_slots"]),
        gen_images=images(settings["gen_slots"], model["generation"]["image_size"]),
        gen_start=struct(jnp.int32, settings["gen_slots"]),
    )
