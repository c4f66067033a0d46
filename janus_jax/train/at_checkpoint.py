"""What happens at every checkpoint: save, measure held-out losses, generate and score samples."""

from janus_jax import checkpoint, distributed
from janus_jax.recipe.data import held_out_batches
from janus_jax.train.held_out import HeldOut
from janus_jax.train.samples import SampleLogger


class AtCheckpoint:
    """Saves a checkpoint, measures held-out losses and writes samples."""

    def __init__(self, stage, about, tokenizer, workdir, log):
        """Sets it up.

        Args:
          stage: Stage.
          about: what every checkpoint of the stage carries; the data position is added to it.
          tokenizer: TextTokenizer.
          workdir: Path of the run's folder.
          log: metrics.Log.
        """
        self.workdir, self._stage, self._about = workdir, stage, about
        self._writer = checkpoint.Writer(workdir, keep=stage.config["keep_checkpoints"])
        self._samples = SampleLogger(stage, tokenizer, folder=workdir / "samples", log=log)
        batches, mixture = held_out_batches(stage, host=distributed.host_share(stage.mesh))
        self._held_out = HeldOut(stage, batches, mixture=mixture, log=log)

    def __call__(self, state, batch, *, position, stopping):
        """Saves a step; unless the run is stopping, also measures and samples.

        Args:
          state: TrainState.
          batch: Batch of the step.
          position: of the data after the step, this process's shards.
          stopping: whether the process must exit soon.
        """
        step = self._about["stage_start"] + int(state.step)
        optimizer = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
        about = self._about | {"data": distributed.merge_dicts(position)}
        self._writer.save(
            step, params=state.params, optimizer=optimizer, ema=state.ema, about=about
        )
        if not stopping:
            self._held_out(step, state.params)
            self._samples(step, state.averaged_params, batch)

    def close(self):
        """Returns when everything is on disk."""
        self._writer.wait()
