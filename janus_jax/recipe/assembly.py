"""Temporary: the old entry points, for callers that have not moved yet."""

import functools

import jax.numpy as jnp

from janus_jax.convert.layouts import tables
from janus_jax.models.functional import ModelSpec
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.objectives.joint import Joint
from janus_jax.tokenizers.sdxl_vae import VAE
from janus_jax.tokenizers.vq16 import VQTokenizer


def build_network(config, stage):
    return Joint.build_network(config["model"], dtype=jnp.dtype("float32"))


def build_tower(layout, model):
    """The parameters of a tower alone, at their place in the whole model.

    Args:
      layout: of `weights.tables.TOWERS`.
      model: the part of `config.model` that describes it.

    Returns:
      {path: ShapeDtypeStruct} and {path: logical axes}.
    """
    into = tables.INTO[layout]
    settings = functools.reduce(dict.__getitem__, into.split("/"), model)
    module = {"llama": Llama, "siglip": Siglip, "llamagen_vq": VQTokenizer, "diffusers_vae": VAE}[
        layout
    ]
    network = ModelSpec(functools.partial(module, **settings))
    put = lambda flat: {f"{into}/{path}": leaf for path, leaf in flat.items()}
    return put(network.abstract), put(network.axes)
