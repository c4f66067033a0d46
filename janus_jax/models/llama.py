"""The LLaMA-type LLM: pre-norm blocks of rotary attention and SwiGLU, scanned and rematerialised.

RMSNorm in fp32, rotary positions in half-split layout, a text head that is not tied to the
embedding table, as in the released models.
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
from janus_jax.layers.remat import BLOCK_INPUT, check_policy, rematerialise


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(
        self, rngs, *, embed_dim, num_heads, num_kv_heads, mlp_dim, norm_eps, rope_theta=10_000.0
    ):
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
          attend: (q, k, v) -> heads float[B, L, N, H], cache; in training masked attention over
            the row and None, in sampling attention that reads a cache and the extended cache.

        Returns:
          float[B, L, D], and the cache that `attend` returned.
        """
        with_positions = functools.partial(rotate, positions=positions, theta=self.rope_theta)
        with jax.named_scope("attention"):
            q, k, v = self.attention.qkv(self.attention_norm(x))
            heads, cache = attend(with_positions(q), with_positions(k), v)
            x = x + self.attention.merge(heads)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), cache


class Llama(nnx.Module):
    """Embedding table, a stack of blocks, final norm, and the text head (not tied to the table).

    Fresh kernels are LeCun normal, the embedding table N(0, 1).
    """

    def __init__(
        self,
        rngs,
        *,
        vocab_size,
        num_layers,
        embed_dim,
        norm_eps=1e-6,
        remat="block",
        **block,
    ):
        """`remat` is a policy of `layers.remat`; `block` are further sizes of `Block`."""
        self.remat = check_policy(remat)
        self.num_layers = num_layers
        make_block = functools.partial(Block, embed_dim=embed_dim, norm_eps=norm_eps, **block)
        # Text embeddings have the scale of image features and of what the blocks add to them.
        unit = nnx.initializers.normal(1.0)
        self.embed = param(rngs, (vocab_size, embed_dim), ("vocab", "embed"), unit)
        keys = jax.random.split(rngs(), num_layers)
        self.layers = jax.vmap(lambda key: make_block(Rngs(key)))(keys)
        self.norm = RMSNorm(rngs, embed_dim, eps=norm_eps)
        self.head = Linear(rngs, embed_dim, vocab_size, axes=("embed", "vocab"), bias=False)

    def embed_tokens(self, tokens, *, dtype):
        """int32[...] -> float[..., D] in `dtype`."""
        # Every device looks up the ids of its whole slice in its own columns of the table; then the
        # rows are exchanged, which are smaller than the table.
        other = (None,) * (tokens.ndim - 1)
        tokens = sharding.constrain(tokens, "slices", *other)
        rows = sharding.constrain(self.embed[tokens], "slices", *other, "embed")
        return sharding.constrain(rows.astype(dtype), "batch", *other, "act_embed")

    def score_text(self, hidden, *, targets, weights):
        """`text_cross_entropy` of this head; every device scores its own pack groups.

        The head is gathered once, in the dtype of the states, and its gradient is summed in fp32
        before it is scattered.

        Args:
          hidden: float[S, P, D].
          targets: int32[S, P].
          weights: float32[S, P].

        Returns:
          losses, and whether each target is the most likely token; float32[S, P] each.
        """
        flat = lambda x: x.reshape(-1, *x.shape[2:])

        def score_groups(hidden, kernel, targets, weights):
            kernel = kernel.astype(jnp.float32)
            scores = text_cross_entropy(
                flat(hidden),
                head=lambda states: states @ kernel.astype(states.dtype),
                targets=flat(targets),
                weights=flat(weights),
            )
            return tuple(score.reshape(targets.shape) for score in scores)

        kernel = sharding.constrain(self.head.kernel.astype(hidden.dtype), "act_embed", "vocab")
        kernel = jax.lax.optimization_barrier(kernel)
        groups = ("batch", "length")
        replicated = ("act_embed", "act_embed")
        inputs = ((*groups, "act_embed"), replicated, groups, groups)
        score = sharding.per_device(
            score_groups, inputs=inputs, output=(groups, groups), over="batch"
        )
        return score(hidden, kernel, targets, weights)

    def __call__(self, x, *, positions, segment_ids, image_ids=None, tap=None):
        """Hidden states of packed rows after the final norm.

        Args:
          x: float[B, L, D] embeddings.
          positions: int32[B, L].
          segment_ids: int32[B, L], 0 is padding.
          image_ids: int32[B, L] for bidirectional attention inside generated images, or None; see
            `packed_attention`.
          tap: number of a block, from 1, whose output is returned too.

        Returns:
          float[B, L, D]; and the output of block `tap`, float[B, L, D] before any norm, or None.

        Raises:
          UserError: when there is no block `tap`.
        """
        chex.assert_shape([positions, segment_ids], x.shape[:2])
        if tap is not None and not 1 <= tap <= self.num_layers:
            raise UserError(
                f"The loss needs the output of block {tap}; "
                f"config.model.llm.num_layers is {self.num_layers}."
            )

        def attend(q, k, v):
            return packed_attention(q, k, v, segment_ids=segment_ids, image_ids=image_ids), None

        def body(carry, numbered_layer):
            x, tapped = carry
            number, layer = numbered_layer
            x, _ = layer(checkpoint_name(x, BLOCK_INPUT), positions=positions, attend=attend)
            x = sharding.constrain(x, "batch", "length", "act_embed")
            if tap is not None:
                tapped = jnp.where(number == tap, x, tapped)
            return (x, tapped), None

        body = rematerialise(body, self.remat)
        numbered_layers = (jnp.arange(1, self.num_layers + 1), self.layers)
        start = (x, None if tap is None else x)
        (x, tapped), _ = jax.lax.scan(body, start, numbered_layers, unroll=self.remat == "none")
        return self.norm(x), tapped
