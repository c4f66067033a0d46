"""What the chips are: speed, memory, and the attention blocks that suit them. One row a chip, public figures.

Splash blocks follow what the public TPU recipes train with; the Triton ones are the kernel's own. None of them was
measured here.
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
      attention_blocks: sizes of the attention kernel's tiles.
    """

    peak: float
    memory: float
    attention_blocks: dict


def _splash(size):
    forward = dict(block_q=size, block_kv=size, block_kv_compute=512)
    backward = dict(block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=512, block_q_dq=size, block_kv_dq=size)
    return forward | backward


_TRITON = dict(block_q=128, block_k=128, block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32)
_GPU_SHARE = 0.92  # of a GPU's memory is XLA's: XLA_PYTHON_CLIENT_MEM_FRACTION of launch/

CHIPS = {  # by the beginning of jax's device_kind; the first that fits
    "TPU v4": Chip(275e12, 30.75 * GIB, _splash(512)),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, _splash(512)),
    "TPU v5": Chip(459e12, 95.74 * GIB, _splash(1024)),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, _splash(1024)),
    "TPU7x": Chip(1153.5e12, 94.75 * GIB, _splash(1024)),  # of one of the chip's two cores, which jax calls a device
    "NVIDIA A100": Chip(312e12, _GPU_SHARE * 79.2 * GIB, _TRITON),
    "NVIDIA H100": Chip(989e12, _GPU_SHARE * 79.1 * GIB, _TRITON),
    "NVIDIA H200": Chip(989e12, _GPU_SHARE * 139.8 * GIB, _TRITON),
}
UNKNOWN = Chip(0.0, 0.0, {})


def find_chip(device_kind):
    """The chip of a device kind; `UNKNOWN`, all zeros, where the table has none."""
    return next((chip for name, chip in CHIPS.items() if device_kind.startswith(name)), UNKNOWN)


def peak_flops():
    """FLOP/s that MFU is a share of, over all devices; on CPU what a jitted fp32 product does, best of 15."""
    kind = jax.devices()[0].device_kind
    if known := find_chip(kind).peak:
        return known * jax.device_count()
    devices, best = jax.local_devices(), float("inf")
    mesh = sharding.make_mesh(devices=devices)
    with jax.set_mesh(mesh):
        rows = jax.device_put(jnp.ones((-(-4096 // len(devices)) * len(devices), 512)), sharding.batch_sharding(mesh))
        kernel = jax.device_put(jnp.ones((512, 1408)), sharding.replicated(mesh))
        product = jax.jit(jnp.matmul, out_shardings=rows.sharding)
        for _ in range(15):
            start = time.perf_counter()
            product(rows, kernel).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return jax.process_count() * 2 * rows.size * kernel.shape[1] / best
