"""The LLaMA-type LLM: pre-norm blocks of rotary attention and SwiGLU, scanned and rematerialised.

RMSNorm in fp32, rotary positions in half-split layout, separate text head (REFERENCE: the released config).
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.layers.attention import Attention, rotate
from janus_jax.layers.cross_entropy import text_cross_entropy
from janus_jax.layers.linear import Linear, Rngs, SwiGLU, param
from janus_jax.layers.norm import RMSNorm
from janus_jax.layers.packed_attention import packed_attention
from janus_jax.layers.remat import BLOCK_INPUT, known, rematerialise


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
        turn = functools.partial(rotate, positions=positions, theta=self.rope_theta)
        with jax.named_scope("attention"):
            q, k, v = self.attention.qkv(self.attention_norm(x))
            x = x + self.attention.merge(attend(turn(q), turn(k), v))
        with jax.named_scope("mlp"):
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
        """`remat` is a policy of `layers.remat`; the rest are the sizes of the released config."""
        self.remat, self.num_layers = known(remat), num_layers
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
        self.layers = jax.vmap(lambda key: block(Rngs(key)))(jax.random.split(rngs(), num_layers))
        self.norm = RMSNorm(rngs, embed_dim, eps=norm_eps)
        self.head = Linear(rngs, embed_dim, vocab_size, axes=("embed", "vocab"), bias=False)

    def embed_tokens(self, tokens, *, dtype):
        """int32[...] -> float[..., D] in `dtype`."""
        around = (None,) * (tokens.ndim - 1)  # every device looks all ids up in its own columns, then rows go home
        rows = sharding.constrain(self.embed[sharding.constrain(tokens, "slices", *around)], "slices", *around, "embed")
        return sharding.constrain(rows.astype(dtype), "batch", *around, "act_embed")

    def score_text(self, hidden, *, targets, weights):
        """`losses.text_cross_entropy` of this head, where every device scores its own groups.

        The head travels once, in the dtype of the states, and its gradient adds up in fp32 before it travels back.

        Args:
          hidden: float[S, P, D].
          targets: int32[S, P].
          weights: float32[S, P].

        Returns:
          losses and hits, float32[S, P].
        """

        flat = lambda x: x.reshape(-1, *x.shape[2:])

        def own(hidden, kernel, targets, weights):
            wide = kernel.astype(jnp.float32)
            head = lambda states: states @ wide.astype(states.dtype)
            losses = text_cross_entropy(flat(hidden), head=head, targets=flat(targets), weights=flat(weights))
            return tuple(loss.reshape(targets.shape) for loss in losses)

        kernel = sharding.constrain(self.head.kernel.astype(hidden.dtype), "act_embed", "vocab")
        groups, whole = ("batch", "length"), ("act_embed", "act_embed")
        inputs = ((*groups, "act_embed"), whole, groups, groups)
        spread = sharding.per_device(own, inputs=inputs, output=(groups, groups), over="batch")
        return spread(hidden, jax.lax.optimization_barrier(kernel), targets, weights)

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
        attend = functools.partial(packed_attention, segment_ids=segment_ids)

        def body(carry, numbered):
            (x, tapped), (number, layer) = carry, numbered
            x = checkpoint_name(x, BLOCK_INPUT)
            x = sharding.constrain(layer(x, positions=positions, attend=attend), "batch", "length", "act_embed")
            tapped = None if tapped is None else jnp.where(number == tap, x, tapped)
            return (x, tapped), None

        body = rematerialise(body, self.remat)
        numbered = (jnp.arange(1, self.num_layers + 1), self.layers)
        carry = (x, None if tap is None else x)
        (x, tapped), _ = jax.lax.scan(body, carry, numbered, unroll=self.remat == "none")
        return self.norm(x), tapped
