"""Name tables and config fields of the networks that several layouts have: LLaMA, SigLIP, VQ-16.

Sources: the tensors of the released checkpoints; transformers' Llama, Siglip and Janus; timm's ViT;
LlamaGen's VQ-16; diffusers' AutoencoderKL.
"""

from janus_jax.convert.layouts.base import require
from janus_jax.convert.name_map import (
    CONV,
    FLAT,
    FROM_HEADS,
    LINEAR,
    ONE_ROW,
    PATCH,
    line,
    norm,
    weight_and_bias,
)
from janus_jax.data.tokenizer import SPECIAL

ENCODER = "understanding/encoder"
TOKENIZER = "generation/tokenizer"
NUM_GROUPS = 32  # of every GroupNorm in VQ-16
LLM_FIELDS = dict(  # our field -> the field of transformers' LlamaConfig
    vocab_size="vocab_size",
    num_layers="num_hidden_layers",
    embed_dim="hidden_size",
    num_heads="num_attention_heads",
    num_kv_heads="num_key_value_heads",
    mlp_dim="intermediate_size",
    rope_theta="rope_theta",
    norm_eps="rms_norm_eps",
)
LLAMA_DEFAULTS = dict(  # of transformers' LlamaConfig, whose files leave out what equals a default
    model_type="llama",
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
)


def llama_table(prefix, head):
    """LlamaForCausalLM, which has the same names after a prefix everywhere."""
    params = "llm/layers/{i}"
    block = f"{prefix}layers.{{i}}"
    return [
        line(f"{prefix}embed_tokens.weight", "llm/embed"),
        line(f"{block}.input_layernorm.weight", f"{params}/attention_norm/scale"),
        line(f"{block}.self_attn.q_proj.weight", f"{params}/attention/query/kernel", LINEAR),
        line(f"{block}.self_attn.k_proj.weight", f"{params}/attention/key/kernel", LINEAR),
        line(f"{block}.self_attn.v_proj.weight", f"{params}/attention/value/kernel", LINEAR),
        line(f"{block}.self_attn.o_proj.weight", f"{params}/attention/out/kernel", FROM_HEADS),
        line(f"{block}.post_attention_layernorm.weight", f"{params}/mlp_norm/scale"),
        line(f"{block}.mlp.gate_proj.weight", f"{params}/mlp/gate/kernel", LINEAR),
        line(f"{block}.mlp.up_proj.weight", f"{params}/mlp/up/kernel", LINEAR),
        line(f"{block}.mlp.down_proj.weight", f"{params}/mlp/down/kernel", LINEAR),
        line(f"{prefix}norm.weight", "llm/norm/scale"),
        line(f"{head}.weight", "llm/head/kernel", LINEAR),
    ]


def patches_per_side(encoder):
    """Patches per side of the images that the understanding encoder reads, from its sizes."""
    return encoder["image_size"] // encoder["patch_size"]


def read_llama(config):
    """The fields of `config.model.llm` in a LlamaConfig.

    Newer versions of transformers have theta under `rope_parameters`.
    """
    config = LLAMA_DEFAULTS | config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    num_heads = config["num_attention_heads"]
    head_dim = config["hidden_size"] // num_heads
    require(
        "the config of the language model",
        {
            "model_type": (config["model_type"], "llama"),
            "hidden_act": (config["hidden_act"], "silu"),
            "attention_bias": (config["attention_bias"], False),
            "mlp_bias": (config["mlp_bias"], False),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "head_dim": (config.get("head_dim") or head_dim, head_dim),
        },
    )
    config["num_key_value_heads"] = config.get("num_key_value_heads") or num_heads
    config["rope_theta"] = float(rope.get("rope_theta", config["rope_theta"]))
    return {field: config[name] for field, name in LLM_FIELDS.items()}


def write_llama(llm, dtype):
    """The LlamaConfig of `config.model.llm`."""
    return dict(
        model_type="llama",
        **{name: llm[field] for field, name in LLM_FIELDS.items()},
        hidden_act="silu",
        max_position_embeddings=16_384,
        tie_word_embeddings=False,
        torch_dtype=dtype,
    )


def mlp_table(first, second, params):
    """Two linear maps with an activation between them."""
    return [
        *weight_and_bias(first, f"{params}/fc_1", LINEAR),
        *weight_and_bias(second, f"{params}/fc_2", LINEAR),
    ]


def siglip_timm_table(prefix):
    """SigLIP with timm's names: query, key and value are fused."""
    params = f"{ENCODER}/layers/{{i}}"
    block = f"{prefix}blocks.{{i}}"
    qkv = tuple(f"{params}/attention/{part}" for part in ("query", "key", "value"))
    return [
        line(f"{prefix}pos_embed", f"{ENCODER}/position", ONE_ROW),
        *weight_and_bias(f"{prefix}patch_embed.proj", f"{ENCODER}/patch", PATCH),
        *norm(f"{block}.norm1", f"{params}/attention_norm"),
        *weight_and_bias(f"{block}.attn.qkv", qkv, LINEAR, bias=FLAT),
        *weight_and_bias(f"{block}.attn.proj", f"{params}/attention/out", FROM_HEADS),
        *norm(f"{block}.norm2", f"{params}/mlp_norm"),
        *mlp_table(f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{params}/mlp"),
        *norm(f"{prefix}norm", f"{ENCODER}/norm"),
    ]


def siglip_transformers_table(prefix, out):
    """SigLIP with transformers' names; `out` is the name of attention's output map."""
    params = f"{ENCODER}/layers/{{i}}"
    block = f"{prefix}encoder.layers.{{i}}"
    attention = f"{params}/attention"
    return [
        line(f"{prefix}embeddings.position_embedding.weight", f"{ENCODER}/position"),
        *weight_and_bias(f"{prefix}embeddings.patch_embedding", f"{ENCODER}/patch", PATCH),
        *norm(f"{block}.layer_norm1", f"{params}/attention_norm"),
        *weight_and_bias(f"{block}.self_attn.q_proj", f"{attention}/query", LINEAR, bias=FLAT),
        *weight_and_bias(f"{block}.self_attn.k_proj", f"{attention}/key", LINEAR, bias=FLAT),
        *weight_and_bias(f"{block}.self_attn.v_proj", f"{attention}/value", LINEAR, bias=FLAT),
        *weight_and_bias(f"{block}.self_attn.{out}", f"{attention}/out", FROM_HEADS),
        *norm(f"{block}.layer_norm2", f"{params}/mlp_norm"),
        *mlp_table(f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{params}/mlp"),
        *norm(f"{prefix}post_layernorm", f"{ENCODER}/norm"),
    ]


def resnet_table(block, params, *, shortcut="nin_shortcut"):
    """A residual block of an autoencoder; `shortcut` is the name of its 1x1 convolution."""
    return [
        *norm(f"{block}.norm1", f"{params}/norm_1"),
        *weight_and_bias(f"{block}.conv1", f"{params}/conv_1", CONV),
        *norm(f"{block}.norm2", f"{params}/norm_2"),
        *weight_and_bias(f"{block}.conv2", f"{params}/conv_2", CONV),
        *weight_and_bias(f"{block}.{shortcut}", f"{params}/shortcut", CONV),
    ]


def attention_table(block, params, *, names=("norm", "q", "k", "v", "proj_out"), form=CONV):
    """Attention over a feature map; `names` are those of the norm and the four maps."""
    norm_name, *map_names = names
    table = norm(f"{block}.{norm_name}", f"{params}/norm")
    for name, part in zip(map_names, ("query", "key", "value", "out"), strict=True):
        table += weight_and_bias(f"{block}.{name}", f"{params}/{part}", form)
    return table


def vq_table(prefix, *, down, up, block, middle):
    """VQ-16; LlamaGen and transformers name its levels and blocks differently."""
    table = [
        line(f"{prefix}quantize.embedding.weight", f"{TOKENIZER}/codebook"),
        *weight_and_bias(f"{prefix}quant_conv", f"{TOKENIZER}/quant_conv", CONV),
        *weight_and_bias(f"{prefix}post_quant_conv", f"{TOKENIZER}/post_quant_conv", CONV),
    ]
    for half, levels, resample in (("encoder", down, "downsample"), ("decoder", up, "upsample")):
        tensors = f"{prefix}{half}"
        params = f"{TOKENIZER}/{half}"
        level = f"{tensors}.{levels}.{{i}}"
        level_params = f"{params}/levels/{{i}}"
        table += [
            *weight_and_bias(f"{tensors}.conv_in", f"{params}/conv_in", CONV),
            *resnet_table(f"{level}.{block}.{{j}}", f"{level_params}/blocks/{{j}}"),
            *attention_table(f"{level}.attn.{{j}}", f"{level_params}/attentions/{{j}}"),
            *weight_and_bias(f"{level}.{resample}.conv", f"{level_params}/resample/conv", CONV),
            *resnet_table(f"{tensors}.mid.{middle[0]}", f"{params}/middle/block_1"),
            *attention_table(f"{tensors}.mid.{middle[1]}", f"{params}/middle/attention"),
            *resnet_table(f"{tensors}.mid.{middle[2]}", f"{params}/middle/block_2"),
            *norm(f"{tensors}.norm_out", f"{params}/norm_out"),
            *weight_and_bias(f"{tensors}.conv_out", f"{params}/conv_out", CONV),
        ]
    return table


def llamagen_vq_table(prefix):
    """VQ-16 with LlamaGen's names, which Janus's release has too."""
    return vq_table(prefix, down="conv_blocks", up="conv_blocks", block="res", middle="012")


def preprocessor_fields():
    """The fields of every preprocessor_config.json: pixels from -1 to 1."""
    half = [0.5, 0.5, 0.5]
    return dict(image_mean=half, image_std=half, rescale_factor=1 / 255, do_normalize=True)


def tokenizer_files(tokenizer_class):
    """The JSON files next to tokenizer.json; the class is the one that transformers loads."""
    special = dict(bos_token=SPECIAL["bos"], eos_token=SPECIAL["eos"], pad_token=SPECIAL["pad"])
    image_tokens = dict(
        image_token=SPECIAL["image"], boi_token=SPECIAL["boi"], eoi_token=SPECIAL["eoi"]
    )
    return {
        "special_tokens_map.json": dict(special, **image_tokens),
        "tokenizer_config.json": dict(
            special,
            tokenizer_class=tokenizer_class,
            add_bos_token=True,
            add_eos_token=False,
            clean_up_tokenization_spaces=False,
            model_max_length=16_384,
            extra_special_tokens=image_tokens,
        ),
    }
