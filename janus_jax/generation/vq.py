"""Drawing code by code: Janus and Janus-Pro's autoregressive path over the VQ-16 tokenizer.

The state at the begin-of-image token predicts the first code, every code's state the next; the last one predicts
nothing. Code embeddings are a table of their own, started from the L2-normalised codebook, then trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from janus_jax import flops
from janus_jax.generation.base import GenerationPath, busy_crop, guide, to_float
from janus_jax.layers.linear import Mlp, param
from janus_jax.tokenizers.chunks import map_in_chunks
from janus_jax.tokenizers.vq16 import VQTokenizer, normalize


class VQGuidance(NamedTuple):
    """How to sample: l = u + scale (c - u), then softmax(l / temperature) over the top k / top p; None is off."""

    scale: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class VQTokenizerNets(nnx.Module):
    """The tokenizer alone: what a recipe's tokenizer stage trains."""

    def __init__(self, rngs, *, image_size, tokenizer, tokenizer_training=None):
        """Builds the net.

        Args:
          rngs: where fresh parameters come from.
          image_size: pixels a side of the pictures to draw.
          tokenizer: keyword arguments of `VQTokenizer`.
          tokenizer_training: weights `squared`, `absolute` (reconstruction), `commitment`, `revival` (pulls codes
            that no picture of the batch uses towards the batch's vectors), and `crop`, the side of the crops that
            training sees, 0 for whole pictures.
        """
        self.num_tokens = (image_size // 2 ** (len(tokenizer["channel_mult"]) - 1)) ** 2
        self.training = tokenizer_training
        self.tokenizer = VQTokenizer(rngs, **tokenizer)


class VQNets(VQTokenizerNets):
    """Tokenizer, code embedding, adaptor (code vector -> D) and picture head (D -> codes)."""

    def __init__(self, rngs, *, embed_dim, tokenizer, **settings):
        """`embed_dim` is D of the LLM; the rest goes to `VQTokenizerNets`."""
        super().__init__(rngs, tokenizer=tokenizer, **settings)
        codes, dim = tokenizer["codebook_size"], tokenizer["codebook_dim"]
        self.embed = param(rngs, (codes, dim), ("codes", "code_dim"), nnx.initializers.normal(dim**-0.5))
        self.adaptor = Mlp(rngs, dim, embed_dim, embed_dim, axes=("code_dim", "embed_out", "embed"))
        self.head = Mlp(rngs, embed_dim, embed_dim, codes, axes=("embed_out", "embed", "vocab"))


class VQPath(GenerationPath):
    """Targets are code ids int32[M, T]; the loss is their cross-entropy."""

    Nets, TokenizerNets, Guidance = VQNets, VQTokenizerNets, VQGuidance
    read_shift, prefix_tokens, attend_to_dropped_prompt = -1, ("boi",), True

    @staticmethod
    def start_from_tokenizer(params):
        """`embed` starts from the L2-normalised codebook (Janus-Pro's released table lies at cosine 0.99 to it)."""
        return {"embed": normalize(params["tokenizer/codebook"])}

    @staticmethod
    def flops(settings, *, embed_dim, encoder, trains):
        """The tokenizer's encoder, adaptor and head; in the tokenizer's own stage all of it, on crops where asked."""
        size, vq = settings["image_size"], settings["tokenizer"]
        encode, decode = flops.vq_tokenizer(size=size, **vq)
        if trains("generation/tokenizer"):
            share = ((settings["tokenizer_training"]["crop"] or size) / size) ** 2
            return {"tokenizer": flops.TRAINED * share * (encode + decode)}
        codes = (size // 2 ** (len(vq["channel_mult"]) - 1)) ** 2
        return {
            "tokenizer": flops.FORWARD * encode,
            "adaptors": flops.TRAINED * codes * 2 * embed_dim * (vq["codebook_dim"] + embed_dim),
            "heads": flops.TRAINED * codes * 2 * embed_dim * (embed_dim + vq["codebook_size"]),
        }

    def prepare(self, pictures, keys, *, look):
        """Ids int32[M, T], from a cache or from pixels; the tokenizer runs in fp32, since bf16 changes ids."""
        return self.encode(pictures.images) if pictures.codes is None else pictures.codes

    def encode(self, images):
        """uint8[M, h, w, 3] -> ids int32[M, T]."""
        tokenizer = self.nets.tokenizer
        read = lambda images: tokenizer.nearest(tokenizer.encode(to_float(images, jnp.float32)))
        return jax.lax.stop_gradient(map_in_chunks(read, images))

    def cache(self, pictures):
        """Codes, which stand instead of the picture."""
        return {"codes": self.encode(pictures)}

    def embed(self, codes):
        """ids int32[M, T] -> float[M, T, D]; nothing is kept."""
        return self.nets.adaptor(self.nets.embed.astype(self.dtype)[codes]), None

    def loss(self, hidden, tapped, codes, kept):
        """Cross-entropy summed over a picture's codes, and the share of codes that were the likeliest."""
        logits = self.nets.head(hidden).astype(jnp.float32)  # [M, T, V]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, codes)
        hits = (jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32)
        return losses.sum(axis=-1), {"gen_accuracy": hits.mean(axis=-1)}

    def combine(self, *, text_sum, text_count, picture_sum, picture_count):
        """One cross-entropy: the mean over all text and code targets alike (Janus, section 3.2)."""
        targets = text_count + picture_count * self.num_tokens
        return (text_sum + picture_sum) / jnp.maximum(targets, 1)

    def per_picture(self, picture_sum, picture_count):
        """The figure that is logged as `loss_gen`: mean over codes."""
        return picture_sum / jnp.maximum(picture_count * self.num_tokens, 1)

    def sample(self, step, hidden, cache, *, keys, guidance):
        """One scan over T codes; the last id is not fed back."""
        rows = len(hidden) // len(keys)

        def draw(hidden, place):
            logits = guide(self.nets.head(hidden).astype(jnp.float32), guidance)
            return choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, place), guidance)

        def body(carry, place):
            hidden, cache = carry
            ids = draw(hidden, place)
            embedded, _ = self.embed(jnp.repeat(ids, rows)[:, None])
            hidden, cache = step(embedded, cache)
            return (hidden[:, 0], cache), ids

        (hidden, _), ids = jax.lax.scan(body, (hidden, cache), jnp.arange(self.num_tokens - 1))
        ids = jnp.concatenate([ids, draw(hidden, self.num_tokens - 1)[None]]).T  # [B, T]
        return self.nets.tokenizer.decode(ids), ids

    def reconstruct(self, pictures):
        """Through the tokenizer and back: uint8[M, h, w, 3] -> float[M, h, w, 3], the ceiling of every drawing."""
        return self.nets.tokenizer.decode(self.encode(pictures))

    def tokenizer_loss(self, pictures, keys, used):
        """Reconstruction + codebook + commitment (VQ-VAE), and `revival` of unused codes."""
        w, tokenizer = self.nets.training, self.nets.tokenizer
        pixels = to_float(pictures, jnp.float32)
        if w["crop"]:
            pixels = jax.vmap(lambda p, k: busy_crop(p, k, side=w["crop"]))(pixels, keys)
        out, codes, codebook, commitment, revival = tokenizer.reconstruct(pixels, used)
        squared = jnp.mean((out - pixels) ** 2, axis=(1, 2, 3))
        absolute = jnp.mean(jnp.abs(out - pixels), axis=(1, 2, 3))
        loss = w["squared"] * squared + w["absolute"] * absolute + codebook + w["commitment"] * commitment
        size = tokenizer.codebook.shape[0]
        hit = jnp.zeros(size).at[jnp.where(used[:, None], codes, size).reshape(-1)].set(1.0, mode="drop").mean()
        metrics = dict(squared_error=squared, commitment=commitment, codes_used=jnp.full_like(squared, hit))
        return loss + w["revival"] * revival, metrics


def choose(logits, keys, guidance):
    """Draws one id a row: float32[B, V] logits, key[B] -> int32[B]. Temperature 0 is greedy."""
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
