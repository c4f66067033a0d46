"""Draws a picture, or answers a question about one.

python -m janus_jax.sample draw --checkpoint=runs/tiny --prompt='a red star' --num_images=4 --out=star.png
python -m janus_jax.sample ask --checkpoint=runs/tiny --image=star.png --question='What color is the star?'

Several questions are asked one after the other, each with the answers before it; the pictures stand before the first.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import logging

from janus_jax import cli
from janus_jax.data import chat
from janus_jax.data import images as image_ops
from janus_jax.data.files import make_folder
from janus_jax.errors import UserError
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.recipe import assembly

CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints/STEP.")
PROMPT = cli.flags.DEFINE_multi_string("prompt", None, "draw: what to draw; may be given several times.")
NUM_IMAGES = cli.flags.DEFINE_integer("num_images", 1, "draw: pictures a prompt.", lower_bound=1)
GUIDANCE = cli.define_finite("guidance", None, "draw: guidance scale, 1 is off; 5 (Janus), 2 (JanusFlow) without it.")
TEMPERATURE = cli.define_finite("temperature", None, "1 for draw (Janus), 0 (greedy) for ask without it.", lower_bound=0)
TOP_K = cli.flags.DEFINE_integer("top_k", None, "draw: only the k likeliest codes (Janus).", lower_bound=1)
TOP_P = cli.define_finite(
    "top_p", None, "draw: only the likeliest codes that make up p (Janus).", lower_bound=0, upper_bound=1
)
STEPS = cli.flags.DEFINE_integer("steps", None, "draw: Euler steps (JanusFlow); 30 without it.", lower_bound=1)
WEIGHTS = cli.flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or not.")
DTYPE = cli.flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "The run's own without it, on CPU mostly fp32.")
SEED = cli.flags.DEFINE_integer("seed", 0, "Seed of the first picture; the next ones count on.", 0, 2**32 - 1)
OUT = cli.flags.DEFINE_string("out", "drawing.png", "draw: the picture, or a contact sheet of several.")
IMAGE = cli.flags.DEFINE_multi_string("image", None, "ask: a picture file; may be given several times.")
QUESTION = cli.flags.DEFINE_multi_string("question", None, "ask: the question; several make a conversation.")
MAX_TOKENS = cli.flags.DEFINE_integer("max_tokens", 256, "ask: longest answer.", lower_bound=1)

CHUNK = 8  # ids between two looks at a growing answer


def main(command):
    """Runs one of the two commands."""
    if not CHECKPOINT.value:
        raise UserError("Name a trained run: --checkpoint=runs/tiny.")
    {"draw": draw, "ask": ask}[command]()


def draw():
    """Draws every prompt NUM_IMAGES times, into one file."""
    if not PROMPT.value or not all(map(str.strip, PROMPT.value)):
        raise UserError("Say what to draw: --prompt='a red star'.")
    if TOP_P.value == 0:
        raise UserError("--top_p is above 0; --temperature=0 draws the likeliest codes alone.")
    out, count, n = Path(OUT.value), len(PROMPT.value), NUM_IMAGES.value
    if image_ops.Image.registered_extensions().get(out.suffix.lower()) not in image_ops.Image.SAVE:
        raise UserError(f"--out={OUT.value} names no picture format; end it in .png.")
    if out.is_dir():
        raise UserError(f"--out={OUT.value} is a folder; name the picture.")
    if SEED.value + count * n > 2**32:
        raise UserError(f"--seed={SEED.value} leaves no seeds for {count * n} pictures; the last one is {2**32 - 1}.")
    make_folder(out.parent)
    sampler = _sampler()
    guidance = sampler.guidance(
        scale=GUIDANCE.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, steps=STEPS.value
    )
    seeds = np.arange(SEED.value, SEED.value + count * n).reshape(count, n)
    with jax.set_mesh(sampler.mesh):
        pictures = sampler.draw(PROMPT.value, seeds=seeds, guidance=guidance)
    pictures = pictures.reshape(-1, *pictures.shape[2:])
    captions = [prompt for prompt in PROMPT.value for _ in range(n)]
    image = image_ops.Image.fromarray(pictures[0]) if len(pictures) == 1 else contact_sheet(pictures, captions)
    try:
        image.save(out)
    except OSError as error:
        raise UserError(f"--out={OUT.value} cannot be written: {error.strerror or error}.") from None
    logging.info("Wrote %s", out)


def ask():
    """Prints the answers while they grow."""
    if ignored := [flag.name for flag in (GUIDANCE, TOP_K, TOP_P, STEPS) if flag.value is not None]:
        raise UserError(f"--{ignored[0]} is for draw; answers know --temperature alone.")
    if not IMAGE.value or not QUESTION.value:
        raise UserError("Name a picture and ask: --image=star.png --question='What color is the star?'.")
    if any(chat.IMAGE in question for question in QUESTION.value):
        raise UserError(f"--question holds {chat.IMAGE}; the pictures stand before the first question by themselves.")
    images, turns = [_opened(path) for path in IMAGE.value], []
    sampler = _sampler()
    settings = dict(max_tokens=MAX_TOKENS.value, temperature=TEMPERATURE.value or 0.0, seeds=[SEED.value])
    with jax.set_mesh(sampler.mesh):
        for question in QUESTION.value:
            pictures = "" if turns else f"{chat.IMAGE}\n" * len(images)
            turns.append({"role": "user", "content": pictures + question})
            answer = _told(sampler.stream([(turns, images)], every=CHUNK, **settings))
            turns.append({"role": "assistant", "content": answer})


def _told(growing):
    """Writes an answer while it grows, and gives it back whole."""
    shown = ""
    for (answer,) in growing:
        if answer.startswith(shown) and not answer.endswith("\ufffd"):  # a character may still lack its last bytes
            sys.stdout.write(answer[len(shown) :])
            sys.stdout.flush()
            shown = answer
    sys.stdout.write(answer[len(shown) :] + "\n")
    return answer


def _sampler():
    """The model that the flags name."""
    return assembly.load_sampler(CHECKPOINT.value, weights=WEIGHTS.value, dtype=DTYPE.value)


def _opened(path):
    """A picture file, RGB."""
    if not Path(path).is_file():
        raise UserError(f"No picture at {path!r}.")
    try:
        return image_ops.decode(Path(path).read_bytes())
    except image_ops.BadRecord as error:
        raise UserError(f"{path!r}: {error}.") from None


if __name__ == "__main__":
    cli.run_commands(main, commands=("draw", "ask"), usage=__doc__)
