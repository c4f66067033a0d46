"""The layout of deepseek-ai's releases: Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B, JanusFlow-1.3B."""

from janus_jax.convert.layouts.base import Family, ModelLayout, require
from janus_jax.convert.layouts.networks import (
    ENCODER,
    NUM_GROUPS,
    llama_table,
    llamagen_vq_table,
    mlp_table,
    patches_per_side,
    preprocessor_fields,
    read_llama,
    siglip_timm_table,
    tokenizer_files,
    write_llama,
)
from janus_jax.convert.name_map import CONV, LINEAR, ONE_CELL, ONE_ROW, line, weight_and_bias
from janus_jax.errors import UserError

ENCODER_FIELDS = dict(  # our field -> the field of config.json
    image_size="image_size",
    patch_size="patch_size",
    num_layers="layers",
    embed_dim="width",
    num_heads="heads",
)
TOKENIZER_FIELDS = dict(
    base_channels="ch",
    channel_mult="ch_mult",
    num_res_blocks="num_res_blocks",
    z_channels="z_channels",
    codebook_size="image_token_size",
    codebook_dim="n_embed",
)
_SIGLIP_LARGE = dict(patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4)
SIGLIPS = {  # understanding encoders by the name that config.json has instead of sizes
    "siglip_large_patch16_384": dict(image_size=384, **_SIGLIP_LARGE),
    "siglip_large_patch16_256": dict(image_size=256, **_SIGLIP_LARGE),
}
# Defaults of the release's classes: config.json leaves out what equals a default.
VQ_DEFAULTS = dict(
    ch=128,
    ch_mult=[1, 1, 2, 2, 4],
    num_res_blocks=2,
    z_channels=256,
    image_token_size=16_384,
    n_embed=8,
)
_NET_DEFAULTS = dict(
    block_out_channels=[768], layers_in_middle=2, hidden_size=2048, norm_eps=1e-6, use_bias=True
)
FLOW_ENCODER_DEFAULTS = dict(
    input_channels=3, stride=4, kernel_size=7, padding=None, **_NET_DEFAULTS
)
FLOW_DECODER_DEFAULTS = dict(in_channels=768, out_channels=3, upsamples=2, **_NET_DEFAULTS)


def _convnext_table(net, params):
    params = f"{params}/blocks/{{i}}"
    block = f"{net}.mid_block.res_blocks.{{i}}"
    return [
        *weight_and_bias(f"{block}.depthwise", f"{params}/depthwise", CONV),
        line(f"{block}.norm.weight", f"{params}/norm/scale"),
        *weight_and_bias(f"{block}.channelwise_linear_1", f"{params}/widen", LINEAR),
        line(f"{block}.channelwise_norm.weight", f"{params}/grn/gain", ONE_CELL),
        line(f"{block}.channelwise_norm.bias", f"{params}/grn/bias", ONE_CELL),
        *weight_and_bias(f"{block}.channelwise_linear_2", f"{params}/narrow", LINEAR),
        *weight_and_bias(f"{block}.cond_embeds_mapper", f"{params}/modulate", LINEAR),
    ]


def _flow_table():
    """JanusFlow's ConvNeXt nets and the linear maps between them and the LLM."""
    encoder = "vision_gen_enc_model"
    decoder = "vision_gen_dec_model"
    last = f"{decoder}.out_convs.0"
    return [
        *weight_and_bias(f"{encoder}.time_embed.linear_1", "generation/encoder/time_1", LINEAR),
        *weight_and_bias(f"{encoder}.time_embed.linear_2", "generation/encoder/time_2", LINEAR),
        *weight_and_bias(f"{encoder}.in_conv", "generation/encoder/patch", CONV),
        *_convnext_table(encoder, "generation/encoder"),
        *weight_and_bias("vision_gen_enc_aligner", "generation/encoder_adaptor", LINEAR),
        line("vision_gen_dec_aligner_norm.weight", "generation/decoder_norm/scale"),
        *weight_and_bias("vision_gen_dec_aligner", "generation/decoder_adaptor", LINEAR),
        line(f"{decoder}.input_norm.weight", "generation/decoder/norm_in/scale"),
        *_convnext_table(decoder, "generation/decoder"),
        line(f"{last}.norm.weight", "generation/decoder/norm_out/scale"),
        *weight_and_bias(f"{last}.unpatch_conv", "generation/decoder/unpatch", CONV),
    ]


JANUS = Family(
    table=[
        *llama_table("language_model.model.", "language_model.lm_head"),
        *siglip_timm_table("vision_model.vision_tower."),
        *mlp_table("aligner.layers.0", "aligner.layers.2", "understanding/adaptor"),
        *llamagen_vq_table("gen_vision_model."),
        line("gen_embed.weight", "generation/embed"),
        *mlp_table("gen_aligner.layers.0", "gen_aligner.layers.2", "generation/adaptor"),
        *mlp_table("gen_head.output_mlp_projector", "gen_head.vision_head", "generation/head"),
    ],
    configs=("pro_1b", "pro_7b"),
)
JANUS_FLOW = Family(
    table=[
        *llama_table("language_model.model.", "language_model.lm_head"),
        *siglip_timm_table("vision_und_enc_model.vision_tower."),
        *weight_and_bias("vision_und_enc_aligner", "understanding/adaptor", LINEAR),
        line("beg_of_und_embed", "understanding/begin", ONE_ROW),
        *_flow_table(),
    ],
    configs=("flow_1p3b", "flow_1p3b_256"),
    not_released=r"generation/(tokenizer|alignment)/.*",
)


class DeepSeek(ModelLayout):
    """deepseek-ai's own code and weights."""

    name = "deepseek"
    families = {"vq": JANUS, "flow": JANUS_FLOW}
    llm_field = "language_config"

    def unused_groups(self, kind, abstract):
        """SigLIP's pooling head; the tokenizer's usage counts."""
        width = abstract[f"{ENCODER}/norm/scale"].shape[0]
        hidden = abstract[f"{ENCODER}/layers/mlp/fc_1/kernel"].shape[-1]
        encoder = "vision_und_enc_model" if kind == "flow" else "vision_model"
        prefix = f"{encoder}.vision_tower.attn_pool"
        pool = {
            f"{prefix}.latent": (1, 1, width),
            f"{prefix}.norm.weight": (width,),
            f"{prefix}.norm.bias": (width,),
        }
        linear_maps = {
            "q": (width, width),
            "kv": (2 * width, width),
            "proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for name, shape in linear_maps.items():
            pool[f"{prefix}.{name}.weight"] = shape
            pool[f"{prefix}.{name}.bias"] = shape[:1]
        if kind == "flow":
            return [pool]
        return [pool, {"gen_vision_model.quantize.codebook_used": (65_536,)}]

    def _read(self, config):
        return _read_flow(config) if "vision_gen_enc_config" in config else _read_janus(config)

    def _fixed_fields(self, model):
        fields = super()._fixed_fields(model)
        fields["understanding.encoder.norm_eps"] = (
            model["understanding"]["encoder"]["norm_eps"],
            1e-6,
        )
        if model["generation"]["kind"] == "vq":
            num_groups = model["generation"]["tokenizer"]["num_groups"]
            fields["generation.tokenizer.num_groups"] = (num_groups, NUM_GROUPS)
        return fields

    def _write(self, config, tokenizer, dtype):
        model = config["model"]
        encoder = model["understanding"]["encoder"]
        nets = _write_flow(model) if model["generation"]["kind"] == "flow" else _write_janus(model)
        files = {
            "config.json": dict(
                architectures=["MultiModalityCausalLM"],
                model_type="multi_modality",
                language_config=write_llama(model["llm"], dtype),
                **nets,
                torch_dtype=dtype,
            ),
            "preprocessor_config.json": dict(
                image_processor_type="VLMImageProcessor",
                processor_class="VLChatProcessor",
                background_color=[127, 127, 127],
                image_size=encoder["image_size"],
                min_size=14,
                **preprocessor_fields(),
            ),
            "processor_config.json": dict(
                processor_class="VLChatProcessor",
                add_special_token=False,
                ignore_id=-100,
                image_tag="<image_placeholder>",
                mask_prompt=True,
                num_image_tokens=patches_per_side(encoder) ** 2,
                sft_format="deepseek",
            ),
        }
        if tokenizer is not None:
            # The class that the release's processor asks for; it adds BOS itself.
            files |= tokenizer_files("LlamaTokenizerFast")
        return files


def _params(config, net):
    """The settings of one net in config.json."""
    return config.get(net, {}).get("params", {})


def _read_encoder(vision):
    name = vision.get("model_name", "siglip_large_patch16_384")
    if name not in SIGLIPS and "width" not in vision:
        raise UserError(
            f"config.json names the understanding encoder {name!r}; known are {list(SIGLIPS)}."
        )
    vision = SIGLIPS.get(name, {}) | vision
    encoder = {field: vision[name] for field, name in ENCODER_FIELDS.items()}
    encoder["mlp_dim"] = int(encoder["embed_dim"] * vision["mlp_ratio"])
    encoder["norm_eps"] = 1e-6
    return encoder


def _read_janus(config):
    vision = _params(config, "vision_config")
    aligner = _params(config, "aligner_config")
    gen_aligner = _params(config, "gen_aligner_config")
    gen_head = _params(config, "gen_head_config")
    encoder = _read_encoder(vision)
    vq = VQ_DEFAULTS | _params(config, "gen_vision_config")
    llm = read_llama(config["language_config"])
    dim = llm["embed_dim"]
    codes = vq["image_token_size"]
    require(
        "config.json",
        {
            "vision_config.select_layer": (vision.get("select_layer", -1), -1),
            "aligner_config.projector_type": (
                aligner.get("projector_type", "mlp_gelu"),
                "mlp_gelu",
            ),
            "aligner_config.depth": (aligner.get("depth", 2), 2),
            "aligner_config.n_embed": (aligner.get("n_embed", dim), dim),
            "gen_aligner_config.projector_type": (
                gen_aligner.get("projector_type", "mlp_gelu"),
                "mlp_gelu",
            ),
            "gen_aligner_config.depth": (gen_aligner.get("depth", 2), 2),
            "gen_head_config.image_token_embed": (gen_head.get("image_token_embed", dim), dim),
            "gen_head_config.image_token_size": (gen_head.get("image_token_size", codes), codes),
        },
    )
    tokenizer = {field: vq[name] for field, name in TOKENIZER_FIELDS.items()}
    tokenizer["num_groups"] = NUM_GROUPS
    return dict(
        llm=llm,
        understanding=dict(encoder=encoder, adaptor="mlp", begin=False),
        generation=dict(kind="vq", image_size=encoder["image_size"], tokenizer=tokenizer),
    )


def _read_flow(config):
    vision = _params(config, "vision_und_enc_config")
    enc = FLOW_ENCODER_DEFAULTS | _params(config, "vision_gen_enc_config")
    dec = FLOW_DECODER_DEFAULTS | _params(config, "vision_gen_dec_config")
    encoder = _read_encoder(vision)
    llm = read_llama(config["language_config"])
    (dim,) = enc["block_out_channels"]
    require(
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
            "vision_gen_dec_config.layers_in_middle": (
                dec["layers_in_middle"],
                enc["layers_in_middle"],
            ),
            "vision_gen_dec_config.hidden_size": (dec["hidden_size"], llm["embed_dim"]),
            "vision_gen_dec_config.norm_eps": (dec["norm_eps"], enc["norm_eps"]),
            "vision_gen_dec_config.use_bias": (dec["use_bias"], True),
            "rms_norm_eps": (llm["norm_eps"], enc["norm_eps"]),
        },
    )
    generation = dict(
        kind="flow",
        image_size=encoder["image_size"],
        tokenizer=dict(latent_channels=enc["input_channels"]),
        unet=dict(dim=dim, num_blocks=enc["layers_in_middle"], norm_eps=enc["norm_eps"]),
        alignment=dict(feature_dim=encoder["embed_dim"]),
    )
    return dict(
        llm=llm,
        understanding=dict(encoder=encoder, adaptor="linear", begin=True),
        generation=generation,
    )


def _net(cls, model_type, **params):
    return dict(cls=cls, model_type=model_type, params=params)


def _write_encoder(encoder):
    """Settings of the release's encoder class: a registered name, or sizes."""
    sizes = {name: encoder[field] for field, name in ENCODER_FIELDS.items()}
    sizes["mlp_ratio"] = encoder["mlp_dim"] / encoder["embed_dim"]
    params = dict(sizes, model_name="siglip")
    for name, registered in SIGLIPS.items():
        if registered == sizes:
            params = dict(image_size=encoder["image_size"], model_name=name)
    return dict(select_feature="same", select_layer=-1, **params)


def _write_janus(model):
    """The nets of config.json around the LLM."""
    dim = model["llm"]["embed_dim"]
    encoder = model["understanding"]["encoder"]
    tokenizer = model["generation"]["tokenizer"]
    vq = {name: tokenizer[field] for field, name in TOKENIZER_FIELDS.items()}
    vq["ch_mult"] = list(vq["ch_mult"])
    if vq == VQ_DEFAULTS:
        vq = {name: vq[name] for name in ("image_token_size", "n_embed")}
    projector = dict(depth=2, n_embed=dim, projector_type="mlp_gelu")
    head = dict(image_token_embed=dim, image_token_size=tokenizer["codebook_size"], n_embed=dim)
    gen_input = tokenizer["codebook_dim"]
    return dict(
        vision_config=_net("CLIPVisionTower", "vision", **_write_encoder(encoder)),
        aligner_config=_net("MlpProjector", "aligner", input_dim=encoder["embed_dim"], **projector),
        gen_vision_config=_net("VQ-16", "gen_vision", **vq),
        gen_aligner_config=_net("MlpProjector", "gen_aligner", input_dim=gen_input, **projector),
        gen_head_config=_net("vision_head", "gen_head", **head),
    )


def _write_flow(model):
    """The nets of config.json around the LLM.

    The release's class has the widths of JanusFlow-1.3B built in, and loads no others.
    """
    encoder = model["understanding"]["encoder"]
    unet = model["generation"]["unet"]
    channels = model["generation"]["tokenizer"]["latent_channels"]
    shared = dict(
        block_out_channels=[unet["dim"]],
        layers_in_middle=unet["num_blocks"],
        hidden_size=model["llm"]["embed_dim"],
        norm_eps=unet["norm_eps"],
        use_bias=True,
    )
    gen_encoder = dict(input_channels=channels, kernel_size=2, stride=2, padding=0, **shared)
    gen_decoder = dict(in_channels=unet["dim"], out_channels=channels, upsamples=2, **shared)
    return dict(
        vision_und_enc_config=_net("CLIPVisionTower", "vision_und_enc", **_write_encoder(encoder)),
        vision_gen_enc_config=_net("ShallowUViTEncoder", "vision_gen_enc", **gen_encoder),
        vision_gen_dec_config=_net("ShallowUViTDecoder", "vision_gen_dec", **gen_decoder),
    )
