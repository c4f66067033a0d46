"""Runs a tokenizer over many images, a few at a time on every device."""

import math

import jax

from janus_jax import sharding

PIXELS_PER_CHUNK = 2 * 384**2  # pixels of pictures that go through a tokenizer at once on a device


def map_in_chunks(function, pictures, *, pixels=PIXELS_PER_CHUNK):
    """Runs a net over pictures a few at a time on every device, since feature maps at full resolution are large.

    Args:
      function: uint8[m, h, w, 3] -> arrays with m in front.
      pictures: uint8[M, h, w, 3], whose M is dealt out over the devices.
      pixels: at most so many at once on a device, or one picture.

    Returns:
      what the function returns for all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty or len(pictures) % sharding.batch_divisor(mesh) else sharding.batch_divisor(mesh)
    each = len(pictures) // parts
    fitting = max(1, pixels // math.prod(pictures.shape[1:3]))
    if each <= fitting:
        return function(pictures)
    few = max(n for n in range(1, fitting + 1) if each % n == 0)
    turns = pictures.reshape(parts, each // few, few, *pictures.shape[1:]).swapaxes(0, 1)
    merged = lambda x: x.reshape(-1, *x.shape[2:])
    split = lambda x: x.reshape(parts, few, *x.shape[1:])
    done = jax.lax.map(lambda turn: jax.tree.map(split, function(merged(turn))), turns)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(len(pictures), *x.shape[3:]), done)
