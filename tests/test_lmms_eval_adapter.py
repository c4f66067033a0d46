"""The model in lmms-eval: with stand-ins of that package and of the model, and once with the package itself."""

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

NAME = "janus_jax.lmms_eval_adapter"
SIDES = range(8, 24)  # a picture is known by its side


def picture(side, mode="RGB"):
    return Image.new(mode, (side, side))


class FakeArtist:
    """Answers with what it was asked."""

    def __init__(self):
        self.calls, self.mesh = [], sharding.make_mesh()

    def answer(self, conversations, *, max_tokens, temperature, seeds, system):
        assert not jax.sharding.get_mesh().empty and len(seeds) == len(conversations)
        self.calls.append((len(conversations), max_tokens, temperature, system, tuple(seeds)))
        answers = []
        for turns, images in conversations:
            assert [turn["role"] for turn in turns] == ["user"] and all(i.mode == "RGB" for i in images)
            answers.append(f"{turns[0]['content']}|{[i.width for i in images]}")
        return answers


class Request(NamedTuple):
    args: tuple


def ask(context, doc_id=0, *, task="animals", split="test", show=lambda doc: doc, **settings):
    return Request((context, settings, show, doc_id, task, split))


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, freshly imported on top of stand-ins, which are gone afterwards."""

    class Lmms:
        is_simple = True

        def __init__(self):
            self.task_dict = {}

    class Manifest(NamedTuple):
        model_id: str
        simple_class_path: str

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Lmms
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
    monkeypatch.setitem(sys.modules, NAME, None)
    del sys.modules[NAME]
    return importlib.import_module(NAME)


@pytest.fixture
def sampler(monkeypatch):
    """What load_sampler gives, and what it was asked for."""
    fake = FakeArtist()

    def load(path, *, weights):
        fake.loaded = (path, weights)
        return fake

    monkeypatch.setattr("janus_jax.assembly.load_sampler", load)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return fake


@pytest.fixture
def model(adapter, sampler):
    found = adapter.JanusJax(checkpoint="runs/x", batch_size="3", device="cpu")
    found.task_dict = {"animals": {"test": [[picture(side)] for side in SIDES]}, "words": {"val": [None] * 8}}
    return found


def test_entry_point(adapter):
    entry = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]["janus_jax"]
    module, _, function = entry.partition(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest == ("janus_jax", f"{NAME}.JanusJax")


def test_model_args(adapter, sampler, monkeypatch):
    assert adapter.JanusJax(checkpoint="a").batch_size == 1 and sampler.loaded == ("a", "ema")
    assert adapter.JanusJax(checkpoint="a", weights="raw", batch_size=4, max_batch_size=8).batch_size == 4
    assert sampler.loaded == ("a", "raw")
    for message, wrong in {
        "checkpoint=runs": dict(),
        "'auto'; it is a whole number": dict(checkpoint="a", batch_size="auto"),
        "at least 1": dict(checkpoint="a", batch_size=0),
        "'ema' and 'raw'": dict(checkpoint="a", weights="best"),
    }.items():
        with pytest.raises(UserError, match=message):
            adapter.JanusJax(**wrong)
    with pytest.raises(TypeError, match="chekpoint"):
        adapter.JanusJax(chekpoint="a")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="One process drives all devices"):
        adapter.JanusJax(checkpoint="a")


def test_batches_of_equal_settings_in_the_order_of_the_requests(model, sampler):
    long = dict(max_new_tokens=64, temperature=0, top_p=1.0, num_beams=1, do_sample=False)
    requests = []
    for i in range(7):  # two settings by turns, and questions that grow shorter
        requests.append(ask(f"{'very ' * (7 - i)}big?", i, **(dict(long) if i % 2 else dict(max_new_tokens=16))))
    requests.append(ask("big?", 3, task="words", split="val", max_new_tokens=16, until=[]))
    given = [dict(request.args[1]) for request in requests]
    answers = model.generate_until(requests)
    assert answers[:7] == [f"{IMAGE}\n{'very ' * (7 - i)}big?|[{8 + i}]" for i in range(7)]
    assert answers[7] == "big?|[]"
    # five of one setting are a batch of three and one of two filled up, three of the other fill theirs
    assert [call[:4] for call in sampler.calls] == [(3, 16, 0.0, ""), (3, 16, 0.0, ""), (3, 64, 0.0, "")]
    assert [request.args[1] for request in requests] == given  # lmms-eval goes on using them
    assert model.generate_until([]) == []


def test_few_requests_are_not_filled_up(model, sampler):
    assert len(model.generate_until([ask("a", 1), ask("b", 2)])) == 2
    assert [call[:3] for call in sampler.calls] == [(2, 1024, 0.0)]


def test_seeds_depend_on_the_request_alone(model, sampler):
    requests = [ask("a", i, max_new_tokens=8, temperature=0.5, do_sample=True) for i in (0, 1, 2, 0)]
    model.generate_until(requests)
    seeds = [seed for call in sampler.calls for seed in call[4]][:4]
    assert len(set(seeds)) == 4  # the same question twice is two answers
    sampler.calls.clear()
    model.batch_size = 1
    model.generate_until(requests)
    assert [call[4][0] for call in sampler.calls] == seeds and sampler.calls[0][2] == 0.5


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (1024, 0.0)),
        (dict(max_new_tokens=5, until=["\n"]), (5, 0.0)),
        (dict(temperature=0.2), (1024, 0.2)),
        (dict(temperature=0.2, do_sample=False, top_p=0.9), (1024, 0.0)),
        (dict(do_sample=True), (1024, 1.0)),
        (dict(temperature=0, top_p=0, top_k=1, num_beams=None, image_aspect_ratio="original"), (1024, 0.0)),
    ],
)
def test_settings(adapter, asked, wanted):
    assert adapter.settings(asked) == wanted


@pytest.mark.parametrize("asked", [dict(num_beams=3), dict(repetition_penalty=1.2), dict(temperature=1, top_p=0.9)])
def test_settings_that_are_not_there(adapter, asked):
    name = next(n for n in asked if n != "temperature")
    with pytest.raises(UserError, match=f"{name}={asked[name]}, which janus_jax does not have; --gen_kwargs {name}=1"):
        adapter.settings(asked)


@pytest.mark.parametrize(
    ("context", "count", "text", "order"),
    [
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
    ],
)
def test_places_of_pictures(adapter, context, count, text, order):
    content, pictures = adapter.user_turn(context, list(range(1, count + 1)))
    assert (content.replace(IMAGE, "I"), pictures) == (text, order)
    assert content.count(IMAGE) == len(pictures)


def test_pictures_of_tasks(adapter, tmp_path):
    picture(9).save(tmp_path / "a.png")
    found = adapter.pictures_of([[picture(8, "RGBA")], str(tmp_path / "a.png"), (picture(10, "L"),)], "t")
    assert [(p.width, p.mode) for p in found] == [(8, "RGB"), (9, "RGB"), (10, "RGB")]
    assert adapter.pictures_of(None, "t") == []
    for wrong in ("film.mp4", {"array": [0.0], "sampling_rate": 8}, io.BytesIO()):
        with pytest.raises(UserError, match="Task 't' shows .* looks at pictures only"):
            adapter.pictures_of([wrong], "t")
    (tmp_path / "b.png").write_text("<html>")
    for name in ("b.png", "c.png"):
        with pytest.raises(UserError, match=f"of task 't', .*{name}', cannot be read"):
            adapter.pictures_of(tmp_path / name, "t")


def test_answers_end_before_the_first_stop(adapter, model):
    for until, wanted in {
        None: "red. \n\nQ: why",
        "\n\n": "red.",
        ("Q:", "."): "red",
        ("", "Z"): "red. \n\nQ: why",
        ("red",): "",
    }.items():
        assert adapter.cut("red. \n\nQ: why", list(until) if isinstance(until, tuple) else until) == wanted
    requests = [ask("one two", 0, until=["two"]), ask("one two", 1, until="one"), ask("one two", 2)]
    assert model.generate_until(requests) == [f"{IMAGE}\none", IMAGE, f"{IMAGE}\none two|[10]"]


def test_a_task_of_text_alone(model):
    assert model.generate_until([ask("Why?", show=None)]) == ["Why?|[]"]


def test_what_it_cannot_do_is_said(model):
    with pytest.raises(NotImplementedError, match="scores no given ones; choose a task"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_in_lmms_eval_itself(sampler, monkeypatch):
    """Its registry finds the class, its Instances are answered."""
    models = pytest.importorskip("lmms_eval.models")
    instances = importlib.import_module("lmms_eval.api.instance")
    adapter = importlib.import_module(NAME)
    registry = models.MODEL_REGISTRY_V2
    registry.register_manifest(adapter.manifest(), overwrite=True)  # there already where the project is installed
    found = registry.get_model_class("janus_jax").create_from_arg_string(
        "checkpoint=runs/x,weights=raw", {"batch_size": "2", "max_batch_size": None, "device": None}
    )
    assert sampler.loaded == ("runs/x", "raw") and isinstance(found, adapter.JanusJax)
    found.task_dict["stub"] = {"test": [[picture(side)] for side in SIDES]}
    requests = [
        instances.Instance(
            request_type="generate_until",
            arguments=(f"What is {i}?", {"max_new_tokens": 4, "until": ["?"]}, lambda doc: doc, i, "stub", "test"),
            idx=0,
            metadata={"task": "stub", "doc_id": i, "repeats": 1},
        )
        for i in range(3)
    ]
    assert found.generate_until(requests) == [f"{IMAGE}\nWhat is {i}" for i in range(3)]
    found.clean()
