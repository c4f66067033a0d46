"""Janus: one LLM that reads text, understands images and generates them: the papers' figure.

    text ---------------- llm/embed ----------------+          +-- llm/head --------- next token
                                                    |          |
    image - understanding/encoder -- .../adaptor ---+--- llm --+
                                                    |          |
    image - generation/tokenizer - .../embed,adaptor+          +-- generation/head -- next code
                                                                   (JanusFlow: a velocity)

Understanding and generation use separate visual encoders (Janus, section 3.1). Everything that
depends on how images are generated is behind the generation path; the losses are in `objectives`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.layers.linear import Linear, Mlp, param, trailing, zeros
from janus_jax.layers.pixels import to_float
from janus_jax.models.interleave import insert
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip

ADAPTORS = ("mlp", "linear")


class Understanding(nnx.Module):
    """SigLIP encoder, adaptor into the LLM's space, and in JanusFlow a vector before the features.

    `begin` replaces the embedding of the begin-of-image token (JanusFlow, section 3.2). It starts
    at zero.
    """

    def __init__(self, rngs, *, embed_dim, encoder, adaptor="mlp", begin=False):
        if adaptor not in ADAPTORS:
            raise UserError(
                f"config.model.understanding.adaptor is {adaptor!r}; known: {list(ADAPTORS)}."
            )
        self.encoder = Siglip(rngs, **encoder)
        self.begin = param(rngs, (embed_dim,), ("embed",), zeros) if begin else None
        self.lead = int(begin)  # positions before the first feature
        if adaptor == "mlp":
            self.adaptor = Mlp(
                rngs, encoder["embed_dim"], embed_dim, embed_dim, axes=(None, "embed", "embed_out")
            )
        else:
            self.adaptor = Linear(
                rngs, encoder["embed_dim"], embed_dim, axes=("embed_out", "embed")
            )

    def encode(self, images, *, dtype):
        """uint8[M, h, w, 3] -> features float[M, T, F]."""
        return self.encoder(to_float(images, dtype))

    def __call__(self, images, *, dtype):
        """uint8[M, h, w, 3] -> float[M, lead + T, D]."""
        features = sharding.constrain(
            self.adaptor(self.encode(images, dtype=dtype)), "batch", "length", "act_embed"
        )
        if self.begin is None:
            return features
        begin = jnp.broadcast_to(
            trailing(self.begin, features), (len(features), 1, features.shape[-1])
        )
        return jnp.concatenate([begin, features], axis=1)


class Janus(nnx.Module):
    """The whole model; see the figure above."""

    def __init__(self, rngs, *, llm, understanding, generation, dtype):
        """Builds it from the keyword arguments of its parts.

        Args:
          rngs: source of fresh parameters.
          llm: of `Llama`.
          understanding: of `Understanding`, without `embed_dim`.
          generation: `kind`, a key of `GENERATION_PATHS`, and the keyword arguments of that path's
            nets.
          dtype: what the LLM and the understanding encoder compute in.
        """
        settings = dict(generation)
        self.path_class = generation_path(settings.pop("kind"))
        self.dtype = dtype
        self.llm = Llama(rngs, **llm)
        self.understanding = Understanding(rngs, embed_dim=llm["embed_dim"], **understanding)
        self.generation = self.path_class.Nets(rngs, embed_dim=llm["embed_dim"], **settings)

    @property
    def generator(self):
        """The generation path over this model's nets."""
        return self.path_class(self.generation, dtype=self.dtype)

    def embed_text(self, tokens):
        """int32[...] -> float[..., D]."""
        return self.llm.embed_tokens(tokens, dtype=self.dtype)

    def encode_reference(self, images):
        """uint8[M, h, w, 3] -> current understanding features float[M, T, F], without gradient."""
        size = self.understanding.encoder.image_size
        if images.shape[1] != size:
            raise UserError(
                f"Images to generate are {images.shape[1]} px and the understanding encoder, whose "
                f"features the loss compares, reads {size} px; make "
                "config.model.generation.image_size the same."
            )
        return jax.lax.stop_gradient(self.understanding.encode(images, dtype=self.dtype))

    def insert_images(self, x, images, *, start):
        """Overwrites image positions of packed rows with features.

        Args:
          x: float[S, R*L, D] embeddings of a pack group's rows, laid end to end.
          images: uint8[S, U, h, w, 3] images to understand.
          start: int32[S, U] flat position of each one's first feature; R*L marks an unused slot.

        Returns:
          float[S, R*L, D].
        """
        features = self.understanding(rearrange(images, "s u ... -> (s u) ..."), dtype=self.dtype)
        features = features.reshape(*start.shape, *features.shape[1:])
        return insert(x, features, start=start, shift=-self.understanding.lead)

    def __call__(self, batch, embedded):
        """Hidden states of a packed batch.

        Args:
          batch: Batch.
          embedded: float[S, G, T, D], images to generate as the LLM reads them.

        Returns:
          float[S, R*L, D] after the final norm; and after block `generator.tap_layer`, float[S,
          R*L, D] or None.
        """
        groups, _, length = batch.tokens.shape
        with jax.named_scope("embed"):
            x = rearrange(self.embed_text(batch.tokens), "s r l d -> s (r l) d")
        with jax.named_scope("understanding"):
            x = self.insert_images(x, batch.und_images, start=batch.und_start)
        x = insert(x, embedded, start=batch.gen_start)

        rows = lambda ids: rearrange(ids, "s r l -> (s r) l")
        x = rearrange(x, "s (r l) d -> (s r) l d", l=length)
        image_ids = None
        if self.generator.mask == "picture_bidirectional":
            image_ids = rows(mark_images(batch, num_tokens=self.generator.num_tokens))
        with jax.named_scope("llm"):
            x, tapped = self.llm(
                x,
                positions=rows(batch.positions),
                segment_ids=rows(batch.segment_ids),
                image_ids=image_ids,
                tap=self.generator.tap_layer,
            )
        flat = lambda x: None if x is None else rearrange(x, "(s r) l d -> s (r l) d", s=groups)
        return flat(x), flat(tapped)


def mark_images(batch, *, num_tokens):
    """int32[S, R, L]: i on the tokens of a group's i-th image to generate, from 1; 0 elsewhere."""
    groups, slots = batch.gen_start.shape
    numbers = jnp.broadcast_to(
        jnp.arange(1, slots + 1, dtype=jnp.int32)[None, :, None, None],
        (groups, slots, num_tokens, 1),
    )
    blank = jnp.zeros((groups, batch.tokens.shape[1] * batch.tokens.shape[2], 1), jnp.int32)
    return insert(blank, numbers, start=batch.gen_start)[..., 0].reshape(batch.tokens.shape)
