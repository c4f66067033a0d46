"""Descriptions of a model: comparing and merging."""

import pytest

from janus_jax.convert import model_fields
from janus_jax.errors import UserError

MODEL = {"llm": {"num_layers": 24, "norm_eps": 1e-6}, "generation": {"tokenizer": {"mult": (1, 2)}}}


def test_every_different_field_is_named():
    same = {"llm": {"num_layers": 24}, "generation": {"tokenizer": {"mult": [1, 2]}}}
    model_fields.check_equal(same, MODEL, source="in DIR")
    other = {"llm": {"num_layers": 3}, "generation": {"tokenizer": {"mult": [1], "size": 4}}}
    with pytest.raises(UserError) as error:
        model_fields.check_equal(other, MODEL, source="in DIR")
    for part in (
        "llm.num_layers is 3 in DIR and 24",
        "generation.tokenizer.mult is [1] in DIR and (1, 2)",
        "generation.tokenizer.size is 4 in DIR and None",
    ):
        assert part in str(error.value)


def test_merging_replaces_what_is_described():
    merged = model_fields.merge(MODEL, {"llm": {"num_layers": 3}, "new": {"a": 1}})
    assert merged == MODEL | {"llm": {"num_layers": 3, "norm_eps": 1e-6}, "new": {"a": 1}}
    assert model_fields.flatten(merged)["llm.num_layers"] == 3
    assert MODEL["llm"]["num_layers"] == 24
