"""Losses on records that no step trains on, of the same few batches at every checkpoint."""

import jax
import numpy as np

from janus_jax import distributed, sharding


class HeldOut:
    """Measures losses with a stage's parameters as they are; the parameters are not copied."""

    def __init__(self, stage, batches, *, mixture, log):
        """Takes a Stage, `recipe.data.held_out_batches` (may be empty) and a metrics.Log."""
        self._mesh, self._batches, self._log = stage.mesh, batches, log
        self._absent = {
            short for short, share in zip(("und", "text", "gen"), mixture, strict=True) if not share
        }
        objective = stage.objective

        def measure(params, batch):
            groups, slots = batch.gen_start.shape
            keys = jax.random.split(jax.random.key(0), groups * slots).reshape(groups, slots)
            counts = objective.batch_statistics(params, batch, keys, step=stage.last_step)
            losses, metrics = objective.loss(params, batch, counts, keys)
            return {"loss": sum(losses.values())} | metrics

        self._measure = jax.jit(measure, out_shardings=sharding.replicated(stage.mesh))

    def __call__(self, step, params):
        """Logs the means over the batches as `held_out/...`, for the tasks in the batches."""
        put = lambda batch: distributed.put_batch(self._mesh, batch)
        measured = [jax.device_get(self._measure(params, put(batch))) for batch in self._batches]
        if measured:
            names = [name for name in measured[0] if not self._absent & set(name.split("_"))]
            means = {
                f"held_out/{name}": float(np.mean([m[name] for m in measured])) for name in names
            }
            self._log.write(step, means)
