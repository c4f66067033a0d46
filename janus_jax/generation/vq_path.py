"""Drawing code by code: Janus and Janus-Pro's autoregressive path over the VQ-16 tokenizer.

The state at the begin-of-image token predicts the first code, every code's state the next; the last one predicts
nothing. Code embeddings are a table of their own, started from the L2-normalised codebook, then trained.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from janus_jax.generation.base import GenerationPath, Prepared, to_float
from janus_jax.generation.vq import VQTokenizer, normalize
from janus_jax.layers.linear import Mlp, param


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
        self.head = Mlp(rngs, embed_dim, embed_dim, codes, axes=("embed", "embed_out", "vocab"))


class VQPath(GenerationPath):
    """Targets are code ids int32[M, T]; the loss is their cross-entropy."""

    Nets, TokenizerNets = VQNets, VQTokenizerNets
    read_shift = -1

    @staticmethod
    def start_from_tokenizer(params):
        """`embed` starts from the L2-normalised codebook (Janus-Pro's released table lies at cosine 0.99 to it)."""
        return {"embed": normalize(params["tokenizer/codebook"])}

    def prepare(self, pictures, keys):
        """uint8[M, h, w, 3] -> ids int32[M, T]; the tokenizer runs in fp32, since bf16 changes ids."""
        tokenizer = self.nets.tokenizer
        ids = tokenizer.nearest(tokenizer.encode(to_float(pictures, jnp.float32)))
        return Prepared(jax.lax.stop_gradient(ids))

    def from_cache(self, cached, keys):
        """int32[M, T] codes."""
        return Prepared(cached)

    def embed(self, prepared):
        """ids int32[M, T] -> float[M, T, D]."""
        return self.nets.adaptor(self.nets.embed.astype(self.dtype)[prepared.targets])

    def loss(self, hidden, prepared):
        """Cross-entropy summed over a picture's codes, and the number of codes that were the likeliest."""
        logits = self.nets.head(hidden).astype(jnp.float32)  # [M, T, V]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, prepared.targets)
        hits = (jnp.argmax(logits, axis=-1) == prepared.targets).astype(jnp.float32)
        return losses.sum(axis=-1), {"gen_accuracy": hits.mean(axis=-1)}

    def combine(self, *, text_sum, text_count, picture_sum, picture_count):
        """One cross-entropy: the mean over all text and code targets alike (Janus, section 3.2)."""
        targets = text_count + picture_count * self.num_tokens
        return (text_sum + picture_sum) / jnp.maximum(targets, 1)

    def per_picture(self, picture_sum, picture_count):
        """The figure that is logged as `loss_gen`: mean over codes."""
        return picture_sum / jnp.maximum(picture_count * self.num_tokens, 1)

    def unconditional(self, prompts, *, real, pad_id):
        """Every token between BOS and BOI becomes pad, and stays attended (the release's guidance rows)."""
        first = jnp.argmax(real, axis=-1)[:, None]
        place = jnp.arange(prompts.shape[-1])[None]
        inner = real & (place > first) & (place < prompts.shape[-1] - 1)
        return jnp.where(inner, pad_id, prompts)

    def sample(self, step, hidden, cache, *, keys, guidance):
        """One scan over T codes; the last id is not fed back."""

        def draw(hidden, keys):
            pairs = self.nets.head(hidden).astype(jnp.float32).reshape(-1, 2, self.nets.embed.shape[0])
            conditional, unconditional = pairs[:, 0], pairs[:, 1]
            logits = unconditional + guidance.scale * (conditional - unconditional)
            return choose(logits, keys, guidance)

        def body(carry, place):
            hidden, cache = carry
            ids = draw(hidden, jax.vmap(jax.random.fold_in, (0, None))(keys, place))
            embedded = self.embed(Prepared(jnp.repeat(ids, 2)[:, None]))
            hidden, cache = step(embedded, cache)
            return (hidden[:, 0], cache), ids

        (hidden, _), ids = jax.lax.scan(body, (hidden, cache), jnp.arange(self.num_tokens - 1))
        last = draw(hidden, jax.vmap(jax.random.fold_in, (0, None))(keys, self.num_tokens - 1))
        ids = jnp.concatenate([ids, last[None]]).T  # [B, T]
        return self.nets.tokenizer.decode(ids), ids

    def reconstruct(self, pictures):
        """Through the tokenizer and back: uint8[M, h, w, 3] -> float[M, h, w, 3], the ceiling of every drawing."""
        return self.nets.tokenizer.decode(self.prepare(pictures, None).targets)

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
    if guidance.top_k:
        floor = jax.lax.top_k(logits, min(guidance.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if guidance.top_p:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        floor = jnp.where(before < guidance.top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)


def busy_crop(pixels, key, *, side, tries=4):
    """The square of most variance among a few random ones, since plain ground teaches nothing twice.

    Args:
      pixels: float[h, w, 3].
      key: draws the squares.
      side: of the square.
      tries: how many are drawn.

    Returns:
      float[side, side, 3].
    """
    corners = jax.random.randint(key, (tries, 2), 0, jnp.array([pixels.shape[:2]]) - side + 1)
    crops = jax.vmap(lambda corner: jax.lax.dynamic_slice(pixels, (*corner, 0), (side, side, 3)))(corners)
    return crops[jnp.argmax(crops.var(axis=(1, 2, 3)))]
