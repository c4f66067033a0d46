"""The name tables: the released Janus layouts (deepseek, transformers), and the open towers that stage 1 starts from.

Sources: the released checkpoints' keys; transformers' Janus, Llama and Siglip models; timm's ViT; LlamaGen's VQ-16;
diffusers' AutoencoderKL.
"""

import re

import numpy as np

from janus_jax.convert.name_map import (
    CONV,
    FLAT,
    FROM_HEADS,
    LINEAR,
    ONE_CELL,
    ONE_ROW,
    PATCH,
    POINTWISE,
    SAME,
    line,
    norm,
    weight_and_bias,
)


def _llm(prefix, head):
    """LlamaForCausalLM: one naming everywhere, under different prefixes."""
    ours, theirs = "llm/layers/{i}", f"{prefix}layers.{{i}}"
    return [
        line(f"{prefix}embed_tokens.weight", "llm/embed"),
        line(f"{theirs}.input_layernorm.weight", f"{ours}/attention_norm/scale"),
        line(f"{theirs}.self_attn.q_proj.weight", f"{ours}/attention/query/kernel", LINEAR),
        line(f"{theirs}.self_attn.k_proj.weight", f"{ours}/attention/key/kernel", LINEAR),
        line(f"{theirs}.self_attn.v_proj.weight", f"{ours}/attention/value/kernel", LINEAR),
        line(f"{theirs}.self_attn.o_proj.weight", f"{ours}/attention/out/kernel", FROM_HEADS),
        line(f"{theirs}.post_attention_layernorm.weight", f"{ours}/mlp_norm/scale"),
        line(f"{theirs}.mlp.gate_proj.weight", f"{ours}/mlp/gate/kernel", LINEAR),
        line(f"{theirs}.mlp.up_proj.weight", f"{ours}/mlp/up/kernel", LINEAR),
        line(f"{theirs}.mlp.down_proj.weight", f"{ours}/mlp/down/kernel", LINEAR),
        line(f"{prefix}norm.weight", "llm/norm/scale"),
        line(f"{head}.weight", "llm/head/kernel", LINEAR),
    ]


ENCODER = "understanding/encoder"


def _siglip_timm(prefix):
    """SigLIP as timm names it: queries, keys and values fused."""
    ours, theirs = f"{ENCODER}/layers/{{i}}", f"{prefix}blocks.{{i}}"
    fused = tuple(f"{ours}/attention/{part}" for part in ("query", "key", "value"))
    return [
        line(f"{prefix}pos_embed", f"{ENCODER}/position", ONE_ROW),
        *weight_and_bias(f"{prefix}patch_embed.proj", f"{ENCODER}/patch", PATCH),
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm"),
        *weight_and_bias(f"{theirs}.attn.qkv", fused, LINEAR, bias=FLAT),
        *weight_and_bias(f"{theirs}.attn.proj", f"{ours}/attention/out", FROM_HEADS),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm"),
        *weight_and_bias(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc_1", LINEAR),
        *weight_and_bias(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc_2", LINEAR),
        *norm(f"{prefix}norm", f"{ENCODER}/norm"),
    ]


def _siglip_transformers(prefix, out):
    """SigLIP as transformers names it; `out` is what the projection behind the heads is called."""
    ours, theirs = f"{ENCODER}/layers/{{i}}", f"{prefix}encoder.layers.{{i}}"
    return [
        line(f"{prefix}embeddings.position_embedding.weight", f"{ENCODER}/position"),
        *weight_and_bias(f"{prefix}embeddings.patch_embedding", f"{ENCODER}/patch", PATCH),
        *norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm"),
        *weight_and_bias(f"{theirs}.self_attn.q_proj", f"{ours}/attention/query", LINEAR, bias=FLAT),
        *weight_and_bias(f"{theirs}.self_attn.k_proj", f"{ours}/attention/key", LINEAR, bias=FLAT),
        *weight_and_bias(f"{theirs}.self_attn.v_proj", f"{ours}/attention/value", LINEAR, bias=FLAT),
        *weight_and_bias(f"{theirs}.self_attn.{out}", f"{ours}/attention/out", FROM_HEADS),
        *norm(f"{theirs}.layer_norm2", f"{ours}/mlp_norm"),
        *weight_and_bias(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc_1", LINEAR),
        *weight_and_bias(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc_2", LINEAR),
        *norm(f"{prefix}post_layernorm", f"{ENCODER}/norm"),
    ]


TOKENIZER = "generation/tokenizer"


def _resnet(theirs, ours, *, shortcut="nin_shortcut"):
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm_1"),
        *weight_and_bias(f"{theirs}.conv1", f"{ours}/conv_1", CONV),
        *norm(f"{theirs}.norm2", f"{ours}/norm_2"),
        *weight_and_bias(f"{theirs}.conv2", f"{ours}/conv_2", CONV),
        *weight_and_bias(f"{theirs}.{shortcut}", f"{ours}/shortcut", CONV),
    ]


def _attention(theirs, ours, *, names=("norm", "q", "k", "v", "proj_out"), form=CONV):
    maps = zip(names[1:], ("query", "key", "value", "out"), strict=True)
    return [
        *norm(f"{theirs}.{names[0]}", f"{ours}/norm"),
        *(row for name, part in maps for row in weight_and_bias(f"{theirs}.{name}", f"{ours}/{part}", form)),
    ]


def _vq(prefix, *, down, up, block, middle):
    """VQ-16 under the two namings of its levels: LlamaGen's and transformers'."""
    rows = [
        line(f"{prefix}quantize.embedding.weight", f"{TOKENIZER}/codebook"),
        *weight_and_bias(f"{prefix}quant_conv", f"{TOKENIZER}/quant_conv", CONV),
        *weight_and_bias(f"{prefix}post_quant_conv", f"{TOKENIZER}/post_quant_conv", CONV),
    ]
    for half, levels, change in (("encoder", down, "downsample"), ("decoder", up, "upsample")):
        theirs, ours = f"{prefix}{half}", f"{TOKENIZER}/{half}"
        level = f"{theirs}.{levels}.{{i}}"
        rows += [
            *weight_and_bias(f"{theirs}.conv_in", f"{ours}/conv_in", CONV),
            *_resnet(f"{level}.{block}.{{j}}", f"{ours}/levels/{{i}}/blocks/{{j}}"),
            *_attention(f"{level}.attn.{{j}}", f"{ours}/levels/{{i}}/attentions/{{j}}"),
            *weight_and_bias(f"{level}.{change}.conv", f"{ours}/levels/{{i}}/resample/conv", CONV),
            *_resnet(f"{theirs}.mid.{middle[0]}", f"{ours}/middle/block_1"),
            *_attention(f"{theirs}.mid.{middle[1]}", f"{ours}/middle/attention"),
            *_resnet(f"{theirs}.mid.{middle[2]}", f"{ours}/middle/block_2"),
            *norm(f"{theirs}.norm_out", f"{ours}/norm_out"),
            *weight_and_bias(f"{theirs}.conv_out", f"{ours}/conv_out", CONV),
        ]
    return rows


def _llamagen_vq(prefix):
    return _vq(prefix, down="conv_blocks", up="conv_blocks", block="res", middle="012")


def _mlp(first, second, ours):
    return [*weight_and_bias(first, f"{ours}/fc_1", LINEAR), *weight_and_bias(second, f"{ours}/fc_2", LINEAR)]


def _diffusers_vae(query, key, value, out):
    """AutoencoderKL: levels of resnets, attention in the middle only, 1x1 attention maps held as linear ones."""
    middle = dict(names=("group_norm", query, key, value, out), form=POINTWISE)
    rows = [
        *weight_and_bias("quant_conv", f"{TOKENIZER}/quant_conv", CONV),
        *weight_and_bias("post_quant_conv", f"{TOKENIZER}/post_quant_conv", CONV),
    ]
    for half, levels, change in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        ours = f"{TOKENIZER}/{half}"
        rows += [
            *weight_and_bias(f"{half}.conv_in", f"{ours}/conv_in", CONV),
            *_resnet(f"{half}.{levels}.{{i}}.resnets.{{j}}", f"{ours}/levels/{{i}}/blocks/{{j}}", shortcut="conv_shortcut"),
            *weight_and_bias(f"{half}.{levels}.{{i}}.{change}.0.conv", f"{ours}/levels/{{i}}/resample/conv", CONV),
            *_resnet(f"{half}.mid_block.resnets.0", f"{ours}/middle/block_1", shortcut="conv_shortcut"),
            *_attention(f"{half}.mid_block.attentions.0", f"{ours}/middle/attention", **middle),
            *_resnet(f"{half}.mid_block.resnets.1", f"{ours}/middle/block_2", shortcut="conv_shortcut"),
            *norm(f"{half}.conv_norm_out", f"{ours}/norm_out"),
            *weight_and_bias(f"{half}.conv_out", f"{ours}/conv_out", CONV),
        ]
    return rows


def _convnext(theirs, ours):
    ours, theirs = f"{ours}/blocks/{{i}}", f"{theirs}.mid_block.res_blocks.{{i}}"
    return [
        *weight_and_bias(f"{theirs}.depthwise", f"{ours}/depthwise", CONV),
        line(f"{theirs}.norm.weight", f"{ours}/norm/scale"),
        *weight_and_bias(f"{theirs}.channelwise_linear_1", f"{ours}/widen", LINEAR),
        line(f"{theirs}.channelwise_norm.weight", f"{ours}/grn/gain", ONE_CELL),
        line(f"{theirs}.channelwise_norm.bias", f"{ours}/grn/bias", ONE_CELL),
        *weight_and_bias(f"{theirs}.channelwise_linear_2", f"{ours}/narrow", LINEAR),
        *weight_and_bias(f"{theirs}.cond_embeds_mapper", f"{ours}/modulate", LINEAR),
    ]


def _flow():
    """JanusFlow's ConvNeXt nets and the linear maps between them and the LLM."""
    encoder, decoder = "vision_gen_enc_model", "vision_gen_dec_model"
    return [
        *weight_and_bias(f"{encoder}.time_embed.linear_1", "generation/encoder/time_1", LINEAR),
        *weight_and_bias(f"{encoder}.time_embed.linear_2", "generation/encoder/time_2", LINEAR),
        *weight_and_bias(f"{encoder}.in_conv", "generation/encoder/patch", CONV),
        *_convnext(encoder, "generation/encoder"),
        *weight_and_bias("vision_gen_enc_aligner", "generation/encoder_adaptor", LINEAR),
        line("vision_gen_dec_aligner_norm.weight", "generation/decoder_norm/scale"),
        *weight_and_bias("vision_gen_dec_aligner", "generation/decoder_adaptor", LINEAR),
        line(f"{decoder}.input_norm.weight", "generation/decoder/norm_in/scale"),
        *_convnext(decoder, "generation/decoder"),
        line(f"{decoder}.out_convs.0.norm.weight", "generation/decoder/norm_out/scale"),
        *weight_and_bias(f"{decoder}.out_convs.0.unpatch_conv", "generation/decoder/unpatch", CONV),
    ]


JANUS = {  # (layout, way of drawing) -> table
    ("deepseek", "vq"): [
        *_llm("language_model.model.", "language_model.lm_head"),
        *_siglip_timm("vision_model.vision_tower."),
        *_mlp("aligner.layers.0", "aligner.layers.2", "understanding/adaptor"),
        *_llamagen_vq("gen_vision_model."),
        line("gen_embed.weight", "generation/embed", SAME),
        *_mlp("gen_aligner.layers.0", "gen_aligner.layers.2", "generation/adaptor"),
        *_mlp("gen_head.output_mlp_projector", "gen_head.vision_head", "generation/head"),
    ],
    ("deepseek", "flow"): [
        *_llm("language_model.model.", "language_model.lm_head"),
        *_siglip_timm("vision_und_enc_model.vision_tower."),
        *weight_and_bias("vision_und_enc_aligner", "understanding/adaptor", LINEAR),
        line("beg_of_und_embed", "understanding/begin", ONE_ROW),
        *_flow(),
    ],
    ("transformers", "vq"): [
        *_llm("model.language_model.", "lm_head"),
        *_siglip_transformers("model.vision_model.", "projection_layer"),
        *_mlp("model.aligner.fc1", "model.aligner.hidden_layers.0", "understanding/adaptor"),
        *_vq(
            "model.vqmodel.", down="down", up="up", block="block", middle=("block_1", "attn_1", "block_2"),
        ),
        line("model.generation_embeddings.weight", "generation/embed", SAME),
        *_mlp(
            "model.generation_aligner.fc1", "model.generation_aligner.hidden_layers.0", "generation/adaptor",
        ),
        *_mlp("model.generation_head.proj_out", "model.generation_head.vision_head", "generation/head"),
    ],
}  # fmt: skip
LAYOUTS = ("deepseek", "transformers")
PAGES = {"vq": ("pro_1b", "pro_7b"), "flow": ("flow_1p3b", "flow_1p3b_256")}  # configs that releases come in
ABSENT = {"vq": r"$^", "flow": r"generation/(tokenizer|alignment)/.*"}  # what releases of a kind leave out


def stored(kind, abstract):
    """The parameters that a release of this way of drawing stores: JanusFlow's has no autoencoder and no alignment."""
    return {path: leaf for path, leaf in abstract.items() if not re.fullmatch(ABSENT[kind], path)}


TOWERS = {  # layout -> tables, of which the one that knows the file's names is taken
    "llama": [_llm("model.", "lm_head")],
    "siglip": [
        *(_siglip_transformers(prefix, "out_proj") for prefix in ("vision_model.", "")),
        *(_siglip_timm(prefix) for prefix in ("", "visual.trunk.")),
    ],
    "llamagen_vq": [_llamagen_vq("")],
    "diffusers_vae": [  # the newer names of the attention maps, and the older ones
        _diffusers_vae("to_q", "to_k", "to_v", "to_out.0"),
        _diffusers_vae("query", "key", "value", "proj_attn"),
    ],
}
INTO = {
    "llama": "llm",
    "siglip": ENCODER,
    "llamagen_vq": TOKENIZER,
    "diffusers_vae": TOKENIZER,
}
IDLE = {  # names that these files hold and the towers do not use: pooling heads, text towers, usage counts
    "llama": r".*rotary_emb\.inv_freq",
    "siglip": r"(text_model|text|head|vision_model\.head|visual\.trunk\.attn_pool|attn_pool)\..*|logit_(scale|bias)"
    r"|(vision_model\.)?embeddings\.position_ids",
    "llamagen_vq": r"quantize\.codebook_used",
    "diffusers_vae": r"$^",
}


def stored_tower(layout, abstract):
    """The same of a tower, out of a whole model's parameters or its own: diffusers keeps the scale in its config.json."""
    inside = {path: leaf for path, leaf in abstract.items() if path.startswith(f"{INTO[layout]}/")}
    return {path: leaf for path, leaf in inside.items() if (layout, path) != ("diffusers_vae", f"{TOKENIZER}/scale")}


def unused(layout, kind, abstract):
    """{their name: shape} of what a released layout stores and never uses: SigLIP's pooling head, code usage.

    `kind` is the way of drawing, `abstract` {our path: anything with a shape}.
    """
    if layout != "deepseek":
        return {}
    width = abstract[f"{ENCODER}/norm/scale"].shape[0]
    hidden = abstract[f"{ENCODER}/layers/mlp/fc_1/kernel"].shape[-1]
    pool = f"{'vision_und_enc_model' if kind == 'flow' else 'vision_model'}.vision_tower.attn_pool"
    maps = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    maps |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes = {f"{pool}.latent": (1, 1, width), f"{pool}.norm.weight": (width,), f"{pool}.norm.bias": (width,)}
    for name, shape in maps.items():
        shapes |= {f"{pool}.{name}.weight": shape, f"{pool}.{name}.bias": shape[:1]}
    return shapes | ({"gen_vision_model.quantize.codebook_used": (65_536,)} if kind == "vq" else {})


def synthesise(name, shape, dtype):
    """What stands in for an unused tensor that nobody kept: ones for a norm's weight, zeros."""
    return (np.ones if name.endswith("norm.weight") else np.zeros)(shape, dtype)


def is_idle(layout, name):
    """Whether a tower's file may hold this name without our using it."""
    return re.fullmatch(IDLE[layout], name) is not None
