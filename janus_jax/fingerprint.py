"""Sums over the bits of arrays: they tell one tokenizer from another, and what was saved from what lies on a damaged disk.

Integers add up in any order, so the sums are the same on any mesh.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def _sums(array):
    """Two sums over an array's bits, mod 2^32: uint32[2]. In the array's own shape, so that only they are exchanged."""
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    bits, place, stride = array.astype(jnp.uint32), jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        place += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        stride *= array.shape[axis]
    return jnp.stack([(bits * (2 * place + 1)).sum(dtype=jnp.uint32), ((bits ^ place) * bits).sum(dtype=jnp.uint32)])


def checksums(arrays):
    """{name: array} -> {name: its dtype and 16 hexadecimal digits}."""
    # One after the other: programs that talk between devices may not run side by side on CPU.
    return {name: f"{array.dtype} {np.asarray(_sums(array)).tobytes().hex()}" for name, array in arrays.items()}


def fingerprint(arrays):
    """{name: array} -> 16 hexadecimal digits for all of them and their names."""
    return hash_text("\n".join(f"{name} {digits}" for name, digits in sorted(checksums(arrays).items())))


def hash_text(text):
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
