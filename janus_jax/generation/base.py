"""The contract of a generation path: everything that differs between ways of generating images.

A generation path knows how images become targets, how they look to the LLM, and how hidden states
become a loss or an image. It gets the LLM and the understanding encoder as callables and never
imports the models.
"""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx


class Images(NamedTuple):
    """Images to generate as a batch holds them; what it does not hold is None.

    Attributes:
      pixels: uint8[M, h, w, 3].
      codes: int32[M, T], cached, replace the pixels.
      latents: float[M, c, h', w'], cached, accompany the pixels.
    """

    pixels: Any
    codes: Any = None
    latents: Any = None


class GenerationNets(nnx.Module):
    """The parameters of a generation path, `generation/...`; one of the nets is `tokenizer`.

    Attributes:
      num_tokens: positions an image takes in a row.
      training_only: nets that sampling does not need, which a checkpoint may lack.
    """

    num_tokens: int
    training_only: tuple = ()

    @staticmethod
    @abc.abstractmethod
    def count_tokens(*, image_size, tokenizer, **settings):
        """Positions an image takes in a row, from the settings of `config.model.generation`."""

    @staticmethod
    def initial_values(params):
        """Initial values of fresh parameters that come from the trained tokenizer.

        `params` is {path: array} of these nets; returns {path: array}, empty by default.
        """
        return {}


class GenerationPath(abc.ABC):
    """One way of generating images, bound to its nets.

    Attributes:
      Nets: the `GenerationNets` that hold the path's parameters.
      Tokenizer: the `ImageTokenizer` among them, the frozen net between pixels and targets.
      Guidance: the NamedTuple of its sampling settings with their defaults; the first is `scale`,
        and 1 is off.
      mask: 'causal', or 'picture_bidirectional': the tokens of an image attend to each other in
        both directions.
      read_shift: where a token's state is read: -1 predicts the right neighbour, 0 the position
        itself.
      prefix_tokens: names of the special tokens between prompt and image.
      attend_to_dropped_prompt: whether the padding that replaces a dropped prompt is attended to.
      tap_layer: LLM block (1-based) whose states the loss reads as well as the last ones, or None.
      nets: an instance of `Nets`.
      dtype: what the LLM computes in.
    """

    Nets: type
    Tokenizer: type
    Guidance: type
    mask: str = "causal"
    read_shift: int
    prefix_tokens: tuple
    attend_to_dropped_prompt: bool
    tap_layer: int | None = None

    def __init__(self, nets, *, dtype):
        self.nets, self.dtype = nets, dtype

    @property
    def num_tokens(self):
        """Positions an image takes in a row."""
        return self.nets.num_tokens

    @staticmethod
    @abc.abstractmethod
    def flops(settings, *, embed_dim, encoder):
        """Useful FLOPs of a training step per image to generate, {part: FLOPs}, for the MFU.

        Args:
          settings: the path's config, as `Nets` gets it.
          embed_dim: D of the LLM.
          encoder: forward FLOPs of the understanding encoder for one image.
        """

    @abc.abstractmethod
    def prepare(self, images, keys, *, encode):
        """Images of M, and key[M] for randomness -> any pytree with M in front, without gradient.

        `encode` gives current understanding features: uint8[M, h, w, 3] -> float[M, T, F].
        """

    @abc.abstractmethod
    def embed(self, prepared):
        """Prepared -> the LLM's input float[M, num_tokens, D], and a skip for `loss` or None."""

    @abc.abstractmethod
    def loss(self, hidden, tapped, prepared, skip):
        """The loss of every image, and its metrics.

        Args:
          hidden: float[M, num_tokens, D] states read at `read_shift`.
          tapped: the same after block `tap_layer`, or None.
          prepared, skip: what `prepare` and `embed` returned.

        Returns:
          float32[M], {metric: float32[M]}.
        """

    def combine(self, *, text_sum, text_count, image_sum, image_count):
        """The training loss from sums over targets and images and their counts in the global batch.

        By default the mean of each kind, summed 1:1.
        """
        return text_sum / jnp.maximum(text_count, 1) + self.per_image(image_sum, image_count)

    def per_image(self, image_sum, image_count):
        """The value logged as `loss_gen`, from the sum over images and their count."""
        return image_sum / jnp.maximum(image_count, 1)

    def unconditional(self, prompts, *, real, pad_id):
        """Prompts for guidance: what is between BOS and `prefix_tokens` becomes padding.

        Args:
          prompts: int32[B, P], left-padded.
          real: bool[B, P].
          pad_id: id of the padding.

        Returns:
          int32[B, P], and bool[B, P], which of them are attended to.
        """
        position = jnp.arange(prompts.shape[-1])[None]
        after_bos = position > jnp.argmax(real, axis=-1)[:, None]
        words = real & after_bos & (position < prompts.shape[-1] - len(self.prefix_tokens))
        return jnp.where(words, pad_id, prompts), real & (self.attend_to_dropped_prompt | ~words)

    @abc.abstractmethod
    def sample(self, step, hidden, cache, *, keys, guidance):
        """Generates images.

        Args:
          step: (embeddings float[n B, k, D], cache) -> hidden float[n B, k, D], cache: the LLM, k
            positions further.
          hidden: float[n B, D] states at the end of the prompts. With guidance n is 2 and rows
            alternate conditional, unconditional; without it n is 1.
          cache: the LLM's cache after the prompts, from which several continuations may start.
          keys: key[B], one per image.
          guidance: an instance of `Guidance`.

        Returns:
          float[B, h, w, 3] images in [-1, 1], not clipped, and their targets.
        """


def guide(rows, guidance):
    """Combines conditional and unconditional rows: u + scale (c - u).

    Args:
      rows: float[n B, ...], alternating as in `GenerationPath.sample`.
      guidance: a `Guidance`.

    Returns:
      float[B, ...].
    """
    if guidance.scale == 1:
        return rows
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    conditional, unconditional = pairs[:, 0], pairs[:, 1]
    return unconditional + guidance.scale * (conditional - unconditional)
