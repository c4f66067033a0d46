"""The LLaMA-type LLM: pre-norm blocks of rotary attention and SwiGLU, scanned and rematerialised.

RMSNorm in fp32, rotary positions in half-split layout, separate text head (REFERENCE: the released config).
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.layers.attention import Attention, attention, rotate, segment_mask
from janus_jax.layers.linear import Linear, SwiGLU, param
from janus_jax.layers.norm import RMSNorm

REMAT = ("none", "block")


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, rngs, *, embed_dim, num_heads, num_kv_heads, mlp_dim, rope_theta, norm_eps):
        self.rope_theta = rope_theta
        self.attention_norm = RMSNorm(rngs, embed_dim, eps=norm_eps)
        self.attention = Attention(
            rngs,
            embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=embed_dim // num_heads,
            bias=False,
        )
        self.mlp_norm = RMSNorm(rngs, embed_dim, eps=norm_eps)
        self.mlp = SwiGLU(rngs, embed_dim, mlp_dim)

    def __call__(self, x, *, positions, attend):
        """One block.

        Args:
          x: float[B, L, D].
          positions: int32[B, L].
          attend: (q, k, v) -> heads float[B, L, N, H]; in training a masked attention over the row, in sampling
            one that reads and extends a cache.

        Returns:
          float[B, L, D].
        """
        q, k, v = self.attention.qkv(self.attention_norm(x))
        turn = functools.partial(rotate, positions=positions, theta=self.rope_theta)
        x = x + self.attention.merge(attend(turn(q), turn(k), v))
        return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
    """Embedding table, a stack of blocks, final norm, and the text head (not tied to the table).

    Fresh kernels are LeCun normal, the embedding table N(0, 0.02^2).
    """

    def __init__(
        self,
        rngs,
        *,
        vocab_size,
        num_layers,
        embed_dim,
        num_heads,
        num_kv_heads,
        mlp_dim,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        remat="block",
    ):
        if remat not in REMAT:
            raise UserError(f"config.model.llm.remat is {remat!r}; known: {list(REMAT)}.")
        self.remat, self.num_layers = remat, num_layers
        block = functools.partial(
            Block,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            mlp_dim=mlp_dim,
            rope_theta=rope_theta,
            norm_eps=norm_eps,
        )
        self.embed = param(rngs, (vocab_size, embed_dim), ("vocab", "embed"), nnx.initializers.normal(0.02))
        self.layers = jax.vmap(lambda key: block(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), num_layers))
        self.norm = RMSNorm(rngs, embed_dim, eps=norm_eps)
        self.head = Linear(rngs, embed_dim, vocab_size, axes=("embed", "vocab"), bias=False)

    def embed_tokens(self, tokens, *, dtype):
        """int32[...] -> float[..., D] in `dtype`."""
        table = sharding.constrain(self.embed.astype(dtype), "vocab", None)  # gathered over fsdp before the look-up
        return table[tokens]

    def __call__(self, x, *, positions, segment_ids, tap=None):
        """Hidden states of packed rows after the final norm.

        Args:
          x: float[B, L, D] embeddings.
          positions: int32[B, L].
          segment_ids: int32[B, L], 0 is padding.
          tap: a block, counted from 1, whose output is wanted too.

        Returns:
          float[B, L, D]; and the output of block `tap`, float[B, L, D] before any final norm, or None.
        """
        chex.assert_shape([positions, segment_ids], x.shape[:2])
        if tap is not None and not 1 <= tap <= self.num_layers:
            raise UserError(
                f"The loss asks for the output of block {tap}; config.model.llm.num_layers is {self.num_layers}."
            )
        attend = functools.partial(attention, mask=segment_mask(segment_ids))

        def body(carry, numbered):
            (x, tapped), (number, layer) = carry, numbered
            x = sharding.constrain(layer(x, positions=positions, attend=attend), "batch", "length", "act_embed")
            tapped = None if tapped is None else jnp.where(number == tap, x, tapped)
            return (x, tapped), None

        body = jax.checkpoint(body, prevent_cse=False) if self.remat == "block" else body
        numbered = (jnp.arange(1, self.num_layers + 1), self.layers)
        carry = (x, None if tap is None else x)
        (x, tapped), _ = jax.lax.scan(body, carry, numbered, unroll=self.remat == "none")
        return self.norm(x), tapped
