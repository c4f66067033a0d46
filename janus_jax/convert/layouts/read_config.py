"""What the JSON files of released weights say, in the words of our configs, and back.

A folder is described by the fields of `config.model` that it tells of: nested dicts like {'llm': {'num_layers': 24}}.
Defaults are those of the classes that read these files, since files leave out what equals a default.
"""

from janus_jax.errors import UserError

SIGLIPS = {  # registry names of the released understanding encoder
    "siglip_large_patch16_384": dict(image_size=384, patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4),
    "siglip_large_patch16_256": dict(image_size=256, patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4),
}
VQ = dict(ch=128, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=2, z_channels=256, image_token_size=16_384, n_embed=8)
GROUPS = 32  # of every GroupNorm in VQ-16
FLOW_ENCODER = dict(
    input_channels=3, stride=4, kernel_size=7, padding=None, block_out_channels=[768], layers_in_middle=2,
    hidden_size=2048, norm_eps=1e-6, use_bias=True,
)  # fmt: skip
FLOW_DECODER = dict(
    in_channels=768, out_channels=3, block_out_channels=[768], upsamples=2, layers_in_middle=2, hidden_size=2048,
    norm_eps=1e-6, use_bias=True,
)  # fmt: skip

# Our name -> theirs. Both layouts give the encoder's MLP as a ratio to its width.
LLM_NAMES = dict(
    vocab_size="vocab_size",
    num_layers="num_hidden_layers",
    embed_dim="hidden_size",
    num_heads="num_attention_heads",
    num_kv_heads="num_key_value_heads",
    mlp_dim="intermediate_size",
    rope_theta="rope_theta",
    norm_eps="rms_norm_eps",
)
ENCODER_NAMES = {
    "deepseek": dict(
        image_size="image_size", patch_size="patch_size", num_layers="layers", embed_dim="width", num_heads="heads"
    ),
    "transformers": dict(
        image_size="image_size",
        patch_size="patch_size",
        num_layers="num_hidden_layers",
        embed_dim="hidden_size",
        num_heads="num_attention_heads",
        norm_eps="layer_norm_eps",
    ),
}
TOKENIZER_NAMES = {
    "deepseek": dict(
        base_channels="ch",
        channel_mult="ch_mult",
        num_res_blocks="num_res_blocks",
        z_channels="z_channels",
        codebook_size="image_token_size",
        codebook_dim="n_embed",
    ),
    "transformers": dict(
        base_channels="base_channels",
        channel_mult="channel_multiplier",
        num_res_blocks="num_res_blocks",
        z_channels="latent_channels",
        codebook_size="num_embeddings",
        codebook_dim="embed_dim",
    ),
}


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
    if ("language_config" if layout == "deepseek" else "text_config") not in c:
        other = "transformers" if layout == "deepseek" else "deepseek"
        raise UserError(f"The config.json of {str(folder.path)!r} is not of the {layout} layout; is it --layout={other}?")
    read = {"deepseek": _read_deepseek, "transformers": _read_transformers}[layout]
    described = told_plainly(lambda: read(c), f"The config.json of {str(folder.path)!r} is odd")
    pictures = folder.json("preprocessor_config.json")
    size = pictures.get("image_size", pictures.get("size", {}))
    _demand(
        "preprocessor_config.json",
        {
            "image_mean": (pictures.get("image_mean", [0.5] * 3), [0.5] * 3),
            "image_std": (pictures.get("image_std", [0.5] * 3), [0.5] * 3),
            "min_size": (pictures.get("min_size", 14), 14),
            "size": (size.get("height") if isinstance(size, dict) else size, described["generation"]["image_size"]),
        }
        if pictures
        else {},
    )
    if layout == "transformers" and c.get("tie_word_embeddings", True) and "lm_head.weight" not in folder.held:
        raise UserError(
            f"{str(folder.path)!r} has no lm_head.weight: its text head is tied to the embedding table, and Janus's is not."
        )
    return described


def told_plainly(read, where):
    """What `read` returns; a field of another kind than it expects becomes a UserError that starts with `where`."""
    try:
        return read()
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{where} ({type(error).__name__}: {error}).") from None


def _read_deepseek(c):
    if "vision_gen_enc_config" in c:
        return _read_flow(c)
    part = lambda name: c.get(name, {}).get("params", {})
    vision, projector, gen_projector, gen_head = map(
        part, ("vision_config", "aligner_config", "gen_aligner_config", "gen_head_config")
    )
    vit = _read_siglip(vision)
    vq = VQ | part("gen_vision_config")
    llm = read_llama(c["language_config"])
    _demand(
        "config.json",
        {
            "vision_config.select_layer": (vision.get("select_layer", -1), -1),
            "aligner_config.projector_type": (projector.get("projector_type", "mlp_gelu"), "mlp_gelu"),
            "aligner_config.depth": (projector.get("depth", 2), 2),
            "aligner_config.n_embed": (projector.get("n_embed", llm["embed_dim"]), llm["embed_dim"]),
            "gen_aligner_config.projector_type": (gen_projector.get("projector_type", "mlp_gelu"), "mlp_gelu"),
            "gen_aligner_config.depth": (gen_projector.get("depth", 2), 2),
            "gen_head_config.image_token_embed": (gen_head.get("image_token_embed", llm["embed_dim"]), llm["embed_dim"]),
            "gen_head_config.image_token_size": (
                gen_head.get("image_token_size", vq["image_token_size"]),
                vq["image_token_size"],
            ),
        },
    )
    return _described("deepseek", llm, vit, vq)


def _read_siglip(vision):
    name = vision.get("model_name", "siglip_large_patch16_384")
    if name not in SIGLIPS and "width" not in vision:
        raise UserError(f"The config names {name!r}, an understanding encoder that is not known: {list(SIGLIPS)}.")
    return SIGLIPS.get(name, {}) | {k: v for k, v in vision.items() if k != "model_name"}


def _read_flow(c):
    """JanusFlow's config.json; the defaults are those of the classes of its two small nets, not of the released nets."""
    part = lambda name: c.get(name, {}).get("params", {})
    vision, llm = part("vision_und_enc_config"), read_llama(c["language_config"])
    enc, dec = FLOW_ENCODER | part("vision_gen_enc_config"), FLOW_DECODER | part("vision_gen_dec_config")
    vit, (dim,) = _read_siglip(vision), enc["block_out_channels"]
    _demand(
        "config.json",
        {
            "vision_und_enc_config.select_layer": (vision.get("select_layer", -1), -1),
            "vision_gen_enc_config.kernel_size": (enc["kernel_size"], 2),
            "vision_gen_enc_config.stride": (enc["stride"], 2),
            "vision_gen_enc_config.padding": (enc["padding"] or 0, 0),
            "vision_gen_enc_config.hidden_size": (enc["hidden_size"], llm["embed_dim"]),
            "vision_gen_enc_config.use_bias": (enc["use_bias"], True),
            "vision_gen_dec_config.upsamples": (dec["upsamples"], 2),
            "vision_gen_dec_config.in_channels": (dec["in_channels"], dim),
            "vision_gen_dec_config.block_out_channels": (list(dec["block_out_channels"]), [dim]),
            "vision_gen_dec_config.out_channels": (dec["out_channels"], enc["input_channels"]),
            "vision_gen_dec_config.layers_in_middle": (dec["layers_in_middle"], enc["layers_in_middle"]),
            "vision_gen_dec_config.hidden_size": (dec["hidden_size"], llm["embed_dim"]),
            "vision_gen_dec_config.norm_eps": (dec["norm_eps"], enc["norm_eps"]),
            "vision_gen_dec_config.use_bias": (dec["use_bias"], True),
            "rms_norm_eps": (llm["norm_eps"], enc["norm_eps"]),
        },
    )
    encoder = _encoder("deepseek", vit)
    generation = dict(
        kind="flow",
        image_size=encoder["image_size"],
        tokenizer=dict(latent_channels=enc["input_channels"]),
        unet=dict(dim=dim, num_blocks=enc["layers_in_middle"], norm_eps=enc["norm_eps"]),
        alignment=dict(feature_dim=encoder["embed_dim"]),
    )
    return dict(llm=llm, understanding=dict(encoder=encoder, adaptor="linear", begin=True), generation=generation)


def _read_transformers(c):
    vit = dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16, image_size=384, mlp_ratio=4.0,
        layer_norm_eps=1e-6, hidden_act="gelu", projection_dim=2048, depth=2, use_qk_norm=False, attention_bias=True,
        num_image_tokens=576,
    ) | c.get("vision_config", {})  # fmt: skip
    vq = dict(
        embed_dim=8, num_embeddings=16_384, latent_channels=256, base_channels=128, channel_multiplier=[1, 1, 2, 2, 4],
        num_res_blocks=2, projection_dim=2048, image_token_embed_dim=2048, num_hidden_layers=2, hidden_act="gelu",
        double_latent=False, num_patches=vit["image_size"] // vit["patch_size"],
    ) | c.get("vq_config", {})  # fmt: skip
    grid = vit["image_size"] // vit["patch_size"]
    llm = read_llama(c["text_config"])
    _demand(
        "config.json",
        {
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
            "vision_config.num_image_tokens": (vit["num_image_tokens"], grid**2),
            "vq_config.num_patches": (vq["num_patches"], grid),
        },
    )
    return _described("transformers", llm, vit, vq)


def _described(layout, llm, vit, vq):
    encoder = _encoder(layout, vit)
    tokenizer = {ours: vq[theirs] for ours, theirs in TOKENIZER_NAMES[layout].items()} | dict(num_groups=GROUPS)
    generation = dict(kind="vq", image_size=encoder["image_size"], tokenizer=tokenizer)
    return dict(llm=llm, understanding=dict(encoder=encoder, adaptor="mlp", begin=False), generation=generation)


def _encoder(layout, vit):
    encoder = {ours: vit[theirs] for ours, theirs in ENCODER_NAMES[layout].items()}
    return encoder | dict(mlp_dim=int(encoder["embed_dim"] * vit["mlp_ratio"]), norm_eps=encoder.get("norm_eps", 1e-6))


def read_llama(c):
    """A transformers Llama config; `rope_parameters` is where its newer versions keep theta."""
    c = dict(
        model_type="llama",
        vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
        rms_norm_eps=1e-6, rope_theta=10_000.0, hidden_act="silu", attention_bias=False, mlp_bias=False,
    ) | c  # fmt: skip
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    heads = c["num_attention_heads"]
    _demand(
        "the language model",
        {
            "model_type": (c["model_type"], "llama"),
            "hidden_act": (c["hidden_act"], "silu"),
            "attention_bias": (c["attention_bias"], False),
            "mlp_bias": (c["mlp_bias"], False),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "head_dim": (c.get("head_dim") or c["hidden_size"] // heads, c["hidden_size"] // heads),
        },
    )
    theta = float(rope.get("rope_theta", c["rope_theta"]))
    c |= dict(num_key_value_heads=c.get("num_key_value_heads") or heads, rope_theta=theta)
    return {ours: c[theirs] for ours, theirs in LLM_NAMES.items()}


def _demand(where, fields):
    """Fields that the models of this house cannot have otherwise: {name: (value, the only value)}."""
    for name, (value, only) in fields.items():
        if value != only:
            raise UserError(f"{name} of {where} is {value!r}; Janus has {only!r}.")


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
