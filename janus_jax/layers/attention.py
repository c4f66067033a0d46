"""Dense attention under any mask, rotary positions, and the projections of an attention block."""

import functools

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.linear import lecun_normal, param, trailing, zeros

MASKED = jnp.finfo(jnp.float32).min  # score of a masked pair


def attention(q, k, v, *, mask=None):
    """Softmax attention in fp32.

    Args:
      q: float[B, L, N, H] queries.
      k: float[B, P, K, H] keys; N is a multiple of K.
      v: float[B, P, K, H] values.
      mask: bool[B, 1, L, P] or None, True where a query attends to a key.

    Returns:
      float[B, L, N, H].
    """
    chex.assert_equal_shape([k, v])
    q = rearrange(q, "b l (k g) h -> b k g l h", k=k.shape[2]) * q.shape[-1] ** -0.5
    scores = jnp.einsum("bkglh,bpkh->bkglp", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    heads = jnp.einsum("bkglp,bpkh->bkglh", probabilities, v)
    return rearrange(heads, "b k g l h -> b l (k g) h")


def cached_attention(q, prompt, suffix, *, prompt_mask, suffix_mask, num_branches=1):
    """Softmax attention in fp32 over a prompt's cache, which its samples share, and each row's own.

    Args:
      q: float[B, L, N, H] queries. Rows are ordered by prompt, then sample, then guidance branch.
      prompt: keys and values float[M, K, P, H]; B is a multiple of M, and N of K.
      suffix: keys and values float[B, K, J, H].
      prompt_mask: bool[M, P], which positions of the prompts are attended to.
      suffix_mask: bool[L, J], which positions of its suffix a query attends to.
      num_branches: rows per sample.

    Returns:
      float[B, L, N, H].
    """
    num_samples = len(q) // len(prompt_mask)
    sizes = dict(n=num_samples, c=num_branches)
    # All samples of a prompt become queries of one row, so that its keys are read once.
    to_prompts = lambda x: rearrange(x, "(m n c) k g l x -> (m c) k g (n l) x", **sizes)
    to_rows = lambda x: rearrange(x, "(m c) k g (n l) x -> (m n c) k g l x", **sizes)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    q = rearrange(q, "b l (k g) h -> b k g l h", k=suffix[0].shape[1]) * q.shape[-1] ** -0.5
    prompt_scores = product("bkglh,bkph->bkglp", to_prompts(q), prompt[0])
    prompt_scores = to_rows(jnp.where(prompt_mask[:, None, None, None], prompt_scores, MASKED))
    suffix_scores = product("bkglh,bkph->bkglp", q, suffix[0])
    suffix_scores = jnp.where(suffix_mask[None, None, None], suffix_scores, MASKED)

    scores = jnp.concatenate([prompt_scores, suffix_scores], axis=-1)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    prompt_p, suffix_p = jnp.split(probabilities, [prompt_mask.shape[1]], axis=-1)
    heads = to_rows(product("bkglp,bkph->bkglh", to_prompts(prompt_p), prompt[1]))
    heads = heads + product("bkglp,bkph->bkglh", suffix_p, suffix[1])
    return rearrange(heads.astype(q.dtype), "b k g l h -> b l (k g) h")


def rotate(x, positions, *, theta):
    """Rotary position embedding in the half-split layout of the released LLM.

    Args:
      x: float[B, L, N, H] queries or keys.
      positions: int32[B, L].
      theta: base of the frequencies.

    Returns:
      float[B, L, N, H].
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)  # [B, L, 1, H/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class Projection(nnx.Module):
    """A linear map to or from heads, over the first `fan_in` axes of its kernel.

    Fresh kernels are LeCun normal in those axes, biases are zero.
    """

    def __init__(self, rngs, shape, *, axes, fan_in, bias):
        self.fan_in = fan_in
        init = lecun_normal(in_axis=tuple(range(fan_in)), out_axis=tuple(range(fan_in, 3)))
        self.kernel = param(rngs, shape, axes, init)
        self.bias = param(rngs, shape[fan_in:], axes[fan_in:], zeros) if bias else None

    def __call__(self, x):
        """float[..., in axes] -> float[..., out axes]."""
        # tensordot, because einsum sorts the axes and copies the kernel.
        y = jnp.tensordot(x, self.kernel.astype(x.dtype), self.fan_in)
        return y if self.bias is None else y + trailing(self.bias, y)


class Attention(nnx.Module):
    """The four projections of an attention block; the caller chooses the attention between them."""

    def __init__(self, rngs, embed_dim, *, num_heads, num_kv_heads, head_dim, bias):
        q_shape = (embed_dim, num_heads, head_dim)
        kv_shape = (embed_dim, num_kv_heads, head_dim)
        q_axes = ("embed", "heads", "head_dim")
        kv_axes = ("embed", "kv_heads", "head_dim")
        self.query = Projection(rngs, q_shape, axes=q_axes, fan_in=1, bias=bias)
        self.key = Projection(rngs, kv_shape, axes=kv_axes, fan_in=1, bias=bias)
        self.value = Projection(rngs, kv_shape, axes=kv_axes, fan_in=1, bias=bias)
        out_shape = (num_heads, head_dim, embed_dim)
        out_axes = ("heads", "head_dim", "embed")
        self.out = Projection(rngs, out_shape, axes=out_axes, fan_in=2, bias=bias)

    def qkv(self, x):
        """float[B, L, D] -> queries float[B, L, N, H], keys and values float[B, L, K, H]."""
        return self.query(x), self.key(x), self.value(x)

    def merge(self, heads):
        """float[B, L, N, H] -> float[B, L, D]."""
        return self.out(heads)
