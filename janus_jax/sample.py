r"""Generates an image, or answers a question about one.

    python -m janus_jax.sample draw --checkpoint=runs/tiny --prompt='a red star' --out=star.png
    python -m janus_jax.sample ask --checkpoint=runs/tiny --image=star.png \
        --question='What color is the star?'

Several questions are asked in turn, each after the answers to the ones before it; the images come
before the first.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image

from janus_jax import cli
from janus_jax.data import chat
from janus_jax.data.files import make_folder
from janus_jax.data.images import BadRecord, decode
from janus_jax.errors import UserError
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.recipe.load import load_sampler

SAMPLING = cli.sampling_flags()
PROMPT = cli.flags.DEFINE_multi_string(
    "prompt", None, "draw: description of the image; may be repeated."
)
NUM_IMAGES = cli.flags.DEFINE_integer("num_images", 1, "draw: images per prompt.", lower_bound=1)
SEED = cli.flags.DEFINE_integer(
    "seed", 0, "Seed of the first image; the next images add 1 each.", 0, 2**32 - 1
)
OUT = cli.flags.DEFINE_string(
    "out", "drawing.png", "draw: image file; a contact sheet if there are several images."
)
IMAGE = cli.flags.DEFINE_multi_string("image", None, "ask: an image file; may be repeated.")
QUESTION = cli.flags.DEFINE_multi_string(
    "question", None, "ask: the question; several form a conversation."
)
MAX_TOKENS = cli.flags.DEFINE_integer(
    "max_tokens", 256, "ask: maximum length of an answer.", lower_bound=1
)

CHUNK = 8  # tokens between two updates of a printed answer


def main(command):
    """Runs one of the two commands."""
    if not SAMPLING.checkpoint.value:
        raise UserError(
            "--checkpoint is missing: name a trained run, such as --checkpoint=runs/tiny."
        )
    {"draw": draw, "ask": ask}[command]()


def draw():
    """Generates NUM_IMAGES images per prompt and writes them to one file."""
    if not PROMPT.value or not all(map(str.strip, PROMPT.value)):
        raise UserError(
            "--prompt is missing or empty: describe the image, such as --prompt='a red star'."
        )
    settings = SAMPLING.image_settings()
    out = Path(OUT.value)
    prompts = PROMPT.value
    count = len(prompts) * NUM_IMAGES.value
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(
            f"--out={OUT.value} has no known image format; use a name that ends in .png."
        )
    if out.is_dir():
        raise UserError(f"--out={OUT.value} is a folder; name an image file.")
    if SEED.value + count > 2**32:
        raise UserError(
            f"--seed={SEED.value} is too large for {count} images; the largest seed is {2**32 - 1}."
        )
    make_folder(out.parent)
    sampler = _load_sampler()
    guidance = sampler.guidance(**settings)
    seeds = np.arange(SEED.value, SEED.value + count).reshape(len(prompts), NUM_IMAGES.value)
    with jax.set_mesh(sampler.mesh):
        images = sampler.draw(prompts, seeds=seeds, guidance=guidance)
    images = images.reshape(-1, *images.shape[2:])
    captions = [prompt for prompt in prompts for _ in range(NUM_IMAGES.value)]
    image = Image.fromarray(images[0]) if len(images) == 1 else contact_sheet(images, captions)
    try:
        image.save(out)
    except OSError as error:
        raise UserError(
            f"--out={OUT.value} cannot be written: {error.strerror or error}."
        ) from None
    logging.info("Wrote %s", out)


def ask():
    """Answers the questions one by one and prints each answer while it is generated."""
    images_only = (SAMPLING.guidance, SAMPLING.top_k, SAMPLING.top_p, SAMPLING.steps)
    if given := [flag.name for flag in images_only if flag.value is not None]:
        raise UserError(f"--{given[0]} applies to draw only; answers have --temperature.")
    if not IMAGE.value or not QUESTION.value:
        raise UserError(
            "ask needs --image and --question: --image=star.png --question='What color is the "
            "star?'."
        )
    if any(chat.IMAGE in question for question in QUESTION.value):
        raise UserError(
            f"--question contains {chat.IMAGE}; remove it: images are put before the first "
            "question."
        )
    images = [_open(path) for path in IMAGE.value]
    turns = []
    sampler = _load_sampler()
    temperature = SAMPLING.temperature.value or 0.0
    settings = dict(max_tokens=MAX_TOKENS.value, temperature=temperature, seeds=[SEED.value])
    with jax.set_mesh(sampler.mesh):
        for question in QUESTION.value:
            image_marks = "" if turns else f"{chat.IMAGE}\n" * len(images)
            turns.append({"role": "user", "content": image_marks + question})
            answer = _print(sampler.stream([(turns, images)], every=CHUNK, **settings))
            turns.append({"role": "assistant", "content": answer})


def _print(answers):
    """Prints an answer while it is generated and returns it; `answers` yields [text so far]."""
    printed = ""
    for (answer,) in answers:
        # The last character may still miss some of its bytes.
        if answer.startswith(printed) and not answer.endswith("\ufffd"):
            sys.stdout.write(answer[len(printed) :])
            sys.stdout.flush()
            printed = answer
    sys.stdout.write(answer[len(printed) :] + "\n")
    return answer


def _load_sampler():
    """The model that the flags name."""
    return load_sampler(
        SAMPLING.checkpoint.value, weights=SAMPLING.weights.value, dtype=SAMPLING.dtype.value
    )


def _open(path):
    """The image in a file, RGB."""
    if not Path(path).is_file():
        raise UserError(f"--image={path}: there is no such file.")
    try:
        return decode(Path(path).read_bytes())
    except BadRecord as error:
        raise UserError(f"--image={path} cannot be read: {error}.") from None


if __name__ == "__main__":
    cli.run_commands(main, commands=("draw", "ask"), usage=__doc__)
