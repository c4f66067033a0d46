"""What a run looks like while it trains: contact sheets of drawings, or of pictures through the tokenizer and back."""

import numpy as np

from janus_jax.eval.sheet import contact_sheet
from janus_jax.generation.base import Guidance
from janus_jax.models import decode


def drawings(artist, prompts, *, guidance):
    """Draws every prompt once.

    Args:
      artist: Artist.
      prompts: strings.
      guidance: scale; 1 is off.

    Returns:
      PIL picture.
    """
    pictures = artist.draw(prompts, seeds=range(len(prompts)), guidance=Guidance(scale=guidance))
    return contact_sheet(pictures, prompts)


def reconstructions(network, params, pictures):
    """Pairs of a picture and what the generation tokenizer makes of it.

    Args:
      network, params: of the model or of its tokenizer alone.
      pictures: uint8[M, h, w, 3].

    Returns:
      PIL picture.
    """
    back = np.asarray(decode.reconstruct_batch(params, pictures, network=network))
    pairs = np.stack([pictures, back], axis=1).reshape(-1, *pictures.shape[1:])
    return contact_sheet(pairs, ["picture", "through the tokenizer"] * len(pictures))
