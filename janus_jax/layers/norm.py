"""RMSNorm, LayerNorm and GroupNorm, all computed in fp32 and cast back."""

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.layers.linear import ones, param, trailing, zeros


class RMSNorm(nnx.Module):
    """x / rms(x), cast to the input's dtype, then times the scale, as in the released LLM."""

    def __init__(self, rngs, dim, *, eps):
        self.eps = eps
        self.scale = param(rngs, (dim,), ("embed",), ones)

    def __call__(self, x):
        """float[..., D] -> float[..., D]."""
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * trailing(self.scale, x)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, with scale and bias."""

    def __init__(self, rngs, dim, *, eps):
        self.eps = eps
        self.scale = param(rngs, (dim,), ("norm",), ones)
        self.bias = param(rngs, (dim,), ("norm",), zeros)

    def __call__(self, x):
        """float[..., D] -> float[..., D]."""
        x32 = x.astype(jnp.float32)
        mean = x32.mean(axis=-1, keepdims=True)
        variance = jnp.var(x32, axis=-1, keepdims=True)
        y = (x32 - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * trailing(self.scale, y) + trailing(self.bias, y)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """GroupNorm of NHWC feature maps, with scale and bias."""

    def __init__(self, rngs, dim, *, num_groups, eps=1e-6):
        self.num_groups, self.eps = num_groups, eps
        self.scale = param(rngs, (dim,), ("norm",), ones)
        self.bias = param(rngs, (dim,), ("norm",), zeros)

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h, w, C]."""
        x32 = x.astype(jnp.float32)
        mean = self._over_groups(x32.mean(axis=(1, 2)))
        variance = self._over_groups(jnp.square(x32 - mean).mean(axis=(1, 2)))
        gain = jax.lax.rsqrt(variance + self.eps) * trailing(self.scale, x32)
        return (x32 * gain + (trailing(self.bias, x32) - mean * gain)).astype(x.dtype)

    def _over_groups(self, per_channel):
        """Replaces channels by the mean of their group: float[M, C] -> float[M, 1, 1, C]."""
        m, c = per_channel.shape
        grouped = per_channel.reshape(m, self.num_groups, c // self.num_groups)
        means = jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape)
        return means.reshape(m, 1, 1, c)
