"""What public trainers of Janus get wrong, each a test here; the released processor; and the way from weights to weights."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import checkpoint
from janus_jax.convert import files
from janus_jax.convert.layouts import read_config
from janus_jax.data import images
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.data.tokenizer import PRO_ROLES, SPECIAL
from janus_jax.errors import UserError
from janus_jax.recipe import assembly
from tests.test_model import first_batch, params_of
from tests.test_train import finish, run, start
from tests.test_weights import command

LLM_TOKENIZER = Path(__file__).parent.parent.parent / "shared/data/tokenizer_deepseek_llm/tokenizer.json"


def as_released(image, size=384):
    """The released processor in plain PIL: long side to size, int() sizes, at least 14, centred on grey 127."""
    image = image.convert("RGB")
    w, h = image.size
    longest = max(w, h)
    width, height = max(int(w / longest * size), 14), max(int(h / longest * size), 14)
    out = Image.new("RGB", (size, size), (127, 127, 127))
    out.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return np.asarray(out)


def noise(mode, width, height, seed=0):
    """A random picture of a mode."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), np.uint16))
    if mode == "P":
        return noise("RGB", width, height).quantize(32)
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (height, width, *bands), np.uint8), mode)


def png(image, **options):
    """Encoded bytes of a picture."""
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(333, 500), (1000, 3), (3, 1000), (47, 60), (384, 384), (1, 1), (255, 256)])
def test_preprocessing_is_the_released_one(mode, size):
    encoded = png(noise(mode, *size))
    ours = images.for_understanding(images.decode(encoded), size=384)
    np.testing.assert_array_equal(ours, as_released(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("size", [(384, 384), (256, 512), (96, 48), (900, 300)])
def test_preprocessing_agrees_with_transformers_where_it_rounds_alike(torch, size):
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    image = noise("RGB", *size)
    processor = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = images.for_understanding(images.decode(png(image)), size=384)
    np.testing.assert_array_equal(np.moveaxis(ours, -1, 0), np.round((theirs * 0.5 + 0.5) * 255).astype(np.uint8))


def test_sources_may_turn_pictures_and_fill_what_is_transparent(tmp_path):
    image = noise("RGBA", 20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    write_array_record(tmp_path / "x.array_record", [{"image": png(image, exif=exif), "prompt": "x"}])
    options = dict(kind="array_record", path=str(tmp_path / "x.array_record"))
    plain = images.decode(Source("x", **options)[0]["image"])
    assert plain.size == (20, 10)
    np.testing.assert_array_equal(plain, np.asarray(image)[..., :3])
    changed = images.decode(Source("x", exif="apply", alpha="white", **options)[0]["image"])
    over = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(changed, over.rotate(-90, expand=True))
    for wrong in (dict(exif="aply"), dict(alpha="chartreux")):
        with pytest.raises(UserError, match="Source 'x'.*(known|unknown color)"):
            Source("x", **wrong, **options)


@pytest.mark.skipif(not LLM_TOKENIZER.is_file(), reason="the language model's tokenizer is not here")
def test_the_language_models_tokenizer_gets_what_it_lacks(data):
    tokenizer, added = text_tokenizer.complete(LLM_TOKENIZER)
    lacking = [SPECIAL[k] for k in ("pad", "image", "boi", "eoi")]
    assert added == [*lacking, *PRO_ROLES] and tokenizer.size <= 102_400
    assert (tokenizer.bos, tokenizer.eos) == (100_000, 100_001)
    ids, spans = tokenizer.encode("Hello, how are you?")
    assert ids == [17464, 11, 946, 418, 340, 30] and spans[0] == (0, 5)
    text = "Ein Fuchs \u72d0\u72f8 \U0001f98a, na\u00efve\n\n  tabs\tand 1234"
    assert tokenizer.decode(tokenizer.encode(text)[0]) == text
    assert tokenizer.encode("<image_placeholder>\n<|User|>: x")[0][0] == tokenizer.image
    assert tokenizer.pad != text_tokenizer.load(data / "tokenizer.json").pad  # by string, never by number


# Defects of public trainers.


@pytest.fixture(scope="module")
def drawing(data):
    """ModelSpec, parameters and a batch of drawing examples alone."""
    from configs import tiny
    from tests.conftest import small

    config = small(tiny.get_config(), data)
    config.stages.stage_2.mixture = (0, 0, 1)
    network, batch = first_batch(config)
    return network, params_of(network), batch


def gradients(network, params, batch):
    from janus_jax.models.janus import count_targets

    keys = jax.random.split(jax.random.key(0), batch.gen_start.shape)
    loss = lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def test_codes_go_through_their_own_table_and_adaptor(drawing):
    """align-anything embeds codes with the text table; transformers has no picture loss at all."""
    network, params, batch = drawing
    (value, metrics), grads = gradients(network, params, batch)
    assert value > 0 and metrics["loss_gen"] > 0
    for name in ("embed", "adaptor/fc_1/kernel", "adaptor/fc_2/kernel", "head/fc_1/kernel", "head/fc_2/kernel"):
        assert np.abs(grads[f"generation/{name}"]).max() > 0
    rows = np.abs(grads["llm/embed"]).max(axis=1) > 0
    words = set(np.unique(batch.tokens[batch.segment_ids > 0])) - {int(batch.tokens.reshape(-1)[batch.gen_start[0, 0]])}
    assert set(np.flatnonzero(rows)) <= words


def test_the_loss_is_plain_cross_entropy_of_every_code(drawing):
    """One trainer shifts aligned logits and drops the first code; another takes the loss of guided logits."""
    network, params, _ = drawing
    model = network.merge(params)
    path, count = model.path, model.path.num_tokens
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, count, model.llm.embed.shape[1])), jnp.float32)
    codes = jnp.asarray(rng.integers(0, 32, (2, count)), jnp.int32)
    value = lambda codes: path.loss(hidden, None, codes, None)[0]
    logits = np.asarray(model.generation.head(hidden), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logits, np.asarray(codes)[..., None], -1).sum(axis=(1, 2))
    np.testing.assert_allclose(value(codes), expected, rtol=1e-5)
    moved = jax.jacrev(lambda h: path.loss(h, None, codes, None)[0].sum())(hidden)
    assert (np.abs(moved).max(axis=-1) > 0).all(), "every one of the codes has a loss, the first one too"
    other = codes.at[0, 0].set((codes[0, 0] + 1) % 32)
    assert (value(other) != value(codes)).tolist() == [True, False]


def test_the_state_at_boi_predicts_the_first_code(drawing):
    network, params, batch = drawing
    model = network.merge(params)
    assert model.path.read_shift == -1
    tokens = batch.tokens.reshape(len(batch.tokens), -1)
    starts = [(s, p) for s, row in enumerate(batch.gen_start) for p in row if p < tokens.shape[1]]
    boi = {int(tokens[s, p - 1]) for s, p in starts}
    assert len(starts) >= 4 and len(boi) == 1


# From weights to weights.


def test_imported_weights_are_trained_and_exported(torch, folder, data, tmp_path):
    from transformers import JanusForConditionalGeneration

    sizes = dict(layers=3, heads=3, width=24, grid=3, vit_heads=3, vit_layers=2, mlp=40)
    _, source = folder(sizes | dict(multiplier=[1] * 5, res_blocks=1, codes=48))
    command("import", layout="transformers", src=source, out=tmp_path / "weights")
    described = read_config.read_janus("transformers", files.Folder(source))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"""
from pathlib import Path
from configs import tiny
from tests.conftest import small
def get_config(stage="all"):
    c = small(tiny.get_config(stage), Path({str(data)!r}))
    c.model = {described!r}
    c.model.generation.tokenizer_training = None
    c.model.llm.remat = c.model.understanding.encoder.remat = "block"
    c.data.tokenizer = {str(tmp_path / "weights/tokenizer.json")!r}
    return c
""")
    flags = ["--config.stages.stage_3.steps=4", "--config.save_every=1"]
    code, err = finish(start(f"{recipe}:3", tmp_path / "weights", *flags, devices=1))
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "weights/checkpoints").iterdir()) == ["0", "3", "4"]
    code, err = finish(
        run("convert", "export", "--layout=transformers", f"--checkpoint={tmp_path}/weights", f"--out={tmp_path}/out")
    )
    assert code == 0, err
    model, report = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = JanusForConditionalGeneration.from_pretrained(source).state_dict()
    after = model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if ".vqmodel." not in k}, "everything but the picture tokenizer trains in stage 3"
    kinds = json.loads((tmp_path / "out/config.json").read_text())
    assert kinds["tie_word_embeddings"] is False and kinds["image_token_id"] == 3
    code, err = finish(
        run("sample", "draw", f"--checkpoint={tmp_path}/weights/checkpoints/0", "--prompt=x", f"--out={tmp_path}/x.png")
    )
    assert code == 0, err
    code, err = finish(
        run("convert", "import", "--layout=llama", f"--src={source}", "--into=generation/tokenizer", f"--out={tmp_path}/y")
    )
    assert code == 2 and "goes into llm, not into generation/tokenizer" in err and "Traceback" not in err


def test_a_stage_starts_from_several_towers(data, tmp_path):
    """init_from takes several origins; what none of them holds starts fresh or is named."""
    from configs import tiny
    from tests.conftest import small

    config = small(tiny.get_config(), data).to_dict()
    network = assembly.build_network(config, "stage_1")
    params = network.fresh(jax.random.key(3))
    parts = {"llm": "llm/", "eyes": "understanding/encoder/", "codes": "generation/tokenizer/"}
    for name, prefix in parts.items():
        mine = {p: a for p, a in params.items() if p.startswith(prefix)}
        about = {"stage": "imported", "stage_start": 0, "config": None, "tokenizer": None, "data": None}
        checkpoint.save_imported(tmp_path / name, params=mine, about=about)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"""
from pathlib import Path
from configs import tiny
from tests.conftest import small
def get_config(stage="all"):
    c = small(tiny.get_config(stage), Path({str(data)!r}))
    c.init_fresh = ("understanding/adaptor", "generation/(embed|adaptor|head)")
    c.stages.stage_1.frozen = ("llm", "understanding/encoder", "generation/tokenizer")
    return c
""")
    towers = [f"{tmp_path}/{name}" for name in parts]
    steps = "--config.stages.stage_1.steps=1"
    code, err = finish(start(f"{recipe}:1", tmp_path / "run", steps, f"--config.init_from={','.join(towers)}", devices=1))
    assert code == 0, err
    saved = checkpoint.open_saved(tmp_path / "run")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    held = checkpoint.load_params(saved, {p: like(a) for p, a in network.abstract.items()})
    for path in held:
        if path.startswith(tuple(parts.values())):
            np.testing.assert_array_equal(held[path], params[path])
    book = params["generation/tokenizer/codebook"]
    unit = book / np.linalg.norm(book, axis=1, keepdims=True)
    assert np.abs(held["generation/embed"] - unit).max() < 0.05, "it starts from the codebook's directions"
    code, err = finish(
        start(f"{recipe}:1", tmp_path / "other", steps, f"--config.init_from={','.join(towers[:2])}", devices=1)
    )
    assert code == 2 and "has no ['generation/tokenizer']" in err
    with pytest.raises(UserError, match="holds a tower alone"):
        assembly.load_sampler(tmp_path / "llm")
