"""FLOPs by formula are those that XLA counts in the compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from configs import common
from janus_jax import flops
from janus_jax.generation import convnext
from janus_jax.generation.base import GenerationPath
from janus_jax.generation.convnext import FlowDecoder, FlowEncoder
from janus_jax.generation.flow import FlowPath
from janus_jax.generation.vq import VQPath
from janus_jax.layers.linear import Mlp
from janus_jax.models.functional import ModelSpec
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.tokenizers.vq16 import VQTokenizer
from tests.conftest import fresh_params


def count(function, *args):
    """FLOPs of a program as XLA counts them."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_llm():
    llm = dict(num_layers=1, embed_dim=256, num_heads=4, num_kv_heads=2, mlp_dim=768)
    network = ModelSpec(lambda rngs: Llama(rngs, vocab_size=32, remat="none", **llm))
    # One block, since XLA counts the body of a loop once; and all pairs of positions, since it
    # also counts products that the mask discards.
    formula = flops.transformer(tokens=128, attended=2 * 64 * 64, gates=3, **llm)
    ids = jnp.ones((2, 64), jnp.int32)
    run = lambda params, x: network.merge(params)(x, positions=ids, segment_ids=ids)[0]
    xla = count(run, fresh_params(network), jnp.ones((2, 64, 256)))
    assert xla == pytest.approx(formula, rel=0.02)


def test_understanding_encoder():
    vit = dict(image_size=64, patch_size=8, num_layers=1, embed_dim=1024, num_heads=4, mlp_dim=2048)
    network = ModelSpec(lambda rngs: Siglip(rngs, remat="none", **vit))
    run = lambda params, x: network.merge(params)(x)
    xla = count(run, fresh_params(network), jnp.ones((2, 64, 64, 3)))
    assert xla == pytest.approx(2 * flops.encoder(vit, tokens=64), rel=0.02)


def test_vq_tokenizer():
    settings = dict(
        base_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        z_channels=64,
        codebook_size=64,
        codebook_dim=8,
    )
    network = ModelSpec(lambda rngs: VQTokenizer(rngs, num_groups=2, **settings))
    params = fresh_params(network)
    encode, decode = VQTokenizer.flops(size=64, **settings)

    def encode_to_codes(params, x):
        tokenizer = network.merge(params)
        return tokenizer.nearest(tokenizer.encode(x))

    xla = count(encode_to_codes, params, jnp.ones((1, 64, 64, 3)))
    assert xla == pytest.approx(encode, rel=0.02)
    decode_codes = lambda params, codes: network.merge(params).decode(codes)
    xla = count(decode_codes, params, jnp.ones((1, 1024), jnp.int32))
    assert xla == pytest.approx(decode, rel=0.02)


def test_image_head():
    network = ModelSpec(lambda rngs: Mlp(rngs, 512, 512, 2048, axes=(None, None, None)))
    tokenizer = common.VQ_16 | dict(codebook_size=2048)
    settings = dict(image_size=128, tokenizer=tokenizer)  # 64 codes
    parts = VQPath.flops(settings, embed_dim=512, encoder=0)
    run = lambda params, x: network.merge(params)(x)
    xla = count(run, fresh_params(network), jnp.ones((64, 512)))
    assert xla == pytest.approx(parts["heads"] / flops.TRAINED, rel=0.02)


def test_flow_nets(monkeypatch):
    # On CPU a grouped convolution is computed as a product with mostly zeros.
    monkeypatch.setattr(convnext, "banded", convnext.grouped)
    # The nets are wide, since XLA counts element-wise operations too.
    net = dict(latent_channels=4, dim=1024, num_blocks=1, time_dim=1024, norm_eps=1e-6)
    encoder = ModelSpec(lambda rngs: FlowEncoder(rngs, **net))
    decoder = ModelSpec(lambda rngs: FlowDecoder(rngs, **net))
    settings = dict(
        image_size=128,
        tokenizer=common.SDXL_VAE,
        unet=dict(dim=1024, num_blocks=1),
        alignment=dict(layer=0),
    )
    parts = FlowPath.flops(settings, embed_dim=1024, encoder=0)
    linear = 2 * 64 * 1024 * 1024  # between each net and the LLM
    time, latents = jnp.ones(1), jnp.ones((1, 16, 16, 4))
    features, embedded_time = jnp.ones((1, 8, 8, 1024)), jnp.ones((1, 1024))
    encode = lambda params, x: encoder.merge(params)(x, time)
    decode = lambda params, x: decoder.merge(params)(x, x, embedded_time)
    xla = count(encode, fresh_params(encoder), latents) + linear
    assert xla == pytest.approx(parts["adaptors"] / flops.TRAINED, rel=0.02)
    xla = count(decode, fresh_params(decoder), features) + linear
    assert xla == pytest.approx(parts["heads"] / flops.TRAINED, rel=0.02)


def test_a_generation_path_must_count_its_flops():
    methods = {
        name: lambda self, *args, **kwargs: None for name in GenerationPath.__abstractmethods__
    }
    complete = type("Complete", (GenerationPath,), dict(methods))
    complete(nets=None, dtype=jnp.float32)
    del methods["flops"]
    without_flops = type("WithoutFlops", (GenerationPath,), methods)
    with pytest.raises(TypeError, match="flops"):
        without_flops(nets=None, dtype=jnp.float32)
