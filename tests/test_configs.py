"""The papers' numbers, and every config at every stage under eval_shape."""

import importlib
import math

import jax
import jax.numpy as jnp
import pytest

from janus_jax.batch import Batch
from janus_jax.models.janus import count_targets
from janus_jax.recipe import assembly, freezing

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


def load(name, stage="all"):
    return importlib.import_module(f"configs.{name}").get_config(stage)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    network = assembly.build_network(load(name).to_dict(), "stage_1")
    for prefix, count in COUNTS[name].items():
        found = sum(math.prod(a.shape) for p, a in network.abstract.items() if p == prefix or p.startswith(prefix))
        assert found == count, prefix


@pytest.mark.parametrize("name", TABLES)
def test_stage_tables_are_the_papers(name):
    for stage, row in TABLES[name].items():
        s = load(name).stages[f"stage_{stage}"]
        assert (s.lr, s.decay, s.warmup, s.steps, s.batch, s.weight_decay, s.mixture) == row
        assert s.length == 4096 and s.stop_at is None
        assert s.template == ("chat" if stage == "3" else "plain")


@pytest.mark.parametrize("name", [*COUNTS, "tiny", "openmoji", "tiny_flow", "openmoji_flow"])
def test_every_stage_freezes_something_that_exists(name):
    config = load(name)
    for stage in config.stages:
        network = assembly.build_network(config.to_dict(), stage)
        trainable, frozen = freezing.split(network.abstract, assembly.frozen_patterns(config.to_dict(), stage))
        assert trainable and (frozen or stage == freezing.TOKENIZER)
        if name in COUNTS:
            assert ("llm/embed" in frozen) == (stage == "stage_1")
            assert ("understanding/encoder/norm/scale" in frozen) == (stage != "stage_3")
            assert not any(p.startswith("generation/tokenizer/") for p in trainable)


@pytest.mark.parametrize("stage", ["stage_1", "stage_2", "stage_3"])
@pytest.mark.parametrize("name", [*COUNTS, "tiny", "openmoji", "tiny_flow", "openmoji_flow"])
def test_every_model_trains_under_eval_shape(name, stage):
    config = load(name).to_dict()
    s = config["stages"][stage]
    network = assembly.build_network(config, stage)
    row = jax.ShapeDtypeStruct((1, s["rows"], s["length"]), jnp.int32)
    pictures = lambda n, size: jax.ShapeDtypeStruct((1, n, size, size, 3), jnp.uint8)
    start = lambda n: jax.ShapeDtypeStruct((1, n), jnp.int32)
    weights = jax.ShapeDtypeStruct(row.shape, jnp.float32)
    u, g = s["und_slots"], s["gen_slots"]
    model = config["model"]
    und, gen = model["understanding"]["encoder"]["image_size"], model["generation"]["image_size"]
    batch = Batch(row, row, row, weights, row, pictures(u, und), start(u), pictures(g, gen), start(g))

    def loss(params, batch):
        keys = jax.random.split(jax.random.key(0), batch.gen_start.shape)
        return network.merge(params).loss(batch, counts=count_targets(batch), keys=keys)

    (value, metrics), grads = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), network.abstract, batch)
    assert value.shape == () and "loss_gen" in metrics
    assert {p: g.shape for p, g in grads.items()} == {p: a.shape for p, a in network.abstract.items()}


def test_janus_stage_2_starts_on_class_names():
    phases = assembly.phases_of(load("janus_1p3b").to_dict()["stages"]["stage_2"])
    assert [(p.until, list(p.sources["generation"])) for p in phases] == [(120_000, ["imagenet"]), (180_000, ["pictures"])]


def test_an_unknown_stage_is_named():
    with pytest.raises(ValueError, match=r"no stage '4'; known stages: \['1', '2', '3'\]"):
        load("pro_7b", "4")
