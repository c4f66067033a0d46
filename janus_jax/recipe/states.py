"""A stage's state as shapes and places on the mesh, and the jitted step over it, which `train` runs and `plan` compiles."""

import jax
import jax.numpy as jnp

from janus_jax import checkpoint, sharding, train_step
from janus_jax.batch import Batch
from janus_jax.recipe import assembly, freezing


def abstract_params(config, stage, network, mesh):
    """{path: ShapeDtypeStruct} as the stage holds its parameters."""
    _, frozen = freezing.split(network.abstract, assembly.frozen_patterns(config, stage))
    dtypes = assembly.held_dtypes(network, config, frozen=frozen)
    places = sharding.param_shardings(mesh, network.abstract, network.axes)
    struct = lambda p, a: jax.ShapeDtypeStruct(a.shape, dtypes[p], sharding=places[p])
    return {path: struct(path, a) for path, a in network.abstract.items()}


def fresh_params(network, wanted, key):
    """Freshly initialised parameters.

    Args:
      network: ModelSpec.
      wanted: {path: ShapeDtypeStruct with its sharding}, any of the network's.
      key: decides them all.

    Returns:
      {path: array}.
    """
    make = lambda key: {p: a.astype(wanted[p].dtype) for p, a in network.fresh(key).items() if p in wanted}
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}  # it runs once
    return jax.jit(make, out_shardings={p: a.sharding for p, a in wanted.items()}, compiler_options=quick)(key)


def optimizer_shardings(tx, trainable, mesh):
    """Moments lie where their parameters lie, counters everywhere."""

    def place(keys, leaf):
        names = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey) and k.key in trainable]
        like = names and trainable[names[-1]].shape == leaf.shape
        return trainable[names[-1]].sharding if like else sharding.replicated(mesh)

    return jax.tree.map_with_path(place, jax.eval_shape(tx.init, trainable))


def abstract_state(config, stage, network, tx, mesh):
    """TrainState of ShapeDtypeStructs."""
    params = abstract_params(config, stage, network, mesh)
    trainable, frozen = freezing.split(params, assembly.frozen_patterns(config, stage))
    places = optimizer_shardings(tx, trainable, mesh)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return train_step.TrainState(
        step=scalar,
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.tree.map(checkpoint.abstract_like, jax.eval_shape(tx.init, trainable), places),
        ema=dict(trainable) if config["ema"] else {},
        skipped=scalar,
    )


def first_state(config, stage, params, tx, mesh):
    """The TrainState that a stage begins with, of these parameters: {path: array on the mesh}."""
    trainable, frozen = freezing.split(params, assembly.frozen_patterns(config, stage))
    zero = lambda: jax.device_put(jnp.zeros((), jnp.int32), sharding.replicated(mesh))
    opt_state = jax.jit(tx.init, out_shardings=optimizer_shardings(tx, trainable, mesh))(trainable)
    ema = {p: jnp.copy(a) for p, a in trainable.items()} if config["ema"] else {}
    return train_step.TrainState(zero(), trainable, frozen, opt_state, ema, zero())


def abstract_batch(config, stage, mesh):
    """Batch of ShapeDtypeStructs: pictures as pixels, nothing cached."""
    s, model = config["stages"][stage], config["model"]
    groups, place = assembly.check_division(s, mesh), sharding.batch_sharding(mesh)
    struct = lambda dtype, *shape: jax.ShapeDtypeStruct((groups, *shape), dtype, sharding=place)
    pictures = lambda slots, size: struct(jnp.uint8, slots, size, size, 3)
    rows = (s["rows"], s["length"])
    return Batch(
        tokens=struct(jnp.int32, *rows),
        positions=struct(jnp.int32, *rows),
        segment_ids=struct(jnp.int32, *rows),
        text_weights=struct(jnp.float32, *rows),
        task_ids=struct(jnp.int8, *rows),
        und_images=pictures(s["und_slots"], model["understanding"]["encoder"]["image_size"]),
        und_start=struct(jnp.int32, s["und_slots"]),
        gen_images=pictures(s["gen_slots"], model["generation"]["image_size"]),
        gen_start=struct(jnp.int32, s["gen_slots"]),
    )


def jit_step(config, stage, network, tx, rate, *, state, mesh):
    """The train step over a state, of arrays or of shapes; the state it gets is given up, metrics lie everywhere."""
    step = train_step.make(
        network,
        tx,
        learning_rate=rate,
        microbatches=config["stages"][stage]["microbatches"],
        seed=assembly.stage_seed(config, stage),
        ema_decay=config["ema"],
    )
    places = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
