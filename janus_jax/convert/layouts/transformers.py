"""The layout of transformers' Janus, in which deepseek-community has released Janus-Pro."""

import json

from janus_jax.convert.layouts.base import Family, ModelLayout, require
from janus_jax.convert.layouts.networks import (
    NUM_GROUPS,
    llama_table,
    mlp_table,
    patches_per_side,
    preprocessor_fields,
    read_llama,
    siglip_transformers_table,
    tokenizer_files,
    vq_table,
    write_llama,
)
from janus_jax.convert.name_map import line
from janus_jax.data.tokenizer import SPECIAL
from janus_jax.errors import UserError

ENCODER_FIELDS = dict(  # our field -> the field of config.json
    image_size="image_size",
    patch_size="patch_size",
    num_layers="num_hidden_layers",
    embed_dim="hidden_size",
    num_heads="num_attention_heads",
    norm_eps="layer_norm_eps",
)
TOKENIZER_FIELDS = dict(
    base_channels="base_channels",
    channel_mult="channel_multiplier",
    num_res_blocks="num_res_blocks",
    z_channels="latent_channels",
    codebook_size="num_embeddings",
    codebook_dim="embed_dim",
)
# Defaults of transformers' classes: config.json leaves out what equals a default.
VISION_DEFAULTS = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=16,
    image_size=384,
    mlp_ratio=4.0,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
    projection_dim=2048,
    depth=2,
    use_qk_norm=False,
    attention_bias=True,
    num_image_tokens=576,
)
VQ_DEFAULTS = dict(
    embed_dim=8,
    num_embeddings=16_384,
    latent_channels=256,
    base_channels=128,
    channel_multiplier=[1, 1, 2, 2, 4],
    num_res_blocks=2,
    projection_dim=2048,
    image_token_embed_dim=2048,
    num_hidden_layers=2,
    hidden_act="gelu",
    double_latent=False,
)
JANUS = Family(
    table=[
        *llama_table("model.language_model.", "lm_head"),
        *siglip_transformers_table("model.vision_model.", "projection_layer"),
        *mlp_table("model.aligner.fc1", "model.aligner.hidden_layers.0", "understanding/adaptor"),
        *vq_table(
            "model.vqmodel.",
            down="down",
            up="up",
            block="block",
            middle=("block_1", "attn_1", "block_2"),
        ),
        line("model.generation_embeddings.weight", "generation/embed"),
        *mlp_table(
            "model.generation_aligner.fc1",
            "model.generation_aligner.hidden_layers.0",
            "generation/adaptor",
        ),
        *mlp_table(
            "model.generation_head.proj_out",
            "model.generation_head.vision_head",
            "generation/head",
        ),
    ],
    configs=("pro_1b", "pro_7b"),
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set all = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set all.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set all.text = all.text + IMAGE + '\\n' -%}
{%- elif part['type'] == 'text' -%}
{%- set all.text = all.text + part['text'] -%}
{%- else -%}
{{- raise_exception('Janus reads text and images, not ' + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set text = all.text | trim -%}
{%- if message['role'] == 'user' -%}
{{- USER + ': ' + text + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ASSISTANT + ':' + (' ' + text + EOS if text else '') -}}
{%- else -%}
{{- raise_exception('Janus knows the roles user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT + ':' -}}{%- endif -%}
"""


class Transformers(ModelLayout):
    """transformers' JanusForConditionalGeneration."""

    name = "transformers"
    families = {"vq": JANUS}
    llm_field = "text_config"

    def read_config(self, folder):
        """As `ModelLayout.read_config`; the text head must not be tied to the embedding table."""
        model = super().read_config(folder)
        tied = folder.json("config.json").get("tie_word_embeddings", True)
        if tied and "lm_head.weight" not in folder.tensors:
            raise UserError(
                f"{str(folder.path)!r} has no lm_head.weight: its text head is tied to the "
                "embedding table, and Janus has separate ones."
            )
        return model

    def _read(self, config):
        vision = VISION_DEFAULTS | config.get("vision_config", {})
        vq = VQ_DEFAULTS | config.get("vq_config", {})
        llm = read_llama(config["text_config"])
        dim = llm["embed_dim"]
        grid = patches_per_side(vision)
        require(
            "config.json",
            {
                "vision_config.hidden_act": (vision["hidden_act"], "gelu"),
                "vision_config.depth": (vision["depth"], 2),
                "vision_config.projection_dim": (vision["projection_dim"], dim),
                "vision_config.use_qk_norm": (vision["use_qk_norm"], False),
                "vision_config.attention_bias": (vision["attention_bias"], True),
                "vq_config.hidden_act": (vq["hidden_act"], "gelu"),
                "vq_config.num_hidden_layers": (vq["num_hidden_layers"], 2),
                "vq_config.projection_dim": (vq["projection_dim"], dim),
                "vq_config.image_token_embed_dim": (vq["image_token_embed_dim"], dim),
                "vq_config.double_latent": (vq["double_latent"], False),
                "vision_config.num_image_tokens": (vision["num_image_tokens"], grid**2),
                "vq_config.num_patches": (vq.get("num_patches", grid), grid),
            },
        )
        encoder = {field: vision[name] for field, name in ENCODER_FIELDS.items()}
        encoder["mlp_dim"] = int(encoder["embed_dim"] * vision["mlp_ratio"])
        tokenizer = {field: vq[name] for field, name in TOKENIZER_FIELDS.items()}
        tokenizer["num_groups"] = NUM_GROUPS
        return dict(
            llm=llm,
            understanding=dict(encoder=encoder, adaptor="mlp", begin=False),
            generation=dict(kind="vq", image_size=encoder["image_size"], tokenizer=tokenizer),
        )

    def _fixed_fields(self, model):
        num_groups = model["generation"]["tokenizer"]["num_groups"]
        return super()._fixed_fields(model) | {
            "generation.tokenizer.num_groups": (num_groups, NUM_GROUPS)
        }

    def _write(self, config, tokenizer, dtype):
        model = config["model"]
        encoder = model["understanding"]["encoder"]
        special_ids = {}
        if tokenizer is not None:
            special_ids = dict(
                bos_token_id=tokenizer.bos, eos_token_id=tokenizer.eos, pad_token_id=tokenizer.pad
            )
        main = dict(
            architectures=["JanusForConditionalGeneration"],
            model_type="janus",
            text_config=write_llama(model["llm"], dtype) | special_ids,
            vision_config=_write_encoder(encoder, model["llm"]),
            vq_config=_write_tokenizer(model),
            tie_word_embeddings=False,  # by default transformers ties head and embedding table
            dtype=dtype,
        )
        if tokenizer is None:
            return {"config.json": main}
        main["image_token_id"] = tokenizer.image
        return {
            "config.json": main,
            # Images are sampled from all codes; the default of top_k is 50.
            "generation_config.json": special_ids
            | dict(guidance_scale=5.0, top_k=0, generation_kwargs=dict(boi_token_id=tokenizer.boi)),
            "preprocessor_config.json": dict(
                image_processor_type="JanusImageProcessor",
                processor_class="JanusProcessor",
                do_convert_rgb=True,
                size=dict(height=encoder["image_size"], width=encoder["image_size"]),
                min_size=14,
                **preprocessor_fields(),
            ),
            "processor_config.json": dict(
                processor_class="JanusProcessor",
                use_default_system_prompt=bool(config["data"]["system_prompt"]),
                num_image_tokens=patches_per_side(encoder) ** 2,
            ),
            "chat_template.json": dict(chat_template=_chat_template(config["data"]["roles"])),
            **tokenizer_files("PreTrainedTokenizerFast"),  # reads tokenizer.json without changes
        }

    def _tokenizer_text(self, tokenizer):
        """transformers 5 adds BOS only where tokenizer.json says so."""
        return tokenizer.with_bos()


def _write_encoder(encoder, llm):
    return dict(
        model_type="janus_vision_model",
        **{name: encoder[field] for field, name in ENCODER_FIELDS.items()},
        mlp_ratio=encoder["mlp_dim"] / encoder["embed_dim"],
        hidden_act="gelu",
        projection_dim=llm["embed_dim"],
        depth=2,
        num_image_tokens=patches_per_side(encoder) ** 2,
    )


def _write_tokenizer(model):
    encoder = model["understanding"]["encoder"]
    tokenizer = model["generation"]["tokenizer"]
    dim = model["llm"]["embed_dim"]
    return dict(
        model_type="janus_vqgan",
        **{name: tokenizer[field] for field, name in TOKENIZER_FIELDS.items()},
        num_patches=patches_per_side(encoder),
        projection_dim=dim,
        image_token_embed_dim=dim,
        num_hidden_layers=2,
        hidden_act="gelu",
    )


def _chat_template(roles):
    """The Jinja template of a conversation with these names of user and assistant."""
    user, assistant = roles
    words = {"USER": user, "ASSISTANT": assistant, "IMAGE": SPECIAL["image"], "EOS": SPECIAL["eos"]}
    template = CHAT_TEMPLATE
    for name, word in words.items():
        template = template.replace(name, json.dumps(word, ensure_ascii=False))
    return template
