"""`benchmark` on a small dimensions file, alone and with PyTorch; both do the same work."""

import json

import jax
import numpy as np
import pytest

from configs import dims as dims_config
from configs import tiny
from janus_jax import checkpoint, sharding
from janus_jax.benchmark import timing, torch_baseline, workload
from janus_jax.data.packing import lay_out
from janus_jax.recipe.load import abstract_for_inference
from tests.conftest import ROOT, loss_of, small
from tests.helpers.commands import run

SHAPES = {
    "image": {"size": 32, "patch": 16, "tokens": 4},
    "vision": {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2},
    "vq": {
        "base_channels": 32,
        "channel_mult": [1, 1, 1, 1, 1],
        "res_blocks": 1,
        "z_channels": 32,
        "codebook_size": 24,
        "codebook_dim": 8,
    },
    "llm": {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "mlp": 64,
        "vocab": 96,
        "rms_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "train": {"rows": 2, "length": 64, "kind_cycle": ["und", "text", "gen", "gen"]},
    "lengths": {"und": [8, 12], "text": [20, 33], "gen": [6, 9]},
    "draw": {"prompt_tokens": 6},
    "ask": {"text_tokens": 6, "answer_tokens": 5},
}
KEYS = {
    "name",
    "seconds_median",
    "min",
    "max",
    "n",
    "tokens_real",
    "tokens_padded",
    "tokens_per_second",
    "images_per_second",
    "token_fill",
    "slot_fill",
    "mfu",
    "device",
}


@pytest.fixture(scope="module")
def shape_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "shapes.json"
    path.write_text(json.dumps(SHAPES))
    return path


@pytest.fixture(scope="module")
def stage(shape_file):
    """The stage of the dimensions file on one abstract device."""
    return workload.from_dims(shape_file).stage()


@pytest.fixture(scope="module")
def baseline(stage):
    """The PyTorch model of the same sizes."""
    pytest.importorskip("transformers")
    return torch_baseline.TorchJanus(stage)


def check(figures, name, *, per_step, baselines=()):
    assert figures.keys() >= KEYS and figures["name"] == name and figures["n"] == 3
    assert 0 < figures["min"] <= figures["seconds_median"] <= figures["max"]
    assert 0.5 * per_step < figures["tokens_real"] <= figures["tokens_padded"] == per_step
    rate = figures["tokens_real"] / figures["seconds_median"]
    assert figures["tokens_per_second"] == pytest.approx(rate)
    assert all(figures[f"over_{name}"] > 0 for name in baselines)
    assert (figures["mfu"] is None) == (name != "train")


def test_train_with_the_baseline(shape_file):
    pytest.importorskip("transformers")
    flags = [f"--dims={shape_file}", "--repeats=3", "--json", "--peer=transformers"]
    result = run("benchmark", "train", *flags)
    assert result.code == 0, result.err
    figures = json.loads(result.out.splitlines()[-1])
    check(figures, "train", per_step=8 * 2 * 64, baselines=("longest", "full"))
    assert 0 < figures["mfu"] <= figures["mfu_raw"] and figures["devices"] == 8


def test_draw_and_ask_with_the_baseline(stage):
    pytest.importorskip("transformers")
    settings = dict(batch=3, repeats=3, baseline=True)
    figures = timing.draw(stage, prompt=6, **settings)
    check(figures, "draw", per_step=3 * 4, baselines=["transformers"])
    figures = timing.ask(stage, question=6, answer=5, **settings)
    check(figures, "ask", per_step=3 * 5, baselines=["transformers"])


def test_the_baseline_generates_whole_images_and_full_answers(baseline):
    ids = np.random.default_rng(0).integers(16, 96, (2, 10))
    assert baseline.draw(ids).shape == (2, 32, 32, 3)
    ids[:, 2:6] = workload.IMAGE_ID
    answers = baseline.ask(ids, np.zeros((2, 32, 32, 3), np.uint8), answer=5)
    assert answers.shape == (2, 10 + 5)


def test_a_stage_of_a_config_is_timed(data):
    work = workload.from_config(small(tiny.get_config("2"), data))
    stage = work.stage(mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    figures = timing.train(stage, work.lengths, codes=False, repeats=3)
    check(figures, "train", per_step=16 * 128)
    assert figures["stage"] == "stage_2" and figures["images_per_second"] > 0


def test_both_train_on_the_same_loss(shape_file, stage, baseline, tmp_path):
    """The baseline's loss on padded rows is ours on the same examples, packed, with its weights."""
    torch = pytest.importorskip("torch")
    tasks = ["understanding", "text", "generation", "generation"]
    examples = timing._examples(stage, workload.from_dims(shape_file).lengths, tasks)
    with torch.no_grad():
        (full,) = baseline.batches(examples, rows=4, length=64)
        (short,) = baseline.batches(examples, rows=4, length=None)
        expected = baseline._loss(full).item()
        np.testing.assert_allclose(baseline._loss(short).item(), expected, rtol=1e-5)
    assert short["padded"] < full["padded"] == 4 * 64 and short["real"] == full["real"]

    baseline.model.save_pretrained(tmp_path / "hf")
    flags = ["--layout=transformers", f"--src={tmp_path}/hf", f"--out={tmp_path}/ours"]
    result = run("convert", "import", *flags)
    assert result.code == 0, result.err
    abstract = abstract_for_inference(stage.network, stage.dtype)
    params = checkpoint.load_params(checkpoint.open_saved(tmp_path / "ours"), abstract)
    rows = [[example for example, _ in examples]]
    group, *_ = lay_out(rows, length=96, pad_id=workload.PAD_ID, und_slots=1, gen_slots=2)
    pixels = np.stack([image for _, image in examples if image is not None])
    codes = np.stack([example.gen_images[0] for example, _ in examples if example.gen_images])
    batch = jax.tree.map(lambda a: a[None], group._replace(und_images=pixels, gen_codes=codes))
    loss, _ = jax.jit(lambda params: loss_of(stage.objective, params, batch))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_impossible_sizes_are_errors(tmp_path):
    path = tmp_path / "shapes.json"
    cases = (
        ("llm", {"heads": 3}, "llm.heads"),
        ("image", {"tokens": 5}, "image.tokens"),
        ("vq", {"channel_mult": [1, 1]}, "vq.channel_mult"),
        ("vq", {"base_channels": 40}, "vq"),
        ("lengths", {"und": []}, "lengths.und"),
        ("lengths", {"text": [20, 65]}, "train.length, 64"),
        ("lengths", {"gen": [-3]}, "lengths"),
        ("train", {"kind_cycle": ["und", "foo"]}, "train.kind_cycle"),
        ("vision", {"mlp_ratio": 2.03}, "vision.mlp_ratio"),
    )
    for part, values, field in cases:
        path.write_text(json.dumps(SHAPES | {part: SHAPES[part] | values}))
        with pytest.raises(ValueError) as error:
            dims_config.get_config(path)
        assert field in str(error.value), (part, values, error.value)


def test_mistakes_are_one_message(tmp_path):
    without_draw = {part: sizes for part, sizes in SHAPES.items() if part != "draw"}
    for name, content in {"list": [], "other": {"name": "x"}, "no_draw": without_draw}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    flow = "--config=configs/flow_1p3b.py:2"
    cases = (
        (["draw", f"--dims={tmp_path}/list.json"], "list.json"),
        (["draw", f"--dims={tmp_path}/other.json"], "'image'"),
        (["draw", f"--dims={tmp_path}/no_draw.json"], "draw.prompt_tokens"),
        (["train", "--dims=nowhere.json"], "nowhere.json"),
        (["train", flow, "--peer=transformers"], "--peer=transformers"),
        (["train", "--mixture=0:0:0"], "--mixture=0:0:0"),
        (["fly"], "'fly'"),
    )
    for words, part in cases:
        result = run("benchmark", *words)
        assert result.code == 2 and "Traceback" not in result.err, (words, result.err)
        assert part in result.err, (words, result.err)


def test_the_mixture_is_that_of_the_cycle_of_kinds(shape_file, tmp_path):
    assert dims_config.get_config(str(shape_file)).stages.stage_2.mixture == (1, 1, 2)
    text_only = SHAPES | {"train": SHAPES["train"] | {"kind_cycle": ["text"]}}
    (tmp_path / "text.json").write_text(json.dumps(text_only))
    config = dims_config.get_config(str(tmp_path / "text.json"))
    assert config.stages.stage_2.mixture == (0, 1, 0)
    config = dims_config.get_config(str(ROOT / "docs/small.json"))
    assert config.stages.stage_2.mixture == (4, 6, 10)
