"""The command: round trips without a changed bit, transformers' numbers, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import tiny
from janus_jax import checkpoint
from janus_jax.convert import files
from janus_jax.convert.layouts import LAYOUTS
from janus_jax.data import chat
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.errors import UserError
from janus_jax.generation.vq import VQGuidance
from janus_jax.inference import decode
from janus_jax.models.interleave import insert
from janus_jax.objectives.joint import Joint
from janus_jax.recipe.load import load_sampler
from janus_jax.train.loop import train
from tests.conftest import small
from tests.helpers.commands import run
from tests.helpers.conversion import assert_same_bits, convert, error, load_fp32, tensors_of
from tests.helpers.golden_model import close, nhwc

SMALL = dict(
    layers=3,
    heads=3,
    width=24,
    grid=3,
    vit_heads=3,
    vit_layers=2,
    mlp=40,
    multiplier=[1, 2],
    res_blocks=1,
    codes=48,
)


@pytest.fixture(scope="module")
def small_folder(folder):
    """Random transformers models and their folders, {dtype: (model, path)}."""
    return {dtype: folder(SMALL, dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture
def copied(small_folder, tmp_path):
    """A copy of the fp32 folder that may be changed."""
    return Path(shutil.copytree(small_folder["float32"][1], tmp_path / "src"))


# Numbers, for other random shapes in every run.


def random_shape(rng):
    """More than two layers, odd numbers of heads, images that are not 4 x 4 tokens."""
    heads = int(rng.choice([1, 3, 5]))
    return dict(
        layers=int(rng.integers(3, 5)),
        heads=heads,
        width=heads * int(rng.choice([8, 16])),
        grid=int(rng.choice([2, 3, 5])),
        vit_heads=int(rng.choice([1, 3, 5])),
        vit_layers=int(rng.integers(1, 4)),
        mlp=int(rng.integers(3, 9)) * 8,
        multiplier=[1, *rng.integers(1, 3, 4).tolist()],
        res_blocks=int(rng.integers(1, 3)),
        codes=int(rng.integers(40, 90)),
    )


def logits(network, params, tokens, pixels, *, start):
    """Text and code logits of rows with one image each."""

    @jax.jit
    def compute(params):
        model = network.merge(params)
        features = model.understanding.adaptor(model.understanding.encoder(pixels))
        starts = jnp.full((len(tokens), 1), start)
        x = insert(model.embed_text(tokens), features[:, None], start=starts)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, _ = model.llm(x, positions=positions, segment_ids=jnp.ones_like(tokens))
        return model.llm.head(hidden), model.generation.head(hidden)

    return compute(params)


def test_logits_and_greedy_codes_are_those_of_transformers(torch, folder, tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    shape = random_shape(np.random.default_rng(seed))
    print(f"seed {seed}: {shape}")
    model, path = folder(shape)
    convert("import", layout="transformers", src=path, out=tmp_path / "run")
    config = checkpoint.open_saved(tmp_path / "run").about["config"]
    network = Joint.build_network(config["model"], dtype=jnp.dtype("float32"))
    params = load_fp32(tmp_path / "run")

    count = shape["grid"] ** 2
    side = 16 * shape["grid"]
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    tokens = rng.integers(5, 500, (2, count + 12))
    tokens[:, 4 : 4 + count] = 3
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens),
            pixel_values=torch.tensor(pixels),
            output_hidden_states=True,
        )
        codes = model.model.generation_head(out.hidden_states[-1])
    text_logits, code_logits = logits(
        network, params, jnp.asarray(tokens, jnp.int32), nhwc(pixels), start=4
    )
    close(text_logits, out.logits.numpy())
    close(code_logits, codes.numpy())

    settings = model.generation_config
    settings.guidance_scale, settings.bos_token_id, settings.pad_token_id = 5.0, 0, 2
    settings.generation_kwargs = {"boi_token_id": 4}
    prompt = torch.tensor([[0, 20, 21, 22, 4]])
    with torch.no_grad():
        expected = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_mode="image",
            do_sample=False,
        )
        images = model.decode_image_tokens(expected)
    prompt = prompt.numpy().astype(np.int32)
    real = np.ones(prompt.shape, bool)
    keys = jax.random.split(jax.random.key(0), 1)[:, None]
    guidance = VQGuidance(scale=5.0, temperature=0)
    _, codes = decode.draw_batch(
        params, prompt, real, keys, network=network, pad_id=2, guidance=guidance
    )
    np.testing.assert_array_equal(codes, expected.numpy())
    decode_codes = jax.jit(lambda p, ids: network.merge(p).generation.tokenizer.decode(ids))
    close(decode_codes(params, codes), images.numpy())


# Round trips.


def test_round_trips_are_lossless_and_layouts_agree(torch, small_folder, tmp_path):
    from transformers import JanusForConditionalGeneration

    _, path = small_folder["float32"]
    at = tmp_path.__truediv__
    convert("import", layout="transformers", src=path, out=at("run"))
    convert("export", layout="transformers", checkpoint=at("run"), out=at("hf"))
    assert_same_bits(path, at("hf"))
    convert("export", layout="deepseek", checkpoint=at("run"), out=at("deepseek"))
    weights = tensors_of(at("deepseek"))
    rng = np.random.default_rng(0)  # the unused tensors of a released file are not zeros
    for key in [k for k in weights if "attn_pool" in k or "codebook_used" in k]:
        weights[key] = rng.normal(size=weights[key].shape).astype(weights[key].dtype)
    save_file(weights, at("deepseek") / "model.safetensors")
    convert("import", layout="deepseek", src=at("deepseek"), out=at("run_again"))
    convert("export", layout="deepseek", checkpoint=at("run_again"), out=at("deepseek_again"))
    assert_same_bits(at("deepseek"), at("deepseek_again"))
    convert("export", layout="transformers", checkpoint=at("run_again"), out=at("hf_again"))
    assert_same_bits(path, at("hf_again"))

    loaded, report = JanusForConditionalGeneration.from_pretrained(
        at("hf_again"), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)
    assert loaded.generation_config.generation_kwargs == {"boi_token_id": 4}
    assert loaded.generation_config.top_k == 0
    tokens = torch.tensor(np.random.default_rng(0).integers(5, 500, (2, 9)))
    with torch.no_grad():
        before = JanusForConditionalGeneration.from_pretrained(path)
        assert torch.equal(loaded(input_ids=tokens).logits, before(input_ids=tokens).logits)


def test_an_export_has_the_processor_and_the_chat_template(torch, small_folder, tmp_path):
    from transformers import AutoTokenizer, JanusProcessor

    _, path = small_folder["float32"]
    convert("import", layout="transformers", src=path, out=tmp_path / "run")
    out = tmp_path / "hf"
    convert("export", layout="transformers", checkpoint=tmp_path / "run", out=out)
    tokenizer = text_tokenizer.load(path / "tokenizer.json")
    ids = AutoTokenizer.from_pretrained(out)("two red stars").input_ids
    assert ids == [tokenizer.bos, *tokenizer.encode("two red stars")[0]]
    processor = JanusProcessor.from_pretrained(out)
    assert processor.num_image_tokens == 9 and processor.use_default_system_prompt
    turns = [
        ("user", "<image_placeholder>\nWhat color?"),
        ("assistant", "red"),
        ("user", " And its size? "),
        ("assistant", ""),
    ]
    pieces = chat.conversation(
        [{"role": role, "content": content} for role, content in turns],
        roles=("<|User|>", "<|Assistant|>"),
    )
    text = lambda words: {"type": "text", "text": words}
    messages = [
        {"role": "user", "content": [{"type": "image"}, text("What color?")]},
        {"role": "assistant", "content": [text("red")]},
        {"role": "user", "content": [text(" And its size? ")]},
    ]
    expected = "".join(piece.text for piece in pieces)
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    for role, content, name in (
        ("system", "be nice", "system"),
        ("user", [{"type": "video"}], "video"),
    ):
        with pytest.raises(Exception, match=name):
            processor.apply_chat_template([{"role": role, "content": content}])


def test_torch_files_are_imported_like_safetensors(torch, small_folder, tmp_path):
    for dtype, (model, path) in small_folder.items():
        src = Path(shutil.copytree(path, tmp_path / dtype))
        (src / "model.safetensors").unlink()
        state = list(model.state_dict().items())
        for i in (0, 1):
            torch.save(dict(state[i::2]), src / f"pytorch_model-0000{i + 1}-of-00002.bin")
        convert("import", layout="transformers", src=src, out=tmp_path / f"run_{dtype}")
        out = tmp_path / f"hf_{dtype}"
        convert("export", layout="transformers", checkpoint=tmp_path / f"run_{dtype}", out=out)
        assert_same_bits(path, out)


def test_shards_of_another_dtype_are_exported_and_imported(small_folder, tmp_path, monkeypatch):
    _, path = small_folder["float32"]
    convert("import", layout="transformers", src=path, out=tmp_path / "run")
    monkeypatch.setattr(files, "MAX_SHARD_BYTES", 200_000)
    out = tmp_path / "hf"
    export = dict(layout="transformers", checkpoint=tmp_path / "run", dtype="bfloat16")
    convert("export", out=out, **export)
    assert len(list(out.glob("*.safetensors"))) > 3
    assert {a.dtype for a in tensors_of(out).values()} == {np.dtype(ml_dtypes.bfloat16)}
    convert("import", layout="transformers", src=out, out=tmp_path / "again")


def test_half_precision_and_unused_tensors_keep_their_dtype(copied, tmp_path):
    file = copied / "model.safetensors"
    save_file({k: (v / 64).astype(np.float16) for k, v in load_file(file).items()}, file)
    convert("import", layout="transformers", src=copied, out=tmp_path / "run")
    convert("export", layout="transformers", checkpoint=tmp_path / "run", out=tmp_path / "out")
    assert_same_bits(copied, tmp_path / "out")
    folder = tmp_path / "deepseek"
    convert("export", layout="deepseek", checkpoint=tmp_path / "run", out=folder, dtype="bfloat16")
    weights = tensors_of(folder)
    usage = "gen_vision_model.quantize.codebook_used"
    weights[usage] = np.arange(65_536, dtype=np.float32)
    save_file(weights, folder / "model.safetensors")
    convert("import", layout="deepseek", src=folder, out=tmp_path / "again")
    out = tmp_path / "deepseek_again"
    convert("export", layout="deepseek", checkpoint=tmp_path / "again", out=out)
    assert_same_bits(folder, out)


# What is refused.


def test_a_failed_import_leaves_nothing(copied, tmp_path):
    out = dict(layout="transformers", src=copied, out=tmp_path / "out")
    (copied / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in error("import", **out)  # before a tensor is read
    file = copied / "model.safetensors"
    weights = load_file(file)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].astype(np.float16)
    save_file(weights, file)
    (copied / "tokenizer.json").unlink()
    assert name in error("import", **out)  # after the first tensors
    weights["model.surprise"] = weights.pop(name)
    save_file(weights, file)
    assert name in error("import", **out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_flags_that_do_not_fit_are_named(small_folder, tmp_path):
    _, path = small_folder["float32"]
    out = dict(out=tmp_path / "out")
    whole = dict(layout="transformers", src=path, **out)
    assert "--dtype" in error("import", dtype="float32", **whole)
    assert "--into" in error("import", into="llm", **whole)
    assert "--src" in error("export", **whole)
    assert "--layout" in error("import", src=path, **out)
    assert "--src" in error("import", layout="transformers", **out)
    assert "--checkpoint" in error("export", layout="transformers", **out)
    assert "--layout=siglip" in error("export", layout="siglip", checkpoint=path, **out)
    message = error("import", layout="llama", src=path, into="generation/tokenizer", **out)
    assert "llm" in message and "generation/tokenizer" in message
    assert "--vae" in error("import", layout="llama", src=path, vae=path, **out)
    config = "configs/pro_1b.py"
    assert "llm.num_layers is 3" in error("import", config=config, **whole)


# Training.


@pytest.mark.usefixtures("one_device")
def test_imported_weights_are_trained_and_exported(torch, folder, data, tmp_path):
    from transformers import JanusForConditionalGeneration

    _, source = folder(SMALL | dict(multiplier=[1] * 5))
    workdir = tmp_path / "run"
    convert("import", layout="transformers", src=source, out=workdir)
    config = small(tiny.get_config("3"), data)
    config.model = LAYOUTS["transformers"].read_config(files.Folder(source))
    config.model.generation.tokenizer_training = None
    config.model.llm.remat = config.model.understanding.encoder.remat = "block"
    config.data.tokenizer = str(workdir / "tokenizer.json")
    config.stages.stage_3.steps = 4
    config.save_every = 1
    assert not train(config, workdir)
    steps = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert steps == ["0", "3", "4"]
    convert("export", layout="transformers", checkpoint=workdir, out=tmp_path / "out")
    model, report = JanusForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = JanusForConditionalGeneration.from_pretrained(source).state_dict()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".vqmodel." not in name}
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["tie_word_embeddings"] is False and written["image_token_id"] == 3
    image = tmp_path / "x.png"
    result = run(
        "sample", "draw", f"--checkpoint={workdir}/checkpoints/0", "--prompt=x", f"--out={image}"
    )
    assert result.code == 0 and image.exists(), result.err


@pytest.mark.usefixtures("one_device")
def test_a_stage_starts_from_several_towers(data, tmp_path):
    """init_from takes several origins; what none of them has starts fresh or is named."""
    config = small(tiny.get_config("1"), data)
    network = Joint.build_network(config.model.to_dict(), dtype=jnp.dtype("float32"))
    params = network.init(jax.random.key(3))
    towers = {
        "llm": "llm/",
        "encoder": "understanding/encoder/",
        "tokenizer": "generation/tokenizer/",
    }
    for name, prefix in towers.items():
        part = {path: array for path, array in params.items() if path.startswith(prefix)}
        about = dict(stage="imported", stage_start=0, config=None, tokenizer=None, data=None)
        checkpoint.save_imported(tmp_path / name, params=part, about=about)
    config.init_fresh = ("understanding/adaptor", "generation/(embed|adaptor|head)")
    config.stages.stage_1.frozen = ("llm", "understanding/encoder", "generation/tokenizer")
    config.stages.stage_1.steps = 1
    config.init_from = ",".join(str(tmp_path / name) for name in towers)
    assert not train(config, tmp_path / "run")
    trained = load_fp32(tmp_path / "run")
    for path in trained:
        if path.startswith(tuple(towers.values())):
            np.testing.assert_array_equal(trained[path], params[path])
    codebook = params["generation/tokenizer/codebook"]
    directions = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    assert np.abs(trained["generation/embed"] - directions).max() < 0.05
    config.init_from = ",".join(str(tmp_path / name) for name in ("llm", "encoder"))
    with pytest.raises(UserError, match="generation/tokenizer"):
        train(config, tmp_path / "other")
    with pytest.raises(UserError, match="llm"):
        load_sampler(tmp_path / "llm")
