"""Puts pictures into packed rows and reads them out again; all inside one pack group, never across devices."""

import chex
import jax
import jax.numpy as jnp


def _flat(start, *, length, row_tokens, shift=0):
    """Flat positions int32[S, G*T] of every picture's tokens; unused slots point past the rows."""
    used = (start < row_tokens)[..., None]
    positions = jnp.where(used, start[..., None] + shift + jnp.arange(length)[None, None], row_tokens)
    return positions.reshape(start.shape[0], -1)


def insert(x, pictures, *, start, shift=0):
    """Overwrites picture positions of packed rows.

    Args:
      x: float[S, R*L, D] embeddings of a pack group's rows, laid end to end.
      pictures: float[S, G, T, D].
      start: int32[S, G] first flat position of each picture; R*L marks an unused slot.
      shift: how far from there its first token is put.

    Returns:
      float[S, R*L, D].
    """
    s, _, t, d = pictures.shape
    chex.assert_shape(x, (s, None, d))
    chex.assert_shape(start, pictures.shape[:2])
    where = _flat(start, length=t, row_tokens=x.shape[1], shift=shift)
    return jax.vmap(lambda x, w, p: x.at[w].set(p, mode="drop"))(x, where, pictures.reshape(s, -1, d).astype(x.dtype))


def extract(x, *, start, length, shift=0):
    """Reads the hidden states of every picture out of packed rows.

    Args:
      x: float[S, R*L, D] hidden states of a pack group's rows, laid end to end.
      start: int32[S, G] first flat position of each picture; R*L marks an unused slot.
      length: T, positions per picture.
      shift: how far from its own position each token is read (a path's `read_shift`).

    Returns:
      float[S, G, T, D]; zeros for unused slots.
    """
    where = _flat(start, length=length, row_tokens=x.shape[1], shift=shift)
    rows = jax.vmap(lambda x, w: x.at[w].get(mode="fill", fill_value=0))(x, where)
    return rows.reshape(*start.shape, length, x.shape[-1])
