"""What the JSON files of released weights say, in the words of our configs, and back.

A folder is described by the fields of `config.model` that it tells of: nested dicts like {'llm': {'num_layers': 24}}.
Defaults are those of the classes that read these files, since files leave out what equals a default.
"""

import json
import math

from janus_jax.errors import UserError

SIGLIPS = {  # registry names of the released understanding encoder
    "siglip_large_patch16_384": dict(image_size=384, patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4),
    "siglip_large_patch16_256": dict(image_size=256, patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4),
}
VQ = dict(ch=128, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=2, z_channels=256, image_token_size=16_384, n_embed=8)
GROUPS = 32  # of every GroupNorm in VQ-16


def read_janus(layout, folder):
    """The model that a folder of released Janus weights describes.

    Args:
      layout: 'deepseek' or 'transformers'.
      folder: files.Folder.

    Returns:
      {'llm': ..., 'understanding': {'encoder': ...}, 'generation': ...}.

    Raises:
      UserError: without a config.json, and for a model that is not built like Janus.
    """
    c = folder.json("config.json")
    if not c:
        raise UserError(f"{str(folder.path)!r} has no config.json, which says how many heads its tensors have.")
    wrong = "transformers" if "language_config" in c else "deepseek"
    if ("language_config" if layout == "deepseek" else "text_config") not in c:
        raise UserError(f"The config.json of {str(folder.path)!r} is not of the {layout} layout; is it {wrong}?")
    return {"deepseek": _read_deepseek, "transformers": _read_transformers}[layout](c)


def _read_deepseek(c):
    part = lambda name: c.get(name, {}).get("params", {})
    vision, projector, gen_projector, gen_head = map(
        part, ("vision_config", "aligner_config", "gen_aligner_config", "gen_head_config")
    )
    name = vision.get("model_name", "siglip_large_patch16_384")
    if name not in SIGLIPS and "width" not in vision:
        raise UserError(f"vision_config names {name!r}, an encoder that is not known: {list(SIGLIPS)}.")
    vit = SIGLIPS.get(name, {}) | {k: v for k, v in vision.items() if k != "model_name"}
    vq = VQ | part("gen_vision_config")
    llm = _read_llama(c["language_config"])
    _demand(
        "language_config",
        {
            "vision_config.select_layer": (vision.get("select_layer", -1), -1),
            "aligner_config.projector_type": (projector.get("projector_type", "mlp_gelu"), "mlp_gelu"),
            "aligner_config.depth": (projector.get("depth", 2), 2),
            "aligner_config.n_embed": (projector.get("n_embed", llm["embed_dim"]), llm["embed_dim"]),
            "gen_aligner_config.projector_type": (gen_projector.get("projector_type", "mlp_gelu"), "mlp_gelu"),
            "gen_aligner_config.depth": (gen_projector.get("depth", 2), 2),
            "gen_head_config.image_token_embed": (gen_head.get("image_token_embed", llm["embed_dim"]), llm["embed_dim"]),
            "gen_head_config.image_token_size": (gen_head.get("image_token_size", vq["image_token_size"]),) * 2,
        },
    )
    return {
        "llm": llm,
        "understanding": {
            "encoder": dict(
                image_size=vit["image_size"],
                patch_size=vit["patch_size"],
                num_layers=vit["layers"],
                embed_dim=vit["width"],
                num_heads=vit["heads"],
                mlp_dim=int(vit["width"] * vit["mlp_ratio"]),
                norm_eps=1e-6,
            )
        },
        "generation": {
            "kind": "vq",
            "image_size": vit["image_size"],
            "tokenizer": dict(
                base_channels=vq["ch"],
                channel_mult=list(vq["ch_mult"]),
                num_res_blocks=vq["num_res_blocks"],
                z_channels=vq["z_channels"],
                codebook_size=vq["image_token_size"],
                codebook_dim=vq["n_embed"],
                num_groups=GROUPS,
            ),
        },
    }


def _read_transformers(c):
    vit = dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16, image_size=384, mlp_ratio=4.0,
        layer_norm_eps=1e-6, hidden_act="gelu", projection_dim=2048, depth=2, use_qk_norm=False, attention_bias=True,
    ) | c.get("vision_config", {})  # fmt: skip
    vq = dict(
        embed_dim=8, num_embeddings=16_384, latent_channels=256, base_channels=128, channel_multiplier=[1, 1, 2, 2, 4],
        num_res_blocks=2, projection_dim=2048, image_token_embed_dim=2048, num_hidden_layers=2, hidden_act="gelu",
        double_latent=False, in_channels=3, out_channels=3,
    ) | c.get("vq_config", {})  # fmt: skip
    llm = _read_llama(c["text_config"])
    _demand(
        "config.json",
        {
            "tie_word_embeddings": (c.get("tie_word_embeddings", True), False),
            "vision_config.hidden_act": (vit["hidden_act"], "gelu"),
            "vision_config.depth": (vit["depth"], 2),
            "vision_config.projection_dim": (vit["projection_dim"], llm["embed_dim"]),
            "vision_config.use_qk_norm": (vit["use_qk_norm"], False),
            "vision_config.attention_bias": (vit["attention_bias"], True),
            "vq_config.hidden_act": (vq["hidden_act"], "gelu"),
            "vq_config.num_hidden_layers": (vq["num_hidden_layers"], 2),
            "vq_config.projection_dim": (vq["projection_dim"], llm["embed_dim"]),
            "vq_config.image_token_embed_dim": (vq["image_token_embed_dim"], llm["embed_dim"]),
            "vq_config.double_latent": (vq["double_latent"], False),
        },
    )
    return {
        "llm": llm,
        "understanding": {
            "encoder": dict(
                image_size=vit["image_size"],
                patch_size=vit["patch_size"],
                num_layers=vit["num_hidden_layers"],
                embed_dim=vit["hidden_size"],
                num_heads=vit["num_attention_heads"],
                mlp_dim=int(vit["hidden_size"] * vit["mlp_ratio"]),
                norm_eps=vit["layer_norm_eps"],
            )
        },
        "generation": {
            "kind": "vq",
            "image_size": vit["image_size"],
            "tokenizer": dict(
                base_channels=vq["base_channels"],
                channel_mult=list(vq["channel_multiplier"]),
                num_res_blocks=vq["num_res_blocks"],
                z_channels=vq["latent_channels"],
                codebook_size=vq["num_embeddings"],
                codebook_dim=vq["embed_dim"],
                num_groups=GROUPS,
            ),
        },
    }


def _read_llama(c):
    """A transformers Llama config; `rope_parameters` is where its newer versions keep theta."""
    c = dict(
        vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
        rms_norm_eps=1e-6, rope_theta=10_000.0, hidden_act="silu", attention_bias=False, mlp_bias=False,
    ) | c  # fmt: skip
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    heads = c["num_attention_heads"]
    _demand(
        "the language model",
        {
            "hidden_act": (c["hidden_act"], "silu"),
            "attention_bias": (c["attention_bias"], False),
            "mlp_bias": (c["mlp_bias"], False),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "head_dim": (c.get("head_dim") or c["hidden_size"] // heads, c["hidden_size"] // heads),
        },
    )
    return dict(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        mlp_dim=c["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", c["rope_theta"])),
        norm_eps=c["rms_norm_eps"],
    )


def _demand(where, fields):
    """Fields that the models of this house cannot have otherwise: {name: (value, the only value)}."""
    for name, (value, only) in fields.items():
        if value != only:
            raise UserError(f"{name} of {where} is {value!r}; Janus has {only!r}.")


def read_tower(layout, folder):
    """The part of `config.model` that a tower describes, by its config.json or else by its tensors.

    Raises:
      UserError: when neither tells enough.
    """
    if layout == "llama":
        c = folder.json("config.json")
        if not c:
            raise UserError(f"{str(folder.path)!r} has no config.json, which says how many heads its tensors have.")
        return {"llm": _read_llama(c)}
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
    """Sizes come from the tensors; the number of heads from config.json, else 64 features make a head."""
    c = folder.json("config.json")
    c = c.get("vision_config", c)
    patch = _shape(folder, "patch_embedding.weight", "patch_embed.proj.weight")
    positions = math.prod(_shape(folder, "position_embedding.weight", "pos_embed")) // patch[0]
    prefix = next(n for n in folder.held if n.endswith((".layer_norm1.weight", ".norm1.weight")) or n == "blocks.0.norm1.weight")
    return dict(
        image_size=math.isqrt(positions) * patch[-1],
        patch_size=patch[-1],
        num_layers=_count(folder, prefix.rsplit(".", 3)[0] + "."),
        embed_dim=patch[0],
        num_heads=c.get("num_attention_heads", patch[0] // 64),
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


def differences(described, model, *, where="there"):
    """Sentences about the fields that a folder tells of and a config has otherwise."""
    ours = flat(model)
    same = lambda a, b: (list(a) if isinstance(a, (list, tuple)) else a) == (list(b) if isinstance(b, (list, tuple)) else b)
    return [
        f"{name} is {value} {where} and {ours.get(name)} in the config"
        for name, value in flat(described).items()
        if not same(value, ours.get(name))
    ]


def check_same(described, model, *, where):
    """Raises UserError with every field that differs between a folder and a config."""
    differing = differences(described, model, where=f"in {where}")
    if differing:
        raise UserError(f"{'; '.join(differing)}. Take the config of these weights, or change it with --config.model.FIELD.")


def flat(tree, prefix=""):
    """Nested dicts as one of dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}.{name}".lstrip(".")).items()}


def merged(model, described):
    """`model` with the fields that a folder describes."""
    if not isinstance(described, dict):
        return described
    return {**model, **{k: merged(model.get(k, {}), v) for k, v in described.items()}}


def write(layout, config, tokenizer, *, dtype):
    """The JSON files beside exported weights.

    Args:
      layout: 'deepseek' or 'transformers'.
      config: resolved config of the model.
      tokenizer: TextTokenizer, or None.
      dtype: of the weights.

    Returns:
      {file name: text}.
    """
    made = {"deepseek": _write_deepseek, "transformers": _write_transformers}[layout](config, tokenizer, dtype)
    texts = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()}
    return texts if tokenizer is None else texts | {"tokenizer.json": tokenizer.text}


def _llama_json(llm, dtype):
    return dict(
        model_type="llama",
        vocab_size=llm["vocab_size"],
        hidden_size=llm["embed_dim"],
        intermediate_size=llm["mlp_dim"],
        num_hidden_layers=llm["num_layers"],
        num_attention_heads=llm["num_heads"],
        num_key_value_heads=llm["num_kv_heads"],
        rms_norm_eps=llm["norm_eps"],
        rope_theta=llm["rope_theta"],
        hidden_act="silu",
        max_position_embeddings=16_384,
        tie_word_embeddings=False,
        torch_dtype=dtype,
    )


def _mean_and_std():
    return dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], rescale_factor=1 / 255, do_normalize=True)


def _write_deepseek(config, tokenizer, dtype):
    llm, vit = config["model"]["llm"], config["model"]["understanding"]["encoder"]
    vq = config["model"]["generation"]["tokenizer"]
    sizes = dict(
        image_size=vit["image_size"],
        patch_size=vit["patch_size"],
        width=vit["embed_dim"],
        layers=vit["num_layers"],
        heads=vit["num_heads"],
        mlp_ratio=vit["mlp_dim"] / vit["embed_dim"],
    )
    name = next((n for n, known in SIGLIPS.items() if known == sizes), None)
    named = dict(image_size=vit["image_size"], model_name=name) if name else dict(sizes, model_name="siglip")
    codes = dict(image_token_size=vq["codebook_size"], n_embed=vq["codebook_dim"])
    coder = dict(
        ch=vq["base_channels"],
        ch_mult=list(vq["channel_mult"]),
        num_res_blocks=vq["num_res_blocks"],
        z_channels=vq["z_channels"],
        **codes,
    )
    net = lambda cls, kind, **params: dict(cls=cls, model_type=kind, params=params)
    projector = dict(depth=2, n_embed=llm["embed_dim"], projector_type="mlp_gelu")
    image_token = dict(image_token_embed=llm["embed_dim"], image_token_size=vq["codebook_size"], n_embed=llm["embed_dim"])
    main = dict(
        architectures=["MultiModalityCausalLM"],
        model_type="multi_modality",
        language_config=_llama_json(llm, dtype),
        vision_config=net("CLIPVisionTower", "vision", select_feature="same", select_layer=-1, **named),
        aligner_config=net("MlpProjector", "aligner", input_dim=vit["embed_dim"], **projector),
        gen_vision_config=net("VQ-16", "gen_vision", **(codes if coder == VQ else coder)),
        gen_aligner_config=net("MlpProjector", "gen_aligner", input_dim=vq["codebook_dim"], **projector),
        gen_head_config=net("vision_head", "gen_head", **image_token),
        torch_dtype=dtype,
    )
    pictures = dict(
        image_processor_type="VLMImageProcessor",
        processor_class="VLChatProcessor",
        background_color=[127, 127, 127],
        image_size=vit["image_size"],
        min_size=14,
        **_mean_and_std(),
    )
    processor = dict(
        processor_class="VLChatProcessor",
        add_special_token=False,
        ignore_id=-100,
        image_tag="<image_placeholder>",
        mask_prompt=True,
        num_image_tokens=(vit["image_size"] // vit["patch_size"]) ** 2,
        sft_format="deepseek",
    )
    made = {"config.json": main, "preprocessor_config.json": pictures, "processor_config.json": processor}
    if tokenizer is not None:
        made |= _tokenizer_json("LlamaTokenizerFast")
    return made


def _tokenizer_json(cls):
    from janus_jax.data.tokenizer import SPECIAL

    named = dict(bos_token=SPECIAL["bos"], eos_token=SPECIAL["eos"], pad_token=SPECIAL["pad"])
    return {
        "special_tokens_map.json": dict(named, additional_special_tokens=[SPECIAL[k] for k in ("image", "boi", "eoi")]),
        "tokenizer_config.json": dict(
            named, tokenizer_class=cls, add_bos_token=True, add_eos_token=False, clean_up_tokenization_spaces=False,
            model_max_length=16_384,
        ),
    }  # fmt: skip
