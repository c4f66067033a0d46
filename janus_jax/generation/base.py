"""The contract of a generation path: everything that differs between ways of drawing stands behind it.

A path knows how pictures become targets, how they look to the LLM, and how hidden states become a loss or a
picture. It gets the LLM as a callable and never imports the models.
"""

import abc
from typing import NamedTuple

import jax


class Prepared(NamedTuple):
    """Pictures to draw, made ready for one step: what the LLM sees and what the loss compares with.

    Attributes:
      targets: array[M, ...] in the path's own terms.
    """

    targets: jax.Array


class Guidance(NamedTuple):
    """How to sample: l = u + scale (c - u), then softmax(l / temperature) over the top k / top p; None is off."""

    scale: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class GenerationPath(abc.ABC):
    """One way of drawing, bound to its nets.

    Attributes:
      Nets: the `nnx.Module` that holds the path's parameters, `generation/...` in the tree; one of them is always
        `tokenizer`, the frozen net between pixels and targets.
      TokenizerNets: the module that holds the tokenizer alone, for the stage that trains it.
      nets: an instance of either.
      dtype: what the LLM computes in.
      num_tokens: positions a picture takes in a row.
      read_shift: where a token's state is read: -1 predicts the right neighbour, 0 the position itself.
    """

    Nets: type
    TokenizerNets: type
    read_shift: int

    def __init__(self, nets, *, dtype):
        self.nets, self.dtype = nets, dtype
        self.num_tokens = nets.num_tokens

    @staticmethod
    def start_from_tokenizer(params):
        """Fresh parameters that start from the trained tokenizer: {path in Nets: array} of a flat dict; may be empty."""
        return {}

    @abc.abstractmethod
    def prepare(self, pictures, keys):
        """uint8[M, h, w, 3] pictures and key[M] per-picture randomness -> Prepared; no gradient flows back."""

    @abc.abstractmethod
    def from_cache(self, cached, keys):
        """Cached targets of the path's own kind and key[M] -> Prepared, as `prepare` would give."""

    @abc.abstractmethod
    def embed(self, prepared):
        """Prepared -> float[M, num_tokens, D], what the LLM reads."""

    @abc.abstractmethod
    def loss(self, hidden, prepared):
        """Hidden states float[M, num_tokens, D] -> losses float32[M] summed over targets, {metric: float32[M]}."""

    @abc.abstractmethod
    def combine(self, *, text_sum, text_count, picture_sum, picture_count):
        """The training loss from sums over targets and pictures, and their counts over the global batch."""

    @abc.abstractmethod
    def per_picture(self, picture_sum, picture_count):
        """The figure logged as `loss_gen`, from the sum over pictures and their count."""

    @abc.abstractmethod
    def unconditional(self, prompts, *, real, pad_id):
        """Prompts without their words, for guidance: int32[B, P] left-padded, real bool[B, P] -> int32[B, P]."""

    @abc.abstractmethod
    def sample(self, step, hidden, cache, *, keys, guidance):
        """Draws pictures.

        Args:
          step: (embeddings float[2B, 1, D], cache) -> hidden float[2B, 1, D], cache: the LLM, one position on.
          hidden: float[2B, D] states at the end of the prompts; rows alternate conditional, unconditional.
          cache: the LLM's cache after the prompts.
          keys: key[B], one per picture.
          guidance: Guidance.

        Returns:
          float[B, h, w, 3] pictures in [-1, 1], not clipped, and their targets.
        """

    @abc.abstractmethod
    def reconstruct(self, pictures):
        """Through the tokenizer and back: uint8[M, h, w, 3] -> float[M, h, w, 3], the ceiling of every drawing."""

    @abc.abstractmethod
    def tokenizer_loss(self, pictures, keys, used):
        """Trains the tokenizer alone: uint8[M, h, w, 3] -> losses float32[M] and {metric: float32[M]}.

        `used` is bool[M], False for empty slots. The batch may not be cut into microbatches: a codebook is judged by
        all the pictures of a step.
        """


def to_float(pictures, dtype):
    """uint8 levels -> [-1, 1] as the released processor does: x / 255, then (x - 0.5) / 0.5."""
    return ((pictures.astype("float32") / 255 - 0.5) / 0.5).astype(dtype)
