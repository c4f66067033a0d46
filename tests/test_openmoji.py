"""The emoji: names, the split, and examples made from the TensorFlow data set."""

import collections
import re

import numpy as np
import pytest

from configs import openmoji as page
from janus_jax.data import images
from janus_jax.data.examples import Augmentation, ExampleMaker, ImageTokens, Template
from janus_jax.data.sources import Source
from janus_jax.data.tokenizer import load
from janus_jax.prepare import openmoji


@pytest.fixture(scope="module")
def emoji():
    return openmoji.list_emoji()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emoji):
    folder = tmp_path_factory.mktemp("openmoji")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "list_emoji", lambda: emoji[::60])
        openmoji.write(folder)
    return folder


def test_names_and_groups_and_prompts_of_the_training_split(emoji):
    names = [name for _, name, _ in emoji]
    train = {name for name in names if openmoji.split_of(name) == "train"}
    assert len(emoji) >= 3_500 and len({group for *_, group in emoji}) >= 9
    assert set(page.PROMPTS) <= train
    assert 0.08 < 1 - len(train) / len(set(names)) < 0.12


def test_the_config_asks_what_the_tokenizer_knows():
    assert page.QUESTION == f"={openmoji.QUESTION}"


def test_skin_tones_stay_on_one_side_of_the_split(emoji):
    sides = collections.defaultdict(set)
    for _, name, _ in emoji:
        base = re.sub("(medium-light|medium-dark|light|medium|dark) skin tone", "", name)
        sides[" ".join(base.split())].add(openmoji.split_of(name))
    del sides[""]  # the tones are emoji themselves
    assert len(sides) < len(emoji) / 2 and all(len(side) == 1 for side in sides.values())


def test_records_become_examples(folder):
    config = page.get_config()
    make = ExampleMaker(
        load(folder / "tokenizer.json"),
        template=Template("chat", roles=config.data.roles),
        image_tokens=ImageTokens(und_tokens=16, gen_tokens=64),
        augmentation=Augmentation(prompt_drop=0.0),
        max_length=256,
    )
    for name, settings in config.data.sources.to_dict().items():
        task = {"pictures": "generation"}.get(name, name)
        settings["path"] = str(folder / "openmoji/1.0.0")
        source = Source(task, **settings)
        example = make(source[0], task=task, rng=np.random.default_rng(0), record_id="0")
        assert example.text_weights.any() == (task != "generation")
        for image in example.und_images + example.gen_images:
            pixels = images.for_generation(images.decode(image), size=64)
            assert pixels.shape == (64, 64, 3) and pixels.std() > 5


def test_the_set_carries_its_licence(folder):
    assert "CC BY-SA 4.0" in (folder / "about.json").read_text()
    assert "OpenMoji" in (folder / "openmoji/1.0.0/dataset_info.json").read_text()
