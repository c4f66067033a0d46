"""Convolutional blocks shared by the image tokenizers (VQ-16, SDXL-VAE). Feature maps are NHWC.

Residual blocks are laid out as in LlamaGen's VQ-16.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.attention import attention
from janus_jax.layers.linear import lecun_normal, param, silu, trailing, zeros
from janus_jax.layers.norm import GroupNorm


class Conv(nnx.Module):
    """2-D convolution with bias. Fresh kernels are LeCun normal, biases zero."""

    def __init__(self, rngs, in_dim, out_dim, *, window=3, stride=1, padding="SAME"):
        self.stride, self.padding = stride, padding
        axes = ("window", "window", "conv_in", "conv_out")
        self.kernel = param(rngs, (window, window, in_dim, out_dim), axes, lecun_normal())
        self.bias = param(rngs, (out_dim,), ("conv_out",), zeros)

    def __call__(self, x):
        """float[M, h, w, in] -> float[M, h', w', out]."""
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + trailing(self.bias, y)


class ResnetBlock(nnx.Module):
    """Group norm, swish and 3x3 convolution, twice, and a skip connection.

    The skip is a 1x1 convolution where the width changes.
    """

    def __init__(self, rngs, in_dim, out_dim, *, num_groups):
        self.norm_1 = GroupNorm(rngs, in_dim, num_groups=num_groups)
        self.conv_1 = Conv(rngs, in_dim, out_dim)
        self.norm_2 = GroupNorm(rngs, out_dim, num_groups=num_groups)
        self.conv_2 = Conv(rngs, out_dim, out_dim)
        self.shortcut = Conv(rngs, in_dim, out_dim, window=1) if in_dim != out_dim else None

    def __call__(self, x):
        """float[M, h, w, in] -> float[M, h, w, out]."""
        y = self.conv_1(silu(self.norm_1(x)))
        y = self.conv_2(silu(self.norm_2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Single-head attention over all positions of a feature map, with a skip connection."""

    def __init__(self, rngs, dim, *, num_groups):
        self.norm = GroupNorm(rngs, dim, num_groups=num_groups)
        self.query, self.key, self.value, self.out = (
            Conv(rngs, dim, dim, window=1) for _ in range(4)
        )

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h, w, C]."""
        y = self.norm(x)
        q, k, v = (
            rearrange(p(y), "m h w c -> m (h w) 1 c") for p in (self.query, self.key, self.value)
        )
        y = rearrange(attention(q, k, v), "m (h w) 1 c -> m h w c", h=x.shape[1])
        return x + self.out(y)


class Downsample(nnx.Module):
    """Halves a feature map: zeros are padded at the bottom and right, then a 3x3 convolution."""

    def __init__(self, rngs, dim):
        self.conv = Conv(rngs, dim, dim, stride=2, padding=((0, 1), (0, 1)))

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h/2, w/2, C]."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles a feature map: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, rngs, dim):
        self.conv = Conv(rngs, dim, dim)

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, 2h, 2w, C]."""
        m, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (m, h, 2, w, 2, c)).reshape(m, 2 * h, 2 * w, c)
        return self.conv(x)
