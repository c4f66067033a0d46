"""Image tokens go into packed rows and come out of them."""

import jax.numpy as jnp
import numpy as np

from janus_jax.models.interleave import extract, insert


def test_unused_slots_are_neither_written_nor_read():
    x = jnp.arange(12.0).reshape(1, 6, 2)
    start = jnp.array([[1, 6]])
    out = insert(x, jnp.full((1, 2, 2, 2), -1.0), start=start)
    np.testing.assert_array_equal(out[0, :, 0], [0, -1, -1, 6, 8, 10])
    read = extract(x, start=start, length=2, shift=-1)
    np.testing.assert_array_equal(read[0, :, :, 0], [[0, 2], [0, 0]])
