"""The golden fixtures: small random models of the release's code, with outputs and gradients."""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import LAYOUTS
from janus_jax.models.functional import ModelSpec
from janus_jax.models.janus import Janus

GOLDEN = Path(os.environ.get("JANUS_GOLDEN", Path(__file__).parent.parent / "golden"))
if "JANUS_GOLDEN" in os.environ and not GOLDEN.is_dir():
    raise FileNotFoundError(f"JANUS_GOLDEN names {str(GOLDEN)!r}, which is not a folder.")


def sizes(folder):
    """dims.json of a fixture."""
    return json.loads((folder / "dims.json").read_text())


def janus_model(d):
    """Keyword arguments of `Janus` for the sizes of a fixture."""
    return dict(
        llm=dict(
            vocab_size=d["vocab"],
            num_layers=d["layers"],
            embed_dim=d["embed"],
            num_heads=d["heads"],
            num_kv_heads=d["heads"],
            mlp_dim=d["mlp"],
            rope_theta=d.get("rope_theta", 10_000.0),
            norm_eps=d["rms_eps"],
        ),
        understanding=dict(
            encoder=dict(
                image_size=d["image"],
                patch_size=d["patch"],
                num_layers=d["vit_layers"],
                embed_dim=d["vit_width"],
                num_heads=d["vit_heads"],
                mlp_dim=4 * d["vit_width"],
            )
        ),
        generation=dict(
            kind="vq",
            image_size=d["image"],
            tokenizer=dict(
                base_channels=d["vq_ch"],
                channel_mult=d["vq_mult"],
                num_res_blocks=d.get("vq_res_blocks", 2),
                z_channels=d["vq_z"],
                codebook_size=d["codes"],
                codebook_dim=d["code_dim"],
            ),
        ),
    )


def flow_model(d):
    """Keyword arguments of `Janus` for a JanusFlow fixture; its autoencoder is a minimal one."""
    model = janus_model(d | dict(vq_ch=32, vq_mult=[1], vq_z=4, codes=1, code_dim=1))
    model["understanding"] |= dict(adaptor="linear", begin=True)
    model["generation"] = dict(
        kind="flow",
        image_size=8 * d["latent"],
        tokenizer=dict(widths=[1, 1, 1, 1], num_res_blocks=1, latent_channels=4, num_groups=1),
        unet=dict(dim=d["unet"], num_blocks=2, norm_eps=d["rms_eps"]),
        alignment=dict(layer=0, feature_dim=0),
    )
    return model


def tensors_of(network, kind):
    """{tensor name: `name_map.Tensor`} of a network in the release's layout."""
    return LAYOUTS["deepseek"].tensors(kind, network.abstract)


def load_janus(model, path):
    """ModelSpec and fp32 parameters of released weights; what a release lacks is fresh."""
    network = ModelSpec(functools.partial(Janus, **model, dtype=jnp.float32))
    weights = files.Folder(path)
    kind = model["generation"]["kind"]
    tensors, _ = LAYOUTS["deepseek"].match(weights, kind, network.abstract)
    arrays = dict(name_map.to_params(weights.read, tensors, network.abstract))
    loaded = {path: jnp.asarray(array) for path, array in arrays.items()}
    return network, network.init(jax.random.key(0)) | loaded


def inputs(folder, name="io"):
    """{key: array} of a fixture's file."""
    return load_file(folder / f"{name}.safetensors")


def nhwc(images):
    """NCHW -> NHWC."""
    return jnp.asarray(np.moveaxis(images, -3, -1))


def close(actual, expected, *, tolerance=2e-5):
    """Asserts that no value differs by more than `tolerance` of the largest reference value."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
