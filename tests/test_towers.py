"""Open towers: imported, they compute what their own libraries compute."""

import argparse
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from janus_jax import checkpoint
from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import TOWERS
from janus_jax.convert.layouts.networks import read_llama
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.tokenizer import SPECIAL
from janus_jax.models.functional import ModelSpec
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.tokenizers.vq16 import VQTokenizer
from tests.helpers.conversion import convert, error, load_fp32
from tests.helpers.golden_model import GOLDEN, close, nhwc, sizes


def import_tower(layout, src, out):
    """Runs the command: the checkpoint's fp32 parameters."""
    convert("import", layout=layout, src=src, out=out)
    return load_fp32(out)


def below(prefix, params):
    """Parameters of one module, without its place in the whole model."""
    return {path.removeprefix(prefix): array for path, array in params.items()}


@pytest.fixture(scope="module")
def llama(torch, tmp_path_factory):
    """A random LlamaForCausalLM and its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        rope_theta=500.0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return model, path


def test_llama(torch, llama, tmp_path):
    model, path = llama
    params = import_tower("llama", path, tmp_path / "out")
    assert checkpoint.open_saved(tmp_path / "out").about["tokenizer"] is None
    settings = read_llama(model.config.to_dict())
    network = ModelSpec(functools.partial(Llama, **settings))
    tokens = np.random.default_rng(0).integers(0, 600, (2, 11))

    @jax.jit
    def logits(params):
        llm = network.merge(below("llm/", params))
        x = llm.embed_tokens(jnp.asarray(tokens), dtype=jnp.float32)
        positions = jnp.broadcast_to(jnp.arange(11)[None], (2, 11))
        hidden, _ = llm(x, positions=positions, segment_ids=jnp.ones((2, 11), jnp.int32))
        return llm.head(hidden)

    with torch.no_grad():
        close(logits(params), model(input_ids=torch.tensor(tokens)).logits.numpy())


def test_the_tokenizer_of_a_llama_gets_what_it_lacks(llama, data, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(llama[1], folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[SPECIAL["bos"], SPECIAL["eos"]],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["a red star"], trainer)
    size = tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    import_tower("llama", folder, tmp_path / "out")
    saved = checkpoint.open_saved(tmp_path / "out")
    completed = text_tokenizer.TextTokenizer(saved.about["tokenizer"])
    added = [completed.pad, completed.image, completed.boi, completed.eoi]
    assert added == list(range(size, size + 4)) and completed.size == size + 6
    assert text_tokenizer.load(tmp_path / "out/tokenizer.json").boi == completed.boi

    # A vocabulary with a gap: the added token would get the id of an existing one.
    broken = json.loads((data / "tokenizer.json").read_text())
    broken["added_tokens"] = [t for t in broken["added_tokens"] if t["content"] != SPECIAL["boi"]]
    del broken["model"]["vocab"][SPECIAL["boi"]]
    (folder / "tokenizer.json").write_text(json.dumps(broken))
    message = error("import", layout="llama", src=folder, out=tmp_path / "other")
    assert "tokenizer" in message and " id" in message
    assert not (tmp_path / "other").exists()


def as_timm(weights):
    """A transformers SigLIP with timm's names: query, key and value are fused."""
    new = {"attn_pool.latent": np.zeros((1, 1, 64), np.float32)}
    parts = {}
    renames = {
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "layer_norm": "norm",
        "self_attn.out_proj": "attn.proj",
        "post_layernorm": "norm",
    }
    for key, value in weights.items():
        name = key.removeprefix("vision_model.")
        if name.startswith("head."):
            continue
        if "self_attn" in name and "out_proj" not in name:
            block = name.split(".self_attn.")[0].replace("encoder.layers", "blocks")
            _, part, leaf = name.rsplit(".", 2)
            parts.setdefault(f"{block}.attn.qkv.{leaf}", {})[part] = value
            continue
        for old, renamed in renames.items():
            name = name.replace(old, renamed)
        new[name] = value[None] if name == "pos_embed" else value
    for name, by_part in parts.items():
        new[name] = np.concatenate([by_part[f"{part}_proj"] for part in "qkv"])
    return new


@pytest.mark.parametrize("layout", ["transformers", "both towers", "timm"])
def test_siglip(torch, tmp_path, layout):
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=64 if layout == "timm" else 40,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=1 if layout == "timm" else 5,
        image_size=48,
        patch_size=16,
        hidden_act="gelu",
    )
    model = SiglipVisionModel(config).eval()
    folder = tmp_path / "siglip"
    if layout == "both towers":
        text = dict(  # of other sizes than the vision tower
            hidden_size=40,
            intermediate_size=24,
            num_hidden_layers=5,
            num_attention_heads=2,
            vocab_size=30,
        )
        both = SiglipModel(SiglipConfig(text_config=text, vision_config=config.to_dict())).eval()
        both.save_pretrained(folder)
        state = below("vision_model.", both.vision_model.state_dict())
        model.load_state_dict(
            {k: state[k.removeprefix("vision_model.")] for k in model.state_dict()}
        )
    else:
        model.save_pretrained(folder)
    if layout == "timm":
        weights = load_file(folder / "model.safetensors")
        shutil.rmtree(folder)
        folder.mkdir()
        save_file(as_timm(weights), folder / "model.safetensors")
    params = import_tower("siglip", folder, tmp_path / "out")
    network = ModelSpec(
        functools.partial(
            Siglip,
            image_size=48,
            patch_size=16,
            num_layers=3,
            embed_dim=config.hidden_size,
            mlp_dim=88,
            num_heads=config.num_attention_heads,
        )
    )
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 48)).astype(np.float32)
    encode = jax.jit(lambda params: network.merge(params)(nhwc(pixels)))
    with torch.no_grad():
        expected = model(pixel_values=torch.tensor(pixels)).last_hidden_state.numpy()
    close(encode(below("understanding/encoder/", params)), expected)


def test_llamagen_vq(torch, tmp_path):
    network = ModelSpec(
        functools.partial(
            VQTokenizer,
            base_channels=32,
            channel_mult=[1, 2],
            num_res_blocks=2,
            z_channels=32,
            codebook_size=40,
            codebook_dim=8,
        )
    )
    params = {
        f"generation/tokenizer/{path}": np.asarray(array)
        for path, array in network.init(jax.random.key(0)).items()
    }
    (table,) = TOWERS["llamagen_vq"].tables
    tensors = name_map.expand(table, params, layout="llamagen_vq")
    released = dict(name_map.to_tensors(lambda paths: {p: params[p] for p in paths}, tensors))
    assert released["encoder.conv_blocks.1.attn.0.proj_out.weight"].shape == (64, 64, 1, 1)
    state = {name: torch.tensor(array) for name, array in released.items()}
    state["quantize.codebook_used"] = torch.zeros(65_536)
    file = tmp_path / "vq_ds16_c2i.pt"
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4), "steps": 3}, file)
    imported = import_tower("llamagen_vq", file, tmp_path / "out")
    for path, array in params.items():
        np.testing.assert_array_equal(imported[path], array)


@pytest.mark.skipif(not (GOLDEN / "sdxl_vae_tiny").is_dir(), reason="no golden fixture")
def test_vae_of_a_diffusers_folder(tmp_path):
    """Newer and older names of the attention maps; numbers are compared in test_golden_vae.py."""
    golden = GOLDEN / "sdxl_vae_tiny"
    folder = tmp_path / "vae"
    folder.mkdir()
    file = folder / "diffusion_pytorch_model.safetensors"
    shutil.copy(golden / "model.safetensors", file)
    (folder / "config.json").write_text(json.dumps(sizes(golden)))
    params = import_tower("diffusers_vae", folder, tmp_path / "out")
    count = sum(math.prod(shape) for shape, _ in files.Folder(folder).tensors.values())
    assert sum(array.size for array in params.values()) == count + 1  # the scale of config.json
    assert params["generation/tokenizer/scale"] == np.float32(0.13025)

    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, old in older.items():
        weights = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): array
            for name, array in weights.items()
        }
    save_file(weights, file)
    save_file(weights, folder / "sdxl_vae.safetensors")  # the single-file release, which is ignored
    again = import_tower("diffusers_vae", folder, tmp_path / "out_again")
    for path, array in params.items():
        np.testing.assert_array_equal(array, again[path])
