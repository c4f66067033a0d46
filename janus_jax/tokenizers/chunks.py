"""Runs an image tokenizer on many images, a few at a time on every device."""

import math

import jax

from janus_jax import sharding

PIXELS_PER_CHUNK = 2 * 384**2  # that a device processes at once


def map_in_chunks(function, images, *, pixels=PIXELS_PER_CHUNK):
    """Runs a function on a few images at a time per device: feature maps need much memory.

    Args:
      function: uint8[m, h, w, 3] -> arrays whose first axis has size m, for any m.
      images: uint8[M, h, w, 3]; M is split over the devices where it is divisible.
      pixels: limit of a device per call of the function; one image is always allowed.

    Returns:
      what the function returns for all images.
    """
    count = len(images)
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else sharding.batch_divisor(mesh)
    if count % parts:
        parts = 1
    images_per_part = count // parts
    limit = max(1, pixels // math.prod(images.shape[1:3]))
    if images_per_part <= limit:
        return function(images)
    chunk = max(n for n in range(1, limit + 1) if images_per_part % n == 0)
    # [chunks, parts, chunk size, ...]: every chunk has images of every device.
    chunks = images.reshape(parts, images_per_part // chunk, chunk, *images.shape[1:])
    chunks = chunks.swapaxes(0, 1)

    def run_chunk(images):
        merged = images.reshape(-1, *images.shape[2:])
        return jax.tree.map(lambda x: x.reshape(parts, chunk, *x.shape[1:]), function(merged))

    outputs = jax.lax.map(run_chunk, chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(count, *x.shape[3:]), outputs)
