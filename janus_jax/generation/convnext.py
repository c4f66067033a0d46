"""JanusFlow's encoder and decoder around the LLM: a shallow U-Net of ConvNeXt blocks with one skip.

As in the released code (JanusFlow, section 3.2, figure 2), a block is that of ConvNeXt V2 with
RMSNorm, and the time modulates it after its residual sum. Feature maps are NHWC.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import Linear, param, trailing, zeros
from janus_jax.layers.norm import RMSNorm


def sinusoid(time, width):
    """Cosines, then sines, of times at geometric frequencies: float[M] -> float32[M, width]."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Depthwise(nnx.Module):
    """A depthwise convolution with bias, in fp32."""

    def __init__(self, rngs, dim, *, window):
        init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = param(
            rngs, (window, window, 1, dim), ("window", "window", "conv_in", "conv_out"), init
        )
        self.bias = param(rngs, (dim,), ("conv_out",), zeros)

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h, w, C]."""
        x32 = x.astype(jnp.float32)
        y = jax.lax.platform_dependent(x32, self.kernel[...], cpu=banded, default=grouped)
        return (y + trailing(self.bias, y)).astype(x.dtype)


def grouped(x, kernel):
    """The convolution as XLA's own.

    Args:
      x: float32[M, h, w, C].
      kernel: float32[s, s, 1, C], of a window of s x s pixels.

    Returns:
      float32[M, h, w, C].
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def banded(x, kernel):
    """The same as `grouped`, as one product with a band matrix per channel.

    On CPU it takes a tenth of the time of XLA's grouped convolution. In the einsums, i and j are
    rows and columns of the window, x is an input column and o an output column.
    """
    _, h, w, _ = x.shape
    window = len(kernel)
    margin = window // 2
    columns = jnp.arange(w)
    j = columns[None] - columns[:, None] + margin  # window column that o needs of x; may be outside
    one_hot = jax.nn.one_hot(j, window)
    band = jnp.einsum("oxj,ijc->ioxc", one_hot, rearrange(kernel, "i j 1 c -> i j c"))
    padded = jnp.pad(x, ((0, 0), (margin, margin), (0, 0), (0, 0)))
    rows = jnp.stack([padded[:, i : i + h] for i in range(window)])
    return jnp.einsum("ioxc,imhxc->mhoc", band, rows)


class GRN(nnx.Module):
    """Global response normalisation (ConvNeXt V2, section 3.2): scales channels by their norms."""

    def __init__(self, rngs, dim):
        self.gain = param(rngs, (dim,), ("norm",), zeros)
        self.bias = param(rngs, (dim,), ("norm",), zeros)

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h, w, C]."""
        x32 = x.astype(jnp.float32)
        squares = jnp.sum(x32 * x32, axis=(1, 2), keepdims=True)
        tiny = jnp.finfo(jnp.float32).tiny  # the gradient of a channel of zeros is 0, not NaN
        norm = jnp.sqrt(jnp.maximum(squares, tiny))
        relative_norm = norm / (norm.mean(axis=-1, keepdims=True) + 1e-6)
        scale = trailing(self.gain, x32) * relative_norm + 1
        return (trailing(self.bias, x32) + scale * x32).astype(x.dtype)


class ConvNeXtBlock(nnx.Module):
    """x + ConvNeXt(x), scaled and shifted by the time. Kernels start LeCun normal, GRN at zero."""

    def __init__(self, rngs, dim, *, time_dim, norm_eps):
        self.depthwise = Depthwise(rngs, dim, window=7)
        self.norm = RMSNorm(rngs, dim, eps=norm_eps)
        self.widen = Linear(rngs, dim, 4 * dim, axes=("conv_in", "mlp"))
        self.grn = GRN(rngs, 4 * dim)
        self.narrow = Linear(rngs, 4 * dim, dim, axes=("mlp", "conv_out"))
        self.modulate = Linear(rngs, time_dim, 2 * dim, axes=("embed", "embed_out"))

    def __call__(self, x, time):
        """float[M, h, w, C] and the embedded time float[M, D] -> float[M, h, w, C]."""
        y = self.widen(self.norm(self.depthwise(x)))
        x = x + self.narrow(self.grn(jax.nn.gelu(y, approximate=False)))
        scale, shift = jnp.split(self.modulate(jax.nn.silu(time))[:, None, None], 2, axis=-1)
        return x * (1 + scale) + shift


class FlowEncoder(nnx.Module):
    """Latents to features in patches of 2 x 2; also embeds the time, a token for the LLM."""

    def __init__(self, rngs, *, latent_channels, dim, num_blocks, time_dim, norm_eps):
        """Builds it.

        Args:
          rngs: source of fresh parameters.
          latent_channels: c.
          dim: C, channels of the blocks and width of the sinusoid.
          num_blocks: number of blocks.
          time_dim: D of the LLM.
          norm_eps: epsilon of every norm.
        """
        self.dim, self.num_blocks = dim, num_blocks
        self.time_1 = Linear(rngs, dim, time_dim, axes=("embed_out", "embed"))
        self.time_2 = Linear(rngs, time_dim, time_dim, axes=("embed_out", "embed"))
        self.patch = Conv(rngs, latent_channels, dim, window=2, stride=2, padding="VALID")
        block = lambda: ConvNeXtBlock(rngs, dim, time_dim=time_dim, norm_eps=norm_eps)
        self.blocks = nnx.Dict({str(i): block() for i in range(num_blocks)})

    def __call__(self, latents, time):
        """float[M, h, w, c], times float[M] in [0, 1] -> float[M, h/2, w/2, C], float[M, D]."""
        embedded = self.time_1(sinusoid(1000 * time, self.dim).astype(latents.dtype))
        embedded = self.time_2(jax.nn.silu(embedded))
        x = self.patch(latents)
        for i in range(self.num_blocks):
            x = self.blocks[str(i)](x, embedded)
        return x, embedded


class FlowDecoder(nnx.Module):
    """States of the LLM, concatenated with the encoder's output (the skip), to the velocity."""

    def __init__(self, rngs, *, latent_channels, dim, num_blocks, time_dim, norm_eps):
        """The arguments of `FlowEncoder`; blocks are twice as wide, for the concatenated input."""
        self.num_blocks = num_blocks
        self.norm_in = RMSNorm(rngs, dim, eps=norm_eps)
        block = lambda: ConvNeXtBlock(rngs, 2 * dim, time_dim=time_dim, norm_eps=norm_eps)
        self.blocks = nnx.Dict({str(i): block() for i in range(num_blocks)})
        self.norm_out = RMSNorm(rngs, 2 * dim, eps=norm_eps)
        self.unpatch = Conv(rngs, 2 * dim, 4 * latent_channels, window=1)

    def __call__(self, x, skip, time):
        """float[M, h/2, w/2, C] twice and the embedded time float[M, D] -> float[M, h, w, c]."""
        x = jnp.concatenate([self.norm_in(x), skip], axis=-1)
        for i in range(self.num_blocks):
            x = self.blocks[str(i)](x, time)
        return rearrange(
            self.unpatch(self.norm_out(x)), "m h w (c p q) -> m (h p) (w q) c", p=2, q=2
        )
