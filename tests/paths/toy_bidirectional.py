"""A toy path whose image tokens attend to each other in both directions: masked patches are
filled in all at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.generation import GENERATION_PATHS
from janus_jax.generation.base import guide
from tests.paths import toy

STEPS = 3  # of sampling


class Masked(NamedTuple):
    """Patches float32[M, T, C] to predict, and bool[M, T], which of them the LLM does not see."""

    values: jax.Array
    hidden: jax.Array


class ToyBidirectionalPath(toy.ToyPath):
    """Every position predicts its own patch from all the others (masked generative image
    modelling).
    """

    mask = "picture_bidirectional"
    read_shift = 0

    def prepare(self, images, keys, *, encode):
        values = self.nets.tokenizer.encode(images.pixels)
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, values.shape[1:2]))(keys)
        return Masked(values, hidden)

    def embed(self, masked):
        visible = jnp.where(masked.hidden[..., None], 0, masked.values)
        return self.nets.embed(visible.astype(self.dtype)), None

    def loss(self, hidden, tapped, masked, skip):
        error = jnp.mean((self.nets.head(hidden) - masked.values) ** 2, axis=-1)
        return jnp.mean(error, axis=-1), {"gen_masked": jnp.mean(masked.hidden, axis=-1)}

    def sample(self, step, hidden, cache, *, keys, guidance):
        """Predicts all patches from none, then again from their own predictions; every step
        starts from the prompt.
        """
        branches = len(hidden) // len(keys)
        values = jnp.zeros((len(keys), self.num_tokens, self.nets.head.bias.shape[0]))
        for number in range(STEPS):
            unknown = jnp.full(values.shape[:2], number == 0)
            embedded, _ = self.embed(Masked(values, unknown))
            states, _ = step(jnp.repeat(embedded, branches, axis=0), cache)
            values = guide(self.nets.head(states), guidance)
        return self.nets.tokenizer.decode(values), values


GENERATION_PATHS["toy_bidirectional"] = ToyBidirectionalPath


def get_config(data):
    """The small config with this generation path."""
    c = toy.get_config(data)
    c.model.generation.kind = "toy_bidirectional"
    return c
