"""Checksums of arrays: they identify a tokenizer, and detect arrays that changed on disk.

Sums of integers do not depend on their order, so they are the same on any mesh.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def _sums(array):
    """Two sums over an array's bits, mod 2^32: uint32[2].

    The array keeps its shape, so that devices exchange nothing but the sums.
    """
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    bits = array.astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)  # of an element in the flattened array
    stride = 1
    for axis in reversed(range(array.ndim)):
        along_axis = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        index += jnp.uint32(stride % 2**32) * along_axis
        stride *= array.shape[axis]
    products = (bits * (2 * index + 1), (bits ^ index) * bits)
    return jnp.stack([product.sum(dtype=jnp.uint32) for product in products])


def checksums(arrays):
    """{name: array} -> {name: 'DTYPE DIGITS', with 16 hexadecimal digits}."""
    # np.asarray waits for each sum: programs with collectives must not run concurrently on CPU.
    return {
        name: f"{array.dtype} {np.asarray(_sums(array)).tobytes().hex()}"
        for name, array in arrays.items()
    }


def fingerprint(arrays):
    """{name: array} -> 16 hexadecimal digits for all of them and their names."""
    lines = [f"{name} {digits}" for name, digits in sorted(checksums(arrays).items())]
    return hash_text("\n".join(lines))


def hash_text(text):
    """16 hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
