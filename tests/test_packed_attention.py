"""Attention over packed rows: every kernel, interpreted on CPU, against the definition in fp64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import hardware, sharding
from janus_jax.errors import UserError
from janus_jax.layers import flash_xla as flash_module
from janus_jax.layers import packed_attention
from janus_jax.layers.flash_xla import flash_xla
from janus_jax.layers.packed_attention import kernel_of, splash, triton

pytestmark = pytest.mark.filterwarnings(  # jax 0.12
    "ignore:jax.experimental.pallas.ops.gpu.attention is deprecated"
)
TPU = {
    name: 128 for name in hardware.CHIPS["TPU v5"].attention_blocks
}  # many blocks in a short row
GPU = hardware.CHIPS["NVIDIA H100"].attention_blocks
KERNELS = {
    "flash_xla": flash_xla,
    "flash_xla in large blocks": functools.partial(flash_xla, block=128),
    "splash": functools.partial(splash, blocks=TPU, interpret=True),
    "triton": functools.partial(triton, blocks=GPU, interpret=True),
}
CASES = [(name, mask) for name in KERNELS for mask in packed_attention.MASKS]
CASES.remove(("triton", "picture_bidirectional"))  # kernel_of never chooses it


def make_case(*, heads=4, kv_heads=2, length=256, head_dim=64):
    """q, k, v, segment ids and image ids of two rows.

    Row 0 has segments of odd lengths, padding inside a segment, between segments and at the end,
    and images that cross blocks and are adjacent. Row 1 is one segment with a long image.
    """
    rng = np.random.default_rng(0)
    random = lambda n: jnp.asarray(rng.normal(size=(2, length, n, head_dim)), jnp.float32)
    segments = np.zeros((2, length), np.int32)
    segments[0, :37] = 1
    segments[0, 37:167] = 2
    segments[0, 38:70] = 0  # a dropped prompt: the token before it is still attended to
    segments[0, 176:236] = 3
    segments[1] = 1
    images = np.zeros_like(segments)
    images[0, 20:30] = 1
    images[0, 75:140] = 4
    images[0, 140:160] = 2
    images[1, 30:230] = 1
    return random(heads), random(kv_heads), random(kv_heads), segments, images


def allowed_pairs(segments, images=None):
    """bool[B, L, L]: which keys each query attends to."""
    place = np.arange(segments.shape[1])
    visible = place[:, None] >= place[None]
    if images is not None:
        visible = visible | ((images[:, :, None] == images[:, None]) & (images > 0)[:, None])
    return (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None] & visible


def reference(q, k, v, mask, dO):
    """The output and the gradients of q, k and v in fp64; 0 for a query that attends to nothing."""
    q, k, v, dO = (np.asarray(x, np.float64) for x in (q, k, v, dO))
    groups, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    p = np.exp(np.einsum("blnh,bpnh->bnlp", q, k) * scale) * mask[:, None]
    p = p / np.maximum(p.sum(axis=-1, keepdims=True), 1e-300)
    out = np.einsum("bnlp,bpnh->blnh", p, v)
    dp = np.einsum("blnh,bpnh->bnlp", dO, v)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
    per_group = lambda x: x.reshape(*x.shape[:2], -1, groups, x.shape[-1]).sum(axis=3)
    dq = np.einsum("bnlp,bpnh->blnh", ds, k)
    dk = per_group(np.einsum("bnlp,blnh->bpnh", ds, q))
    dv = per_group(np.einsum("bnlp,blnh->bpnh", p, dO))
    return out, dq, dk, dv


@functools.cache
def run(kernel):
    """A kernel's output and gradients, compiled once: (ids, dO, q, k, v) -> out, dq, dk, dv."""

    def both(ids, dO, *qkv):
        out, pull_back = jax.vjp(lambda *qkv: kernel(*qkv, *ids), *qkv)
        return out, *pull_back(dO)

    return jax.jit(both)


@pytest.mark.parametrize("name, mask", CASES)
def test_kernels_and_their_gradients_agree_with_the_definition(name, mask):
    *qkv, segments, images = make_case()
    ids = (segments,) if mask == "causal" else (segments, images)
    real = (segments > 0)[..., None, None]
    dO = np.where(real, np.random.default_rng(1).normal(size=qkv[0].shape), 0).astype(np.float32)
    out, *gradients = run(KERNELS[name])(ids, dO, *qkv)
    assert np.isfinite(out).all()
    expected, *expected_gradients = reference(*qkv, allowed_pairs(*ids), dO)
    np.testing.assert_allclose(np.where(real, out, 0), expected, atol=2e-5)
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, one, atol=1e-4)


def wrong_pairs(kernel, ids):
    """Number of (query, key) pairs whose gradient contradicts the mask."""
    *qkv, _, _ = make_case()
    mask, count = allowed_pairs(*ids), 0
    for b, i in [(0, 0), (0, 25), (0, 70), (0, 80), (0, 139), (0, 150), (0, 180), (1, 0), (1, 100)]:
        dO = np.zeros(qkv[0].shape, np.float32)
        dO[b, i] = 1
        *_, dv = run(kernel)(ids, dO, *qkv)
        attended = np.abs(dv).max(axis=(2, 3)) > 0
        expected = np.zeros_like(attended)
        expected[b] = mask[b, i]
        count += (attended != expected).sum()
    return count


@pytest.mark.parametrize("name, mask", CASES)
def test_gradients_reach_exactly_the_keys_of_the_mask(name, mask):
    *_, segments, images = make_case()
    ids = (segments,) if mask == "causal" else (segments, images)
    assert wrong_pairs(KERNELS[name], ids) == 0


def test_a_broken_mask_is_noticed(monkeypatch):
    *_, segments, images = make_case()
    ids = (segments, images)
    broken = {
        "causal": lambda q, k, v, segments, images: flash_xla(q, k, v, segments),
        "one segment": lambda q, k, v, segments, images: flash_xla(
            q, k, v, (segments > 0).astype(jnp.int32), images
        ),
        "one image": lambda q, k, v, segments, images: flash_xla(
            q, k, v, segments, (images > 0).astype(jnp.int32)
        ),
    }
    for name, kernel in broken.items():
        assert wrong_pairs(kernel, ids) > 0, name
    # The bounds of the loop over blocks matter too: without the blocks above the diagonal.
    key_blocks = flash_module._key_blocks
    stop_at_diagonal = lambda *args: (key_blocks(*args)[0], key_blocks(args[0], None, args[2])[1])
    monkeypatch.setattr(flash_module, "_key_blocks", stop_at_diagonal)
    assert wrong_pairs(lambda *args: flash_xla(*args), ids) > 0


def test_each_device_and_mask_has_its_kernel():
    for device, length, mask, kernel in [
        ("TPU v5 lite", 4096, "causal", splash),
        ("TPU7x", 4096, "picture_bidirectional", splash),
        ("NVIDIA H100 80GB HBM3", 4096, "causal", triton),
        ("NVIDIA H100 80GB HBM3", 4096, "picture_bidirectional", flash_xla),
        ("cpu", 4096, "causal", flash_xla),
        ("cpu", 4096, "picture_bidirectional", flash_xla),
        ("TPU v5 lite", 100, "causal", flash_xla),  # not a multiple of a tile
    ]:
        assert kernel_of(device, length, mask) is kernel, (device, length, mask)
    with pytest.raises(UserError, match="'bidirectional'"):
        kernel_of("cpu", 4096, "bidirectional")


@pytest.mark.parametrize(
    "device, mask", [("cpu", "causal"), ("NVIDIA H100", "picture_bidirectional")]
)
def test_the_chosen_kernel_runs_on_every_device_of_a_mesh(monkeypatch, device, mask):
    monkeypatch.setattr(sharding, "device_kind", lambda: device)
    *qkv, segments, images = make_case(heads=1, kv_heads=1, length=256, head_dim=8)
    image_ids = None if mask == "causal" else images
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:2])):
        out = jax.jit(packed_attention.packed_attention)(
            *qkv, segment_ids=segments, image_ids=image_ids
        )
    pairs = allowed_pairs(segments, image_ids)
    expected = reference(*qkv, pairs, np.zeros(out.shape))[0]
    real = (segments > 0)[..., None, None]
    np.testing.assert_allclose(np.where(real, out, 0), expected, atol=2e-5)


@pytest.mark.parametrize("chip, length", [("TPU v5 lite", 640), ("TPU v5", 1280)])
def test_splash_takes_rows_that_its_tiles_do_not_divide(chip, length):
    *qkv, segments, _ = make_case(heads=1, kv_heads=1, length=length)
    blocks = hardware.CHIPS[chip].attention_blocks
    out = jax.jit(functools.partial(splash, blocks=blocks, interpret=True))(*qkv, segments)
    expected = reference(*qkv, allowed_pairs(segments), np.zeros(out.shape))[0]
    np.testing.assert_allclose(
        np.where((segments > 0)[..., None, None], out, 0), expected, atol=2e-5
    )


def test_tiles_divide_every_row():
    for length in range(128, 4097, 128):
        for size in (128, 512, 1024):
            tile = packed_attention._dividing(length, size)
            assert length % tile == 0 and tile % 128 == 0 and tile <= size, (length, size)
    assert packed_attention._dividing(4096, 1024) == 1024


@pytest.mark.parametrize("length", [100, 200, 1100])
def test_rows_of_any_length_are_cut_into_blocks(length):
    rng = np.random.default_rng(length)
    qkv = [jnp.asarray(rng.normal(size=(1, length, 1, 8)), jnp.float32) for _ in range(3)]
    segments = np.sort(rng.integers(1, 5, (1, length))).astype(np.int32)
    images = np.where(np.arange(length)[None] % 90 < 70, np.arange(length)[None] // 90 + 1, 0)
    images = np.where(segments == segments[:, :1], images, 0).astype(np.int32)
    out = jax.jit(flash_xla)(*qkv, segments, images)
    expected = reference(*qkv, allowed_pairs(segments, images), np.zeros(out.shape))[0]
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_padding_inside_a_segment_does_not_hide_the_blocks_before_it():
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.normal(size=(1, 256, 1, 8)), jnp.float32) for _ in range(3)]
    segments = np.ones((1, 256), np.int32)
    segments[0, 1:130] = 0  # a dropped prompt, longer than two blocks
    out = jax.jit(flash_xla)(*qkv, segments)
    expected = reference(*qkv, allowed_pairs(segments), np.zeros(out.shape))[0]
    np.testing.assert_allclose(np.where(segments[..., None, None], out, 0), expected, atol=2e-5)


def test_blocks_of_other_segments_are_never_read():
    q, k, v, *_ = make_case(heads=1, kv_heads=1, length=512)
    segments = jnp.repeat(jnp.arange(1, 5), 128)[None].repeat(2, axis=0)
    images = jnp.zeros_like(segments).at[:, 100:128].set(1).at[:, 200:250].set(2)
    poison = lambda x: x.at[:, :128].set(jnp.nan)  # NaN times a probability of zero is NaN
    loss = lambda *qkv: flash_xla(*qkv, segments, images)[:, 128:].sum()
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(q, poison(k), poison(v))
    assert all(jnp.isfinite(gradient[:, 128:]).all() for gradient in gradients)
