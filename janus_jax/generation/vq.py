"""Autoregressive image generation, code by code: Janus and Janus-Pro's path over the VQ-16
tokenizer.

The state at the begin-of-image token predicts the first code, every code's state predicts the next,
and the last one predicts nothing. Code embeddings are a separate table, initialised from the
L2-normalised codebook and then trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from janus_jax import flops
from janus_jax.generation.base import GenerationNets, GenerationPath, guide
from janus_jax.layers.linear import Mlp, param
from janus_jax.tokenizers.vq16 import VQTokenizer, normalize


class VQGuidance(NamedTuple):
    """Sampling settings: l = u + scale (c - u), then softmax(l / temperature) over the top k / top
    p; None is off.
    """

    scale: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class VQNets(GenerationNets):
    """Tokenizer, code embedding, adaptor (code vector -> D) and image head (D -> codes)."""

    def __init__(self, rngs, *, embed_dim, image_size, tokenizer, tokenizer_training=None):
        """Builds the nets.

        Args:
          rngs: source of fresh parameters.
          embed_dim: D of the LLM.
          image_size: pixels per side of the images to generate.
          tokenizer: keyword arguments of `VQTokenizer`.
          tokenizer_training: read by the tokenizer's own stage only.
        """
        self.num_tokens = self.count_tokens(image_size=image_size, tokenizer=tokenizer)
        self.tokenizer = VQTokenizer(rngs, **tokenizer)
        codes, dim = tokenizer["codebook_size"], tokenizer["codebook_dim"]
        self.embed = param(
            rngs, (codes, dim), ("codes", "code_dim"), nnx.initializers.normal(dim**-0.5)
        )
        axes = ("code_dim", "embed_out", "embed")
        self.adaptor = Mlp(rngs, dim, embed_dim, embed_dim, axes=axes, unit_inputs=True)
        self.head = Mlp(rngs, embed_dim, embed_dim, codes, axes=("embed_out", "embed", "vocab"))

    @staticmethod
    def count_tokens(*, image_size, tokenizer, **settings):
        """One token per cell of the tokenizer's feature map."""
        return (image_size // 2 ** (len(tokenizer["channel_mult"]) - 1)) ** 2

    @staticmethod
    def initial_values(params):
        """`embed` starts from the L2-normalised codebook (Janus-Pro's released table has cosine
        0.99 to it).
        """
        return {"embed": normalize(params["tokenizer/codebook"])}


class VQPath(GenerationPath):
    """Targets are code ids int32[M, T]; the loss is their cross-entropy."""

    Nets, Tokenizer, Guidance = VQNets, VQTokenizer, VQGuidance
    read_shift = -1
    prefix_tokens = ("boi",)
    attend_to_dropped_prompt = True

    @staticmethod
    def flops(settings, *, embed_dim, encoder):
        """The tokenizer's encoder, adaptor and head."""
        vq = settings["tokenizer"]
        encode, _ = VQTokenizer.flops(size=settings["image_size"], **vq)
        codes = VQNets.count_tokens(**settings)
        return {
            "tokenizer": flops.FORWARD * encode,
            "adaptors": flops.TRAINED * codes * 2 * embed_dim * (vq["codebook_dim"] + embed_dim),
            "heads": flops.TRAINED * codes * 2 * embed_dim * (embed_dim + vq["codebook_size"]),
        }

    def prepare(self, images, keys, *, encode):
        """Ids int32[M, T], from a cache or from pixels; the tokenizer runs in fp32, since bf16
        changes ids.
        """
        return self.nets.tokenizer.codes(images.pixels) if images.codes is None else images.codes

    def embed(self, codes):
        """ids int32[M, T] -> float[M, T, D]; no skip."""
        return self.nets.adaptor(self.nets.embed.astype(self.dtype)[codes]), None

    def loss(self, hidden, tapped, codes, skip):
        """Cross-entropy summed over an image's codes, and the share of codes that were the most
        likely.
        """
        logits = self.nets.head(hidden).astype(jnp.float32)  # [M, T, V]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, codes)
        hits = (jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32)
        return losses.sum(axis=-1), {"gen_accuracy": hits.mean(axis=-1)}

    def combine(self, *, text_sum, text_count, image_sum, image_count):
        """One cross-entropy: the mean over all text and code targets alike (Janus, section 3.2)."""
        targets = text_count + image_count * self.num_tokens
        return (text_sum + image_sum) / jnp.maximum(targets, 1)

    def per_image(self, image_sum, image_count):
        """The value logged as `loss_gen`: mean over codes."""
        return image_sum / jnp.maximum(image_count * self.num_tokens, 1)

    def sample(self, step, hidden, cache, *, keys, guidance):
        """One scan over T codes; the last id is not fed back."""
        branches = len(hidden) // len(keys)

        def choose_code(hidden, position):
            logits = guide(self.nets.head(hidden).astype(jnp.float32), guidance)
            return choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, position), guidance)

        def body(carry, position):
            hidden, cache = carry
            ids = choose_code(hidden, position)
            embedded, _ = self.embed(jnp.repeat(ids, branches)[:, None])
            hidden, cache = step(embedded, cache)
            return (hidden[:, 0], cache), ids

        (hidden, _), ids = jax.lax.scan(body, (hidden, cache), jnp.arange(self.num_tokens - 1))
        ids = jnp.concatenate([ids, choose_code(hidden, self.num_tokens - 1)[None]]).T  # [B, T]
        return self.nets.tokenizer.decode(ids), ids


def choose(logits, keys, guidance):
    """Samples one id per row: float32[B, V] logits, key[B] -> int32[B]. Temperature 0 is greedy."""
    if guidance.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / guidance.temperature
    if guidance.top_k is not None:
        floor = jax.lax.top_k(logits, min(guidance.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if guidance.top_p is not None and guidance.top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        floor = jnp.where(before < guidance.top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)
