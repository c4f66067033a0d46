"""The VQ-16 picture tokenizer: encoder, quantiser, decoder (LlamaGen; Janus, section 3.1).

Codes are searched on the unit sphere: both the encoder's vectors and the codebook's rows are L2-normalised at every
use, so rescaling a row changes nothing. Attention stands only at the lowest resolution.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.conv import (
    AttentionBlock,
    Conv,
    Downsample,
    ResnetBlock,
    Upsample,
)
from janus_jax.layers.linear import param
from janus_jax.layers.norm import GroupNorm


def normalize(x, eps=1e-12):
    """Rows of unit length: float[..., C] -> float[..., C]."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


class Level(nnx.Module):
    """The blocks of one resolution, attention after each where asked, and the change of resolution behind them."""

    def __init__(self, rngs, in_dim, out_dim, *, num_blocks, num_groups, attend, resample):
        self.num_blocks = num_blocks
        self.blocks = nnx.Dict(
            {str(i): ResnetBlock(rngs, out_dim if i else in_dim, out_dim, num_groups=num_groups) for i in range(num_blocks)}
        )
        self.attentions = (
            nnx.Dict({str(i): AttentionBlock(rngs, out_dim, num_groups=num_groups) for i in range(num_blocks)})
            if attend
            else None
        )
        self.resample = resample(rngs, out_dim) if resample else None

    def __call__(self, x):
        for i in range(self.num_blocks):
            x = self.blocks[str(i)](x)
            x = x if self.attentions is None else self.attentions[str(i)](x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, rngs, dim, *, num_groups):
        self.block_1 = ResnetBlock(rngs, dim, dim, num_groups=num_groups)
        self.attention = AttentionBlock(rngs, dim, num_groups=num_groups)
        self.block_2 = ResnetBlock(rngs, dim, dim, num_groups=num_groups)

    def __call__(self, x):
        return self.block_2(self.attention(self.block_1(x)))


class Encoder(nnx.Module):
    """Pixels to feature vectors, one halving between levels."""

    def __init__(self, rngs, *, base_channels, channel_mult, num_res_blocks, z_channels, num_groups):
        widths = [base_channels * m for m in channel_mult]
        self.num_levels = len(widths)
        self.conv_in = Conv(rngs, 3, base_channels)
        self.levels = nnx.Dict(
            {
                str(i): Level(
                    rngs,
                    widths[max(i - 1, 0)] if i else base_channels,
                    width,
                    num_blocks=num_res_blocks,
                    num_groups=num_groups,
                    attend=i == len(widths) - 1,
                    resample=Downsample if i < len(widths) - 1 else None,
                )
                for i, width in enumerate(widths)
            }
        )
        self.middle = Middle(rngs, widths[-1], num_groups=num_groups)
        self.norm_out = GroupNorm(rngs, widths[-1], num_groups=num_groups)
        self.conv_out = Conv(rngs, widths[-1], z_channels)

    def __call__(self, x):
        """float[M, h, w, 3] -> float[M, h', w', z]."""
        x = self.conv_in(x)
        for i in range(self.num_levels):
            x = self.levels[str(i)](x)
        return self.conv_out(jax.nn.swish(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Feature vectors to pixels; level 0 is the lowest resolution, one block more than in the encoder."""

    def __init__(self, rngs, *, base_channels, channel_mult, num_res_blocks, z_channels, num_groups):
        widths = [base_channels * m for m in reversed(channel_mult)]
        self.num_levels = len(widths)
        self.conv_in = Conv(rngs, z_channels, widths[0])
        self.middle = Middle(rngs, widths[0], num_groups=num_groups)
        self.levels = nnx.Dict(
            {
                str(i): Level(
                    rngs,
                    widths[max(i - 1, 0)],
                    width,
                    num_blocks=num_res_blocks + 1,
                    num_groups=num_groups,
                    attend=i == 0,
                    resample=Upsample if i < len(widths) - 1 else None,
                )
                for i, width in enumerate(widths)
            }
        )
        self.norm_out = GroupNorm(rngs, widths[-1], num_groups=num_groups)
        self.conv_out = Conv(rngs, widths[-1], 3)

    def __call__(self, z):
        """float[M, h', w', z] -> float[M, h, w, 3]."""
        x = self.middle(self.conv_in(z))
        for i in range(self.num_levels):
            x = self.levels[str(i)](x)
        return self.conv_out(jax.nn.swish(self.norm_out(x)))


class VQTokenizer(nnx.Module):
    """Pictures to code ids and back. A fresh codebook is normal; only its directions matter."""

    def __init__(
        self, rngs, *, base_channels, channel_mult, num_res_blocks, z_channels, codebook_size, codebook_dim, num_groups=32
    ):
        net = dict(
            base_channels=base_channels,
            channel_mult=tuple(channel_mult),
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            num_groups=num_groups,
        )
        self.encoder = Encoder(rngs, **net)
        self.decoder = Decoder(rngs, **net)
        self.quant_conv = Conv(rngs, z_channels, codebook_dim, window=1)
        self.post_quant_conv = Conv(rngs, codebook_dim, z_channels, window=1)
        axes = ("codes", "code_dim")
        self.codebook = param(rngs, (codebook_size, codebook_dim), axes, nnx.initializers.normal(1.0))

    def encode(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> vectors before normalisation, float[M, h', w', code dim]."""
        return self.quant_conv(self.encoder(pixels))

    def nearest(self, vectors):
        """Ids of the nearest codes: float[M, h', w', code dim] -> int32[M, T], row-major."""
        scores = jnp.einsum("mhwc,kc->mhwk", normalize(vectors), normalize(self.codebook[...]))
        return rearrange(jnp.argmax(scores, axis=-1), "m h w -> m (h w)").astype(jnp.int32)

    def decode(self, codes):
        """Code ids int32[M, T] of square pictures -> pixels float[M, h, w, 3], not clipped."""
        side = int(codes.shape[-1] ** 0.5)
        vectors = normalize(self.codebook[...])[codes]
        return self.decoder(self.post_quant_conv(rearrange(vectors, "m (h w) c -> m h w c", h=side)))

    def reconstruct(self, pixels, used):
        """Training pass with straight-through gradients.

        Args:
          pixels: float[M, h, w, 3] in [-1, 1].
          used: bool[M], False for empty slots, which no code is to serve.

        Returns:
          pixels float[M, h, w, 3]; codes int32[M, T]; and three losses float32[M] without their weights: codebook
          mean (z_q - sg z)^2, commitment mean (sg z_q - z)^2, and revival, the mean squared distance of the codes
          that no picture used to the nearest vector that is badly met, by more than the mean error (one figure for
          the batch, under stop-gradient of z).
        """
        z = normalize(self.encode(pixels))
        codes, book = self.nearest(z), normalize(self.codebook[...])
        z_q = book[codes].reshape(z.shape)
        codebook = jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2, axis=(1, 2, 3))
        commitment = jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2, axis=(1, 2, 3))
        through = z + jax.lax.stop_gradient(z_q - z)

        vectors = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
        real = jnp.repeat(used, codes.shape[1])[None]
        error = jnp.mean((jax.lax.stop_gradient(z_q - z)) ** 2, axis=-1).reshape(1, -1)
        badly = real & (error > jnp.mean(error, where=real))
        nearest = vectors[jnp.argmax(jnp.where(badly, book @ vectors.T, -jnp.inf), axis=-1)]
        unused = jnp.ones(len(book)).at[jnp.where(used[:, None], codes, len(book)).reshape(-1)].set(0.0, mode="drop")
        revival = jnp.mean(unused * jnp.mean((book - nearest) ** 2, axis=-1))
        out = self.decoder(self.post_quant_conv(through))
        return out, codes, codebook, commitment, jnp.broadcast_to(revival, commitment.shape)
