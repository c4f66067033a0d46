"""The JSON files beside exported weights: what the release's own code and transformers read before they load a tensor."""

import json

from janus_jax.convert.layouts.read_config import ENCODER_NAMES, GROUPS, LLM_NAMES, SIGLIPS, TOKENIZER_NAMES, VQ
from janus_jax.data.tokenizer import SPECIAL
from janus_jax.errors import UserError


def write(layout, config, tokenizer, *, dtype):
    """The JSON files beside exported weights.

    Args:
      layout: 'deepseek' or 'transformers'.
      config: resolved config of the model.
      tokenizer: TextTokenizer, or None.
      dtype: of the weights.

    Returns:
      {file name: text}.

    Raises:
      UserError: for a model that the layouts cannot describe.
    """
    model = config["model"]
    encoder, generation = model["understanding"]["encoder"], model["generation"]
    only = {"generation.tokenizer.num_groups": (generation["tokenizer"]["num_groups"], GROUPS)}
    only = only if generation["kind"] == "vq" else {}  # JanusFlow's autoencoder is no part of its release
    only |= {"generation.image_size": (generation["image_size"], encoder["image_size"])}
    only |= {"understanding.encoder.norm_eps": (encoder["norm_eps"], 1e-6)} if layout == "deepseek" else {}
    for name, (value, expected) in only.items():
        if value != expected:
            raise UserError(
                f"config.model.{name} is {value}, and the {layout} layout knows {expected} only; what loads the export "
                "would compute something else."
            )
    made = WRITERS[layout, generation["kind"]](config, tokenizer, dtype)
    texts = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()}
    if tokenizer is None:
        return texts
    # The release's tokenizer class (transformers 4) puts BOS first by itself; transformers 5 does what tokenizer.json says.
    text = tokenizer.text if layout == "deepseek" else tokenizer.with_bos()
    return texts | {"tokenizer.json": text}


def _llama_json(llm, dtype):
    sizes = {theirs: llm[ours] for ours, theirs in LLM_NAMES.items()}
    fixed = dict(hidden_act="silu", max_position_embeddings=16_384, tie_word_embeddings=False, torch_dtype=dtype)
    return dict(model_type="llama", **sizes, **fixed)


def _mean_and_std():
    return dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], rescale_factor=1 / 255, do_normalize=True)


def _net(cls, kind, **params):
    return dict(cls=cls, model_type=kind, params=params)


def _siglip_json(vit):
    """Parameters of the release's encoder class: a registered name, or sizes."""
    sizes = {theirs: vit[ours] for ours, theirs in ENCODER_NAMES["deepseek"].items()}
    sizes["mlp_ratio"] = vit["mlp_dim"] / vit["embed_dim"]
    name = next((n for n, known in SIGLIPS.items() if known == sizes), None)
    named = dict(image_size=vit["image_size"], model_name=name) if name else dict(sizes, model_name="siglip")
    return dict(select_feature="same", select_layer=-1, **named)


def _write_janus(config, tokenizer, dtype):
    llm, vit = config["model"]["llm"], config["model"]["understanding"]["encoder"]
    vq = config["model"]["generation"]["tokenizer"]
    coder = {theirs: vq[ours] for ours, theirs in TOKENIZER_NAMES["deepseek"].items()}
    coder["ch_mult"] = list(coder["ch_mult"])
    named_only = {k: coder[k] for k in ("image_token_size", "n_embed")} if coder == VQ else coder
    projector = dict(depth=2, n_embed=llm["embed_dim"], projector_type="mlp_gelu")
    image_token = dict(image_token_embed=llm["embed_dim"], image_token_size=vq["codebook_size"], n_embed=llm["embed_dim"])
    nets = dict(
        vision_config=_net("CLIPVisionTower", "vision", **_siglip_json(vit)),
        aligner_config=_net("MlpProjector", "aligner", input_dim=vit["embed_dim"], **projector),
        gen_vision_config=_net("VQ-16", "gen_vision", **named_only),
        gen_aligner_config=_net("MlpProjector", "gen_aligner", input_dim=vq["codebook_dim"], **projector),
        gen_head_config=_net("vision_head", "gen_head", **image_token),
    )
    return _deepseek_files(config, nets, tokenizer, dtype)


def _write_flow(config, tokenizer, dtype):
    """The release's own class has the widths of JanusFlow-1.3B built in, and loads no others."""
    llm, vit = config["model"]["llm"], config["model"]["understanding"]["encoder"]
    generation = config["model"]["generation"]
    unet, channels = generation["unet"], generation["tokenizer"]["latent_channels"]
    shared = dict(
        block_out_channels=[unet["dim"]], layers_in_middle=unet["num_blocks"], hidden_size=llm["embed_dim"],
        norm_eps=unet["norm_eps"], use_bias=True,
    )  # fmt: skip
    encoder = dict(input_channels=channels, kernel_size=2, stride=2, padding=0, **shared)
    decoder = dict(in_channels=unet["dim"], out_channels=channels, upsamples=2, **shared)
    nets = dict(
        vision_und_enc_config=_net("CLIPVisionTower", "vision_und_enc", **_siglip_json(vit)),
        vision_gen_enc_config=_net("ShallowUViTEncoder", "vision_gen_enc", **encoder),
        vision_gen_dec_config=_net("ShallowUViTDecoder", "vision_gen_dec", **decoder),
    )
    return _deepseek_files(config, nets, tokenizer, dtype)


def _deepseek_files(config, nets, tokenizer, dtype):
    """The files of both releases; `nets` describes the nets around the LLM."""
    vit = config["model"]["understanding"]["encoder"]
    main = dict(
        architectures=["MultiModalityCausalLM"],
        model_type="multi_modality",
        language_config=_llama_json(config["model"]["llm"], dtype),
        **nets,
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
        made |= _tokenizer_files("LlamaTokenizerFast")  # the class that the release's processor asks for
    return made


CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set said = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set said.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set said.text = said.text + IMAGE + '\\n' -%}
{%- elif part['type'] == 'text' -%}
{%- set said.text = said.text + part['text'] -%}
{%- else -%}
{{- raise_exception('Janus reads text and pictures, not ' + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set text = said.text | trim -%}
{%- if message['role'] == 'user' -%}
{{- USER + ': ' + text + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ASSISTANT + ':' + (' ' + text + EOS if text else '') -}}
{%- else -%}
{{- raise_exception('Janus knows user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT + ':' -}}{%- endif -%}
"""


def _write_transformers(config, tokenizer, dtype):
    llm, vit = config["model"]["llm"], config["model"]["understanding"]["encoder"]
    vq, grid = config["model"]["generation"]["tokenizer"], vit["image_size"] // vit["patch_size"]
    text, features = _llama_json(llm, dtype), grid**2
    special = {}
    if tokenizer is not None:
        special = dict(bos_token_id=tokenizer.bos, eos_token_id=tokenizer.eos, pad_token_id=tokenizer.pad)
    vision = dict(
        model_type="janus_vision_model",
        **{theirs: vit[ours] for ours, theirs in ENCODER_NAMES["transformers"].items()},
        mlp_ratio=vit["mlp_dim"] / vit["embed_dim"],
        hidden_act="gelu",
        projection_dim=llm["embed_dim"],
        depth=2,
        num_image_tokens=features,
    )
    coder = dict(
        model_type="janus_vqgan",
        **{theirs: vq[ours] for ours, theirs in TOKENIZER_NAMES["transformers"].items()},
        num_patches=grid,
        projection_dim=llm["embed_dim"],
        image_token_embed_dim=llm["embed_dim"],
        num_hidden_layers=2,
        hidden_act="gelu",
    )
    main = dict(
        architectures=["JanusForConditionalGeneration"],
        model_type="janus",
        text_config=text | special,
        vision_config=vision,
        vq_config=coder,
        tie_word_embeddings=False,  # its default ties the text head to the embedding table
        dtype=dtype,
        **({} if tokenizer is None else {"image_token_id": tokenizer.image}),
    )
    if tokenizer is None:
        return {"config.json": main}
    drawing = dict(guidance_scale=5.0, top_k=0, generation_kwargs=dict(boi_token_id=tokenizer.boi))  # its default is 50
    pictures = dict(
        image_processor_type="JanusImageProcessor",
        processor_class="JanusProcessor",
        do_convert_rgb=True,
        size=dict(height=vit["image_size"], width=vit["image_size"]),
        min_size=14,
        **_mean_and_std(),
    )
    processor = dict(
        processor_class="JanusProcessor",
        use_default_system_prompt=bool(config["data"]["system_prompt"]),
        num_image_tokens=features,
    )
    user, assistant = config["data"]["roles"]
    words = {"USER": user, "ASSISTANT": assistant, "IMAGE": SPECIAL["image"], "EOS": SPECIAL["eos"]}
    template = CHAT_TEMPLATE
    for name, word in words.items():
        template = template.replace(name, json.dumps(word, ensure_ascii=False))
    return {
        "config.json": main,
        "generation_config.json": special | drawing,
        "preprocessor_config.json": pictures,
        "processor_config.json": processor,
        "chat_template.json": dict(chat_template=template),
        **_tokenizer_files("PreTrainedTokenizerFast"),  # reads tokenizer.json as it stands
    }


WRITERS = {
    ("deepseek", "vq"): _write_janus,
    ("deepseek", "flow"): _write_flow,
    ("transformers", "vq"): _write_transformers,
}


def _tokenizer_files(cls):
    named = dict(bos_token=SPECIAL["bos"], eos_token=SPECIAL["eos"], pad_token=SPECIAL["pad"])
    pictures = dict(image_token=SPECIAL["image"], boi_token=SPECIAL["boi"], eoi_token=SPECIAL["eoi"])
    return {
        "special_tokens_map.json": dict(named, **pictures),
        "tokenizer_config.json": dict(
            named,
            tokenizer_class=cls,
            add_bos_token=True,
            add_eos_token=False,
            clean_up_tokenization_spaces=False,
            model_max_length=16_384,
            extra_special_tokens=pictures,
        ),
    }
