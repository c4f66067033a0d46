"""The VQ-16 picture tokenizer: encoder, quantiser, decoder (LlamaGen; Janus, section 3.1).

Codes are searched on the unit sphere: both the encoder's vectors and the codebook's rows are L2-normalised at every
use, so rescaling a row changes nothing. Attention stands only at the lowest resolution.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import param
from janus_jax.tokenizers.autoencoder import Decoder, Encoder


def normalize(x, eps=1e-12):
    """Rows of unit length: float[..., C] -> float[..., C]."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


class VQTokenizer(nnx.Module):
    """Pictures to code ids and back. A fresh codebook is normal; only its directions matter.

    Products are of the highest precision: fp32 alone would still let TPUs and GPUs round what they multiply, and ids change.
    """

    def __init__(
        self, rngs, *, base_channels, channel_mult, num_res_blocks, z_channels, codebook_size, codebook_dim, num_groups=32
    ):
        widths = [base_channels * m for m in channel_mult]
        net = dict(widths=widths, num_res_blocks=num_res_blocks, z_channels=z_channels, num_groups=num_groups, attend=True)
        self.encoder = Encoder(rngs, stem=base_channels, **net)
        self.decoder = Decoder(rngs, **net)
        self.quant_conv = Conv(rngs, z_channels, codebook_dim, window=1)
        self.post_quant_conv = Conv(rngs, codebook_dim, z_channels, window=1)
        axes = ("codes", "code_dim")
        self.codebook = param(rngs, (codebook_size, codebook_dim), axes, nnx.initializers.normal(1.0))

    @jax.default_matmul_precision("highest")
    def encode(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> vectors before normalisation, float[M, h', w', code dim]."""
        return self.quant_conv(self.encoder(pixels))

    @jax.default_matmul_precision("highest")
    def nearest(self, vectors):
        """Ids of the nearest codes: float[M, h', w', code dim] -> int32[M, T], row-major."""
        scores = jnp.einsum("mhwc,kc->mhwk", normalize(vectors), normalize(self.codebook[...]))
        return rearrange(jnp.argmax(scores, axis=-1), "m h w -> m (h w)").astype(jnp.int32)

    @jax.default_matmul_precision("highest")
    def decode(self, codes):
        """Code ids int32[M, T] of square pictures -> pixels float[M, h, w, 3], not clipped."""
        side = int(codes.shape[-1] ** 0.5)
        vectors = normalize(self.codebook[...])[codes]
        return self.decoder(self.post_quant_conv(rearrange(vectors, "m (h w) c -> m h w c", h=side)))

    @jax.default_matmul_precision("highest")
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
