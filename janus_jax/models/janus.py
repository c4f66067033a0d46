"""Janus: one LLM that reads text, understands pictures and draws them. This page is the papers' figure.

    text ------------------ embedding table ----------------+                   +-- text head ---- next token
    picture -- encoder ---- adaptor ------------------------+-- rows -- LLM ----+
    picture -- tokenizer -- embed -- adaptor ---------------+                   +-- picture head - what is drawn

Understanding and generation look at pictures through different eyes (Janus, section 3.1); everything that depends on
the way of drawing stands behind the generation path.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.batch import TASKS
from janus_jax.errors import UserError
from janus_jax.generation import PATHS
from janus_jax.generation.base import to_float
from janus_jax.layers.linear import Mlp
from janus_jax.losses import text_cross_entropy
from janus_jax.models.interleave import extract, insert
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip


class Understanding(nnx.Module):
    """SigLIP encoder and the adaptor into the LLM's space."""

    def __init__(self, rngs, *, embed_dim, encoder):
        self.encoder = Siglip(rngs, **encoder)
        axes = ("embed", "embed_out", "embed")
        self.adaptor = Mlp(rngs, encoder["embed_dim"], embed_dim, embed_dim, axes=(None, *axes[1:]))

    def __call__(self, pictures, *, dtype):
        """uint8[M, h, w, 3] -> float[M, T, D]."""
        return self.adaptor(self.encoder(to_float(pictures, dtype)))


class Counts(NamedTuple):
    """Targets of the whole global batch, the denominators of every loss."""

    text: jax.Array
    pictures: jax.Array


def count_targets(batch):
    """Counts of a batch, taken before it is cut into microbatches."""
    row_tokens = batch.tokens.shape[1] * batch.tokens.shape[2]
    return Counts(batch.text_weights.sum(), (batch.gen_start < row_tokens).sum().astype(jnp.float32))


class Janus(nnx.Module):
    """The whole model; see the figure above."""

    def __init__(self, rngs, *, llm, understanding, generation, dtype):
        """Builds it from the keyword arguments of its parts.

        Args:
          rngs: where fresh parameters come from.
          llm: of `Llama`.
          understanding: of `Understanding`, but for `embed_dim`.
          generation: `kind`, a key of `PATHS`, and the keyword arguments of that path's nets.
          dtype: what the LLM and the understanding encoder compute in.
        """
        generation = dict(generation)
        self.path_class = pick_path(generation.pop("kind"))
        self.dtype = dtype
        self.llm = Llama(rngs, **llm)
        self.understanding = Understanding(rngs, embed_dim=llm["embed_dim"], **understanding)
        self.generation = self.path_class.Nets(rngs, embed_dim=llm["embed_dim"], **generation)

    @property
    def path(self):
        """The generation path over this model's nets."""
        return self.path_class(self.generation, dtype=self.dtype)

    def embed_text(self, tokens):
        """int32[...] -> float[..., D]."""
        return self.llm.embed_tokens(tokens, dtype=self.dtype)

    def understand(self, pictures):
        """uint8[M, h, w, 3] -> float[M, T, D]."""
        return self.understanding(pictures, dtype=self.dtype)

    def loss(self, batch, *, counts, keys):
        """Training loss of a batch, or of a microbatch of a batch with these counts.

        Args:
          batch: Batch.
          counts: Counts of the global batch.
          keys: key[S, G], one per generation slot.

        Returns:
          the loss, a scalar whose sum over microbatches is the batch's; {metric: scalar}, likewise.
        """
        path = self.path
        s, _, length = batch.tokens.shape
        chex.assert_equal_shape(batch[:5])
        chex.assert_equal_shape([batch.gen_start, keys])
        used = batch.gen_start < batch.tokens.shape[1] * length
        prepared = self._prepare(batch, keys.reshape(-1))

        x = rearrange(self.embed_text(batch.tokens), "s r l d -> s (r l) d")
        features = self.understand(rearrange(batch.und_images, "s u h w c -> (s u) h w c"))
        by_group = lambda pictures, start: pictures.reshape(*start.shape, *pictures.shape[1:])
        x = insert(x, by_group(features, batch.und_start), start=batch.und_start)
        x = insert(x, by_group(path.embed(prepared), batch.gen_start), start=batch.gen_start)

        rows = lambda ids: rearrange(ids, "s r l -> (s r) l")
        x = rearrange(x, "s (r l) d -> (s r) l d", l=length)
        x = self.llm(x, positions=rows(batch.positions), segment_ids=rows(batch.segment_ids))
        x = rearrange(x, "(s r) l d -> s (r l) d", s=s)

        flat = lambda a: rearrange(a, "s r l -> s (r l)")
        targets = flat(jnp.roll(batch.tokens, -1, axis=-1))
        text, hits = text_cross_entropy(x, head=self.llm.head, targets=targets, weights=flat(batch.text_weights))
        drawn = extract(x, start=batch.gen_start, length=path.num_tokens, shift=path.read_shift)
        pictures, extra = path.loss(rearrange(drawn, "s g t d -> (s g) t d"), prepared)
        pictures = jnp.where(used.reshape(-1), pictures, 0)

        loss = path.combine(
            text_sum=text.sum(), text_count=counts.text, picture_sum=pictures.sum(), picture_count=counts.pictures
        )
        metrics = {"loss_gen": path.per_picture(pictures.sum(), counts.pictures)}
        metrics |= {k: (v * used.reshape(-1)).sum() / jnp.maximum(counts.pictures, 1) for k, v in extra.items()}
        return loss, metrics | self._text_metrics(batch, flat(batch.task_ids), text, hits)

    def _prepare(self, batch, keys):
        """Targets of every generation slot, from pixels or from a cache; nothing here is differentiated."""
        join = lambda x: x.reshape(-1, *x.shape[2:])
        if batch.gen_codes is not None:
            return self.path.from_cache(join(batch.gen_codes), keys)
        return self.path.prepare(join(batch.gen_images), keys)

    def _text_metrics(self, batch, tasks, losses, hits):
        """Sums and counts by task; the train step divides them over the whole batch."""
        weights = batch.text_weights.reshape(tasks.shape)
        metrics = {}
        for name in ("understanding", "text"):
            mine = weights * (tasks == TASKS.index(name))
            metrics[f"{name}_sum"], metrics[f"{name}_count"] = (losses * mine).sum(), mine.sum()
            metrics[f"{name}_hits"] = (hits * mine).sum()
        return metrics


class TokenizerTrainer(nnx.Module):
    """The generation tokenizer alone, under the same path in the tree: what a recipe's tokenizer stage trains."""

    def __init__(self, rngs, *, generation, dtype):
        generation = dict(generation)
        self.path_class = pick_path(generation.pop("kind"))
        self.dtype = dtype
        self.generation = self.path_class.TokenizerNets(rngs, **generation)

    @property
    def path(self):
        """The generation path, good for its tokenizer alone."""
        return self.path_class(self.generation, dtype=self.dtype)

    def loss(self, batch, *, counts, keys):
        """As `Janus.loss`, from the pictures to draw alone."""
        used = (batch.gen_start < batch.tokens.shape[1] * batch.tokens.shape[2]).reshape(-1)
        losses, extra = self.path.tokenizer_loss(
            rearrange(batch.gen_images, "s g h w c -> (s g) h w c"), keys.reshape(-1), used
        )
        mean = lambda v: (v * used).sum() / jnp.maximum(counts.pictures, 1)
        return mean(losses), {"loss_gen": mean(losses)} | {k: mean(v) for k, v in extra.items()}


def pick_path(kind):
    """The path class of a name; an unknown one is an error that lists the known."""
    if kind not in PATHS:
        raise UserError(f"config.model.generation.kind is {kind!r}; known paths: {sorted(PATHS)}.")
    return PATHS[kind]
