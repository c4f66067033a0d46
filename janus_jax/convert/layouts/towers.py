"""The layouts of open pretrained towers, from which stage 1 of the papers starts."""

import math

import numpy as np

from janus_jax.convert.layouts.base import TowerLayout, required_config
from janus_jax.convert.layouts.networks import (
    ENCODER,
    NUM_GROUPS,
    TOKENIZER,
    attention_table,
    llama_table,
    llamagen_vq_table,
    read_llama,
    resnet_table,
    siglip_timm_table,
    siglip_transformers_table,
)
from janus_jax.convert.name_map import CONV, POINTWISE, norm, weight_and_bias
from janus_jax.errors import UserError
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.tokenizers.sdxl_vae import VAE
from janus_jax.tokenizers.vq16 import VQTokenizer


class LlamaTower(TowerLayout):
    """transformers' LlamaForCausalLM."""

    name = "llama"
    target = "llm"
    module = Llama
    tables = [llama_table("model.", "lm_head")]
    ignored = r".*rotary_emb\.inv_freq"

    def _read(self, folder):
        config = required_config(folder)
        if "lm_head.weight" not in folder.tensors:
            raise UserError(
                f"{str(folder.path)!r} has no lm_head.weight: its text head is tied to the "
                "embedding table, and Janus has separate ones. Save the model with a head "
                "of its own first."
            )
        return {"llm": read_llama(config)}


class SiglipTower(TowerLayout):
    """SigLIP of transformers, timm or open_clip."""

    name = "siglip"
    target = ENCODER
    module = Siglip
    tables = [
        siglip_transformers_table("vision_model.", "out_proj"),
        siglip_transformers_table("", "out_proj"),
        siglip_timm_table(""),
        siglip_timm_table("visual.trunk."),
    ]
    ignored = (  # pooling heads and text towers
        r"(text_model|text|head|vision_model\.head|visual\.trunk\.attn_pool|attn_pool)\..*"
        r"|logit_(scale|bias)|(vision_model\.)?embeddings\.position_ids"
    )

    def _read(self, folder):
        """Sizes are those of the tensors; the number of heads is in config.json or SigLIP's own."""
        transformers_names = (
            "embeddings.patch_embedding",
            "embeddings.position_embedding.weight",
            "encoder.layers",
        )
        timm_names = ("patch_embed.proj", "pos_embed", "blocks")
        for prefix, names in (
            ("vision_model.", transformers_names),
            ("", transformers_names),
            ("", timm_names),
            ("visual.trunk.", timm_names),
        ):
            patch, positions, blocks = (f"{prefix}{name}" for name in names)
            if f"{patch}.weight" in folder.tensors:
                break
        else:
            raise UserError(
                f"{str(folder.path)!r} has no SigLIP: it has no vision_model.embeddings."
                "patch_embedding.weight."
            )
        width, _, patch_size, _ = _shape(folder, f"{patch}.weight")
        grid = math.isqrt(math.prod(_shape(folder, positions)) // width)
        num_heads = {1152: 16}.get(width, width // 64)
        encoder = dict(
            image_size=grid * patch_size,
            patch_size=patch_size,
            num_layers=_count_numbers(folder, f"{blocks}."),
            embed_dim=width,
            num_heads=_vision_config(folder).get("num_attention_heads", num_heads),
            mlp_dim=_shape(folder, f"{blocks}.0.mlp.fc1.weight")[0],
            norm_eps=1e-6,
        )
        return {"understanding": {"encoder": encoder}}

    def notes(self, folder):
        """The activation and the epsilon that the encoder was trained with."""
        config = _vision_config(folder)
        activation = config.get("hidden_act", "gelu_pytorch_tanh, SigLIP's default,")
        eps = config.get("layer_norm_eps", 1e-6)
        return [
            f"The encoder was trained with {activation} and norm eps {eps}; Janus computes exact "
            "(erf) GELU and eps 1e-06."
        ]


class LlamaGenVQ(TowerLayout):
    """LlamaGen's VQ-16."""

    name = "llamagen_vq"
    target = TOKENIZER
    module = VQTokenizer
    tables = [llamagen_vq_table("")]
    ignored = r"quantize\.codebook_used"  # usage counts

    def _read(self, folder):
        base = _shape(folder, "encoder.conv_in.weight")[0]
        levels = range(_count_numbers(folder, "encoder.conv_blocks."))
        first_convs = [f"encoder.conv_blocks.{i}.res.0.conv1.weight" for i in levels]
        codebook_size, codebook_dim = _shape(folder, "quantize.embedding.weight")
        tokenizer = dict(
            base_channels=base,
            channel_mult=[_shape(folder, name)[0] // base for name in first_convs],
            num_res_blocks=_count_numbers(folder, "encoder.conv_blocks.0.res."),
            z_channels=_shape(folder, "encoder.conv_out.weight")[0],
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            num_groups=NUM_GROUPS,
        )
        return {"generation": {"kind": "vq", "tokenizer": tokenizer}}


def _diffusers_vae_table(*maps):
    """AutoencoderKL; `maps` name query, key, value and output of the attention in its middle."""
    table = [
        *weight_and_bias("quant_conv", f"{TOKENIZER}/quant_conv", CONV),
        *weight_and_bias("post_quant_conv", f"{TOKENIZER}/post_quant_conv", CONV),
    ]
    for half, levels, resample in (
        ("encoder", "down_blocks", "downsamplers"),
        ("decoder", "up_blocks", "upsamplers"),
    ):
        params = f"{TOKENIZER}/{half}"
        level = f"{half}.{levels}.{{i}}"
        level_params = f"{params}/levels/{{i}}"
        middle = f"{half}.mid_block"
        middle_params = f"{params}/middle"
        for block, block_params in (
            (f"{level}.resnets.{{j}}", f"{level_params}/blocks/{{j}}"),
            (f"{middle}.resnets.0", f"{middle_params}/block_1"),
            (f"{middle}.resnets.1", f"{middle_params}/block_2"),
        ):
            table += resnet_table(block, block_params, shortcut="conv_shortcut")
        table += [
            *weight_and_bias(f"{half}.conv_in", f"{params}/conv_in", CONV),
            *weight_and_bias(f"{level}.{resample}.0.conv", f"{level_params}/resample/conv", CONV),
            *attention_table(
                f"{middle}.attentions.0",
                f"{middle_params}/attention",
                names=("group_norm", *maps),
                form=POINTWISE,
            ),
            *norm(f"{half}.conv_norm_out", f"{params}/norm_out"),
            *weight_and_bias(f"{half}.conv_out", f"{params}/conv_out", CONV),
        ]
    return table


class DiffusersVae(TowerLayout):
    """diffusers' AutoencoderKL, as in SDXL."""

    name = "diffusers_vae"
    target = TOKENIZER
    module = VAE
    tables = [
        _diffusers_vae_table("to_q", "to_k", "to_v", "to_out.0"),
        _diffusers_vae_table("query", "key", "value", "proj_attn"),  # of older versions
    ]
    constants = (f"{TOKENIZER}/scale",)

    def _read(self, folder):
        config = required_config(folder)
        tokenizer = dict(
            widths=list(config["block_out_channels"]),
            num_res_blocks=config.get("layers_per_block", 1),
            latent_channels=config.get("latent_channels", 4),
            num_groups=config.get("norm_num_groups", 32),
        )
        return {"generation": {"kind": "flow", "tokenizer": tokenizer}}

    def read_constants(self, folder):
        """The factor of latents: 1 / their standard deviation, by default diffusers' own."""
        factor = required_config(folder).get("scaling_factor", 0.18215)
        return {f"{TOKENIZER}/scale": np.float32(factor)}


def _shape(folder, name):
    return folder.tensors[name][0]


def _count_numbers(folder, prefix):
    """How many different numbers follow a prefix in the names of tensors."""
    names = [name.removeprefix(prefix) for name in folder.tensors if name.startswith(prefix)]
    return len({name.split(".")[0] for name in names})


def _vision_config(folder):
    config = folder.json("config.json")
    return config.get("vision_config", config)
