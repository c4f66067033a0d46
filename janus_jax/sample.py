"""Draws a picture, or answers a question about one.

python -m janus_jax.sample draw --checkpoint=runs/tiny --prompt='a red star' --num_images=4 --out=star.png
python -m janus_jax.sample ask --checkpoint=runs/tiny --image=star.png --question='What color is the star?'
"""

import sys
from pathlib import Path

import jax
from absl import logging

from janus_jax import assembly, cli, sharding
from janus_jax.data import chat, image_ops
from janus_jax.errors import UserError
from janus_jax.eval.sheet import contact_sheet

CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "A run's workdir, or one of its checkpoints/STEP.")
PROMPT = cli.flags.DEFINE_multi_string("prompt", None, "draw: what to draw; may be given several times.")
NUM_IMAGES = cli.flags.DEFINE_integer("num_images", 1, "draw: pictures a prompt.")
GUIDANCE = cli.flags.DEFINE_float("guidance", None, "draw: guidance scale, 1 is off; 5 (Janus), 2 (JanusFlow) without it.")
TEMPERATURE = cli.flags.DEFINE_float("temperature", None, "1 for draw (Janus), 0 (greedy) for ask without it.")
TOP_K = cli.flags.DEFINE_integer("top_k", None, "draw: only the k likeliest codes (Janus).")
TOP_P = cli.flags.DEFINE_float("top_p", None, "draw: only the likeliest codes that make up p (Janus).")
STEPS = cli.flags.DEFINE_integer("steps", None, "draw: Euler steps (JanusFlow); 30 without it.")
WEIGHTS = cli.flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or not.")
SEED = cli.flags.DEFINE_integer("seed", 0, "Seed of the first picture; the next ones count on.")
OUT = cli.flags.DEFINE_string("out", "drawing.png", "draw: the picture, or a contact sheet of several.")
IMAGE = cli.flags.DEFINE_string("image", None, "ask: a picture file.")
QUESTION = cli.flags.DEFINE_string("question", None, "ask: the question.")
MAX_TOKENS = cli.flags.DEFINE_integer("max_tokens", 256, "ask: longest answer.")


def main(command):
    """Runs one of the two commands."""
    if not CHECKPOINT.value:
        raise UserError("Name a trained run: --checkpoint=runs/tiny.")
    if NUM_IMAGES.value < 1 or SEED.value < 0 or (TEMPERATURE.value or 0) < 0:
        raise UserError("--num_images is at least 1, --seed and --temperature at least 0.")
    if (TOP_K.value or 1) < 1 or not 0 < (TOP_P.value or 1) <= 1 or MAX_TOKENS.value < 1:
        raise UserError("--top_k and --max_tokens are at least 1, --top_p is above 0 and at most 1.")
    if (STEPS.value or 1) < 1:
        raise UserError("--steps is at least 1.")
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        {"draw": draw, "ask": ask}[command](assembly.load_artist(CHECKPOINT.value, mesh=mesh, weights=WEIGHTS.value))


def draw(artist):
    """Draws every prompt NUM_IMAGES times, into one file."""
    if not PROMPT.value:
        raise UserError("Say what to draw: --prompt='a red star'.")
    out = Path(OUT.value)
    if out.suffix.lower() not in image_ops.Image.registered_extensions():
        raise UserError(f"--out={OUT.value} names no picture format; end it in .png.")
    prompts = [p for p in PROMPT.value for _ in range(NUM_IMAGES.value)]
    guidance = artist.guidance(
        scale=GUIDANCE.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, steps=STEPS.value
    )
    pictures = artist.draw(prompts, seeds=range(SEED.value, SEED.value + len(prompts)), guidance=guidance)
    out.parent.mkdir(parents=True, exist_ok=True)
    image = image_ops.Image.fromarray(pictures[0]) if len(pictures) == 1 else contact_sheet(pictures, prompts)
    image.save(out)
    logging.info("Wrote %s", out)


def ask(artist):
    """Prints the answer."""
    if not IMAGE.value or not QUESTION.value:
        raise UserError("Name a picture and ask: --image=star.png --question='What color is the star?'.")
    if chat.IMAGE in QUESTION.value:
        raise UserError(f"--question holds {chat.IMAGE}; the picture stands before the question by itself.")
    if not Path(IMAGE.value).is_file():
        raise UserError(f"No picture at {IMAGE.value!r}.")
    try:
        image = image_ops.decode(Path(IMAGE.value).read_bytes())
    except image_ops.BadRecord as error:
        raise UserError(f"{IMAGE.value!r}: {error}.") from None
    temperature = TEMPERATURE.value or 0.0
    (answer,) = artist.ask(
        [image], [QUESTION.value], max_tokens=MAX_TOKENS.value, temperature=temperature, seeds=[SEED.value]
    )
    sys.stdout.write(answer + "\n")


if __name__ == "__main__":
    cli.run_commands(main, commands=("draw", "ask"), usage=__doc__)
