"""`benchmark train | draw | ask` on a small shape file, alone and beside transformers; and that both do the same work."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import dims as dims_config
from configs import tiny
from janus_jax.batch import TASKS
from janus_jax.benchmark import timing, torch_baseline
from janus_jax.data import synthetic
from janus_jax.data.packing import lay_out
from janus_jax.models.janus import count_targets
from janus_jax.plan import estimate
from janus_jax.recipe import assembly
from tests.conftest import ROOT, environment, small
from tests.test_weights import command, ours

SHAPES = {
    "image": {"size": 32, "patch": 16, "tokens": 4},
    "vision": {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2},
    "vq": {
        "base_channels": 32, "channel_mult": [1, 1, 1, 1, 1], "res_blocks": 1, "z_channels": 32, "codebook_size": 24,
        "codebook_dim": 8,
    },
    "llm": {
        "width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "mlp": 64, "vocab": 96, "rms_eps": 1e-6, "rope_theta": 10000.0,
    },
    "train": {"rows": 2, "length": 64, "kind_cycle": ["und", "text", "gen", "gen"]},
    "lengths": {"und": [8, 12], "text": [20, 33], "gen": [6, 9]},
    "draw": {"prompt_tokens": 6},
    "ask": {"text_tokens": 6, "answer_tokens": 5},
}  # fmt: skip
KEYS = {
    "name", "seconds_median", "min", "max", "n", "tokens_real", "tokens_padded", "tokens_per_second", "images_per_second",
    "token_fill", "slot_fill", "mfu", "device",
}  # fmt: skip


@pytest.fixture(scope="module")
def shape_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "shapes.json"
    path.write_text(json.dumps(SHAPES))
    return path


def run(*words):
    command = [sys.executable, "-m", "janus_jax.benchmark", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(devices=2, torch=True), capture_output=True, text=True)


def check(figures, name, *, per_step, ways):
    assert KEYS <= figures.keys() and figures["name"] == name and figures["n"] == 3
    assert 0 < figures["min"] <= figures["seconds_median"] <= figures["max"]
    assert 0.5 * per_step < figures["tokens_real"] <= figures["tokens_padded"] == per_step
    assert figures["tokens_per_second"] == pytest.approx(figures["tokens_real"] / figures["seconds_median"])
    assert all(figures[f"over_{way}"] > 0 for way in ways)
    assert (figures["mfu"] is None) == (name != "train")


def test_train_beside_transformers(shape_file):
    pytest.importorskip("transformers")
    done = run("train", f"--dims={shape_file}", "--repeats=3", "--json", "--peer=transformers")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    check(figures, "train", per_step=2 * 2 * 64, ways=("longest", "full"))
    assert 0 < figures["mfu"] <= figures["mfu_raw"] and figures["devices"] == 2


def test_draw_and_ask_beside_transformers(shape_file):
    pytest.importorskip("transformers")
    config = dims_config.get_config(str(shape_file)).to_dict()
    rest = dict(batch=3, repeats=3, against="transformers")
    check(timing.draw(config, "stage_2", prompt=6, **rest), "draw", per_step=3 * 4, ways=["transformers"])
    check(timing.ask(config, "stage_2", question=6, answer=5, **rest), "ask", per_step=3 * 5, ways=["transformers"])


def test_the_peer_draws_whole_pictures_and_answers_at_length(shape_file):
    pytest.importorskip("transformers")
    model = torch_baseline.Peer(dims_config.get_config(str(shape_file)).to_dict(), "stage_2")
    ids = np.random.default_rng(0).integers(16, 96, (2, 10))
    assert model.draw(ids).shape == (2, 32, 32, 3)
    ids[:, 2:6] = timing.IMAGE
    assert model.ask(ids, np.zeros((2, 32, 32, 3), np.uint8), answer=5).shape == (2, 10 + 5)


def test_a_stage_of_a_config_is_timed(data):
    config = small(tiny.get_config("2"), data).to_dict()
    lengths, tokens = estimate.made_up_lengths(config, "stage_2", assembly.build_network(config, "stage_2"))
    config["stages"]["stage_2"]["sources"] = {task: {task: 1} for task in TASKS}
    figures = timing.train(config, "stage_2", lengths, tokens=tokens, codes=False, repeats=3, against=())
    check(figures, "train", per_step=16 * 128, ways=())
    assert figures["stage"] == "stage_2" and figures["images_per_second"] > 0


def test_both_train_on_the_same_loss(shape_file, tmp_path):
    """The peer's loss on padded rows is ours on the same examples, packed, with the same weights."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = dims_config.get_config(str(shape_file)).to_dict()
    lengths = synthetic.table(SHAPES)
    order = [TASKS[0], TASKS[1], TASKS[2], TASKS[2]]
    examples = timing._examples(config, lengths, order, (4, 4))
    model = torch_baseline.Peer(config, "stage_2")
    with torch.no_grad():
        (full,) = model.batches(examples, rows=4, length=64)
        (short,) = model.batches(examples, rows=4, length=None)
        expected = model._loss(full).item()
        np.testing.assert_allclose(model._loss(short).item(), expected, rtol=1e-5)
    assert short["padded"] < full["padded"] == 4 * 64 and short["real"] == full["real"]

    model.model.save_pretrained(tmp_path / "hf")
    command("import", layout="transformers", src=tmp_path / "hf", out=tmp_path / "ours")
    network, params = ours(tmp_path / "ours")
    group, *_ = lay_out([[e for e, _ in examples]], length=96, pad_id=2, und_slots=1, gen_slots=2)
    pixels = np.stack([picture for _, picture in examples if picture is not None])
    codes = np.stack([e.gen_images[0] for e, _ in examples if e.gen_images])
    batch = group._replace(und_images=pixels, gen_codes=codes)
    batch = jax.tree.map(lambda a: a[None], batch)
    keys = jax.vmap(jax.random.key)(np.arange(2, dtype=np.uint32))[None]
    loss, _ = jax.jit(lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"llm": {"heads": 3}}, "llm.heads"),
        ({"image": {"tokens": 5}}, "image.tokens is not (image.size / image.patch)^2"),
        ({"vq": {"channel_mult": [1, 1]}}, "vq.channel_mult means 2x"),
        ({"vq": {"base_channels": 40}}, "vq.base_channels"),
        ({"lengths": {"und": []}}, "is empty"),
        ({"lengths": {"text": [20, 65]}}, "train.length, 64"),
        ({"lengths": {"gen": [-3]}}, "-3"),
        ({"train": {"kind_cycle": ["und", "foo"]}}, "train.kind_cycle"),
        ({"vision": {"mlp_ratio": 2.03}}, "vision.mlp_ratio"),
    ],
)
def test_shapes_that_no_model_has_are_told(change, said, tmp_path):
    (part, values), path = *change.items(), tmp_path / "shapes.json"
    path.write_text(json.dumps(SHAPES | {part: SHAPES[part] | values}))
    with pytest.raises(ValueError, match=re.escape(said)):
        dims_config.get_config(path)


@pytest.mark.parametrize(
    "content, said",
    [
        ([], "is no shape file"),
        ({"name": "x"}, "is no shape file: it has no 'image'"),
        ({k: v for k, v in SHAPES.items() if k != "draw"}, "does not say draw.prompt_tokens"),
    ],
)
def test_files_of_another_kind_are_told(content, said, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(content))
    done = run("draw", f"--dims={tmp_path}/x.json")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "--dims=nowhere.json"], "is no shape file"),
        (["train", "--config=configs/flow_1p3b.py:2", "--peer=transformers"], "no Janus that draws this way"),
        (["train", "--mixture=0:0:0"], "--mixture=0:0:0 is no ratio"),
        (["fly"], "Say which of"),
    ],
)
def test_mistakes_are_told(words, said):
    done = run(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_mixture_is_that_of_the_cycle_of_kinds(shape_file, tmp_path):
    assert dims_config.get_config(str(shape_file)).stages.stage_2.mixture == (1, 1, 2)
    only = SHAPES | {"train": SHAPES["train"] | {"kind_cycle": ["text"]}}
    (tmp_path / "text.json").write_text(json.dumps(only))
    assert dims_config.get_config(str(tmp_path / "text.json")).stages.stage_2.mixture == (0, 1, 0)
    assert dims_config.get_config(str(ROOT / "docs/small.json")).stages.stage_2.mixture == (4, 6, 10)
