"""The model in lmms-eval: with fakes of package and model, and once with the package itself."""

import importlib
import io
import sys
import tomllib
import types
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from PIL import Image

from janus_jax import sharding
from janus_jax.data.chat import IMAGE
from janus_jax.errors import UserError

NAME = "janus_jax.evaluate.lmms_eval_adapter"
SIDES = range(8, 24)  # an image is identified by its side


def square(side, mode="RGB"):
    return Image.new(mode, (side, side))


class FakeSampler:
    """Answers with its inputs."""

    def __init__(self):
        self.calls, self.mesh = [], sharding.make_mesh()

    def answer(self, conversations, *, max_tokens, temperature, seeds, system):
        assert not jax.sharding.get_mesh().empty and len(seeds) == len(conversations)
        self.calls.append((len(conversations), max_tokens, temperature, system, tuple(seeds)))
        answers = []
        for turns, images in conversations:
            assert [turn["role"] for turn in turns] == ["user"] and all(
                i.mode == "RGB" for i in images
            )
            answers.append(f"{turns[0]['content']}|{[i.width for i in images]}")
        return answers


class Request(NamedTuple):
    args: tuple


def ask(context, doc_id=0, *, task="animals", split="test", show=lambda doc: doc, **settings):
    return Request((context, settings, show, doc_id, task, split))


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, imported with fakes of lmms_eval, which are removed afterwards."""

    class Lmms:
        is_simple = True

        def __init__(self):
            self.task_dict = {}

    class Manifest(NamedTuple):
        model_id: str
        simple_class_path: str

    for name in (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    ):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Lmms
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
    monkeypatch.setitem(sys.modules, NAME, None)
    del sys.modules[NAME]
    return importlib.import_module(NAME)


@pytest.fixture
def sampler(monkeypatch):
    """What load_sampler returns; `loaded` has its arguments."""
    fake = FakeSampler()

    def load(path, *, weights):
        fake.loaded = (path, weights)
        return fake

    monkeypatch.setattr("janus_jax.recipe.load.load_sampler", load)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return fake


@pytest.fixture
def model(adapter, sampler):
    model = adapter.JanusJax(checkpoint="runs/x", batch_size="3", device="cpu")
    model.task_dict = {
        "animals": {"test": [[square(side)] for side in SIDES]},
        "words": {"val": [None] * 8},
    }
    return model


def test_entry_point(adapter):
    entry = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ]["janus_jax"]
    module, _, function = entry.partition(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest == ("janus_jax", f"{NAME}.JanusJax")


def test_model_args(adapter, sampler, monkeypatch):
    assert adapter.JanusJax(checkpoint="a").batch_size == 1 and sampler.loaded == ("a", "ema")
    assert (
        adapter.JanusJax(checkpoint="a", weights="raw", batch_size=4, max_batch_size=8).batch_size
        == 4
    )
    assert sampler.loaded == ("a", "raw")
    for message, wrong in {
        "checkpoint=": dict(),
        "'auto'": dict(checkpoint="a", batch_size="auto"),
        "batch_size is 0": dict(checkpoint="a", batch_size=0),
        "'ema' and 'raw'": dict(checkpoint="a", weights="best"),
    }.items():
        with pytest.raises(UserError, match=message):
            adapter.JanusJax(**wrong)
    with pytest.raises(TypeError, match="chekpoint"):
        adapter.JanusJax(chekpoint="a")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="accelerate or torchrun"):
        adapter.JanusJax(checkpoint="a")


def test_batches_of_equal_settings_in_the_order_of_the_requests(model, sampler):
    long = dict(max_new_tokens=64, temperature=0, top_p=1.0, num_beams=1, do_sample=False)
    requests = []
    for i in range(7):  # alternating settings, questions of decreasing length
        requests.append(
            ask(f"{'very ' * (7 - i)}big?", i, **(dict(long) if i % 2 else dict(max_new_tokens=16)))
        )
    requests.append(ask("big?", 3, task="words", split="val", max_new_tokens=16, until=[]))
    given = [dict(request.args[1]) for request in requests]
    answers = model.generate_until(requests)
    assert answers[:7] == [f"{IMAGE}\n{'very ' * (7 - i)}big?|[{8 + i}]" for i in range(7)]
    assert answers[7] == "big?|[]"
    # five of one setting are a batch of three and a padded one, three of the other are one batch
    assert [call[:4] for call in sampler.calls] == [
        (3, 16, 0.0, ""),
        (3, 16, 0.0, ""),
        (3, 64, 0.0, ""),
    ]
    assert [request.args[1] for request in requests] == given  # lmms-eval uses them again
    assert model.generate_until([]) == []


def test_few_requests_are_not_padded(model, sampler):
    assert len(model.generate_until([ask("a", 1), ask("b", 2)])) == 2
    assert [call[:3] for call in sampler.calls] == [(2, 1024, 0.0)]


def test_seeds_depend_on_the_request_only(model, sampler):
    requests = [
        ask("a", i, max_new_tokens=8, temperature=0.5, do_sample=True) for i in (0, 1, 2, 0)
    ]
    model.generate_until(requests)
    seeds = [seed for call in sampler.calls for seed in call[4]][:4]
    assert len(set(seeds)) == 4  # the same question again has another seed
    sampler.calls.clear()
    model.batch_size = 1
    model.generate_until(requests)
    assert [call[4][0] for call in sampler.calls] == seeds and sampler.calls[0][2] == 0.5


def test_settings(adapter):
    for gen_kwargs, expected in [
        ({}, (1024, 0.0)),
        (dict(max_new_tokens=5, until=["\n"]), (5, 0.0)),
        (dict(temperature=0.2), (1024, 0.2)),
        (dict(temperature=0.2, do_sample=False, top_p=0.9), (1024, 0.0)),
        (dict(do_sample=True), (1024, 1.0)),
        (
            dict(temperature=0, top_p=0, top_k=1, num_beams=None, image_aspect_ratio="original"),
            (1024, 0.0),
        ),
    ]:
        assert adapter.read_settings(gen_kwargs) == expected, gen_kwargs


def test_unsupported_settings_are_refused(adapter):
    for name, gen_kwargs in [
        ("num_beams", dict(num_beams=3)),
        ("repetition_penalty", dict(repetition_penalty=1.2)),
        ("top_p", dict(temperature=1, top_p=0.9)),
    ]:
        with pytest.raises(UserError, match=f"{name}={gen_kwargs[name]}.* --gen_kwargs {name}=1"):
            adapter.read_settings(gen_kwargs)


def test_places_of_images(adapter):
    for context, count, text, order in [
        ("What?", 1, "I\nWhat?", [1]),
        ("What?", 2, "II\nWhat?", [1, 2]),
        ("What?", 0, "What?", []),
        ("<image>\nWhat?", 1, "I\nWhat?", [1]),
        (f"{IMAGE}\nWhat?", 1, "I\nWhat?", [1]),
        ("Is <image> like <image>?", 2, "Is I like I?", [1, 2]),
        ("Is <image 2> like <image 1>?", 2, "Is I like I?", [2, 1]),
        ("<image_1> or <image1>?", 1, "I or I?", [1, 1]),
        ("Is <image 2> red?", 3, "II\nIs I red?", [1, 3, 2]),
        ("<image>\nWhat?", 2, "II\nWhat?", [1, 2]),
        ("<image> <image>\nWhat?", 1, "I\nWhat?", [1]),
        ("Is <image 3> red?", 1, "I\nIs  red?", [1]),
        ("<image>\nWhat?", 0, "What?", []),
        ("Is <image 1> like <image>?", 2, "II\nIs  like ?", [1, 2]),
    ]:
        content, images = adapter.user_turn(context, list(range(1, count + 1)))
        assert (content.replace(IMAGE, "I"), images) == (text, order), context
        assert content.count(IMAGE) == len(images)


def test_images_of_tasks(adapter, tmp_path):
    square(9).save(tmp_path / "a.png")
    images = adapter.read_images(
        [[square(8, "RGBA")], str(tmp_path / "a.png"), (square(10, "L"),)], "t"
    )
    assert [(p.width, p.mode) for p in images] == [(8, "RGB"), (9, "RGB"), (10, "RGB")]
    assert adapter.read_images(None, "t") == []
    for wrong in ("film.mp4", {"array": [0.0], "sampling_rate": 8}, io.BytesIO()):
        with pytest.raises(UserError, match="Task 't'.*images only"):
            adapter.read_images([wrong], "t")
    (tmp_path / "b.png").write_text("<html>")
    for name in ("b.png", "c.png"):
        with pytest.raises(UserError, match=f"task 't', .*{name}'"):
            adapter.read_images(tmp_path / name, "t")


def test_answers_end_before_the_first_stop(adapter, model):
    for until, expected in {
        None: "red. \n\nQ: why",
        "\n\n": "red.",
        ("Q:", "."): "red",
        ("", "Z"): "red. \n\nQ: why",
        ("red",): "",
    }.items():
        assert (
            adapter.cut_at_stop(
                "red. \n\nQ: why", list(until) if isinstance(until, tuple) else until
            )
            == expected
        )
    requests = [ask("one two", 0, until=["two"]), ask("one two", 1, until="one"), ask("one two", 2)]
    assert model.generate_until(requests) == [f"{IMAGE}\none", IMAGE, f"{IMAGE}\none two|[10]"]


def test_a_task_without_images(model):
    assert model.generate_until([ask("Why?", show=None)]) == ["Why?|[]"]


def test_unsupported_requests(model):
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.generate_until_multi_round([])


def test_in_lmms_eval_itself(sampler, monkeypatch):
    """The registry finds the class, and the model answers Instances."""
    models = pytest.importorskip("lmms_eval.models")
    instances = importlib.import_module("lmms_eval.api.instance")
    adapter = importlib.import_module(NAME)
    registry = models.MODEL_REGISTRY_V2
    registry.register_manifest(
        adapter.manifest(), overwrite=True
    )  # it may be registered by an installed package
    model = registry.get_model_class("janus_jax").create_from_arg_string(
        "checkpoint=runs/x,weights=raw", {"batch_size": "2", "max_batch_size": None, "device": None}
    )
    assert sampler.loaded == ("runs/x", "raw") and isinstance(model, adapter.JanusJax)
    model.task_dict["stub"] = {"test": [[square(side)] for side in SIDES]}
    requests = [
        instances.Instance(
            request_type="generate_until",
            arguments=(
                f"What is {i}?",
                {"max_new_tokens": 4, "until": ["?"]},
                lambda doc: doc,
                i,
                "stub",
                "test",
            ),
            idx=0,
            metadata={"task": "stub", "doc_id": i, "repeats": 1},
        )
        for i in range(3)
    ]
    assert model.generate_until(requests) == [f"{IMAGE}\nWhat is {i}" for i in range(3)]
    model.clean()
