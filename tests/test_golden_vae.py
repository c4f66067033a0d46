"""The SDXL autoencoder against diffusers' own numbers."""

import jax
import jax.numpy as jnp
import pytest

from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import TOWERS
from janus_jax.objectives.tokenizer import Tokenizer
from tests.helpers.golden_model import GOLDEN, close, inputs, nhwc, sizes

FOLDER = GOLDEN / "sdxl_vae_tiny"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no golden fixture")


def test_moments_and_decoding():
    d, io, weights = sizes(FOLDER), inputs(FOLDER), files.Folder(FOLDER / "model.safetensors")
    settings = dict(
        widths=d["block_out_channels"],
        num_res_blocks=d["layers_per_block"],
        latent_channels=d["latent_channels"],
        num_groups=d["norm_num_groups"],
    )
    generation = dict(kind="flow", image_size=io["pixels"].shape[-1], tokenizer=settings)
    network = Tokenizer.build_network(dict(generation=generation), dtype=jnp.float32)
    tensors = TOWERS["diffusers_vae"].match(weights, network.abstract)
    params = {
        p: jnp.asarray(a) for p, a in name_map.to_params(weights.read, tensors, network.abstract)
    }
    params |= {"generation/tokenizer/scale": jnp.float32(d["scaling_factor"])}
    vae = network.merge(params).tokenizer
    mean, logvar = jax.jit(vae.encode)(nhwc(io["pixels"]))
    close(mean, nhwc(io["mean"]))
    close(logvar, nhwc(io["logvar"]))
    close(jax.jit(vae.decode)(nhwc(io["mean"])), nhwc(io["decoded_from_mean"]))
