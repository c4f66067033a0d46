"""SDXL's variational autoencoder: images to Gaussian latents, 8x down, and back (diffusers'
AutoencoderKL).
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax import flops
from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import ones, param
from janus_jax.layers.pixels import to_float
from janus_jax.tokenizers.autoencoder import Decoder, Encoder
from janus_jax.tokenizers.base import ImageTokenizer, reconstruction_errors
from janus_jax.tokenizers.chunks import map_in_chunks


class VAE(ImageTokenizer):
    """Encoder, decoder, the 1x1 convolutions around the latents, and their scale, 1 / their
    standard deviation.

    Moments and latents in `encode` and `decode` are unscaled; SDXL's scale is 0.13025. Products
    have the highest precision, also on devices that round factors by default.
    """

    training_defaults = dict(squared=1.0, absolute=1.0, foreground=0.0, divergence=1e-6, crop=0)

    def __init__(self, rngs, *, widths, num_res_blocks, latent_channels, num_groups=32):
        """Builds the net.

        Args:
          rngs: source of fresh parameters.
          widths: channels of the levels, fine to coarse.
          num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
          latent_channels: c.
          num_groups: of every GroupNorm.
        """
        self.channels = latent_channels
        self.downsample = 2 ** (len(widths) - 1)
        self.width = widths[0]
        net = dict(
            widths=widths, num_res_blocks=num_res_blocks, num_groups=num_groups, attend=False
        )
        self.encoder = Encoder(rngs, stem=widths[0], z_channels=2 * latent_channels, **net)
        self.decoder = Decoder(rngs, z_channels=latent_channels, **net)
        self.quant_conv = Conv(rngs, 2 * latent_channels, 2 * latent_channels, window=1)
        self.post_quant_conv = Conv(rngs, latent_channels, latent_channels, window=1)
        self.scale = param(rngs, (), (), ones)

    @staticmethod
    def flops(*, size, widths, num_res_blocks, latent_channels, **_):
        """As `ImageTokenizer.flops`."""
        return flops.autoencoder(
            size=size,
            stem=widths[0],
            widths=widths,
            num_res_blocks=num_res_blocks,
            attend=False,
            features=2 * latent_channels,
            codes=2 * latent_channels,
            decoded=latent_channels,
        )

    @jax.default_matmul_precision("highest")
    def encode(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> mean and log variance of the posterior, float[M, h/8,
        w/8, c] each.
        """
        mean, logvar = jnp.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    @jax.default_matmul_precision("highest")
    def decode(self, latents):
        """float[M, h/8, w/8, c] -> pixels float[M, h, w, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def posterior(self, images):
        """uint8[M, h, w, 3] -> mean and log variance of the posterior, a few images at a time."""
        return map_in_chunks(lambda images: self.encode(to_float(images, jnp.float32)), images)

    def cache(self, images):
        """Scaled posterior means, float32[M, c, h/8, w/8], which accompany the image."""
        mean, _ = self.encode(to_float(images, jnp.float32))
        return {"latents": rearrange(mean * self.scale[...], "m h w c -> m c h w")}

    def reconstruct(self, images):
        """Encodes to the posterior's mean and decodes it: uint8[M, h, w, 3] -> float[M, h, w,
        3].
        """
        mean, _ = self.encode(to_float(images, jnp.float32))
        return self.decode(mean)

    def training_loss(self, pixels, keys, statistics, *, settings):
        """Reconstruction from a sampled latent, and the posterior's KL divergence from N(0, 1), a
        mean over latents.

        `settings` has the weights `squared`, `absolute` (reconstruction), `foreground` (of pixels
        that are not background, in addition to 1) and `divergence`.
        """
        mean, logvar = self.encode(pixels)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        output = self.decode(mean + jnp.exp(logvar / 2) * noise)
        squared, absolute = reconstruction_errors(output, pixels, foreground=settings["foreground"])
        average = lambda x: jnp.mean(x, axis=(1, 2, 3))
        divergence = 0.5 * average(mean**2 + jnp.exp(logvar) - 1 - logvar)
        loss = (
            settings["squared"] * squared
            + settings["absolute"] * absolute
            + settings["divergence"] * divergence
        )
        return loss, dict(
            squared_error=squared, divergence=divergence, latent_size=average(mean**2) ** 0.5
        )

    def calibrates(self, step, *, saving, settings):
        """Before every checkpoint."""
        return saving

    def calibrate(self, images, used, *, step, settings):
        """`scale` becomes 1 / the standard deviation of the latents of these images."""
        mean, _ = self.encode(to_float(images, jnp.float32))
        return {"scale": 1 / jnp.std(mean, where=used[:, None, None, None])}
