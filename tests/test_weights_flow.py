"""JanusFlow's released layout, with and without its autoencoder, in and out."""

import csv
import importlib
import json
import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from janus_jax import checkpoint, sharding
from janus_jax.convert import name_map
from janus_jax.convert.layouts import tables
from janus_jax.data import tokenizer
from janus_jax.errors import UserError
from janus_jax.recipe import assembly
from tests.golden_model import GOLDEN, sizes
from tests.test_weights import KEYS, command

FLOW, VAE = GOLDEN / "janusflow_tiny", GOLDEN / "sdxl_vae_tiny"
needs_fixtures = pytest.mark.skipif(not (FLOW.is_dir() and VAE.is_dir()), reason="no golden fixture")


def test_every_released_key_and_shape_is_covered():
    config = importlib.import_module("configs.flow_1p3b").get_config().to_dict()
    abstract = assembly.build_network(config, "stage_3").abstract
    tensors = name_map.spell_out(tables.JANUS["deepseek", "flow"], tables.stored("flow", abstract), layout="deepseek")
    ours = {key: t.shape for key, t in tensors.items()} | tables.unused("deepseek", "flow", abstract)
    with open(KEYS / "janusflow_1p3b_deepseek.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert ours == {r["original_key"]: tuple(json.loads(f"[{r['shape'].strip('(),')}]")) for r in rows}
    assert len(ours) == 587 and sum(math.prod(shape) for shape in ours.values()) == 2_046_367_504


def config_json(d):
    """A config.json as the release has it, for the sizes of a fixture."""
    net = dict(block_out_channels=[d["unet"]], layers_in_middle=2, hidden_size=d["embed"])
    vision = dict(
        image_size=d["image"], patch_size=d["patch"], width=d["vit_width"], layers=d["vit_layers"], heads=d["vit_heads"],
        mlp_ratio=4, select_layer=-1, model_name="siglip",
    )  # fmt: skip
    part = lambda cls, **params: dict(cls=cls, params=params)
    return dict(
        model_type="multi_modality",
        language_config=dict(
            model_type="llama", vocab_size=d["vocab"], hidden_size=d["embed"], intermediate_size=d["mlp"],
            num_hidden_layers=d["layers"], num_attention_heads=d["heads"], num_key_value_heads=d["heads"],
        ),
        vision_und_enc_config=part("CLIPVisionTower", **vision),
        vision_gen_enc_config=part("ShallowUViTEncoder", input_channels=4, stride=2, kernel_size=2, padding=0, **net),
        vision_gen_dec_config=part("ShallowUViTDecoder", in_channels=d["unet"], out_channels=4, upsamples=2, **net),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A released folder with a text tokenizer of its vocabulary, and its autoencoder's."""
    flow, vae = tmp_path_factory.mktemp("flow"), tmp_path_factory.mktemp("vae")
    shutil.copy(FLOW / "model.safetensors", flow)
    (flow / "config.json").write_text(json.dumps(config_json(sizes(FLOW))))
    (flow / "tokenizer.json").write_text(tokenizer.train(["a red star"], vocab_size=sizes(FLOW)["vocab"]))
    shutil.copy(VAE / "model.safetensors", vae / "diffusion_pytorch_model.safetensors")
    (vae / "config.json").write_text(json.dumps(sizes(VAE)))
    return flow, vae


@needs_fixtures
def test_it_answers_alone_and_draws_with_its_autoencoder(folders, tmp_path):
    flow, vae = folders
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    command("import", layout="deepseek", src=flow, out=tmp_path / "alone")
    sampler = assembly.load_sampler(tmp_path / "alone", mesh=mesh)
    (answer,) = sampler.ask([image], ["What?"], max_tokens=4)
    with pytest.raises(UserError, match="cannot draw: it has no generation/tokenizer. .*--vae=DIR"):
        sampler.draw(["a star"], seeds=[0], guidance=sampler.guidance())

    command("import", layout="deepseek", src=flow, vae=vae, out=tmp_path / "whole")
    sampler = assembly.load_sampler(tmp_path / "whole", mesh=mesh)
    assert sampler.ask([image], ["What?"], max_tokens=4) == [answer]
    assert sampler.draw(["a star"], seeds=[0], guidance=sampler.guidance(steps=2)).shape == (1, 64, 64, 3)
    assert sampler.params["generation/tokenizer/scale"] == np.float32(0.13025)
    weights, held = load_file(VAE / "model.safetensors"), sampler.params
    kernel = held["generation/tokenizer/encoder/conv_in/kernel"]
    np.testing.assert_array_equal(np.transpose(kernel, (3, 2, 0, 1)), weights["encoder.conv_in.weight"])


@needs_fixtures
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_goes_in_and_out_without_a_changed_bit(folders, tmp_path, dtype):
    flow, vae = folders
    (tmp_path / "src").mkdir()
    tensors = {k: a.astype(jax.numpy.dtype(dtype)) for k, a in load_file(flow / "model.safetensors").items()}
    save_file(tensors, tmp_path / "src/model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(flow / name, tmp_path / "src")
    command("import", layout="deepseek", src=tmp_path / "src", vae=vae, out=tmp_path / "run")
    command("export", layout="deepseek", checkpoint=tmp_path / "run", out=tmp_path / "out")
    out = load_file(tmp_path / "out/model.safetensors")
    assert out.keys() == tensors.keys()
    assert all(out[k].dtype == a.dtype and out[k].tobytes() == a.tobytes() for k, a in tensors.items())
    command("import", layout="deepseek", src=tmp_path / "out", out=tmp_path / "again")
    before, after = (checkpoint.open_saved(tmp_path / n).about["config"]["model"] for n in ("run", "again"))
    assert before["llm"] == after["llm"] and before["understanding"] == after["understanding"]
    assert before["generation"]["unet"] == after["generation"]["unet"]
    with pytest.raises(UserError, match="transformers layout has no model that draws by flow"):
        command("export", layout="transformers", checkpoint=tmp_path / "run", out=tmp_path / "other")


@needs_fixtures
def test_two_folders_fill_one_model(folders, tmp_path):
    """What the release lacks comes from the other folder; alignment alone is left to start fresh."""
    flow, vae = folders
    command("import", layout="deepseek", src=flow, out=tmp_path / "flow")
    command("import", layout="diffusers_vae", src=vae, into="generation/tokenizer", out=tmp_path / "vae")
    held = [checkpoint.param_structs(checkpoint.open_saved(tmp_path / n)) for n in ("flow", "vae")]
    config = importlib.import_module("configs.flow_1p3b").get_config().to_dict()
    abstract = assembly.build_network(config, "stage_3").abstract
    lacking = abstract.keys() - held[0].keys() - held[1].keys()
    assert {path.rsplit("/", 2)[0] for path in lacking if "levels" not in path} == {"generation/alignment"}


@needs_fixtures
@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_gen_enc_config", {"kernel_size": 4}, "vision_gen_enc_config.kernel_size of config.json is 4; Janus has 2"),
        ("vision_gen_dec_config", {"layers_in_middle": 3}, "layers_in_middle of config.json is 3; Janus has 2"),
        ("vision_gen_enc_config", {"hidden_size": 128}, "hidden_size of config.json is 128; Janus has 64"),
        ("vision_und_enc_config", {"select_layer": -2}, "select_layer of config.json is -2"),
    ],
)
def test_other_nets_are_told(folders, tmp_path, part, changes, message):
    c = config_json(sizes(FLOW))
    c[part]["params"] |= changes
    (tmp_path / "src").mkdir()
    shutil.copy(folders[0] / "model.safetensors", tmp_path / "src")
    (tmp_path / "src/config.json").write_text(json.dumps(c))
    with pytest.raises(UserError, match=message):
        command("import", layout="deepseek", src=tmp_path / "src", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_fixtures
def test_an_autoencoder_is_not_for_other_models(folders, tmp_path):
    flow, vae = folders
    with pytest.raises(UserError, match="--vae goes with a whole model"):
        command("import", layout="diffusers_vae", src=vae, vae=vae, out=tmp_path / "out")
    shutil.copytree(GOLDEN / "janus_tiny", tmp_path / "janus")
    (tmp_path / "janus/config.json").write_text(json.dumps({"language_config": {}}))
    with pytest.raises(UserError, match="--vae is not for these weights: generation.kind is flow by --vae and vq"):
        command("import", layout="deepseek", src=tmp_path / "janus", vae=vae, out=tmp_path / "out")
