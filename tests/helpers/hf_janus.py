"""A random Janus of transformers, the reference that ours is compared with."""

import torch
from transformers import JanusConfig, JanusForConditionalGeneration


def random_janus(shape, *, dtype="float32", seed=0):
    """A random model with noise in every norm and bias, whose code vectors differ in length."""
    torch.manual_seed(seed)
    width, grid = shape["width"], shape["grid"]
    config = JanusConfig(
        text_config=dict(
            model_type="llama",
            hidden_size=width,
            intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            vocab_size=600,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        vision_config=dict(
            hidden_size=8 * shape["vit_heads"],
            num_hidden_layers=shape["vit_layers"],
            num_attention_heads=shape["vit_heads"],
            image_size=16 * grid,
            patch_size=16,
            projection_dim=width,
            depth=2,
            num_image_tokens=grid**2,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=shape["codes"],
            latent_channels=32,
            base_channels=32,
            channel_multiplier=shape["multiplier"],
            num_res_blocks=shape["res_blocks"],
            projection_dim=width,
            image_token_embed_dim=width,
            num_hidden_layers=2,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.to(getattr(torch, dtype))
