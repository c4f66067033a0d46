"""Accelerators: speed, memory and block sizes of the attention kernel, from public figures.

Block sizes of splash attention are those of public TPU recipes; those of the Triton kernel are its
defaults. They have not been tuned.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax import sharding

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      peak: FLOP/s in bf16, dense.
      memory: bytes that a program may use.
      attention_blocks: block sizes of the attention kernel, its keyword arguments.
    """

    peak: float
    memory: float
    attention_blocks: dict


def _splash(size):
    forward = dict(block_q=size, block_kv=size, block_kv_compute=512)
    backward = dict(
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=512,
        block_q_dq=size,
        block_kv_dq=size,
    )
    return forward | backward


_TRITON = dict(
    block_q=128, block_k=128, block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32
)
_GPU_SHARE = 0.92  # of a GPU's memory, XLA_PYTHON_CLIENT_MEM_FRACTION in launch/

CHIPS = {  # by prefix of jax's device_kind; the first match counts
    "TPU v4": Chip(275e12, 30.75 * GIB, _splash(512)),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, _splash(512)),
    "TPU v5": Chip(459e12, 95.74 * GIB, _splash(1024)),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, _splash(1024)),
    "TPU7x": Chip(1153.5e12, 94.75 * GIB, _splash(1024)),  # one of two cores, a device of its own
    "NVIDIA A100": Chip(312e12, _GPU_SHARE * 79.2 * GIB, _TRITON),
    "NVIDIA H100": Chip(989e12, _GPU_SHARE * 79.1 * GIB, _TRITON),
    "NVIDIA H200": Chip(989e12, _GPU_SHARE * 139.8 * GIB, _TRITON),
}
UNKNOWN = Chip(0.0, 0.0, {})


def find_chip(device_kind):
    """The chip of a device kind; `UNKNOWN`, all zeros, if the table has none."""
    return next((chip for name, chip in CHIPS.items() if device_kind.startswith(name)), UNKNOWN)


def peak_flops():
    """Peak FLOP/s of all devices, for MFU; on CPU the best of 15 fp32 products."""
    kind = jax.devices()[0].device_kind
    if known := find_chip(kind).peak:
        return known * jax.device_count()
    devices = jax.local_devices()
    best = float("inf")  # seconds
    mesh = sharding.make_mesh(devices=devices)
    with jax.set_mesh(mesh):
        count = -(-4096 // len(devices)) * len(devices)
        rows = jax.device_put(jnp.ones((count, 512)), sharding.batch_sharding(mesh))
        kernel = jax.device_put(jnp.ones((512, 1408)), sharding.replicated(mesh))
        product = jax.jit(jnp.matmul, out_shardings=rows.sharding)
        for _ in range(15):
            start = time.perf_counter()
            product(rows, kernel).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return jax.process_count() * 2 * rows.size * kernel.shape[1] / best
