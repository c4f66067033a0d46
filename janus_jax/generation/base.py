"""The contract of a generation path: everything that differs between ways of drawing stands behind it.

A path knows how pictures become targets, how they look to the LLM, and how hidden states become a loss or a
picture. It gets the LLM and the understanding encoder as callables and never imports the models.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.errors import UserError


class Pictures(NamedTuple):
    """Pictures to draw as a batch holds them; what it does not hold is None.

    Attributes:
      images: uint8[M, h, w, 3].
      codes: int32[M, T], cached instead of the pixels.
      latents: float[M, c, h', w'], cached beside them.
    """

    images: Any
    codes: Any = None
    latents: Any = None


class GenerationPath(abc.ABC):
    """One way of drawing, bound to its nets.

    Attributes:
      Nets: the `nnx.Module` that holds the path's parameters, `generation/...` in the tree; one of them is always
        `tokenizer`, the frozen net between pixels and targets.
      TokenizerNets: the module that holds the tokenizer alone, for the stage that trains it.
      Guidance: the NamedTuple of its sampling settings with their defaults; the first is `scale`, and 1 is off.
      nets: an instance of either kind of nets.
      dtype: what the LLM computes in.
      num_tokens: positions a picture takes in a row.
      read_shift: where a token's state is read: -1 predicts the right neighbour, 0 the position itself.
      prefix_tokens: names of the special tokens between prompt and picture.
      attend_to_dropped_prompt: whether the padding in place of a dropped prompt is attended.
      training_only: nets that drawing does without, which a checkpoint need not hold.
      tap_layer: LLM block (1-based) whose states the loss wants beside the last ones, or None.
    """

    Nets: type
    TokenizerNets: type
    Guidance: type
    read_shift: int
    prefix_tokens: tuple
    attend_to_dropped_prompt: bool
    training_only: tuple = ()
    tap_layer: int | None = None

    def __init__(self, nets, *, dtype):
        self.nets, self.dtype = nets, dtype
        self.num_tokens = nets.num_tokens

    @staticmethod
    def start_from_tokenizer(params):
        """Fresh parameters that start from the trained tokenizer: {path in Nets: array} of a flat dict; may be empty."""
        return {}

    @staticmethod
    def flops(settings, *, embed_dim, encoder, trains):
        """Useful FLOPs of a training step for one picture to draw, {part: FLOPs}.

        Args:
          settings: the path's config, as `Nets` gets it.
          embed_dim: D of the LLM.
          encoder: forward FLOPs of the understanding encoder for one picture.
          trains: whether a path of the parameter tree trains in this step.
        """
        return {}

    @abc.abstractmethod
    def prepare(self, pictures, keys, *, look):
        """Pictures of M and key[M] per-picture randomness -> any pytree with M in front; no gradient flows back.

        `look` gives the current understanding encoder's features, uint8[M, h, w, 3] -> float[M, T, F].
        """

    @abc.abstractmethod
    def embed(self, prepared):
        """Prepared -> float[M, num_tokens, D], what the LLM reads, and what `loss` wants to keep of the way there."""

    @abc.abstractmethod
    def loss(self, hidden, tapped, prepared, kept):
        """The loss of every picture, and its metrics.

        Args:
          hidden: float[M, num_tokens, D] states read at `read_shift`.
          tapped: the same after block `tap_layer`, or None.
          prepared, kept: what `prepare` and `embed` returned.

        Returns:
          float32[M], {metric: float32[M]}.
        """

    def combine(self, *, text_sum, text_count, picture_sum, picture_count):
        """The training loss from sums over targets and pictures, and their counts over the global batch.

        Here each kind's own mean, added up 1:1.
        """
        return text_sum / jnp.maximum(text_count, 1) + self.per_picture(picture_sum, picture_count)

    def per_picture(self, picture_sum, picture_count):
        """The figure logged as `loss_gen`, from the sum over pictures and their count."""
        return picture_sum / jnp.maximum(picture_count, 1)

    def unconditional(self, prompts, *, real, pad_id):
        """Prompts without their words, for guidance: BOS and the prefix_tokens stay, everything between becomes padding.

        Args:
          prompts: int32[B, P], left-padded.
          real: bool[B, P].
          pad_id: of the padding.

        Returns:
          int32[B, P], and bool[B, P], which of them are attended.
        """
        place = jnp.arange(prompts.shape[-1])[None]
        words = real & (place > jnp.argmax(real, axis=-1)[:, None]) & (place < prompts.shape[-1] - len(self.prefix_tokens))
        return jnp.where(words, pad_id, prompts), real & (self.attend_to_dropped_prompt | ~words)

    @abc.abstractmethod
    def sample(self, step, hidden, cache, *, keys, guidance):
        """Draws pictures.

        Args:
          step: (embeddings float[n B, k, D], cache) -> hidden float[n B, k, D], cache: the LLM, k positions on.
          hidden: float[n B, D] states at the end of the prompts. With guidance n is 2 and rows alternate
            conditional, unconditional; without it n is 1.
          cache: the LLM's cache after the prompts, which may be gone on from several times.
          keys: key[B], one per picture.
          guidance: an instance of `Guidance`.

        Returns:
          float[B, h, w, 3] pictures in [-1, 1], not clipped, and their targets.
        """

    @abc.abstractmethod
    def reconstruct(self, pictures):
        """Through the tokenizer and back: uint8[M, h, w, 3] -> float[M, h, w, 3], the ceiling of every drawing."""

    def cache(self, pictures):
        """What records may hold so that training need not run the tokenizer: uint8[M, h, w, 3] -> {field: array[M, ...]}."""
        raise UserError(f"{type(self).__name__} keeps nothing of a picture.")

    def tokenizer_loss(self, pictures, keys, used):
        """Trains the tokenizer alone: uint8[M, h, w, 3] -> losses float32[M] and {metric: float32[M]}.

        `used` is bool[M], False for empty slots. The batch may not be cut into microbatches: a codebook is judged by
        all the pictures of a step.
        """
        raise UserError(f"{type(self).__name__} has no stage that trains its tokenizer.")

    def settle(self, pictures, used):
        """What the trained tokenizer measures of itself at its stage's end: {path in TokenizerNets: array}; may be empty."""
        return {}


def guide(rows, guidance):
    """Conditional and unconditional rows to guided ones: u + scale (c - u).

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


def to_float(pictures, dtype):
    """uint8 levels -> [-1, 1] as the released processor does: x / 255, then (x - 0.5) / 0.5."""
    return ((pictures.astype("float32") / 255 - 0.5) / 0.5).astype(dtype)


def busy_crop(pixels, key, *, side, tries=4):
    """The square of most variance among a few random ones, since plain ground teaches nothing twice.

    Args:
      pixels: float[h, w, 3].
      key: draws the squares.
      side: of the square.
      tries: how many are drawn.

    Returns:
      float[side, side, 3].
    """
    corners = jax.random.randint(key, (tries, 2), 0, jnp.array([pixels.shape[:2]]) - side + 1)
    crops = jax.vmap(lambda corner: jax.lax.dynamic_slice(pixels, (*corner, 0), (side, side, 3)))(corners)
    return crops[jnp.argmax(crops.var(axis=(1, 2, 3)))]
