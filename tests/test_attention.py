"""Attention inside packed rows: the kernels of TPU and GPU, interpreted on CPU, beside a plain sum over keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import hardware
from janus_jax.layers import packed_attention
from janus_jax.layers.attention import attention
from janus_jax.layers.flash_xla import flash_xla

pytestmark = pytest.mark.filterwarnings("ignore:jax.experimental.pallas.ops.gpu.attention is deprecated")  # jax 0.12
TPU = {name: 128 for name in hardware.CHIPS["TPU v5"].attention_blocks}  # many blocks also in short rows
GPU = hardware.CHIPS["NVIDIA H100"].attention_blocks


def case(*, heads, kv_heads, length=256, head_dim=64):
    """q, k, v and segment ids of two rows: examples of odd lengths, padding inside and at the end."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, length, heads, head_dim), (2, length, kv_heads, head_dim), (2, length, kv_heads, head_dim))
    q, k, v = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    rows = [[(1, 37), (2, 130), (0, 9), (3, 60)], [(1, length)]]
    ids = [np.repeat(*zip(*row, strict=True)) for row in rows]
    return q, k, v, jnp.array([np.pad(i, (0, length - len(i))) for i in ids], jnp.int32)


def plain(q, k, v, segment_ids):
    """Example by example, in fp64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, groups = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, ids in enumerate(np.asarray(segment_ids)):
        for i in np.flatnonzero(ids):
            see = np.flatnonzero((ids == ids[i]) & (np.arange(len(ids)) <= i))
            for n in range(q.shape[2]):
                scores = k[b, see, n // groups] @ q[b, i, n] / np.sqrt(q.shape[-1])
                weights = np.exp(scores - scores.max())
                out[b, i, n] = weights @ v[b, see, n // groups] / weights.sum()
    return out


def dense(q, k, v, segment_ids):
    """All queries times all keys under one mask."""
    place = jnp.arange(q.shape[1])
    see = (segment_ids[:, :, None] == segment_ids[:, None]) & (place[:, None] >= place[None])[None]
    return attention(q, k, v, mask=see[:, None])


KERNELS = {
    "flash_xla": flash_xla,
    "splash": lambda *a: packed_attention.splash(*a, blocks=TPU, interpret=True),
    "triton": lambda *a: packed_attention.triton(*a, blocks=GPU, interpret=True),
}


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_on_real_positions(name, kv_heads):
    args = case(heads=2, kv_heads=kv_heads)
    real = np.asarray(args[3] > 0)[..., None, None]
    out = jax.jit(KERNELS[name])(*args)
    assert jnp.isfinite(out).all()
    np.testing.assert_allclose(np.where(real, out, 0), plain(*args), atol=2e-5)


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_kernels_agree(name, kv_heads):
    *qkv, ids = case(heads=2, kv_heads=kv_heads)
    wanted = jax.random.normal(jax.random.key(1), qkv[0].shape) * (ids > 0)[..., None, None]  # padding wants nothing
    gradient = lambda kernel: jax.jit(jax.grad(lambda *a: (kernel(*a, ids) * wanted).sum(), (0, 1, 2)))(*qkv)
    for mine, reference in zip(gradient(KERNELS[name]), gradient(dense), strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-4)


@pytest.mark.parametrize(
    "device, length, kernel",
    [
        ("TPU v5 lite", 4096, "splash"),
        ("NVIDIA H100 80GB HBM3", 4096, "triton"),
        ("cpu", 4096, "flash_xla"),
        ("TPU v5 lite", 100, "flash_xla"),  # no multiple of a tile
    ],
)
def test_each_device_gets_its_kernel(device, length, kernel):
    assert packed_attention.kernel_of(device, length) is getattr(packed_attention, kernel)


@pytest.mark.parametrize("length", [640, 1280])  # no multiples of the chip's own tiles of 512 and 1,024
@pytest.mark.parametrize("chip", ["TPU v5 lite", "TPU v5"])
def test_splash_takes_rows_that_its_tiles_do_not_divide(chip, length):
    args = case(heads=1, kv_heads=1, length=length)
    real = np.asarray(args[3] > 0)[..., None, None]
    out = jax.jit(lambda *a: packed_attention.splash(*a, blocks=hardware.CHIPS[chip].attention_blocks, interpret=True))(*args)
    np.testing.assert_allclose(np.where(real, out, 0), plain(*args), atol=2e-5)


@pytest.mark.parametrize("length", [100, 128, 200, 1024, 1100])
def test_rows_of_any_length_are_cut_into_blocks(length):
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.normal(size=(1, length, 1, 8)), jnp.float32) for _ in range(3))
    ids = jnp.asarray(np.sort(rng.integers(1, 5, (1, length))), jnp.int32)
    np.testing.assert_allclose(flash_xla(q, k, v, ids), plain(q, k, v, ids), atol=2e-5)


def test_blocks_of_other_examples_are_never_touched():
    q, k, v, _ = case(heads=1, kv_heads=1, length=512)
    ids = jnp.repeat(jnp.arange(1, 5), 128)[None].repeat(2, axis=0)
    poisoned = lambda x: x.at[:, :128].set(jnp.nan)  # even NaN times a weight of zero would be NaN
    out = jax.jit(jax.grad(lambda *a: (flash_xla(*a, ids)[:, 128:]).sum(), (0, 1, 2)))(q, poisoned(k), poisoned(v))
    assert all(jnp.isfinite(gradient[:, 128:]).all() for gradient in out)
