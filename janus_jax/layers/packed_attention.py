"""Causal attention inside packed examples, by the kernel of the device: splash on TPU, Triton on GPU, plain XLA elsewhere.

All three agree on real positions; on padding each gives something finite of its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from janus_jax import hardware, sharding
from janus_jax.layers.flash_xla import flash_xla

TILE = 128  # kernels want rows of a multiple of this
HEADS, KV_HEADS = ("batch", "length", "heads", "head_dim"), ("batch", "length", "kv_heads", "head_dim")


def packed_attention(q, k, v, *, segment_ids):
    """Every token looks at its own example up to itself.

    Args:
      q: float[B, L, N, H] queries.
      k, v: float[B, L, K, H] keys and values; N is a multiple of K.
      segment_ids: int32[B, L], 0 is padding.

    Returns:
      float[B, L, N, H].
    """
    kind = sharding.device_kind()
    kernel = kernel_of(kind, q.shape[1])
    if kernel is not flash_xla:
        kernel = functools.partial(kernel, blocks=hardware.find_chip(kind).attention_blocks)
    spread = sharding.per_device(kernel, inputs=(HEADS, KV_HEADS, KV_HEADS, ("batch", "length")), output=HEADS)
    return spread(q, k, v, segment_ids)


def kernel_of(device_kind, length):
    """The kernel for rows of this length on a device."""
    if length % TILE:
        return flash_xla
    return splash if device_kind.startswith("TPU") else triton if device_kind.startswith("NVIDIA") else flash_xla


def splash(q, k, v, segment_ids, *, blocks, interpret=False):
    """Splash attention (jax.experimental.pallas): the blocks above the diagonal are never touched."""
    _, length, heads, head_dim = q.shape
    sizes = {name: _dividing(length, size) for name, size in blocks.items()}
    for outer in ("block_kv", "block_kv_dkv"):
        sizes[f"{outer}_compute"] = _dividing(sizes[outer], blocks[f"{outer}_compute"])
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        interpret=interpret,
    )
    one = lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash_attention.SegmentIds(ids, ids))
    heads_first = lambda x: x.swapaxes(1, 2)
    out = jax.vmap(one)(heads_first(q * head_dim**-0.5), heads_first(k), heads_first(v), segment_ids)
    return heads_first(out)


def _dividing(whole, size):
    """The largest tiles up to `size` of which `whole` is a multiple, itself a multiple of TILE."""
    return max(tile for tile in range(TILE, min(size, whole) + 1, TILE) if whole % tile == 0)


def triton(q, k, v, segment_ids, *, blocks, interpret=False):
    """Flash attention in Triton (jax.experimental.pallas), which needs as many heads of keys as of queries."""
    from jax.experimental.pallas.ops.gpu import attention as flash  # here: newer jax warns of it, and only GPUs want it

    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v)) if groups > 1 else (k, v)
    sizes = flash.BlockSizes(**blocks)
    return flash.mha(q, k, v, segment_ids, sm_scale=q.shape[-1] ** -0.5, causal=True, block_sizes=sizes, interpret=interpret)
