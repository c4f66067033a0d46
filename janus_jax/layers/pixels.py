"""From uint8 levels to what nets compute on, and back."""

import jax.numpy as jnp


def to_float(images, dtype):
    """uint8 levels -> [-1, 1] as the released processor does: x / 255, then (x - 0.5) / 0.5."""
    return ((images.astype("float32") / 255 - 0.5) / 0.5).astype(dtype)


def to_uint8(pixels):
    """[-1, 1] -> uint8 levels, clipped and truncated, as the release post-processes images."""
    return jnp.clip((pixels.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)
