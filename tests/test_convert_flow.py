"""JanusFlow's released folder, with and without its autoencoder, in and out."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from janus_jax import checkpoint, cli, sharding
from janus_jax.data import tokenizer
from janus_jax.errors import UserError
from janus_jax.objectives.joint import Joint
from janus_jax.recipe.load import load_sampler
from tests.helpers.conversion import assert_same_bits, convert, error
from tests.helpers.golden_model import GOLDEN, sizes

FLOW, VAE = GOLDEN / "janusflow_tiny", GOLDEN / "sdxl_vae_tiny"
pytestmark = pytest.mark.skipif(not (FLOW.is_dir() and VAE.is_dir()), reason="no golden fixture")


def config_json(d):
    """A config.json as the release has it, for the sizes of a fixture."""
    net = dict(block_out_channels=[d["unet"]], layers_in_middle=2, hidden_size=d["embed"])
    vision = dict(
        image_size=d["image"],
        patch_size=d["patch"],
        width=d["vit_width"],
        layers=d["vit_layers"],
        heads=d["vit_heads"],
        mlp_ratio=4,
        select_layer=-1,
        model_name="siglip",
    )
    encoder = dict(input_channels=4, stride=2, kernel_size=2, padding=0, **net)
    decoder = dict(in_channels=d["unet"], out_channels=4, upsamples=2, **net)
    return dict(
        model_type="multi_modality",
        language_config=dict(
            model_type="llama",
            vocab_size=d["vocab"],
            hidden_size=d["embed"],
            intermediate_size=d["mlp"],
            num_hidden_layers=d["layers"],
            num_attention_heads=d["heads"],
            num_key_value_heads=d["heads"],
        ),
        vision_und_enc_config=dict(cls="CLIPVisionTower", params=vision),
        vision_gen_enc_config=dict(cls="ShallowUViTEncoder", params=encoder),
        vision_gen_dec_config=dict(cls="ShallowUViTDecoder", params=decoder),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A released folder with a text tokenizer of its vocabulary, and its autoencoder's."""
    flow, vae = tmp_path_factory.mktemp("flow"), tmp_path_factory.mktemp("vae")
    shutil.copy(FLOW / "model.safetensors", flow)
    (flow / "config.json").write_text(json.dumps(config_json(sizes(FLOW))))
    text = tokenizer.train(["a red star"], vocab_size=sizes(FLOW)["vocab"])
    (flow / "tokenizer.json").write_text(text)
    shutil.copy(VAE / "model.safetensors", vae / "diffusion_pytorch_model.safetensors")
    (vae / "config.json").write_text(json.dumps(sizes(VAE)))
    return flow, vae


def test_it_answers_alone_and_generates_with_its_autoencoder(folders, tmp_path):
    flow, vae = folders
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    convert("import", layout="deepseek", src=flow, out=tmp_path / "alone")
    sampler = load_sampler(tmp_path / "alone", mesh=mesh)
    (answer,) = sampler.ask([image], ["What?"], max_tokens=4)
    with pytest.raises(UserError, match="generation/tokenizer.*--vae"):
        sampler.draw(["a star"], seeds=[0], guidance=sampler.guidance())

    convert("import", layout="deepseek", src=flow, vae=vae, out=tmp_path / "whole")
    sampler = load_sampler(tmp_path / "whole", mesh=mesh)
    assert sampler.ask([image], ["What?"], max_tokens=4) == [answer]
    guidance = sampler.guidance(steps=2)
    assert sampler.draw(["a star"], seeds=[0], guidance=guidance).shape == (1, 64, 64, 3)
    assert sampler.params["generation/tokenizer/scale"] == np.float32(0.13025)
    kernel = sampler.params["generation/tokenizer/encoder/conv_in/kernel"]
    released = load_file(VAE / "model.safetensors")["encoder.conv_in.weight"]
    np.testing.assert_array_equal(np.transpose(kernel, (3, 2, 0, 1)), released)


def test_a_round_trip_is_lossless(folders, tmp_path):
    flow, vae = folders
    src = tmp_path / "src"
    shutil.copytree(flow, src)
    weights = load_file(flow / "model.safetensors")
    weights = {name: array.astype(jnp.bfloat16) for name, array in weights.items()}
    save_file(weights, src / "model.safetensors")
    convert("import", layout="deepseek", src=src, vae=vae, out=tmp_path / "run")
    convert("export", layout="deepseek", checkpoint=tmp_path / "run", out=tmp_path / "out")
    assert_same_bits(src, tmp_path / "out")
    convert("import", layout="deepseek", src=tmp_path / "out", out=tmp_path / "again")
    before, after = (
        checkpoint.open_saved(tmp_path / name).about["config"]["model"] for name in ("run", "again")
    )
    assert before["llm"] == after["llm"] and before["understanding"] == after["understanding"]
    assert before["generation"]["unet"] == after["generation"]["unet"]
    other = dict(layout="transformers", checkpoint=tmp_path / "run", out=tmp_path / "other")
    assert "flow" in error("export", **other)


def test_two_folders_fill_one_model(folders, tmp_path):
    """What the release lacks is in the other folder; only the alignment MLP starts fresh."""
    flow, vae = folders
    convert("import", layout="deepseek", src=flow, out=tmp_path / "flow")
    tower = dict(layout="diffusers_vae", src=vae, into="generation/tokenizer")
    convert("import", out=tmp_path / "vae", **tower)
    imported = set()
    for name in ("flow", "vae"):
        imported |= checkpoint.param_structs(checkpoint.open_saved(tmp_path / name)).keys()
    model = cli.load_config("flow_1p3b").to_dict()["model"]
    missing = Joint.build_network(model, dtype=jnp.float32).abstract.keys() - imported
    parts = {path.rsplit("/", 2)[0] for path in missing if "levels" not in path}
    assert parts == {"generation/alignment"}


def test_an_autoencoder_is_not_for_other_models(folders, tmp_path):
    flow, vae = folders
    out = tmp_path / "out"
    assert "--vae" in error("import", layout="diffusers_vae", src=vae, vae=vae, out=out)
    shutil.copytree(GOLDEN / "janus_tiny", tmp_path / "janus")
    (tmp_path / "janus/config.json").write_text(json.dumps({"language_config": {}}))
    message = error("import", layout="deepseek", src=tmp_path / "janus", vae=vae, out=out)
    assert "--vae" in message and "generation.kind is flow" in message
    assert not out.exists()
