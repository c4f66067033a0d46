"""The papers' numbers, and every config at every stage under eval_shape."""

import functools
import importlib
import math

import jax
import pytest

from janus_jax import train_step
from janus_jax.recipe import freezing
from janus_jax.recipe.data import source_names
from janus_jax.recipe.stage import make_stage, phases_of
from tests.conftest import image_keys

COUNTS = {  # published checkpoints without the unused pooling head
    "janus_1p3b": {
        "understanding/encoder": 303_688_704,
        "understanding/adaptor": 6_295_552,
        "generation/tokenizer/encoder": 29_298_176,
        "generation/tokenizer/decoder": 42_449_795,
        "generation/tokenizer": 71_883_403,
        "generation/embed": 131_072,
        "generation/adaptor": 4_214_784,
        "generation/head": 37_767_168,
        "llm": 1_652_656_128,
        "": 2_076_636_811,
    },
    "pro_7b": {
        "understanding/adaptor": 20_979_712,
        "generation/adaptor": 16_818_176,
        "generation/head": 83_906_560,
        "llm/layers": 6_071_500_800,
        "llm": 6_910_365_696,
        "": 7_407_773_323,
    },
}
COUNTS["pro_1b"] = COUNTS["janus_1p3b"]
COUNTS["flow_1p3b"] = {
    "understanding/encoder": 303_688_704,
    "understanding/adaptor": 2_099_200,
    "understanding/begin": 2_048,
    "generation/tokenizer/encoder": 34_163_592,
    "generation/tokenizer/decoder": 49_490_179,
    "generation/tokenizer": 83_653_863 + 1,  # and the scale of latents
    "generation/encoder/": 21_614_336,
    "generation/encoder_adaptor": 1_574_912,
    "generation/decoder/": 50_561_296,
    "generation/decoder_": 1_575_680,
    "generation/alignment": 2 * (2048 * 2048 + 2048) + 2048 * 1024 + 1024,
    "llm": 1_652_656_128,
    "": 2_046_367_504 - 12_595_200 + 83_653_864 + 2 * (2048 * 2048 + 2048) + 2048 * 1024 + 1024,
}
COUNTS["flow_1p3b_256"] = COUNTS["flow_1p3b"] | {
    "understanding/encoder": 303_688_704 - (576 - 256) * 1024,
    "": COUNTS["flow_1p3b"][""] - (576 - 256) * 1024,
}
TABLES = {  # lr, decay, warm-up, steps, batch, weight decay, mixture
    "janus_1p3b": {
        "1": (1e-3, "cosine", 300, 10_000, 256, 0, (1, 0, 1)),
        "2": (1e-4, "constant", 5_000, 180_000, 512, 0, (2, 3, 5)),
        "3": (2e-5, "constant", 0, 24_000, 256, 0.1, (7, 3, 10)),
    },
    "pro_1b": {
        "1": (1e-3, "constant", 600, 20_000, 256, 0, (1, 0, 3)),
        "2": (1e-4, "constant", 5_000, 360_000, 512, 0, (2, 3, 5)),
        "3": (4e-5, "constant", 0, 80_000, 128, 0, (5, 1, 4)),
    },
}
TABLES["flow_1p3b"] = {
    "1": (1e-4, "constant", 2_000, 10_000, 512, 0, (50, 0, 50)),
    "2": (1e-4, "constant", 2_000, 390_000, 512, 0, (14, 6, 80)),
    "3": (2e-5, "constant", 1_000, 26_000, 256, 0, (21, 9, 70)),
}
TABLES["flow_1p3b_256"] = TABLES["flow_1p3b"]
TABLES["pro_7b"] = TABLES["pro_1b"] | {"3": (4e-5, "constant", 0, 40_000, 128, 0, (5, 1, 4))}


TINY = ("tiny", "openmoji", "tiny_flow", "openmoji_flow")
# Every model once, and every stage for both generation paths.
TRACED = (
    ("janus_1p3b", "stage_1"),
    ("pro_1b", "stage_3"),
    ("pro_7b", "stage_2"),
    ("flow_1p3b", "stage_2"),
    ("flow_1p3b_256", "stage_3"),
    ("tiny", "tokenizer"),
    ("tiny_flow", "tokenizer"),
    ("openmoji", "stage_2"),
    ("openmoji_flow", "stage_1"),
)


def load(name, stage="all"):
    return importlib.import_module(f"configs.{name}").get_config(stage)


@functools.cache
def stage_of(name, stage):
    """A stage of a shipped config; the networks of stages 1 to 3 are the same."""
    network = None
    if stage not in (freezing.TOKENIZER, "stage_1"):
        network = stage_of(name, "stage_1").network
    return make_stage(load(name).to_dict(), stage, network=network)


def test_parameter_counts_are_the_published_ones():
    for name, counts in COUNTS.items():
        abstract = stage_of(name, "stage_1").network.abstract
        for prefix, count in counts.items():
            size = sum(
                math.prod(a.shape) for path, a in abstract.items() if path.startswith(prefix)
            )
            assert size == count, (name, prefix)


def test_stage_tables_are_the_papers():
    for name, table in TABLES.items():
        for stage, row in table.items():
            s = load(name).stages[f"stage_{stage}"]
            values = (s.lr, s.decay, s.warmup, s.steps, s.batch, s.weight_decay, s.mixture)
            assert values == row, (name, stage)
            assert s.length == 4096 and s.stop_at is None
            assert s.template == ("chat" if stage == "3" else "plain")


@pytest.mark.parametrize("name", [*COUNTS, *TINY])
def test_every_stage_freezes_something_that_exists(name):
    for stage_name in load(name).stages:
        stage = stage_of(name, stage_name)
        trainable, frozen = freezing.split(stage.network.abstract, stage.frozen)
        assert trainable and (frozen or stage.trains_tokenizer)
        if name in COUNTS:
            assert ("llm/embed" in frozen) == (stage_name == "stage_1")
            assert ("understanding/encoder/norm/scale" in frozen) == (stage_name != "stage_3")
            assert not any(path.startswith("generation/tokenizer/") for path in trainable)


@pytest.mark.parametrize(("name", "stage_name"), TRACED)
def test_every_model_trains_under_eval_shape(name, stage_name):
    stage = stage_of(name, stage_name)
    objective = stage.objective

    def loss(params, batch):
        keys = image_keys(batch)
        counts = objective.batch_statistics(params, batch, keys, step=0)
        losses, metrics = objective.loss(params, batch, counts, keys)
        return sum(losses.values()), metrics

    abstract = stage.network.abstract
    # One pack group: `abstract_batch` has those of the whole global batch.
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype),
        train_step.abstract_batch(stage),
    )
    (value, metrics), grads = jax.eval_shape(
        jax.value_and_grad(loss, has_aux=True), abstract, batch
    )
    assert value.shape == () and "loss_gen" in metrics
    shapes = lambda leaves: {path: leaf.shape for path, leaf in leaves.items()}
    assert shapes(grads) == shapes(abstract)


def test_janus_stage_2_starts_on_class_names():
    phases = phases_of(load("janus_1p3b").to_dict()["stages"]["stage_2"])
    sources = [(phase.until, list(phase.sources["generation"])) for phase in phases]
    assert sources == [(120_000, ["imagenet"]), (180_000, ["pictures"])]


def test_every_source_of_a_stage_is_described():
    for name in (*COUNTS, *TINY):
        for stage_name in load(name).stages:
            stage = stage_of(name, stage_name)
            sources = source_names(stage)
            assert sources and set(sources) <= set(stage.config["data"]["sources"]), (
                name,
                stage_name,
            )


def test_an_unknown_stage_is_named():
    with pytest.raises(ValueError, match=r"'4'.*\['1', '2', '3'\]"):
        load("pro_7b", "4")
