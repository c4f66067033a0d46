"""A trained model in lmms-eval, which finds it through the entry point in pyproject.toml; nothing else imports this.

    python -m lmms_eval --model janus_jax --model_args checkpoint=runs/pro_1b --tasks pope,mme --batch_size 32

Answers what lmms-eval calls simple tasks: pictures and one question. docs/evaluation.md says how it is installed.
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
from janus_jax.data import images as image_ops
from janus_jax.data.files import PICTURES
from janus_jax.errors import UserError
from janus_jax.evaluate import runner
from janus_jax.recipe import assembly

PLACE = re.compile(rf"<image(?:[ _]?(\d+))?>|{re.escape(chat.IMAGE)}")  # how tasks write where a picture stands
MAX_TOKENS = 1024  # longest answer where a task names none, as in most models there
NEUTRAL = {"num_beams": (None, 1), "repetition_penalty": (None, 1)}  # settings that the sampler has not, switched off
NEUTRAL_SAMPLING = {"top_p": (None, 1), "top_k": (None, 0)}  # greedy answers do not depend on these


class Settings(NamedTuple):
    """How an answer is made."""

    max_tokens: int
    temperature: float  # 0 is greedy


def manifest():
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest  # on import its package asks for this very function

    return ModelManifest(model_id="janus_jax", simple_class_path=f"{__name__}.JanusJax")


class JanusJax(lmms):
    """A trained model behind lmms-eval's interface."""

    def __init__(self, checkpoint=None, *, batch_size=1, weights="ema", max_batch_size=None, device=None):
        """Loads the model onto all devices that JAX finds.

        Args:
          checkpoint: a run's workdir, or one of its checkpoints/STEP.
          batch_size: requests at once.
          weights: 'ema', the moving average where the run kept one, or 'raw'.
          max_batch_size, device: lmms-eval gives them to every model; they change nothing here.

        Raises:
          UserError: for arguments that make no sense.
        """
        super().__init__()
        if not checkpoint:
            raise UserError("Name a run: --model_args checkpoint=runs/pro_1b.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size is {batch_size!r}; it is a whole number, at least 1.")
        if weights not in ("ema", "raw"):
            raise UserError(f"weights is {weights!r}; known: 'ema' and 'raw'.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("One process drives all devices; start lmms-eval without accelerate or torchrun.")
        self.batch_size = int(batch_size)
        self._sampler = assembly.load_sampler(checkpoint, weights=weights)

    def generate_until(self, requests):
        """Answers of the tasks' questions.

        Args:
          requests: lmms-eval's Instances, each with its own settings.

        Returns:
          list of strings in the order of the requests. An answer depends on its request, on how often the same one came
          before, and not on the batch.
        """
        answers, groups, seen, seeds = [None] * len(requests), {}, Counter(), []
        for i, request in enumerate(requests):
            _, asked, _, *document = request.args
            groups.setdefault(settings(asked), []).append(i)
            name = tuple(map(str, document))
            seeds.append(runner.seed_of("lmms-eval", *name, seen[name]))
            seen[name] += 1
        size = lambda i: (requests[i].args[4], len(requests[i].args[0]))  # few shapes are compiled so
        with jax.set_mesh(self._sampler.mesh), rich.progress.Progress(console=rich.console.Console(stderr=True)) as progress:
            task = progress.add_task("requests", total=len(requests))
            for how, members in groups.items():
                members, count = sorted(members, key=size), min(self.batch_size, len(members))
                for start in range(0, len(members), count):
                    part = members[start : start + count]
                    full = part + part[-1:] * (count - len(part))
                    asked = {i: self._conversation(requests[i]) for i in part}
                    given = self._sampler.answer(
                        [asked[i] for i in full], seeds=[seeds[i] for i in full], system="", **how._asdict()
                    )
                    for i, answer in zip(part, given, strict=False):
                        answers[i] = cut(answer, requests[i].args[1].get("until"))
                    progress.advance(task, len(part))
        return answers

    def loglikelihood(self, requests):
        """Not there: the model writes answers, it does not score given ones."""
        raise NotImplementedError(
            "janus_jax answers in its own words and scores no given ones; choose a task whose output_type is generate_until."
        )

    def generate_until_multi_round(self, requests):
        """Not there: a task's later rounds are made of earlier answers."""
        raise NotImplementedError(
            "janus_jax answers one question at a time; choose a task whose output_type is generate_until, without rounds."
        )

    def _conversation(self, request):
        """What the sampler is asked: the turns, and their pictures."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        found = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else None
        content, images = user_turn(context, pictures_of(found, task))
        return [{"role": "user", "content": content}], images


def settings(asked):
    """Reads a task's generation settings; those that are not named here are meant for other models.

    Args:
      asked: {name: value}; do_sample=False is greedy at any temperature.

    Raises:
      UserError: for settings that would change an answer and that this model does not have.
    """
    temperature, sample = asked.get("temperature"), asked.get("do_sample")
    if temperature is None:
        temperature = 1 if sample else 0
    temperature = 0.0 if sample is False else float(temperature)
    for name, off in {**NEUTRAL, **(NEUTRAL_SAMPLING if temperature else {})}.items():
        if asked.get(name) not in off:
            raise UserError(
                f"A task asks for {name}={asked[name]!r}, which janus_jax does not have; "
                f"--gen_kwargs {name}={off[1]} switches it off."
            )
    return Settings(int(asked.get("max_new_tokens") or MAX_TOKENS), temperature)


def user_turn(context, pictures):
    """The user's turn of a question.

    Pictures stand where the text names all of them in turn, or by number; those that a numbered text does not name
    stand first. Elsewhere all pictures stand first, the question on the next line, as VLMEvalKit asks these models.

    Args:
      context: a task's text, with places such as <image> or <image 2>, or without.
      pictures: list.

    Returns:
      the text with `chat.IMAGE` where each picture stands, and the pictures in the order of these places.
    """
    places = [match[1] for match in PLACE.finditer(context)]
    if len(places) == len(pictures) and not any(places):
        places = range(1, len(pictures) + 1)
    numbers = [int(place or 0) for place in places]
    if not all(1 <= n <= len(pictures) for n in numbers):  # whose places these are, nobody knows
        context, numbers = PLACE.sub("", context), []
    first = [picture for n, picture in enumerate(pictures, 1) if n not in numbers]
    text = PLACE.sub(chat.IMAGE, context.strip())
    return chat.IMAGE * len(first) + "\n" * bool(first) + text, first + [pictures[n - 1] for n in numbers]


def pictures_of(found, task):
    """RGB pictures of what a task's doc_to_visual gives: nothing, a picture, its file, or lists of them.

    Raises:
      UserError: for anything else, such as videos and sounds.
    """
    if found is None:
        return []
    if isinstance(found, (list, tuple)):
        return [picture for part in found for picture in pictures_of(part, task)]
    if isinstance(found, Image.Image):
        return [found.convert("RGB")]
    if not isinstance(found, (str, Path)) or Path(found).suffix.lower() not in PICTURES:
        raise UserError(f"Task {task!r} shows {found!r}; janus_jax looks at pictures only.")
    try:
        return [image_ops.decode(Path(found).read_bytes())]
    except (image_ops.BadRecord, OSError) as error:
        raise UserError(f"A picture of task {task!r}, {str(found)!r}, cannot be read: {error}.") from None


def cut(answer, until):
    """What stands before the first of some strings: `until` is one, a list, or None."""
    stops = [until] if isinstance(until, str) else until or []
    return answer[: min((answer.find(stop) for stop in stops if stop and stop in answer), default=len(answer))].rstrip()
