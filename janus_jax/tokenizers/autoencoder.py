"""Encoder and decoder of the image tokenizers VQ-16 and SDXL-VAE.

Both have levels of residual blocks and a middle with attention. VQ-16 also has attention after
every block of its coarsest level. In shapes, z is the number of channels of the feature vectors.
"""

from flax import nnx

from janus_jax.layers.conv import AttentionBlock, Conv, Downsample, ResnetBlock, Upsample
from janus_jax.layers.linear import silu
from janus_jax.layers.norm import GroupNorm


class Level(nnx.Module):
    """Blocks of one resolution, with attention after each if `attend`, then resampling."""

    def __init__(self, rngs, in_dim, out_dim, *, num_blocks, num_groups, attend, resample):
        self.num_blocks = num_blocks
        input_dims = [in_dim] + [out_dim] * (num_blocks - 1)
        self.blocks = nnx.Dict(
            {
                str(i): ResnetBlock(rngs, dim, out_dim, num_groups=num_groups)
                for i, dim in enumerate(input_dims)
            }
        )
        attentions = {
            str(i): AttentionBlock(rngs, out_dim, num_groups=num_groups)
            for i in range(num_blocks)
            if attend
        }
        self.attentions = nnx.Dict(attentions) if attend else None
        self.resample = resample(rngs, out_dim) if resample else None

    def __call__(self, x):
        """float[M, h, w, in_dim] -> float[M, h', w', out_dim]."""
        for i in range(self.num_blocks):
            x = self.blocks[str(i)](x)
            if self.attentions is not None:
                x = self.attentions[str(i)](x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """A residual block, attention and a residual block at the lowest resolution."""

    def __init__(self, rngs, dim, *, num_groups):
        self.block_1 = ResnetBlock(rngs, dim, dim, num_groups=num_groups)
        self.attention = AttentionBlock(rngs, dim, num_groups=num_groups)
        self.block_2 = ResnetBlock(rngs, dim, dim, num_groups=num_groups)

    def __call__(self, x):
        """float[M, h, w, C] -> float[M, h, w, C]."""
        return self.block_2(self.attention(self.block_1(x)))


class Encoder(nnx.Module):
    """Pixels to feature vectors; every level but the last halves the resolution."""

    def __init__(self, rngs, *, stem, widths, num_res_blocks, z_channels, num_groups, attend):
        """Builds it.

        Args:
          rngs: source of fresh parameters.
          stem: channels of the first convolution.
          widths: channels of the levels, fine to coarse.
          num_res_blocks: residual blocks per level; the decoder has one more.
          z_channels: channels of the feature vectors.
          num_groups: of every GroupNorm.
          attend: attention after every block of the coarsest level.
        """
        self.num_levels = len(widths)
        self.conv_in = Conv(rngs, 3, stem)
        self.levels = nnx.Dict(
            {
                str(i): Level(
                    rngs,
                    widths[i - 1] if i else stem,
                    width,
                    num_blocks=num_res_blocks,
                    num_groups=num_groups,
                    attend=attend and i == len(widths) - 1,
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
        return self.conv_out(silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Feature vectors to pixels; level 0 has the lowest resolution."""

    def __init__(self, rngs, *, widths, num_res_blocks, z_channels, num_groups, attend):
        """The arguments of `Encoder`, except the stem."""
        widths = list(reversed(widths))
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
                    attend=attend and i == 0,
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
        return self.conv_out(silu(self.norm_out(x)))
