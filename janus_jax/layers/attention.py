"""Plain attention under any mask, rotary positions, and the projections around them."""

import functools

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.linear import lecun_normal, param, trailing, zeros

NEVER = jnp.finfo(jnp.float32).min  # the score of what may not be looked at


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
        scores = jnp.where(mask[:, :, None], scores, NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return rearrange(jnp.einsum("bkglp,bpkh->bkglh", weights, v), "b k g l h -> b l (k g) h")


def cached_attention(q, prompt, own, *, seen, before, ways=1):
    """Softmax attention in fp32 over two parts of keys: the prompt's, which its pictures share, and each row's own.

    Args:
      q: float[B, L, N, H] queries of rows that stand prompt by prompt, picture by picture, way by way.
      prompt: keys and values float[M, K, P, H]; B is a multiple of M, and N of K.
      own: keys and values float[B, K, T, H].
      seen: bool[M, P], which keys of the prompts may be looked at.
      before: bool[L, T], which of its own keys a query may look at.
      ways: rows of a picture.

    Returns:
      float[B, L, N, H].
    """
    copies, kv_heads = len(q) // len(seen), own[0].shape[1]
    to_prompts = functools.partial(rearrange, pattern="(m n c) k g l x -> (m c) k g (n l) x", n=copies, c=ways)
    to_rows = functools.partial(rearrange, pattern="(m c) k g (n l) x -> (m n c) k g l x", n=copies, c=ways)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    q = rearrange(q, "b l (k g) h -> b k g l h", k=kv_heads) * q.shape[-1] ** -0.5
    far = to_rows(jnp.where(seen[:, None, None, None], product("bkglh,bkph->bkglp", to_prompts(q), prompt[0]), NEVER))
    near = jnp.where(before[None, None, None], product("bkglh,bkph->bkglp", q, own[0]), NEVER)
    weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1).astype(q.dtype)
    far, near = jnp.split(weights, [far.shape[-1]], axis=-1)
    out = to_rows(product("bkglp,bkph->bkglh", to_prompts(far), prompt[1])) + product("bkglp,bkph->bkglh", near, own[1])
    return rearrange(out.astype(q.dtype), "b k g l h -> b l (k g) h")


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
    """A linear map of the last `fan_in` axes, to or from heads. Fresh kernels are LeCun normal in them, biases zero."""

    def __init__(self, rngs, shape, *, axes, fan_in, bias):
        self.fan_in, fan_out = fan_in, tuple(range(fan_in, 3))
        init = lecun_normal(in_axis=tuple(range(fan_in)), out_axis=fan_out)
        self.kernel = param(rngs, shape, axes, init)
        self.bias = param(rngs, shape[fan_in:], axes[fan_in:], zeros) if bias else None

    def __call__(self, x):
        y = jnp.tensordot(x, self.kernel.astype(x.dtype), self.fan_in)  # einsum would sort the axes, and copy the kernel
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
        return tuple(p(x) for p in (self.query, self.key, self.value))

    def merge(self, heads):
        """float[B, L, N, H] -> float[B, L, D]."""
        return self.out(heads)
