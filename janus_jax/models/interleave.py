"""Inserts image tokens into packed rows and extracts their hidden states, inside one pack group.

Groups are the sharded axis, so nothing crosses devices.
"""

import chex
import jax
import jax.numpy as jnp


def _flat(start, *, length, row_tokens, shift=0):
    """Flat positions int32[S, G*T] of all image tokens; unused slots point past the rows."""
    used = (start < row_tokens)[..., None]
    tokens = start[..., None] + shift + jnp.arange(length)[None, None]
    positions = jnp.where(used, tokens, row_tokens)
    return positions.reshape(start.shape[0], -1)


def insert(x, images, *, start, shift=0):
    """Overwrites image positions of packed rows.

    Args:
      x: float[S, R*L, D] embeddings of a pack group's rows, laid end to end.
      images: float[S, G, T, D].
      start: int32[S, G] first flat position of each image; R*L marks an unused slot.
      shift: offset of its first token from `start`.

    Returns:
      float[S, R*L, D].
    """
    s, _, t, d = images.shape
    chex.assert_shape(x, (s, None, d))
    chex.assert_shape(start, images.shape[:2])
    positions = _flat(start, length=t, row_tokens=x.shape[1], shift=shift)
    put = lambda x, positions, tokens: x.at[positions].set(tokens, mode="drop")
    return jax.vmap(put)(x, positions, images.reshape(s, -1, d).astype(x.dtype))


def extract(x, *, start, length, shift=0):
    """Extracts the hidden states of every image from packed rows.

    Args:
      x: float[S, R*L, D] hidden states of a pack group's rows, laid end to end.
      start: int32[S, G] first flat position of each image; R*L marks an unused slot.
      length: T, positions per image.
      shift: offset of the position where a token is read (a generation path's `read_shift`).

    Returns:
      float[S, G, T, D]; zeros for unused slots.
    """
    positions = _flat(start, length=length, row_tokens=x.shape[1], shift=shift)
    get = lambda x, positions: x.at[positions].get(mode="fill", fill_value=0)
    return jax.vmap(get)(x, positions).reshape(*start.shape, length, x.shape[-1])
