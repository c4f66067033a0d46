"""A third generation path on a page: the next patch, projected to a few numbers, is regressed
from the one before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from configs import tiny
from janus_jax import flops
from janus_jax.generation import GENERATION_PATHS
from janus_jax.generation.base import GenerationNets, GenerationPath, guide
from janus_jax.layers.linear import Linear
from janus_jax.layers.pixels import to_float
from janus_jax.tokenizers.base import ImageTokenizer
from tests.conftest import small


class ToyTokenizer(ImageTokenizer):
    """A linear projection of patches, inverted by its pseudo-inverse."""

    training_defaults = {}

    def __init__(self, rngs, *, patch, dim):
        self.downsample, self.width = patch, 1
        self.project = Linear(rngs, 3 * patch**2, dim, axes=("pixel", "code_dim"))

    @staticmethod
    def flops(*, size, patch, dim):
        return (2 * 3 * size**2 * dim,) * 2

    def encode(self, images):
        p = self.downsample
        patches = rearrange(
            to_float(images, jnp.float32), "m (h p) (w q) c -> m (h w) (p q c)", p=p, q=p
        )
        return jax.lax.stop_gradient(self.project(patches))

    def decode(self, values):
        p, net = self.downsample, self.project
        patches = (values - net.bias[None, None]) @ jnp.linalg.pinv(net.kernel[...])
        return rearrange(
            patches, "m (h w) (p q c) -> m (h p) (w q) c", h=int(values.shape[1] ** 0.5), p=p, q=p
        )

    def cache(self, images):
        return {"latents": self.encode(images)}

    def reconstruct(self, images):
        return self.decode(self.encode(images))

    def training_loss(self, pixels, keys, statistics, *, settings):
        raise NotImplementedError


class ToyNets(GenerationNets):
    def __init__(self, rngs, *, embed_dim, image_size, tokenizer):
        self.num_tokens = self.count_tokens(image_size=image_size, tokenizer=tokenizer)
        self.tokenizer = ToyTokenizer(rngs, **tokenizer)
        self.embed = Linear(rngs, tokenizer["dim"], embed_dim, axes=("code_dim", "embed"))
        self.head = Linear(rngs, embed_dim, tokenizer["dim"], axes=("embed", "code_dim"))

    @staticmethod
    def count_tokens(*, image_size, tokenizer, **settings):
        return (image_size // tokenizer["patch"]) ** 2


class ToyPath(GenerationPath):
    Nets, Tokenizer, Guidance = ToyNets, ToyTokenizer, NamedTuple("ToyGuidance", [("scale", float)])
    read_shift, prefix_tokens, attend_to_dropped_prompt = -1, ("boi",), True

    @staticmethod
    def flops(settings, *, embed_dim, encoder):
        tokens = ToyNets.count_tokens(**settings)
        return {"heads": flops.TRAINED * tokens * 2 * embed_dim * settings["tokenizer"]["dim"]}

    def prepare(self, images, keys, *, encode):
        return self.nets.tokenizer.encode(images.pixels)

    def embed(self, targets):
        return self.nets.embed(targets.astype(self.dtype)), None

    def loss(self, hidden, tapped, targets, skip):
        return jnp.mean((self.nets.head(hidden) - targets) ** 2, axis=(1, 2)), {}

    def sample(self, step, hidden, cache, *, keys, guidance):
        branches = len(hidden) // len(keys)

        def body(carry, _):
            value = guide(self.nets.head(carry[0]), guidance)
            hidden, cache = step(
                jnp.repeat(self.nets.embed(value), branches, axis=0)[:, None], carry[1]
            )
            return (hidden[:, 0], cache), value

        _, values = jax.lax.scan(body, (hidden, cache), length=self.num_tokens)
        return self.nets.tokenizer.decode(values.swapaxes(0, 1)), values


GENERATION_PATHS["toy"] = ToyPath


def get_config(data):
    """The small config with another generation path."""
    c = small(tiny.get_config(), data)
    c.model.generation = dict(kind="toy", image_size=32, tokenizer=dict(patch=8, dim=4))
    c.init_fresh = ("llm", "understanding", "generation")
    return c
