"""The contract of an image tokenizer: the net between pixels and what a generation path
predicts.
"""

import abc

import jax
import jax.numpy as jnp
from flax import nnx

from janus_jax.layers.pixels import to_float


class ImageTokenizer(nnx.Module):
    """Encodes images, decodes what it encoded, and says how it is trained. Always
    `generation/tokenizer` in the tree.

    Attributes:
      downsample: pixels per side of one cell of the feature map.
      width: channels at full resolution, from which memory is estimated.
      training_defaults: the fields of `config.model.generation.tokenizer_training` and their
        defaults.
    """

    downsample: int
    width: int
    training_defaults: dict

    @staticmethod
    @abc.abstractmethod
    def flops(*, size, **sizes):
        """Forward FLOPs of encoding and of decoding an image of `size` pixels per side; `sizes` are
        those that the net is built with.
        """

    @abc.abstractmethod
    def cache(self, images):
        """What records may hold so that training need not run the tokenizer: uint8[M, h, w, 3] ->
        {field: array[M, ...]}.
        """

    @abc.abstractmethod
    def reconstruct(self, images):
        """Encodes and decodes: uint8[M, h, w, 3] -> float[M, h, w, 3] in [-1, 1], not clipped."""

    def batch_statistics(self, pixels, used, *, step, settings):
        """What the training loss must know of the step and all its images, without gradient.

        Args:
          pixels: float[M, h, w, 3] in [-1, 1], the whole global batch.
          used: bool[M], False for empty slots.
          step: int32 scalar, steps done.
          settings: `config.model.generation.tokenizer_training`.

        Returns:
          any pytree; empty by default.
        """
        return ()

    @abc.abstractmethod
    def training_loss(self, pixels, keys, statistics, *, settings):
        """The loss of training the tokenizer alone.

        Args:
          pixels: float[M, h, w, 3] in [-1, 1].
          keys: key[M].
          statistics: of the global batch, from `batch_statistics`.
          settings: `config.model.generation.tokenizer_training`.

        Returns:
          float32[M], {metric: float32[M]}.
        """

    def calibrates(self, step, *, saving, settings):
        """Whether `calibrate` replaces parameters after a step of the training; by default never.

        Args:
          step: steps done.
          saving: whether a checkpoint follows.
          settings: `config.model.generation.tokenizer_training`.
        """
        return False

    def calibrate(self, images, used, *, step, settings):
        """What the tokenizer measures of itself after `step` steps: uint8[M, h, w, 3], bool[M] ->
        {path: array}.
        """
        return {}


FOREGROUND = 0.2  # least difference from the background, of 2 between black and white


def reconstruction_errors(output, pixels, *, foreground=0.0):
    """Mean squared and mean absolute error per image, float32[M] each, of two float[M, h, w, 3].

    Pixels that differ from the background, the median of the four corners, weigh 1 + `foreground`.
    """
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    background = jnp.median(corners, axis=1)[:, None, None]
    differs = jnp.max(jnp.abs(pixels - background), axis=-1, keepdims=True) > FOREGROUND
    weight = 1 + foreground * differs
    squared = jnp.mean(weight * (output - pixels) ** 2, axis=(1, 2, 3))
    absolute = jnp.mean(weight * jnp.abs(output - pixels), axis=(1, 2, 3))
    return squared, absolute


def busy_crop(pixels, key, *, side, tries=4):
    """The square with the most variance among a few random ones, since flat background teaches
    nothing new.

    Args:
      pixels: float[h, w, 3].
      key: draws the squares.
      side: of the square, in pixels.
      tries: number of squares drawn.

    Returns:
      float[side, side, 3].
    """
    corners = jax.random.randint(key, (tries, 2), 0, jnp.array([pixels.shape[:2]]) - side + 1)
    crops = jax.vmap(lambda corner: jax.lax.dynamic_slice(pixels, (*corner, 0), (side, side, 3)))(
        corners
    )
    return crops[jnp.argmax(crops.var(axis=(1, 2, 3)))]


def training_pixels(images, keys, *, crop):
    """Images as tokenizer training sees them: uint8[M, h, w, 3], key[M] -> float32[M, crop or h,
    crop or w, 3].

    `crop` is the side of one `busy_crop` per image; 0 takes whole images.
    """
    pixels = to_float(images, jnp.float32)
    if not crop:
        return pixels
    return jax.vmap(lambda image, key: busy_crop(image, key, side=crop))(pixels, keys)
