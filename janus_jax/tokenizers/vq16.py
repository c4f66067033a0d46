"""The VQ-16 image tokenizer: encoder, quantiser, decoder (LlamaGen; Janus, section 3.1).

Codes are searched on the unit sphere: both the encoder's vectors and the codebook's rows are
L2-normalised at every use, so rescaling a row changes nothing. Attention is used only at the lowest
resolution.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import param
from janus_jax.layers.pixels import to_float
from janus_jax.tokenizers.autoencoder import Decoder, Encoder
from janus_jax.tokenizers.base import ImageTokenizer, reconstruction_errors
from janus_jax.tokenizers.chunks import map_in_chunks

MIN_DISTANCE = 0.3  # between the first codes, of 2 between opposite ones


def normalize(x, eps=1e-12):
    """Rows of unit length: float[..., C] -> float[..., C]."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


class CodeUsage(NamedTuple):
    """What all images of a step have in common.

    Attributes:
      quantize: bool, False in the first `continuous_steps` of the training.
      share: float32, of the codes that some image uses.
    """

    quantize: jax.Array
    share: jax.Array


class VQTokenizer(ImageTokenizer):
    """Images to code ids and back. A fresh codebook is normal; only its directions matter.

    Products have the highest precision: TPUs and GPUs round the factors of fp32 products by
    default, which changes ids.
    """

    def __init__(
        self,
        rngs,
        *,
        base_channels,
        channel_mult,
        num_res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
        num_groups=32,
    ):
        widths = [base_channels * m for m in channel_mult]
        net = dict(
            widths=widths,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            num_groups=num_groups,
            attend=True,
        )
        self.downsample = 2 ** (len(widths) - 1)
        self.width = base_channels
        self.encoder = Encoder(rngs, stem=base_channels, **net)
        self.decoder = Decoder(rngs, **net)
        self.quant_conv = Conv(rngs, z_channels, codebook_dim, window=1)
        self.post_quant_conv = Conv(rngs, codebook_dim, z_channels, window=1)
        axes = ("codes", "code_dim")
        self.codebook = param(
            rngs, (codebook_size, codebook_dim), axes, nnx.initializers.normal(1.0)
        )

    @jax.default_matmul_precision("highest")
    def encode(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> vectors before normalisation, float[M, h', w', code
        dim].
        """
        return self.quant_conv(self.encoder(pixels))

    @jax.default_matmul_precision("highest")
    def nearest(self, vectors):
        """Ids of the nearest codes: float[M, h', w', code dim] -> int32[M, T], row-major."""
        scores = jnp.einsum("mhwc,vc->mhwv", normalize(vectors), normalize(self.codebook[...]))
        return rearrange(jnp.argmax(scores, axis=-1), "m h w -> m (h w)").astype(jnp.int32)

    @jax.default_matmul_precision("highest")
    def decode(self, codes):
        """Code ids int32[M, T] of square images -> pixels float[M, h, w, 3], not clipped."""
        side = int(codes.shape[-1] ** 0.5)
        vectors = normalize(self.codebook[...])[codes]
        return self.decoder(
            self.post_quant_conv(rearrange(vectors, "m (h w) c -> m h w c", h=side))
        )

    def codes(self, images):
        """uint8[M, h, w, 3] -> ids int32[M, T]; no gradient flows back."""
        encode = lambda images: self.nearest(self.encode(to_float(images, jnp.float32)))
        return jax.lax.stop_gradient(map_in_chunks(encode, images))

    def cache(self, images):
        """Codes, which replace the image."""
        return {"codes": self.codes(images)}

    def reconstruct(self, images):
        """Encodes to codes and decodes them: uint8[M, h, w, 3] -> float[M, h, w, 3]."""
        return self.decode(self.codes(images))

    def batch_statistics(self, pixels, used, *, step, settings):
        """Whether this step quantises, and how many codes its images use: CodeUsage."""
        codes, size = self.nearest(self.encode(pixels)), len(self.codebook[...])
        no_code = size  # out of range, so that the codes of empty slots are dropped
        used_codes = jnp.where(used[:, None], codes, no_code).reshape(-1)
        share = jnp.zeros(size).at[used_codes].set(1.0, mode="drop").mean()
        quantize = step >= settings["continuous_steps"]
        return jax.lax.stop_gradient(CodeUsage(quantize, share))

    @jax.default_matmul_precision("highest")
    def quantize_through(self, pixels, *, quantize=True):
        """A training pass with straight-through gradients.

        Args:
          pixels: float[M, h, w, 3] in [-1, 1].
          quantize: bool scalar; without it the decoder reads the encoder's vectors as they are, and
            both losses are 0.

        Returns:
          pixels float[M, h, w, 3]; codebook loss mean (z_q - sg z)^2, commitment loss mean (sg
          z_q - z)^2 and mean distance of the vectors z from the pole (1, 0, ...), float32[M].
        """
        z = normalize(self.encode(pixels))
        z_q = normalize(self.codebook[...])[self.nearest(z)].reshape(z.shape)
        codebook = jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2, axis=(1, 2, 3))
        commitment = jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2, axis=(1, 2, 3))
        through = z + jnp.where(quantize, jax.lax.stop_gradient(z_q - z), 0.0)
        output = self.decoder(self.post_quant_conv(through))
        distance = jnp.mean(jnp.sqrt(2 - 2 * z[..., 0] + 1e-6), axis=(1, 2))
        zero = lambda loss: jnp.where(quantize, loss, 0.0)
        return output, zero(codebook), zero(commitment), distance

    def training_loss(self, pixels, keys, statistics, *, settings):
        """Reconstruction, codebook and commitment losses (VQ-VAE).

        `settings` has the weights `squared`, `absolute` (reconstruction), `foreground` (of pixels
        that are not background, in addition to 1), `commitment`, and `sparsity`, of the vectors'
        distance from one fixed vector, which parts of an image without content then share; and
        `continuous_steps`, the steps at the beginning that do not quantise.
        """
        output, codebook, commitment, distance = self.quantize_through(
            pixels, quantize=statistics.quantize
        )
        squared, absolute = reconstruction_errors(output, pixels, foreground=settings["foreground"])
        loss = settings["squared"] * squared + settings["absolute"] * absolute + codebook
        loss = loss + settings["commitment"] * commitment + settings["sparsity"] * distance
        codes_used = jnp.full_like(squared, statistics.share)
        return loss, dict(squared_error=squared, commitment=commitment, codes_used=codes_used)

    def calibrates(self, step, *, saving, settings):
        """Once, after the steps without quantiser."""
        return step == settings["continuous_steps"]

    @jax.default_matmul_precision("highest")
    def calibrate(self, images, used):
        """The codebook becomes a choice of the vectors of these images that are far apart."""
        vectors = normalize(self.encode(to_float(images, jnp.float32)))
        chosen = spread_choice(
            rearrange(vectors, "m h w c -> (m h w) c"),
            jnp.repeat(used, vectors.shape[1] * vectors.shape[2]),
            others=normalize(self.codebook[...]),
        )
        return {"codebook": chosen}


def spread_choice(vectors, used, *, others, min_distance=MIN_DISTANCE):
    """Chooses vectors one by one, each with a probability proportional to its squared distance from
    those chosen before: the seeding of k-means++ (Arthur and Vassilvitskii, 2007).

    No two are closer than `min_distance`: two codes for one thing would be a coin toss that the LLM
    has to predict, and a flat background would get dozens.

    Args:
      vectors: float[N, C].
      used: bool[N], False for those that must not be chosen.
      others: float[V, C], for the place of those that find no vector far enough.
      min_distance: between two vectors.

    Returns:
      float[V, C].
    """
    keys = jax.random.split(jax.random.key(0), len(others))

    def choose(distances, key_and_other):
        key, other = key_and_other
        far = used & (distances >= min_distance**2)
        number = jax.random.categorical(key, jnp.where(far, jnp.log(distances), -jnp.inf))
        chosen = jnp.where(far.any(), vectors[number], other)
        return jnp.minimum(distances, jnp.sum((vectors - chosen[None]) ** 2, axis=-1)), chosen

    return jax.lax.scan(choose, jnp.full(len(vectors), 4.0), (keys, others))[1]
