"""A third way of drawing, in a page: the next patch, projected to a few numbers, is regressed from the one before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from configs import tiny
from janus_jax.generation import GENERATION_PATHS
from janus_jax.generation.base import GenerationPath, guide, to_float
from janus_jax.layers.linear import Linear
from tests.conftest import small


class ToyNets(nnx.Module):
    def __init__(self, rngs, *, embed_dim, image_size, patch, dim):
        self.patch, self.num_tokens = patch, (image_size // patch) ** 2
        self.tokenizer = Linear(rngs, 3 * patch**2, dim, axes=("pixel", "code_dim"))
        self.embed = Linear(rngs, dim, embed_dim, axes=("code_dim", "embed"))
        self.head = Linear(rngs, embed_dim, dim, axes=("embed", "code_dim"))


class ToyPath(GenerationPath):
    Nets, TokenizerNets, Guidance = ToyNets, ToyNets, NamedTuple("ToyGuidance", [("scale", float)])
    read_shift, prefix_tokens, attend_to_dropped_prompt = -1, ("boi",), True

    def prepare(self, pictures, keys, *, look):
        p = self.nets.patch
        patches = rearrange(to_float(pictures.images, self.dtype), "m (h p) (w q) c -> m (h w) (p q c)", p=p, q=p)
        return jax.lax.stop_gradient(self.nets.tokenizer(patches))

    def embed(self, targets):
        return self.nets.embed(targets), None

    def loss(self, hidden, tapped, targets, kept):
        return jnp.mean((self.nets.head(hidden) - targets) ** 2, axis=(1, 2)), {}

    def sample(self, step, hidden, cache, *, keys, guidance):
        rows = len(hidden) // len(keys)

        def body(carry, _):
            value = guide(self.nets.head(carry[0]), guidance)
            hidden, cache = step(jnp.repeat(self.nets.embed(value), rows, axis=0)[:, None], carry[1])
            return (hidden[:, 0], cache), value

        _, values = jax.lax.scan(body, (hidden, cache), length=self.num_tokens)
        return self.decode(values.swapaxes(0, 1)), values

    def decode(self, values):
        p, net = self.nets.patch, self.nets.tokenizer
        patches = (values - net.bias[None, None]) @ jnp.linalg.pinv(net.kernel[...])
        side = int(self.num_tokens**0.5)
        return rearrange(patches, "m (h w) (p q c) -> m (h p) (w q) c", h=side, p=p, q=p)

    def reconstruct(self, pictures):
        return self.decode(self.prepare(pictures, None, look=None))


GENERATION_PATHS["toy"] = ToyPath


def get_config(data):
    """The small config with another way of drawing."""
    c = small(tiny.get_config(), data)
    c.model.generation = dict(kind="toy", image_size=32, patch=8, dim=4)
    c.init_fresh = ("llm", "understanding", "generation")
    return c
