"""What an open tower's folder says of it: the part of `config.model` that stage 1 of the papers starts from."""

import math

from janus_jax.convert.layouts.read_config import GROUPS, read_llama, told_plainly
from janus_jax.errors import UserError

SIGLIP_NAMES = (  # prefix, picture patches, positions, blocks: transformers with and without prefix, timm, open_clip
    ("vision_model.", "embeddings.patch_embedding", "embeddings.position_embedding.weight", "encoder.layers"),
    ("", "embeddings.patch_embedding", "embeddings.position_embedding.weight", "encoder.layers"),
    ("", "patch_embed.proj", "pos_embed", "blocks"),
    ("visual.trunk.", "patch_embed.proj", "pos_embed", "blocks"),
)


def read_tower(layout, folder):
    """The part of `config.model` that a tower describes, by its config.json or else by its tensors.

    Raises:
      UserError: when neither tells enough.
    """
    read = {"llama": _read_llm, "siglip": _read_siglip, "llamagen_vq": _read_vq, "diffusers_vae": _read_vae}[layout]
    return told_plainly(lambda: read(folder), f"{str(folder.path)!r} is no folder of the {layout} layout")


def _config(folder):
    c = folder.json("config.json")
    if not c:
        raise UserError(f"{str(folder.path)!r} has no config.json, which says how its tensors are used.")
    return c


def _read_llm(folder):
    c = _config(folder)
    if "lm_head.weight" not in folder.held:
        raise UserError(
            f"{str(folder.path)!r} has no lm_head.weight: its text head is tied to the embedding table, and Janus's is not. "
            "Save it with a head of its own first."
        )
    return {"llm": read_llama(c)}


def _count(folder, start):
    """How many numbers follow a prefix in the names of tensors."""
    return len({n[len(start) :].split(".")[0] for n in folder.held if n.startswith(start)})


def _read_siglip(folder):
    """Sizes come from the tensors; the number of heads from config.json, else from the width, as SigLIP's models have it."""
    found = [names for names in SIGLIP_NAMES if f"{names[0]}{names[1]}.weight" in folder.held]
    if not found:
        raise UserError(f"{str(folder.path)!r} holds no SigLIP: it has no {''.join(SIGLIP_NAMES[0][:2])}.weight.")
    prefix, patches, positions, blocks = found[0]
    shape = lambda name: folder.held[prefix + name][0]
    width, _, patch, _ = shape(f"{patches}.weight")
    c = folder.json("config.json")
    return {
        "understanding": {
            "encoder": dict(
                image_size=math.isqrt(math.prod(shape(positions)) // width) * patch,
                patch_size=patch,
                num_layers=_count(folder, f"{prefix}{blocks}."),
                embed_dim=width,
                num_heads=c.get("vision_config", c).get("num_attention_heads", {1152: 16}.get(width, width // 64)),
                mlp_dim=shape(f"{blocks}.0.mlp.fc1.weight")[0],
                norm_eps=1e-6,
            )
        }
    }


def _read_vq(folder):
    shape = lambda name: folder.held[name][0]
    base = shape("encoder.conv_in.weight")[0]
    levels = range(_count(folder, "encoder.conv_blocks."))
    codes, dim = shape("quantize.embedding.weight")
    tokenizer = dict(
        base_channels=base,
        channel_mult=[shape(f"encoder.conv_blocks.{i}.res.0.conv1.weight")[0] // base for i in levels],
        num_res_blocks=_count(folder, "encoder.conv_blocks.0.res."),
        z_channels=shape("encoder.conv_out.weight")[0],
        codebook_size=codes,
        codebook_dim=dim,
        num_groups=GROUPS,
    )
    return {"generation": {"kind": "vq", "tokenizer": tokenizer}}


def _read_vae(folder):
    c = _config(folder)
    tokenizer = dict(
        widths=list(c["block_out_channels"]),
        num_res_blocks=c.get("layers_per_block", 1),
        latent_channels=c.get("latent_channels", 4),
        num_groups=c.get("norm_num_groups", 32),
    )
    return {"generation": {"kind": "flow", "tokenizer": tokenizer}}


def latent_scale(folder):
    """1 / the standard deviation of an autoencoder's latents: what its config.json says, or diffusers' default."""
    return _config(folder).get("scaling_factor", 0.18215)


def notes(layout, folder):
    """What a person should know of a tower: where Janus computes otherwise than it was trained with."""
    if layout != "siglip":
        return []
    c = folder.json("config.json")
    c = c.get("vision_config", c)
    act = c.get("hidden_act", "gelu_pytorch_tanh (SigLIP's own, since config.json names none)")
    eps = c.get("layer_norm_eps", 1e-6)
    return [f"It was trained with {act} and norm eps {eps}; Janus computes exact (erf) GELU and eps 1e-06."]
