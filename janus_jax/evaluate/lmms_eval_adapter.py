r"""A trained model in lmms-eval, which imports this module by the entry point in pyproject.toml.

    python -m lmms_eval --model janus_jax --model_args checkpoint=runs/pro_1b --tasks pope,mme \
        --batch_size 32

It supports what lmms-eval calls simple tasks: images and one question. docs/evaluation.md describes
the installation.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import rich.console
import rich.progress
from lmms_eval.api.model import lmms
from PIL import Image

from janus_jax.data import chat
from janus_jax.data.files import IMAGE_ENDINGS
from janus_jax.data.images import BadRecord, decode
from janus_jax.errors import UserError
from janus_jax.evaluate import runner
from janus_jax.recipe import load

IMAGE_MARK = re.compile(
    rf"<image(?:[ _]?(\d+))?>|{re.escape(chat.IMAGE)}"
)  # where tasks put an image in a text
MAX_TOKENS = 1024  # for tasks that set no maximum, as in most models of lmms-eval
# {setting that the sampler does not have: values that turn it off}
NEUTRAL = {"num_beams": (None, 1), "repetition_penalty": (None, 1)}
NEUTRAL_SAMPLING = {"top_p": (None, 1), "top_k": (None, 0)}  # greedy answers do not depend on these


class Settings(NamedTuple):
    """How an answer is generated."""

    max_tokens: int
    temperature: float  # 0 is greedy


def manifest():
    """What lmms-eval registers."""
    # Imported here because lmms-eval calls this function while it imports that module.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="janus_jax", simple_class_path=f"{__name__}.JanusJax")


class JanusJax(lmms):
    """A trained model with lmms-eval's interface."""

    def __init__(
        self, checkpoint=None, *, batch_size=1, weights="ema", max_batch_size=None, device=None
    ):
        """Loads the model onto all devices that JAX finds.

        Args:
          checkpoint: a run's workdir, or one of its checkpoints/STEP.
          batch_size: requests at once.
          weights: 'ema', the moving average where the run has one, or 'raw'.
          max_batch_size: ignored; lmms-eval passes it to every model.
          device: ignored; lmms-eval passes it to every model.

        Raises:
          UserError: for invalid arguments.
        """
        super().__init__()
        if not checkpoint:
            raise UserError("The checkpoint is missing: --model_args checkpoint=runs/pro_1b.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(
                f"--batch_size is {batch_size!r}; it must be a whole number, at least 1."
            )
        if weights not in ("ema", "raw"):
            raise UserError(f"weights is {weights!r}; known: 'ema' and 'raw'.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                "One process uses all devices; start lmms-eval without accelerate or torchrun."
            )
        self.batch_size = int(batch_size)
        self._sampler = load.load_sampler(checkpoint, weights=weights)

    def generate_until(self, requests):
        """Answers questions.

        Args:
          requests: lmms-eval's Instances, each with its own settings.

        Returns:
          list of strings in the order of the requests. An answer depends on its request and on how
          often the same request came before, not on the batch.
        """
        answers = [None] * len(requests)
        groups = {}  # {Settings: indices of requests}
        for i, request in enumerate(requests):
            groups.setdefault(read_settings(request.args[1]), []).append(i)
        seeds = _seeds(requests)
        console = rich.console.Console(stderr=True)
        with jax.set_mesh(self._sampler.mesh), rich.progress.Progress(console=console) as progress:
            bar = progress.add_task("requests", total=len(requests))
            for settings, members in groups.items():
                # Requests of one task and similar length together: few shapes are compiled.
                members = sorted(
                    members, key=lambda i: (requests[i].args[4], len(requests[i].args[0]))
                )
                count = min(self.batch_size, len(members))
                for start in range(0, len(members), count):
                    part = members[start : start + count]
                    texts = self._answer_batch(requests, part, count, seeds, settings)
                    for i, text in zip(part, texts, strict=False):
                        answers[i] = cut_at_stop(text, requests[i].args[1].get("until"))
                    progress.advance(bar, len(part))
        return answers

    def loglikelihood(self, requests):
        """Not supported: the model generates answers and does not score given ones."""
        raise NotImplementedError(
            "janus_jax does not compute likelihoods of given answers; choose a task whose "
            "output_type is generate_until."
        )

    def generate_until_multi_round(self, requests):
        """Not supported: later rounds of a task depend on earlier answers."""
        raise NotImplementedError(
            "janus_jax answers one question at a time; choose a task whose output_type is "
            "generate_until, without rounds."
        )

    def _answer_batch(self, requests, part, count, seeds, settings):
        """Answers of the requests with indices `part`, padded to `count` by the last one."""
        conversations = {i: self._conversation(requests[i]) for i in part}
        padded = part + part[-1:] * (count - len(part))
        return self._sampler.answer(
            [conversations[i] for i in padded],
            seeds=[seeds[i] for i in padded],
            system="",
            **settings._asdict(),
        )

    def _conversation(self, request):
        """The turns of a request, and their images."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else None
        content, images = user_turn(context, read_images(visuals, task))
        return [{"role": "user", "content": content}], images


def _seeds(requests):
    """A seed for each request; the same request again gets another seed."""
    counts, seeds = Counter(), []
    for request in requests:
        document = tuple(map(str, request.args[3:]))  # id, task, split
        seeds.append(runner.seed_from("lmms-eval", *document, counts[document]))
        counts[document] += 1
    return seeds


def read_settings(gen_kwargs):
    """Reads a task's generation settings; names that are not handled here are for other models.

    Args:
      gen_kwargs: {name: value}; do_sample=False is greedy at any temperature.

    Returns:
      Settings.

    Raises:
      UserError: for settings that would change an answer and that this model does not have.
    """
    temperature = gen_kwargs.get("temperature")
    do_sample = gen_kwargs.get("do_sample")
    if temperature is None:
        temperature = 1 if do_sample else 0
    temperature = 0.0 if do_sample is False else float(temperature)
    neutral = {**NEUTRAL, **(NEUTRAL_SAMPLING if temperature else {})}
    for name, off in neutral.items():
        if gen_kwargs.get(name) not in off:
            raise UserError(
                f"A task sets {name}={gen_kwargs[name]!r}, which janus_jax does not have; "
                f"--gen_kwargs {name}={off[1]} turns it off."
            )
    return Settings(int(gen_kwargs.get("max_new_tokens") or MAX_TOKENS), temperature)


def user_turn(context, images):
    """The user's turn of a question.

    Images are where the text names all of them in order, or by number; images that a numbered text
    does not name come first. In all other cases all images come first and the question on the next
    line, as in VLMEvalKit.

    Args:
      context: a task's text, with or without marks such as <image> or <image 2>.
      images: list.

    Returns:
      the text with `chat.IMAGE` in the place of each image, and the images in the order of these
      places.
    """
    marks = [match[1] for match in IMAGE_MARK.finditer(context)]
    if len(marks) == len(images) and not any(marks):
        marks = range(1, len(images) + 1)
    numbers = [int(mark or 0) for mark in marks]
    if not all(1 <= n <= len(images) for n in numbers):  # unclear which images the marks mean
        context = IMAGE_MARK.sub("", context)
        numbers = []
    first = [image for n, image in enumerate(images, 1) if n not in numbers]
    text = IMAGE_MARK.sub(chat.IMAGE, context.strip())
    content = chat.IMAGE * len(first) + "\n" * bool(first) + text
    return content, first + [images[n - 1] for n in numbers]


def read_images(visuals, task):
    """RGB images from a task's doc_to_visual: None, an image, its file, or lists of them.

    Raises:
      UserError: for anything else, such as videos and sounds.
    """
    if visuals is None:
        return []
    if isinstance(visuals, (list, tuple)):
        return [image for part in visuals for image in read_images(part, task)]
    if isinstance(visuals, Image.Image):
        return [visuals.convert("RGB")]
    if not isinstance(visuals, (str, Path)) or Path(visuals).suffix.lower() not in IMAGE_ENDINGS:
        raise UserError(f"Task {task!r} has the input {visuals!r}; janus_jax supports images only.")
    try:
        return [decode(Path(visuals).read_bytes())]
    except (BadRecord, OSError) as error:
        raise UserError(
            f"An image of task {task!r}, {str(visuals)!r}, cannot be read: {error}."
        ) from None


def cut_at_stop(answer, until):
    """The part of an answer before the first stop string; `until` is one, a list, or None."""
    stops = [until] if isinstance(until, str) else until or []
    ends = [answer.find(stop) for stop in stops if stop and stop in answer]
    return answer[: min(ends, default=len(answer))].rstrip()
