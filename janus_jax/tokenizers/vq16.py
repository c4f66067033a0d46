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

from janus_jax import flops
from janus_jax.layers.conv import Conv
from janus_jax.layers.linear import param
from janus_jax.layers.pixels import to_float
from janus_jax.tokenizers.autoencoder import Decoder, Encoder
from janus_jax.tokenizers.base import ImageTokenizer, reconstruction_errors
from janus_jax.tokenizers.chunks import map_in_chunks

# Distances on the unit sphere, where opposite vectors are 2 apart.
MIN_DISTANCE = 0.2  # between codes that are chosen from data
POLE_DISTANCE = 0.5  # of these from the pole, if `sparsity` pulls vectors there
CHOOSING_STEPS = 12  # steps whose images a codebook is chosen from


def normalize(x, eps=1e-12):
    """Rows of unit length: float[..., C] -> float[..., C]."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


class CodeUsage(NamedTuple):
    """What all images of a step have in common.

    Attributes:
      quantize: bool, False before the first step of `codebook_from_data`.
      share: float32, of the codes that some image uses.
    """

    quantize: jax.Array
    share: jax.Array


class VQTokenizer(ImageTokenizer):
    """Images to code ids and back. A fresh codebook is normal; only its directions matter.

    Products have the highest precision: TPUs and GPUs round the factors of fp32 products by
    default, which changes ids.
    """

    training_defaults = dict(
        squared=1.0,
        absolute=1.0,
        foreground=0.0,
        commitment=0.25,
        sparsity=0.0,
        codebook_from_data=(),
        crop=0,
    )

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

    @staticmethod
    def flops(*, size, base_channels, channel_mult, num_res_blocks, z_channels, **codebook):
        """As `ImageTokenizer.flops`."""
        widths = [base_channels * m for m in channel_mult]
        encode, decode = flops.autoencoder(
            size=size,
            stem=base_channels,
            widths=widths,
            num_res_blocks=num_res_blocks,
            features=z_channels,
            codes=codebook["codebook_dim"],
            attend=True,
        )
        cells = (size // 2 ** (len(widths) - 1)) ** 2
        search = 2 * cells * codebook["codebook_size"] * codebook["codebook_dim"]
        return encode + search, decode

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
        quantize = step >= min(settings["codebook_from_data"], default=0)
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
        distance from one fixed vector, the pole, which parts of an image without content then
        share; and `codebook_from_data`, the steps after which the codebook is chosen from the
        encoder's vectors. Steps before the first of them do not quantise.
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
        """In the `CHOOSING_STEPS` steps that begin with each of `codebook_from_data`."""
        starts = settings["codebook_from_data"]
        return any(start <= step < start + CHOOSING_STEPS for start in starts)

    @jax.default_matmul_precision("highest")
    def calibrate(self, images, used, *, step, settings):
        """Codes that are still free become vectors of these images, far from all other codes.

        At a step of `codebook_from_data` all codes become free but the first, which is the pole.
        """
        vectors = normalize(self.encode(to_float(images, jnp.float32)))
        first = jnp.arange(len(self.codebook[...]))[:, None] == 0
        free = jnp.where(first, pole(vectors), -pole(vectors))
        anew = (jnp.array(settings["codebook_from_data"]) == step).any()
        chosen = fill_codebook(
            jnp.where(anew, free, normalize(self.codebook[...])),
            rearrange(vectors, "m h w c -> (m h w) c"),
            jnp.repeat(used, vectors.shape[1] * vectors.shape[2]),
            key=jax.random.fold_in(jax.random.key(0), step),
            pole_distance=POLE_DISTANCE if settings["sparsity"] else MIN_DISTANCE,
        )
        return {"codebook": chosen}


def pole(vectors):
    """(1, 0, ...) of as many dimensions as these vectors: float[..., C] -> float[C]."""
    return jnp.eye(1, vectors.shape[-1], dtype=vectors.dtype)[0]


def fill_codebook(codebook, vectors, used, *, key, pole_distance=MIN_DISTANCE):
    """Replaces free codes by vectors, one by one, each with a probability proportional to its
    squared distance from all codes so far: the seeding of k-means++ (Arthur and Vassilvitskii,
    2007). Free codes are opposite to the pole, where no vector is.

    No two codes are closer than `MIN_DISTANCE`: two codes for one thing would be a coin toss that
    the LLM has to predict, and a flat background would get dozens.

    Args:
      codebook: float[V, C], unit vectors, free ones last.
      vectors: float[N, C], unit vectors.
      used: bool[N], False for those that must not be chosen.
      key: random key.
      pole_distance: of all chosen vectors from the pole.

    Returns:
      float[V, C]; codes stay free if no vector is far enough.
    """

    def visit(distances, key_and_code):
        key, code = key_and_code
        far = used & (distances >= MIN_DISTANCE**2)
        number = jax.random.categorical(key, jnp.where(far, jnp.log(distances), -jnp.inf))
        chosen = jnp.where(far.any() & (code[0] < -0.9999), vectors[number], code)
        return jnp.minimum(distances, squared(vectors - chosen[None])), chosen

    squared = lambda x: jnp.sum(x**2, axis=-1)
    outside = squared(vectors - pole(vectors)[None]) >= pole_distance**2
    keys = jax.random.split(key, len(codebook))
    return jax.lax.scan(visit, jnp.where(outside, 4.0, 0.0), (keys, codebook))[1]
