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

from janus_jax import sharding
from janus_jax.batch import TASKS
from janus_jax.errors import UserError
from janus_jax.generation import GENERATION_PATHS
from janus_jax.generation.base import Pictures, to_float
from janus_jax.layers.linear import Linear, Mlp, param, trailing, zeros
from janus_jax.models.interleave import extract, insert
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip

ADAPTORS = ("mlp", "linear")


class Understanding(nnx.Module):
    """SigLIP encoder, the adaptor into the LLM's space, and for JanusFlow a learned vector before the features.

    `begin` takes the place of the begin-of-image token (JanusFlow, section 3.2). It starts at zero.
    """

    def __init__(self, rngs, *, embed_dim, encoder, adaptor="mlp", begin=False):
        if adaptor not in ADAPTORS:
            raise UserError(f"config.model.understanding.adaptor is {adaptor!r}; known: {list(ADAPTORS)}.")
        self.encoder = Siglip(rngs, **encoder)
        self.begin = param(rngs, (embed_dim,), ("embed",), zeros) if begin else None
        self.lead = int(begin)  # positions before the first feature
        if adaptor == "mlp":
            self.adaptor = Mlp(rngs, encoder["embed_dim"], embed_dim, embed_dim, axes=(None, "embed", "embed_out"))
        else:
            self.adaptor = Linear(rngs, encoder["embed_dim"], embed_dim, axes=("embed_out", "embed"))

    def look(self, pictures, *, dtype):
        """uint8[M, h, w, 3] -> features float[M, T, F]."""
        return self.encoder(to_float(pictures, dtype))

    def __call__(self, pictures, *, dtype):
        """uint8[M, h, w, 3] -> float[M, lead + T, D]."""
        features = sharding.constrain(self.adaptor(self.look(pictures, dtype=dtype)), "batch", "length", "act_embed")
        if self.begin is None:
            return features
        begin = jnp.broadcast_to(trailing(self.begin, features), (len(features), 1, features.shape[-1]))
        return jnp.concatenate([begin, features], axis=1)


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
          generation: `kind`, a key of `GENERATION_PATHS`, and the keyword arguments of that path's nets.
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
        """uint8[M, h, w, 3] -> float[M, lead + T, D]."""
        return self.understanding(pictures, dtype=self.dtype)

    def look(self, pictures):
        """Features of the understanding encoder as it is now, without gradient: uint8[M, h, w, 3] -> float[M, T, F]."""
        size = self.understanding.encoder.image_size
        if pictures.shape[1] != size:
            raise UserError(
                f"Pictures to draw are {pictures.shape[1]} px, and the way of drawing looks at them with an understanding "
                f"encoder of {size} px; make config.model.generation.image_size the same."
            )
        return jax.lax.stop_gradient(self.understanding.look(pictures, dtype=self.dtype))

    def insert_pictures(self, x, pictures, *, start):
        """Puts pictures to understand into rows: uint8[S, U, h, w, 3] and int32[S, U] of each one's first feature."""
        seen = self.understand(rearrange(pictures, "s u ... -> (s u) ..."))
        seen = seen.reshape(*start.shape, *seen.shape[1:])
        return insert(x, seen, start=start, shift=-self.understanding.lead)

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
        join = lambda a: None if a is None else rearrange(a, "s g ... -> (s g) ...")
        pictures = Pictures(join(batch.gen_images), join(batch.gen_codes), join(batch.gen_latents))
        with jax.named_scope("tokenizer"):
            prepared = path.prepare(pictures, keys.reshape(-1), look=self.look)

        with jax.named_scope("embed"):
            x = rearrange(self.embed_text(batch.tokens), "s r l d -> s (r l) d")
        with jax.named_scope("understanding"):
            x = self.insert_pictures(x, batch.und_images, start=batch.und_start)
        with jax.named_scope("generation"):
            embedded, kept = path.embed(prepared)
        x = insert(x, embedded.reshape(*batch.gen_start.shape, *embedded.shape[1:]), start=batch.gen_start)

        rows = lambda ids: rearrange(ids, "s r l -> (s r) l")
        x = rearrange(x, "s (r l) d -> (s r) l d", l=length)
        with jax.named_scope("llm"):
            places = dict(positions=rows(batch.positions), segment_ids=rows(batch.segment_ids))
            x, tapped = self.llm(x, **places, tap=path.tap_layer)
        x, tapped = (None if a is None else rearrange(a, "(s r) l d -> s (r l) d", s=s) for a in (x, tapped))

        flat = lambda a: rearrange(a, "s r l -> s (r l)")
        targets = flat(jnp.roll(batch.tokens, -1, axis=-1))
        with jax.named_scope("text_head"):
            text, hits = self.llm.score_text(x, targets=targets, weights=flat(batch.text_weights))
        read = lambda a: join(extract(a, start=batch.gen_start, length=path.num_tokens, shift=path.read_shift))
        with jax.named_scope("picture_head"):
            pictures, extra = path.loss(read(x), None if tapped is None else read(tapped), prepared, kept)
        pictures = jnp.where(used.reshape(-1), pictures, 0)

        loss = path.combine(
            text_sum=text.sum(), text_count=counts.text, picture_sum=pictures.sum(), picture_count=counts.pictures
        )
        metrics = {"loss_gen": path.per_picture(pictures.sum(), counts.pictures)}
        metrics |= {k: jnp.where(used.reshape(-1), v, 0).sum() / jnp.maximum(counts.pictures, 1) for k, v in extra.items()}
        return loss, metrics | self._text_metrics(batch, flat(batch.task_ids), text, hits)

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
        mean = lambda v: jnp.where(used, v, 0).sum() / jnp.maximum(counts.pictures, 1)
        return mean(losses), {"loss_gen": mean(losses)} | {k: mean(v) for k, v in extra.items()}

    def settle(self, batch):
        """What the trained tokenizer measures of itself: {path: array}."""
        used = (batch.gen_start < batch.tokens.shape[1] * batch.tokens.shape[2]).reshape(-1)
        measured = self.path.settle(rearrange(batch.gen_images, "s g h w c -> (s g) h w c"), used)
        return {f"generation/{path}": value for path, value in measured.items()}


def pick_path(kind):
    """The path class of a name; an unknown one is an error that lists the known."""
    if kind not in GENERATION_PATHS:
        raise UserError(f"config.model.generation.kind is {kind!r}; known paths: {sorted(GENERATION_PATHS)}.")
    return GENERATION_PATHS[kind]
