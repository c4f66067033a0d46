"""Losses on records that no step trains on, of the same few batches at every checkpoint."""

import jax
import numpy as np

from janus_jax import distributed, sharding
from janus_jax.models.janus import count_targets
from janus_jax.train.metrics import readable


class HeldOut:
    """Measures losses with a stage's parameters as they are; no copy of them is made."""

    def __init__(self, network, batches, *, mixture, mesh, log):
        """Takes `assembly.held_out_batches`, without which nothing is measured, the mesh, and a metrics.Log."""
        self._batches, self._mesh, self._log = batches, mesh, log
        self._absent = {short for short, share in zip(("und", "text", "gen"), mixture, strict=True) if not share}

        def measure(params, batch):
            groups, slots = batch.gen_start.shape
            keys = jax.random.split(jax.random.key(0), groups * slots).reshape(groups, slots)
            loss, metrics = network.merge(params).loss(batch, counts=count_targets(batch), keys=keys)
            return metrics | {"loss": loss}

        self._measure = jax.jit(measure, out_shardings=sharding.replicated(mesh))

    def __call__(self, step, params):
        """Logs the means over the batches as `held_out/...`, of the kinds of examples that they hold."""
        measure = lambda batch: readable(jax.device_get(self._measure(params, distributed.put_batch(self._mesh, batch))))
        found = [measure(batch) for batch in self._batches]
        if found:
            names = [name for name in found[0] if not self._absent & set(name.split("_"))]
            self._log.write(step, {f"held_out/{name}": float(np.mean([f[name] for f in found])) for name in names})
