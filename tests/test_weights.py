"""Names both ways, files as they come, and live parity with transformers."""

import argparse
import collections
import csv
import functools
import importlib
import io
import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

from janus_jax import checkpoint
from janus_jax.convert import __main__ as convert
from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import read_config, tables
from janus_jax.data import chat
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.tokenizer import SPECIAL
from janus_jax.errors import UserError
from janus_jax.generation.vq import VQGuidance
from janus_jax.inference import decode
from janus_jax.models.functional import ModelSpec
from janus_jax.models.interleave import insert
from janus_jax.recipe import assembly
from janus_jax.tokenizers.vq16 import VQTokenizer
from tests.golden_model import close, nhwc

KEYS = Path(__file__).parent / "checkpoint_keys"
REAL_CODES = Path(__file__).parent.parent.parent / "shared/data/janus_pro_codebook"


def command(name, **settings):
    """A command of `convert` in this process."""
    settings = {
        "layout": None,
        "src": None,
        "into": None,
        "out": None,
        "checkpoint": None,
        "dtype": None,
        "vae": None,
    } | settings
    if not convert.cli.flags.FLAGS.is_parsed():
        convert.cli.flags.FLAGS(["convert"])
    with flagsaver.flagsaver(**{k: v if v is None else str(v) for k, v in settings.items()}):
        convert.main(name)


@pytest.mark.parametrize("name", ["janus_1p3b", "pro_1b", "pro_7b"])
@pytest.mark.parametrize("layout", ["deepseek", "transformers"])
def test_every_released_key_and_shape_is_covered(name, layout):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    abstract = assembly.build_network(config, "stage_3").abstract
    tensors = name_map.spell_out(tables.JANUS[layout, "vq"], abstract, layout=layout)
    ours = {key: t.shape for key, t in tensors.items()} | tables.unused(layout, "vq", abstract)
    table = KEYS / f"janus_pro_{'7b' if name == 'pro_7b' else '1b'}_deepseek_to_hf.tsv"
    column = "original" if layout == "deepseek" else "hf"
    with table.open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    released = {r[f"{column}_key"]: r[f"{column}_shape"] for r in rows if r[f"{column}_key"] != "-"}
    assert {k: str(s) for k, s in ours.items()} == released
    assert len(ours) == {("deepseek", "1b"): 882, ("transformers", "1b"): 964}.get((layout, table.name[10:12]), len(ours))


def test_a_name_without_a_line_or_with_two_is_told():
    abstract = {"llm/embed": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
    line = name_map.line("a.weight", "llm/embed")
    with pytest.raises(UserError, match="llm/embed fits 0 lines of the odd name table"):
        name_map.spell_out([], abstract, layout="odd")
    with pytest.raises(UserError, match="llm/embed fits 2 lines"):
        name_map.spell_out([line, name_map.line("b.weight", "llm/embed")], abstract, layout="odd")
    both = abstract | {"llm/norm/scale": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(UserError, match="have one name"):
        name_map.spell_out([line, name_map.line("a.weight", "llm/norm/scale")], both, layout="odd")


# Live parity: random shapes, other ones in every run.


def random_shape(rng):
    """More than two layers, odd numbers of heads, pictures that are no 4 x 4 grid."""
    heads, grid = int(rng.choice([1, 3, 5])), int(rng.choice([2, 3, 5]))
    return dict(
        layers=int(rng.integers(3, 5)), heads=heads, width=heads * int(rng.choice([8, 16])), grid=grid,
        vit_heads=int(rng.choice([1, 3, 5])), vit_layers=int(rng.integers(1, 4)), mlp=int(rng.integers(3, 9)) * 8,
        multiplier=[1, *rng.integers(1, 3, 4).tolist()], res_blocks=int(rng.integers(1, 3)), codes=int(rng.integers(40, 90)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_folder(folder):
    shape = dict(layers=3, heads=3, width=24, grid=3, vit_heads=3, vit_layers=2, mlp=40, multiplier=[1, 2], res_blocks=1,
                 codes=48)  # fmt: skip
    return {dtype: folder(shape, dtype) for dtype in ("float32", "bfloat16")}


def ours(path):
    """ModelSpec and fp32 parameters of an imported checkpoint."""
    saved = checkpoint.open_saved(path)
    network = assembly.build_network(saved.about["config"], "stage_3")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {p: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=place) for p, a in network.abstract.items()}
    return network, checkpoint.load_params(saved, like)


def logits(network, params, tokens, pixels, *, start):
    """Text logits and picture logits of rows that hold one picture each."""

    @jax.jit
    def run(params):
        model = network.merge(params)
        features = model.understanding.adaptor(model.understanding.encoder(pixels))
        x = insert(model.embed_text(tokens), features[:, None], start=jnp.full((len(tokens), 1), start))
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, _ = model.llm(x, positions=positions, segment_ids=jnp.ones_like(tokens))
        return model.llm.head(hidden), model.generation.head(hidden)

    return run(params)


@pytest.mark.parametrize("draw", range(3))
def test_logits_and_greedy_codes_are_those_of_transformers(torch, folder, tmp_path, draw):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    shape = random_shape(np.random.default_rng(seed))
    print(shape)
    model, path = folder(shape)
    command("import", layout="transformers", src=path, out=tmp_path / "ours")
    network, params = ours(tmp_path / "ours")

    count = shape["grid"] ** 2
    side = 16 * shape["grid"]
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    tokens = rng.integers(5, 500, (2, count + 12))
    tokens[:, 4 : 4 + count] = 3
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels), output_hidden_states=True)
        pictures = model.model.generation_head(out.hidden_states[-1])
    text, drawn = logits(network, params, jnp.asarray(tokens, jnp.int32), nhwc(pixels), start=4)
    close(text, out.logits.numpy())
    close(drawn, pictures.numpy())

    settings = model.generation_config
    settings.guidance_scale, settings.bos_token_id, settings.pad_token_id = 5.0, 0, 2
    settings.generation_kwargs = {"boi_token_id": 4}
    prompt = torch.tensor([[0, 20, 21, 22, 4]])
    with torch.no_grad():
        expected = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_mode="image", do_sample=False
        )
    key = jax.random.split(jax.random.key(0), 1)[:, None]
    prompt, guidance = prompt.numpy().astype(np.int32), VQGuidance(scale=5.0, temperature=0)
    real = np.ones(prompt.shape, bool)
    _, codes = decode.draw_batch(params, prompt, real, key, network=network, pad_id=2, guidance=guidance)
    np.testing.assert_array_equal(codes, expected.numpy())
    with torch.no_grad():
        decoded = model.decode_image_tokens(expected)
    mine = jax.jit(lambda p, ids: network.merge(p).generation.tokenizer.decode(ids))(params, codes)
    close(mine, decoded.numpy())


# Round trips.


def tensors_of(path):
    """{name: array} of a folder of safetensors."""
    return {k: v for f in sorted(Path(path).glob("*.safetensors")) for k, v in load_file(f).items()}


def same_bits(a, b):
    a, b = tensors_of(a), tensors_of(b)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape
        np.testing.assert_array_equal(a[key].reshape(-1).view(np.uint8), b[key].reshape(-1).view(np.uint8), err_msg=key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_are_lossless_and_layouts_agree(torch, small_folder, tmp_path, dtype):
    from transformers import AutoTokenizer, JanusForConditionalGeneration, JanusProcessor

    _, path = small_folder[dtype]
    at = tmp_path.__truediv__
    command("import", layout="transformers", src=path, out=at("ours"))
    command("export", layout="transformers", checkpoint=at("ours"), out=at("hf"))
    same_bits(path, at("hf"))
    command("export", layout="deepseek", checkpoint=at("ours"), out=at("deepseek"))
    weights = tensors_of(at("deepseek"))
    rng = np.random.default_rng(0)  # a released file's unused tensors are no zeros
    for key in [k for k in weights if "attn_pool" in k or "codebook_used" in k]:
        weights[key] = rng.normal(size=weights[key].shape).astype(weights[key].dtype)
    save_file(weights, at("deepseek") / "model.safetensors")
    command("import", layout="deepseek", src=at("deepseek"), out=at("ours_again"))
    command("export", layout="deepseek", checkpoint=at("ours_again"), out=at("deepseek_again"))
    same_bits(at("deepseek"), at("deepseek_again"))
    command("export", layout="transformers", checkpoint=at("ours_again"), out=at("hf_again"))
    same_bits(path, at("hf_again"))

    loaded, report = JanusForConditionalGeneration.from_pretrained(at("hf_again"), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)
    tokens = torch.tensor(np.random.default_rng(0).integers(5, 500, (2, 9)))
    with torch.no_grad():
        before = JanusForConditionalGeneration.from_pretrained(path)
        assert torch.equal(loaded(input_ids=tokens).logits, before(input_ids=tokens).logits)
    assert loaded.generation_config.generation_kwargs == {"boi_token_id": 4} and loaded.generation_config.top_k == 0
    tokenizer = text_tokenizer.load(path / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(at("hf_again"))
    assert theirs("two red stars").input_ids == [tokenizer.bos, *tokenizer.encode("two red stars")[0]]
    processor = JanusProcessor.from_pretrained(at("hf_again"))
    said = [
        ("user", "<image_placeholder>\nWhat color?"),
        ("assistant", "red"),
        ("user", " And its size? "),
        ("assistant", ""),
    ]
    turns = [{"role": role, "content": content} for role, content in said]
    ours = "".join(piece.text for piece in chat.conversation(turns, roles=("<|User|>", "<|Assistant|>")))
    text = lambda words: {"type": "text", "text": words}
    parts = [[{"type": "image"}, text("What color?")], [text("red")], [text(" And its size? ")]]
    messages = [{"role": role, "content": part} for (role, _), part in zip(said[:3], parts, strict=True)]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == ours
    for said, message in (
        ([("system", "be nice")], "knows user and assistant"),
        ([("user", [{"type": "video"}])], "not video"),
    ):
        with pytest.raises(Exception, match=message):
            processor.apply_chat_template([{"role": r, "content": c} for r, c in said])
    assert processor.num_image_tokens == 9 and processor.use_default_system_prompt


def test_exports_are_cut_into_shards(small_folder, tmp_path, monkeypatch):
    _, path = small_folder["float32"]
    command("import", layout="transformers", src=path, out=tmp_path / "ours")
    monkeypatch.setattr(files, "SHARD", 200_000)
    command("export", layout="transformers", checkpoint=tmp_path / "ours", out=tmp_path / "hf", dtype="bfloat16")
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    shards = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3 and sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors_of(tmp_path / "hf").values())
    assert {a.dtype for a in tensors_of(tmp_path / "hf").values()} == {np.dtype(ml_dtypes.bfloat16)}
    command("import", layout="transformers", src=tmp_path / "hf", out=tmp_path / "again")
    (tmp_path / "hf" / shards[1]).unlink()
    with pytest.raises(UserError, match=f"names '{shards[1]}', which is not in"):
        files.Folder(tmp_path / "hf")


# What goes wrong is told, and nothing is left behind.


def save_torch(torch, path, weights):
    torch.save({k: torch.tensor(v) for k, v in weights.items()}, path)


def damage(kind, folder, torch):
    """Breaks a copied folder."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    weights = load_file(file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
        return
    if kind == "shape":
        weights["lm_head.weight"] = weights["lm_head.weight"][:-1]
    if kind == "missing":
        del weights["model.generation_embeddings.weight"]
    if kind == "extra":
        weights["model.surprise"] = np.zeros(3, np.float32)
    if kind == "dtype":
        weights["lm_head.weight"] = weights["lm_head.weight"].astype(np.int32)
    if kind == "mixed":
        key = "model.language_model.layers.1.mlp.up_proj.weight"
        weights[key] = weights[key].astype(np.float16)
    if kind == "config":
        config["text_config"]["num_hidden_layers"] += 1
    if kind == "tied":
        config["tie_word_embeddings"] = True
        del weights["lm_head.weight"]
    if kind == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if kind == "layout":
        config = {"language_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    file.unlink()
    if kind == "hostile":
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Hostile(folder.parent / "was_here")))
    elif kind == "cut bin":
        save_torch(torch, folder / "pytorch_model.bin", weights)
        whole = (folder / "pytorch_model.bin").read_bytes()
        (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    elif kind != "none":
        save_file(weights, file)


class Hostile:
    """Runs a command when an unguarded unpickler reads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "cut off or no safetensors file"),
        ("shape", r"lm_head.weight is \(599, 24\) and should be \(600, 24\)"),
        ("missing", r"misses 1 tensor \(model.generation_embeddings.weight\)"),
        ("extra", r"holds 1 tensor \(model.surprise\) too many"),
        ("dtype", "lm_head.weight is I32 and should be one of"),
        ("mixed", "is float16, its fellows in llm/layers/mlp/up/kernel are float32"),
        ("config", r"misses 9 tensors \(model.language_model.layers.3"),
        ("tied", "has no lm_head.weight: its text head is tied"),
        ("tokenizer", "is no tokenizer.json"),
        ("layout", "not of the transformers layout; is it --layout=deepseek"),
        ("hostile", "posix.system, which is not run"),
        ("cut bin", "cut off or no zip file"),
        ("none", "holds no weights"),
    ],
)
def test_broken_folders_are_told_and_leave_nothing(torch, small_folder, tmp_path, kind, message):
    shutil.copytree(small_folder["float32"][1], tmp_path / "src")
    damage(kind, tmp_path / "src", torch)
    with pytest.raises(UserError, match=message):
        command("import", layout="transformers", src=tmp_path / "src", out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


def test_torch_files_load_like_safetensors(torch, small_folder, tmp_path):
    for dtype, (model, path) in small_folder.items():
        src = tmp_path / dtype
        shutil.copytree(path, src)
        (src / "model.safetensors").unlink()
        state = model.state_dict()
        halves = [dict(list(state.items())[i::2]) for i in (0, 1)]
        for i, half in enumerate(halves, 1):
            torch.save(half, src / f"pytorch_model-0000{i}-of-00002.bin")
        command("import", layout="transformers", src=src, out=tmp_path / f"ours_{dtype}")
        command("export", layout="transformers", checkpoint=tmp_path / f"ours_{dtype}", out=tmp_path / f"hf_{dtype}")
        same_bits(path, tmp_path / f"hf_{dtype}")
    strided = torch.arange(24.0).reshape(4, 6)[1:3, ::2]
    torch.save({"a": strided.t()}, tmp_path / "strided.pt")
    np.testing.assert_array_equal(files.Folder(tmp_path / "strided.pt").read("a"), strided.t().numpy())


@pytest.mark.parametrize(
    ("size", "strides", "offset"),
    [((8,), (-1,), 0), ((4,), (1,), -2), ((9,), (1,), 0), ((2, 2), (1,), 0), ((2,), (3.5,), 0)],
)
def test_tensors_beyond_their_storage_are_refused(torch, tmp_path, size, strides, offset):
    torch.save({"a": torch.arange(8.0)}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "odd.pt", "w") as odd:
        for item in sound.infolist():
            content = sound.read(item)
            if item.filename.endswith("data.pkl"):
                content = Lying(size, strides, offset, content).pickled()
            odd.writestr(item, content)
    assert files.Folder(tmp_path / "sound.pt").read("a").tolist() == list(range(8))
    with pytest.raises(UserError, match="no sound shape|longer than its storage"):
        files.Folder(tmp_path / "odd.pt")


class Lying:
    """The pickle of one tensor, its shape, strides and offset replaced."""

    def __init__(self, size, strides, offset, sound):
        self.size, self.strides, self.offset, self.sound = size, strides, offset, sound

    def pickled(self):
        out = io.BytesIO()
        pickler = pickle.Pickler(out, protocol=2)
        pickler.persistent_id = lambda o: o.pid if isinstance(o, Storage) else None
        pickler.dump({"a": self})
        return out.getvalue()

    def __reduce__(self):
        import torch

        storage = Storage(("storage", torch.FloatStorage, "0", "cpu", 8))
        rest = (storage, self.offset, self.size, self.strides, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, rest


class Storage:
    """A storage by its persistent id."""

    def __init__(self, pid):
        self.pid = pid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": []}, "is odd|not of the transformers layout"),
        ({"vq_config": "VQ"}, "is odd"),
        ({"vision_config": {"image_size": "48"}}, "is odd"),
        ({"vision_config": None}, "is odd"),
    ],
)
def test_odd_configs_are_told(small_folder, tmp_path, change, message):
    shutil.copytree(small_folder["float32"][1], tmp_path / "src")
    config = json.loads((tmp_path / "src/config.json").read_text()) | change
    (tmp_path / "src/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_config.read_janus("transformers", files.Folder(tmp_path / "src"))


@pytest.mark.parametrize("content", ["[]", "null", '{"weight_map": {"a": 1}}', '{"weight_map": [1]}', "{"])
def test_odd_indices_are_told(small_folder, tmp_path, content):
    shutil.copytree(small_folder["float32"][1], tmp_path / "src")
    (tmp_path / "src/model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="is no index of shards"):
        files.Folder(tmp_path / "src")


def test_what_a_released_folder_leaves_out_is_understood(small_folder, tmp_path):
    """Folders of older versions do not say that their text head is their own."""
    shutil.copytree(small_folder["float32"][1], tmp_path / "src")
    config = json.loads((tmp_path / "src/config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "src/config.json").write_text(json.dumps(config))
    assert read_config.read_janus("transformers", files.Folder(tmp_path / "src"))["llm"]["num_layers"] == 3
    (tmp_path / "src/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.48, 0.45, 0.4]}))
    with pytest.raises(UserError, match="image_mean of preprocessor_config.json is"):
        read_config.read_janus("transformers", files.Folder(tmp_path / "src"))


def test_half_precision_and_unused_tensors_keep_their_dtype(small_folder, tmp_path):
    shutil.copytree(small_folder["float32"][1], tmp_path / "src")
    weights = {k: (v / 64).astype(np.float16) for k, v in load_file(tmp_path / "src/model.safetensors").items()}
    save_file(weights, tmp_path / "src/model.safetensors")
    command("import", layout="transformers", src=tmp_path / "src", out=tmp_path / "ours")
    command("export", layout="transformers", checkpoint=tmp_path / "ours", out=tmp_path / "out")
    same_bits(tmp_path / "src", tmp_path / "out")
    command("export", layout="deepseek", checkpoint=tmp_path / "ours", out=tmp_path / "deepseek", dtype="bfloat16")
    weights = load_file(tmp_path / "deepseek/model.safetensors")
    weights["gen_vision_model.quantize.codebook_used"] = np.arange(65_536, dtype=np.float32)
    save_file(weights, tmp_path / "deepseek/model.safetensors")
    command("import", layout="deepseek", src=tmp_path / "deepseek", out=tmp_path / "again")
    command("export", layout="deepseek", checkpoint=tmp_path / "again", out=tmp_path / "deepseek_again")
    same_bits(tmp_path / "deepseek", tmp_path / "deepseek_again")
    del weights["vision_model.vision_tower.attn_pool.q.weight"]
    save_file(weights, tmp_path / "deepseek/model.safetensors")
    with pytest.raises(UserError, match="a part of SigLIP's pooling head and misses .*attn_pool.q.weight"):
        command("import", layout="deepseek", src=tmp_path / "deepseek", out=tmp_path / "x")


def test_places_that_cannot_be_written_are_told(small_folder, tmp_path):
    _, path = small_folder["float32"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Nothing can be written into|exists and is not empty"):
        command("import", layout="transformers", src=path, out=tmp_path / "file/below")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"):
        command("import", layout="transformers", src=path, out=tmp_path / "full")
    assert (tmp_path / "full/mine.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    command("import", layout="transformers", src=path, out=tmp_path / "link")
    assert checkpoint.open_saved(tmp_path / "empty").step == 0
    with pytest.raises(UserError, match="--dtype is not for import"):
        command("import", layout="transformers", src=path, out=tmp_path / "y", dtype="float32")


def test_a_config_of_other_sizes_is_told_field_by_field(small_folder):
    described = read_config.read_janus("transformers", files.Folder(small_folder["float32"][1]))
    page = importlib.import_module("configs.pro_1b").get_config().to_dict()["model"]
    with pytest.raises(UserError, match=r"llm.num_layers is 3 in there and 24 in the config; .*encoder.num_heads is 3"):
        read_config.check_same(described, page, where="there")


# Towers.


def tower(layout, src, out):
    command("import", layout=layout, src=src, out=out)
    saved = checkpoint.open_saved(out)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    held = checkpoint.param_structs(saved)
    like = {p: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=place) for p, a in held.items()}
    return saved, checkpoint.load_params(saved, like)


def test_a_llama_tower(torch, data, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, rope_theta=500.0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "llama")
    holed = json.loads((data / "tokenizer.json").read_text())
    holed["added_tokens"] = [t for t in holed["added_tokens"] if t["content"] != SPECIAL["boi"]]
    del holed["model"]["vocab"][SPECIAL["boi"]]
    (tmp_path / "llama/tokenizer.json").write_text(json.dumps(holed))
    with pytest.raises(UserError, match="Two tokens of the tokenizer have one id"):
        command("import", layout="llama", src=tmp_path / "llama", out=tmp_path / "out")
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[SPECIAL["bos"], SPECIAL["eos"]], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bare.train_from_iterator(["a red star"], trainer)
    size = bare.get_vocab_size()
    bare.save(str(tmp_path / "llama/tokenizer.json"))
    saved, params = tower("llama", tmp_path / "llama", tmp_path / "out")
    completed = text_tokenizer.TextTokenizer(saved.about["tokenizer"])
    added = [completed.pad, completed.image, completed.boi, completed.eoi]
    assert added == list(range(size, size + 4)) and completed.size == size + 6
    assert text_tokenizer.load(tmp_path / "out/tokenizer.json").boi == completed.boi

    from janus_jax.models.llama import Llama

    network = ModelSpec(functools.partial(Llama, **read_config.read_llama(config.to_dict())))
    tokens = np.random.default_rng(0).integers(0, 600, (2, 11))

    @jax.jit
    def run(params):
        llm = network.merge({p.removeprefix("llm/"): a for p, a in params.items()})
        x = llm.embed_tokens(jnp.asarray(tokens), dtype=jnp.float32)
        places = jnp.broadcast_to(jnp.arange(11)[None], (2, 11))
        return llm.head(llm(x, positions=places, segment_ids=jnp.ones((2, 11), jnp.int32))[0])

    with torch.no_grad():
        close(run(params), model(input_ids=torch.tensor(tokens)).logits.numpy())


@pytest.mark.parametrize("layout", ["transformers", "both towers", "timm"])
def test_a_siglip_tower(torch, tmp_path, layout):
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    from janus_jax.models.siglip import Siglip

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=64 if layout == "timm" else 40, intermediate_size=88, num_hidden_layers=3,
        num_attention_heads=1 if layout == "timm" else 5, image_size=48, patch_size=16, hidden_act="gelu",
    )  # fmt: skip
    model = SiglipVisionModel(config).eval()
    if layout == "both towers":  # the text tower is of other sizes
        text = dict(hidden_size=40, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2, vocab_size=30)
        both = SiglipModel(SiglipConfig(text_config=text, vision_config=config.to_dict())).eval()
        both.save_pretrained(tmp_path / "siglip")
        state = {k.removeprefix("vision_model."): v for k, v in both.vision_model.state_dict().items()}
        model.load_state_dict({k: state[k.removeprefix("vision_model.")] for k in model.state_dict()})
    else:
        model.save_pretrained(tmp_path / "siglip")
    if layout == "timm":
        weights = load_file(tmp_path / "siglip/model.safetensors")
        shutil.rmtree(tmp_path / "siglip")
        (tmp_path / "siglip").mkdir()
        save_file(as_timm(weights), tmp_path / "siglip/model.safetensors")
    _, params = tower("siglip", tmp_path / "siglip", tmp_path / "out")
    settings = dict(image_size=48, patch_size=16, num_layers=3, embed_dim=config.hidden_size, mlp_dim=88)
    network = ModelSpec(functools.partial(Siglip, num_heads=config.num_attention_heads, **settings))
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 48)).astype(np.float32)
    prefix = "understanding/encoder/"
    run = jax.jit(lambda p: network.merge({k.removeprefix(prefix): a for k, a in p.items()})(nhwc(pixels)))
    with torch.no_grad():
        close(run(params), model(pixel_values=torch.tensor(pixels)).last_hidden_state.numpy())


def as_timm(weights):
    """A transformers SigLIP under timm's names, queries, keys and values fused."""
    out, fused = {"attn_pool.latent": np.zeros((1, 1, 64), np.float32)}, {}
    rename = {
        "embeddings.position_embedding.weight": "pos_embed", "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks", "layer_norm": "norm", "self_attn.out_proj": "attn.proj", "post_layernorm": "norm",
    }  # fmt: skip
    for key, value in weights.items():
        name = key.removeprefix("vision_model.")
        if name.startswith("head."):
            continue
        if "self_attn" in name and "out_proj" not in name:
            block, part, leaf = name.split(".self_attn.")[0], name.split(".")[-2], name.split(".")[-1]
            fused.setdefault((block.replace("encoder.layers", "blocks"), leaf), {})[part] = value
            continue
        for old, new in rename.items():
            name = name.replace(old, new)
        out[name] = value[None] if name == "pos_embed" else value
    for (block, leaf), parts in fused.items():
        out[f"{block}.attn.qkv.{leaf}"] = np.concatenate([parts[f"{p}_proj"] for p in "qkv"])
    return out


def test_a_vq_tower_of_llamagens_file(torch, tmp_path):
    settings = dict(base_channels=32, channel_mult=[1, 2], num_res_blocks=2, z_channels=32, codebook_size=40, codebook_dim=8)
    network = ModelSpec(functools.partial(VQTokenizer, **settings))
    fresh = network.fresh(jax.random.key(0))
    prefixed = {f"generation/tokenizer/{p}": np.asarray(a) for p, a in fresh.items()}
    (table,) = tables.TOWERS["llamagen_vq"]
    tensors = name_map.spell_out(table, prefixed, layout="llamagen_vq")
    theirs = dict(name_map.scatter(lambda paths: {p: prefixed[p] for p in paths}, tensors))
    assert theirs["encoder.conv_blocks.1.attn.0.proj_out.weight"].shape == (64, 64, 1, 1)
    state = {k: torch.tensor(v) for k, v in theirs.items()} | {"quantize.codebook_used": torch.zeros(65_536)}
    settings = argparse.Namespace(lr=1e-4)
    torch.save({"model": state, "args": settings, "steps": 3}, tmp_path / "vq_ds16_c2i.pt")
    _, params = tower("llamagen_vq", tmp_path / "vq_ds16_c2i.pt", tmp_path / "out")
    for path, array in prefixed.items():
        np.testing.assert_array_equal(params[path], array)


def test_a_vae_tower_of_a_diffusers_folder(tmp_path):
    from tests.golden_model import GOLDEN, sizes

    golden = GOLDEN / "sdxl_vae_tiny"
    if not golden.is_dir():
        pytest.skip("no golden fixture")
    (tmp_path / "vae").mkdir()
    shutil.copy(golden / "model.safetensors", tmp_path / "vae/diffusion_pytorch_model.safetensors")
    (tmp_path / "vae/config.json").write_text(json.dumps(sizes(golden)))
    _, params = tower("diffusers_vae", tmp_path / "vae", tmp_path / "out")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    for new, old in older.items():
        weights = {k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for k, v in weights.items()}
    save_file(weights, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "vae/sdxl_vae.safetensors")  # the same once more, under a name of its own
    _, again = tower("diffusers_vae", tmp_path / "vae", tmp_path / "out_again")
    for path, array in params.items():
        np.testing.assert_array_equal(array, again[path])
    (tmp_path / "vae/sdxl_vae.safetensors").unlink()
    count = sum(math.prod(shape) for shape, _ in files.Folder(tmp_path / "vae").held.values())
    assert sum(a.size for a in params.values()) == count + 1  # the scale, which config.json holds
    assert params["generation/tokenizer/scale"] == np.float32(0.13025)


@pytest.mark.skipif(not REAL_CODES.is_dir(), reason="the released codebook is not here")
def test_codes_over_the_released_codebook_are_exact():
    book = np.load(REAL_CODES / "codebook_entry_embedding.npy")
    embed = np.load(REAL_CODES / "gen_embed.npy")
    assert book.shape == embed.shape == (16_384, 8)
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(200, 8)), book[rng.integers(0, len(book), 200)] * 1.7])
    vectors = vectors.astype(np.float32).reshape(1, 20, 20, 8)
    settings = dict(base_channels=32, channel_mult=[1], num_res_blocks=1, z_channels=32, codebook_size=len(book))
    network = ModelSpec(functools.partial(VQTokenizer, codebook_dim=8, **settings))
    params = network.fresh(jax.random.key(0)) | {"codebook": jnp.asarray(book)}
    codes = np.asarray(jax.jit(lambda p: network.merge(p).nearest(jnp.asarray(vectors)))(params))[0]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    exact = unit(vectors.reshape(-1, 8).astype(np.float64)) @ unit(book.astype(np.float64)).T
    best = exact.argmax(axis=1)
    tied = np.take_along_axis(exact, codes[:, None], 1)[:, 0] >= exact.max(axis=1) - 1e-6
    assert (codes == best)[exact.max(axis=1) - np.sort(exact, axis=1)[:, -2] > 1e-6].all() and tied.all()
    cosine = (unit(embed) * unit(book)).sum(axis=1)
    assert cosine.mean() > 0.99
