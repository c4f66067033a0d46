"""Plain attention under any mask, rotary positions, and the projections around them."""

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.linear import lecun_normal, param, trailing, zeros


def attention(q, k, v, *, mask=None):
    """Softmax attention in fp32.

    Args:
      q: float[B, L, N, H] queries.
      k: float[B, P, K, H] keys; N is a multiple of K.
      v: float[B, P, K, H] values.
      mask: bool[B, 1, L, P] or None, True where a query may look.

    Returns:
      float[B, L, N, H].
    """
    chex.assert_equal_shape([k, v])
    groups = q.shape[2] // k.shape[2]
    q = rearrange(q, "b l (k g) h -> b k g l h", g=groups) * q.shape[-1] ** -0.5
    scores = jnp.einsum("bkglh,bpkh->bkglp", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return rearrange(jnp.einsum("bkglp,bpkh->bkglh", weights, v), "b k g l h -> b l (k g) h")


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
    angles = positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]  # [B, L, 1, H/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Projection(nnx.Module):
    """A linear map to or from heads. Fresh kernels are LeCun normal in their fan-in, biases zero."""

    def __init__(self, rngs, shape, *, axes, fan_in, bias):
        fan_out = tuple(range(fan_in, 3))
        init = lecun_normal(in_axis=tuple(range(fan_in)), out_axis=fan_out)
        self.kernel = param(rngs, shape, axes, init)
        self.bias = param(rngs, shape[fan_in:], axes[fan_in:], zeros) if bias else None

    def __call__(self, x, equation):
        y = jnp.einsum(equation, x, self.kernel.astype(x.dtype))
        return y if self.bias is None else y + trailing(self.bias, y)


class Attention(nnx.Module):
    """The four projections of an attention block; what happens between them is the caller's."""

    def __init__(self, rngs, embed_dim, *, num_heads, num_kv_heads, head_dim, bias):
        query, cache = (embed_dim, num_heads, head_dim), (embed_dim, num_kv_heads, head_dim)
        self.query = Projection(rngs, query, axes=("embed", "heads", "head_dim"), fan_in=1, bias=bias)
        self.key = Projection(rngs, cache, axes=("embed", "kv_heads", "head_dim"), fan_in=1, bias=bias)
        self.value = Projection(rngs, cache, axes=("embed", "kv_heads", "head_dim"), fan_in=1, bias=bias)
        out = (num_heads, head_dim, embed_dim)
        self.out = Projection(rngs, out, axes=("heads", "head_dim", "embed"), fan_in=2, bias=bias)

    def qkv(self, x):
        """float[B, L, D] -> queries float[B, L, N, H], keys and values float[B, L, K, H]."""
        return tuple(p(x, "bld,dnh->blnh") for p in (self.query, self.key, self.value))

    def merge(self, heads):
        """float[B, L, N, H] -> float[B, L, D]."""
        return self.out(heads, "blnh,nhd->bld")
