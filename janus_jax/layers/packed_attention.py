"""Attention over packed rows by the kernel of the device: splash on TPU, Triton on GPU, XLA on CPU.

All kernels agree on real positions. On padding each gives a finite value of its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from janus_jax import hardware, sharding
from janus_jax.errors import UserError
from janus_jax.layers.flash_xla import flash_xla

MASKS = ("causal", "picture_bidirectional")  # what a generation path may state as its `mask`
TILE = 128  # the Pallas kernels need a row length that is a multiple of this
XLA_BLOCK = (
    512  # positions per block of `flash_xla` on a GPU, where a launch costs more than a block
)
HEADS = ("batch", "length", "heads", "head_dim")
KV_HEADS = ("batch", "length", "kv_heads", "head_dim")
IDS = ("batch", "length")


def packed_attention(q, k, v, *, segment_ids, image_ids=None):
    """Every token attends to its own segment up to itself, and with `image_ids` to its image.

    Args:
      q: float[B, L, N, H] queries.
      k, v: float[B, L, K, H] keys and values; N is a multiple of K.
      segment_ids: int32[B, L], 1, 2, ... along a row; 0 is padding.
      image_ids: int32[B, L] or None (the causal mask). 0 outside generated images, and a distinct
        positive number for each image of a row. The tokens of an image are contiguous, belong to
        one segment and attend to each other in both directions.

    Returns:
      float[B, L, N, H].
    """
    kind = sharding.device_kind()
    ids = (segment_ids,) if image_ids is None else (segment_ids, image_ids)
    kernel = kernel_of(kind, q.shape[1], "causal" if image_ids is None else "picture_bidirectional")
    if kernel is not flash_xla:
        kernel = functools.partial(kernel, blocks=hardware.find_chip(kind).attention_blocks)
    elif image_ids is not None and kind.startswith("NVIDIA"):
        kernel = functools.partial(kernel, block=XLA_BLOCK)
    inputs = (HEADS, KV_HEADS, KV_HEADS, *(IDS for _ in ids))
    return sharding.per_device(kernel, inputs=inputs, output=HEADS)(q, k, v, *ids)


def splash(q, k, v, segment_ids, image_ids=None, *, blocks, interpret=False):
    """Splash attention (jax.experimental.pallas) for TPU; it skips blocks that are fully masked.

    The causal mask is computed inside the kernel. With `image_ids` every row has a mask of its own,
    bool[L, L], which the kernel reads.

    Args:
      q, k, v, segment_ids, image_ids: as in `packed_attention`.
      blocks: {name: positions} of `splash_attention.BlockSizes`, the largest block sizes to use.
      interpret: runs the kernel without its device, for tests.
    """
    _, length, heads, head_dim = q.shape
    sizes = {name: _dividing(length, size) for name, size in blocks.items()}
    for outer in ("block_kv", "block_kv_dkv"):
        sizes[f"{outer}_compute"] = _dividing(sizes[outer], blocks[f"{outer}_compute"])
    make = functools.partial(
        splash_attention.make_splash_mha_single_device,
        block_sizes=splash_attention.BlockSizes(**sizes),
        interpret=interpret,
    )
    causal = splash_attention.CausalMask((length, length))

    def row(q, k, v, segment_ids, image_ids=None):
        if image_ids is None:
            kernel = make(splash_attention.MultiHeadMask([causal] * heads))
        else:
            place = jnp.arange(length)
            in_image = (image_ids[:, None] == image_ids[None]) & (image_ids > 0)[None]
            mask = (place[:, None] >= place[None]) | in_image
            kernel = make(mask[None])  # one mask for all heads
            # jax (0.10 to 0.12) makes this flag a traced array, and then branches on it.
            kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(segment_ids, segment_ids))

    heads_first = lambda x: x.swapaxes(1, 2)
    ids = (segment_ids,) if image_ids is None else (segment_ids, image_ids)
    q = q * head_dim**-0.5
    return heads_first(jax.vmap(row)(heads_first(q), heads_first(k), heads_first(v), *ids))


def _dividing(total, size):
    """The largest multiple of TILE up to `size` that divides `total`."""
    tiles = range(TILE, min(size, total) + 1, TILE)
    return max(tile for tile in tiles if total % tile == 0)


def triton(q, k, v, segment_ids, *, blocks, interpret=False):
    """Causal flash attention in Triton (jax.experimental.pallas); it repeats K heads to N.

    Args:
      q, k, v, segment_ids: as in `packed_attention`.
      blocks: {name: positions} of the kernel's `BlockSizes`.
      interpret: runs the kernel without its device, for tests.
    """
    # Imported here: newer jax warns about this module, and only GPUs need it.
    from jax.experimental.pallas.ops.gpu import attention as flash

    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    return flash.mha(
        q,
        k,
        v,
        segment_ids,
        sm_scale=q.shape[-1] ** -0.5,
        causal=True,
        block_sizes=flash.BlockSizes(**blocks),
        interpret=interpret,
    )


KERNELS = {  # (start of the device kind, mask) -> kernel; everything else runs `flash_xla`
    ("TPU", "causal"): splash,
    ("TPU", "picture_bidirectional"): splash,
    ("NVIDIA", "causal"): triton,  # the Triton kernel knows no other mask
}


def kernel_of(device_kind, length, mask="causal"):
    """The kernel for rows of `length` tokens under a generator's mask on a device.

    Raises:
      UserError: for an unknown mask.
    """
    check_mask(mask)
    if length % TILE == 0:
        for (start, of_mask), kernel in KERNELS.items():
            if device_kind.startswith(start) and mask == of_mask:
                return kernel
    return flash_xla


def check_mask(mask):
    """Raises UserError for a mask that attention does not know."""
    if mask not in MASKS:
        raise UserError(f"A generation path's `mask` is {mask!r}; known: {list(MASKS)}.")
