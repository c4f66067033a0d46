"""SDXL's variational autoencoder: pictures to Gaussian latents, 8x down, and back (diffusers' AutoencoderKL)."""

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import ones, param
from janus_jax.tokenizers.autoencoder import Decoder, Encoder


class VAE(nnx.Module):
    """Encoder, decoder, the 1x1 convolutions around the latents, and their scale, 1 / their standard deviation.

    Moments and latents here are unscaled; SDXL's scale is 0.13025. Products
    are of the highest precision, also where a device would round them by itself.
    """

    def __init__(self, rngs, *, widths, num_res_blocks, latent_channels, num_groups=32):
        """Builds it.

        Args:
          rngs: where fresh parameters come from.
          widths: channels of the levels, fine to coarse.
          num_res_blocks: residual blocks a level of the encoder; the decoder has one more.
          latent_channels: c.
          num_groups: of every GroupNorm.
        """
        self.channels = latent_channels
        net = dict(widths=widths, num_res_blocks=num_res_blocks, num_groups=num_groups, attend=False)
        self.encoder = Encoder(rngs, stem=widths[0], z_channels=2 * latent_channels, **net)
        self.decoder = Decoder(rngs, z_channels=latent_channels, **net)
        self.quant_conv = Conv(rngs, 2 * latent_channels, 2 * latent_channels, window=1)
        self.post_quant_conv = Conv(rngs, latent_channels, latent_channels, window=1)
        self.scale = param(rngs, (), (), ones)

    @jax.default_matmul_precision("highest")
    def encode(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> mean and log variance of the posterior, float[M, h/8, w/8, c] each."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    @jax.default_matmul_precision("highest")
    def decode(self, latents):
        """float[M, h/8, w/8, c] -> pixels float[M, h, w, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latents))
