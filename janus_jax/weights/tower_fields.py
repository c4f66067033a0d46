"""What an open tower's folder says of it: the part of `config.model` that stage 1 of the papers starts from."""

import math

from janus_jax.errors import UserError
from janus_jax.weights.fields import GROUPS, read_llama


def read_tower(layout, folder):
    """The part of `config.model` that a tower describes, by its config.json or else by its tensors.

    Raises:
      UserError: when neither tells enough.
    """
    if layout == "llama":
        c = folder.json("config.json")
        if not c:
            raise UserError(f"{str(folder.path)!r} has no config.json, which says how many heads its tensors have.")
        return {"llm": read_llama(c)}
    if layout == "siglip":
        return {"understanding": {"encoder": _read_siglip(folder)}}
    if layout == "llamagen_vq":
        return {"generation": {"kind": "vq", "tokenizer": _read_vq(folder)}}
    return {"generation": {"tokenizer": _read_vae(folder)}}


def _shape(folder, *endings):
    """Shape of the first tensor whose name ends so."""
    for ending in endings:
        for name, (shape, _) in folder.held.items():
            if name == ending or name.endswith(f".{ending}"):
                return shape
    raise UserError(f"{str(folder.path)!r} holds no tensor {endings[0]!r}.")


def _count(folder, start):
    """How many numbers follow a prefix in the names of tensors."""
    return len({n[len(start) :].split(".")[0] for n in folder.held if n.startswith(start)})


def _read_siglip(folder):
    """Sizes come from the tensors; the number of heads from config.json, else from the width, as SigLIP's models have it."""
    c = folder.json("config.json")
    c = c.get("vision_config", c)
    patch = _shape(folder, "patch_embedding.weight", "patch_embed.proj.weight")
    positions = math.prod(_shape(folder, "position_embedding.weight", "pos_embed")) // patch[0]
    prefix = next(
        n for n in folder.held if n.endswith((".layer_norm1.weight", ".norm1.weight")) or n == "blocks.0.norm1.weight"
    )
    return dict(
        image_size=math.isqrt(positions) * patch[-1],
        patch_size=patch[-1],
        num_layers=_count(folder, prefix.rsplit(".", 3)[0] + "."),
        embed_dim=patch[0],
        num_heads=c.get("num_attention_heads", {1152: 16}.get(patch[0], patch[0] // 64)),
        mlp_dim=_shape(folder, "mlp.fc1.weight")[0],
        norm_eps=1e-6,
    )


def _read_vq(folder):
    shape = lambda name: _shape(folder, name)
    levels = _count(folder, "encoder.conv_blocks.")
    base = shape("encoder.conv_in.weight")[0]
    widths = [shape(f"encoder.conv_blocks.{i}.res.0.conv1.weight")[0] for i in range(levels)]
    codes, dim = shape("quantize.embedding.weight")
    return dict(
        base_channels=base,
        channel_mult=[w // base for w in widths],
        num_res_blocks=_count(folder, "encoder.conv_blocks.0.res."),
        z_channels=shape("encoder.conv_out.weight")[0],
        codebook_size=codes,
        codebook_dim=dim,
        num_groups=GROUPS,
    )


def _read_vae(folder):
    c = folder.json("config.json")
    if not c:
        raise UserError(f"{str(folder.path)!r} has no config.json.")
    return dict(
        widths=list(c["block_out_channels"]),
        num_res_blocks=c.get("layers_per_block", 1),
        latent_channels=c.get("latent_channels", 4),
        num_groups=c.get("norm_num_groups", 32),
    )


def notes(layout, folder):
    """What a person should know of a tower: where Janus computes otherwise than it was trained with."""
    if layout != "siglip":
        return []
    c = folder.json("config.json")
    c = c.get("vision_config", c)
    act = c.get("hidden_act", "gelu_pytorch_tanh (SigLIP's own, since config.json names none)")
    eps = c.get("layer_norm_eps", 1e-6)
    return [f"It was trained with {act} and norm eps {eps}; Janus computes exact (erf) GELU and eps 1e-06."]
