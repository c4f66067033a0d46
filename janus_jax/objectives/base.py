"""The contract of an objective: what a stage trains and minimises, and with which optimizers."""

import abc

import jax.numpy as jnp

from janus_jax.batch import count_targets

MODEL = "model"  # the group of an objective that has one optimizer


class Objective(abc.ABC):
    """What a stage minimises.

    Attributes:
      network: ModelSpec of what the stage trains, whose parameters travel as {path: array}.
      groups: {group: freeze-style path patterns}: each group of parameters follows the gradient of
        its own loss and has an optimizer of its own, as the generator and the discriminator of a
        GAN do. The first match counts.
      trains_tokenizer: whether it trains the generation tokenizer, which then starts fresh and
        needs pixels.
    """

    groups = {MODEL: (".*",)}
    trains_tokenizer = False

    def __init__(self, network):
        self.network = network

    @staticmethod
    @abc.abstractmethod
    def build_network(model, *, dtype):
        """The ModelSpec that this objective trains, of `config.model`, computing in `dtype`."""

    def optimizer_settings(self, default):
        """{group: settings as in `config.optimizer`}; here every group has `default`."""
        return dict.fromkeys(self.groups, default)

    def batch_statistics(self, params, batch, keys, *, step):
        """What the loss needs from the global batch, computed before it is cut into microbatches.

        Args:
          params: {path: array}.
          batch: Batch.
          keys: key[S, G], one per generation slot.
          step: int32 scalar, steps of the stage that are done.

        Returns:
          any pytree; here `Counts`, the denominators of the losses.
        """
        return count_targets(batch)

    @abc.abstractmethod
    def loss(self, params, batch, counts, keys):
        """Losses of a batch, or of a microbatch of a batch with these counts.

        Args:
          params: {path: array}, trainable and frozen.
          batch: Batch.
          counts: what `batch_statistics` returned for the global batch.
          keys: key[S, G], one per generation slot.

        Returns:
          {group: scalar}, {metric: scalar}; summed over microbatches they are those of the batch.
          The metric `loss` is by default the sum over groups.
        """

    def calibrates(self, step, *, saving):
        """Whether `calibrate` replaces parameters after `step` steps; by default never.

        Args:
          step: steps of the stage that are done.
          saving: whether a checkpoint follows.
        """
        return False

    def calibrate(self, params, batch, *, step):
        """Measures values that replace parameters: {path: array}, Batch -> {path: array}."""
        return {}


def mean_over_images(values, *, used, count):
    """float32[M] per image -> mean of the used slots over `count` images of the global batch."""
    return jnp.where(used, values, 0).sum() / jnp.maximum(count, 1)
