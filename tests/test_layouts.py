"""The layouts of whole models: names, shapes and config.json of the released folders."""

import csv
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from janus_jax import cli
from janus_jax.convert import files
from janus_jax.convert.layouts import LAYOUTS
from janus_jax.errors import UserError
from janus_jax.objectives.joint import Joint

KEYS = Path(__file__).parent / "checkpoint_keys"


def names_and_shapes(layout, config):
    """{tensor name: shape} of everything that a release contains."""
    kind = config["model"]["generation"]["kind"]
    abstract = Joint.build_network(config["model"], dtype=jnp.float32).abstract
    tensors = LAYOUTS[layout].tensors(kind, abstract)
    unused = LAYOUTS[layout].unused(kind, abstract)
    return {name: tensor.shape for name, tensor in tensors.items()} | unused


@pytest.mark.parametrize("name", ["janus_1p3b", "pro_1b", "pro_7b"])
def test_every_released_janus_tensor_has_a_parameter(name):
    config = cli.load_config(name).to_dict()
    size = "7b" if name == "pro_7b" else "1b"
    with (KEYS / f"janus_pro_{size}_deepseek_to_hf.tsv").open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    for layout, column in (("deepseek", "original"), ("transformers", "hf")):
        ours = names_and_shapes(layout, config)
        released = {row[f"{column}_key"]: row[f"{column}_shape"] for row in rows}
        released.pop("-", None)
        assert {tensor: str(shape) for tensor, shape in ours.items()} == released
        if size == "1b":
            assert len(ours) == {"deepseek": 882, "transformers": 964}[layout]


def test_every_released_flow_tensor_has_a_parameter():
    ours = names_and_shapes("deepseek", cli.load_config("flow_1p3b").to_dict())
    with (KEYS / "janusflow_1p3b_deepseek.tsv").open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    shape = lambda text: tuple(json.loads(f"[{text.strip('(),')}]"))
    assert ours == {row["original_key"]: shape(row["shape"]) for row in rows}
    assert len(ours) == 587
    assert sum(math.prod(shape) for shape in ours.values()) == 2_046_367_504


@pytest.fixture
def release(tmp_path):
    """Writes the JSON files of a config's release, with changed fields, and one tensor."""

    def write(layout, name="pro_1b", *, head=True, **changes):
        texts = LAYOUTS[layout].config_texts(
            cli.load_config(name).to_dict(), None, dtype="bfloat16"
        )
        for file, text in texts.items():
            (tmp_path / file).write_text(text)
        config = json.loads(texts["config.json"]) | changes
        (tmp_path / "config.json").write_text(json.dumps(config))
        tensor = "lm_head.weight" if head else "other"
        save_file({tensor: np.ones(1, np.float32)}, tmp_path / "model.safetensors")
        return files.Folder(tmp_path)

    return write


def test_a_written_config_reads_as_the_model_it_describes(release):
    for layout, name in (
        ("deepseek", "pro_1b"),
        ("deepseek", "pro_7b"),
        ("deepseek", "flow_1p3b"),
        ("transformers", "pro_1b"),
        ("transformers", "pro_7b"),
    ):
        model = cli.load_config(name).to_dict()["model"]
        read = LAYOUTS[layout].read_config(release(layout, name))
        assert read["llm"] == {field: model["llm"][field] for field in read["llm"]}
        encoder = model["understanding"]["encoder"]
        for field, value in read["understanding"]["encoder"].items():
            assert value == encoder[field], field
        assert read["generation"]["kind"] == model["generation"]["kind"]
        tokenizer = read["generation"]["tokenizer"]
        for field, value in tokenizer.items():
            expected = model["generation"]["tokenizer"][field]
            assert value == (list(expected) if isinstance(expected, tuple) else expected), field


def test_fields_that_equal_a_default_may_be_missing(release):
    """Older folders do not say that the text head is separate; its tensor does."""
    folder = release("transformers")
    config = folder.json("config.json")
    full = LAYOUTS["transformers"].read_config(folder)
    for net in ("vision_config", "vq_config"):
        defaults = {"hidden_act", "depth", "num_hidden_layers", "patch_size", "num_patches"}
        config[net] = {k: v for k, v in config[net].items() if k not in defaults}
    del config["tie_word_embeddings"]
    (folder.path / "config.json").write_text(json.dumps(config))
    assert LAYOUTS["transformers"].read_config(folder) == full


def test_folders_of_other_models_are_refused(release):
    transformers = LAYOUTS["transformers"]
    with pytest.raises(UserError, match="lm_head.weight.* tied"):
        transformers.read_config(release("transformers", head=False, tie_word_embeddings=True))
    with pytest.raises(UserError, match="transformers layout.*text_config"):
        transformers.read_config(release("deepseek"))
    folder = release("transformers")
    (folder.path / "preprocessor_config.json").write_text('{"image_mean": [0.48, 0.45, 0.4]}')
    with pytest.raises(UserError, match=r"image_mean is \[0.48.*preprocessor_config.json"):
        transformers.read_config(folder)
    (folder.path / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        transformers.read_config(folder)


def test_fields_of_a_wrong_type_are_errors_of_the_file(release):
    for changes in (
        {"text_config": []},
        {"vq_config": "VQ"},
        {"vision_config": {"image_size": "48"}},
        {"vision_config": None},
    ):
        with pytest.raises(UserError, match="config.json"):
            LAYOUTS["transformers"].read_config(release("transformers", **changes))


def test_other_flow_nets_are_refused(release):
    for net, field, value, supported in (
        ("vision_gen_enc_config", "kernel_size", 4, 2),
        ("vision_gen_dec_config", "layers_in_middle", 3, 2),
        ("vision_gen_enc_config", "hidden_size", 128, 2048),
        ("vision_und_enc_config", "select_layer", -2, -1),
    ):
        config = release("deepseek", "flow_1p3b").json("config.json")
        config[net]["params"][field] = value
        folder = release("deepseek", "flow_1p3b", **config)
        with pytest.raises(UserError, match=f"{net}.{field} is {value} .*{supported}"):
            LAYOUTS["deepseek"].read_config(folder)


def test_models_that_a_layout_cannot_describe_are_not_written():
    config = cli.load_config("pro_1b").to_dict()
    config["model"]["generation"]["tokenizer"]["num_groups"] = 4
    for layout in LAYOUTS.values():
        with pytest.raises(UserError, match="num_groups is 4"):
            layout.config_texts(config, None, dtype="float32")
    with pytest.raises(UserError, match="transformers layout .*'flow'"):
        LAYOUTS["transformers"].family("flow")


def test_a_part_of_the_unused_pooling_head_is_refused(tmp_path):
    """Unused tensors of a release are complete, or missing altogether."""
    config = cli.load_config("pro_1b").to_dict()
    abstract = Joint.build_network(config["model"], dtype=jnp.float32).abstract
    layout = LAYOUTS["deepseek"]

    class Folder:
        path = tmp_path
        tensors = {
            name: (shape, "float32") for name, shape in names_and_shapes("deepseek", config).items()
        }

    tensors, unused = layout.match(Folder, "vq", abstract)
    assert tensors.keys() | set(unused) == Folder.tensors.keys()
    name = "vision_model.vision_tower.attn_pool.q.weight"
    del Folder.tensors[name]
    with pytest.raises(UserError, match=f"misses {name}"):
        layout.match(Folder, "vq", abstract)
