"""The base class of image generation benchmarks: prompts, image files, official scores.

Official scorers need networks that are not a part of this project. So a benchmark here writes
images in the scorer's layout, and once the scorer has written its results next to them, reads these
and computes the benchmark's score.
"""

import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import einops
import numpy as np
from absl import logging
from PIL import Image

from janus_jax import distributed
from janus_jax.data.files import write_whole
from janus_jax.data.images import encode_png
from janus_jax.errors import UserError
from janus_jax.evaluate import runner
from janus_jax.evaluate.base import Benchmark, Options
from janus_jax.evaluate.drawing import feature_distance
from janus_jax.inference.contact_sheet import contact_sheet

SHEET_PROMPTS = 32  # on the contact sheet


class Prompt(NamedTuple):
    """A prompt and the PNG files of its images.

    Attributes:
      id: unique in the benchmark.
      text: of the prompt.
      files: paths relative to the folder of the images.
      extra: what the benchmark itself needs later.
    """

    id: str
    text: str
    files: tuple[str, ...]
    extra: dict

    @property
    def identity(self):
        """What its images depend on."""
        return self.id, self.text, self.files


class ImageBenchmark(Benchmark):
    """Base class; a subclass sets the attributes and has `_prompts`, and `score` if there is one.

    By default the images of a prompt are one PNG, arranged in a square.

    Attributes:
      samples: images per prompt.
      how_to_score: how the official scorer is run on the folder OUT of the images.
    """

    generates_images = True
    samples = 1
    how_to_score = ""

    def _prompts(self, data: Path) -> list[Prompt]:
        raise NotImplementedError

    def read(self, data) -> list[Prompt]:
        """Reads the prompts in the benchmark's own files.

        Args:
          data: folder of the benchmark, or the file with its prompts.

        Returns:
          [Prompt], always in the same order.

        Raises:
          UserError: for files that are missing or have other contents.
        """
        data = Path(data).expanduser()
        try:
            prompts = self._prompts(data)
        except UserError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.name}: {str(data)!r} cannot be read ({error!r}); expected {self.layout}."
            ) from error
        if not prompts:
            raise UserError(f"{self.name}: no prompt in {str(data)!r}; expected {self.layout}.")
        for prompt in prompts:
            if not isinstance(prompt.text, str):
                raise UserError(
                    f"{self.name}: prompt {prompt.id!r} in {str(data)!r} is {prompt.text!r}; "
                    "expected a string."
                )
            if any(".." in Path(file).parts or Path(file).is_absolute() for file in prompt.files):
                raise UserError(
                    f"{self.name}: the id or category of {prompt.id!r} in {str(data)!r} leads "
                    "outside the output folder."
                )
        (file, count), *_ = Counter(p.files[0] for p in prompts).most_common(1)
        if count > 1:
            raise UserError(
                f"{self.name}: {count} prompts in {str(data)!r} have the same image file, {file!r}."
            )
        return prompts

    def settings(self, model, options):
        """Sampling settings."""
        return image_settings(model, options, samples=self.samples)

    def evaluate(self, sampler, prompts, options: Options):
        """Generates the images that are missing, writes a contact sheet, and returns the scores."""
        folder = options.out / "pictures"
        runner.draw_all(
            sampler,
            self,
            prompts,
            out=folder,
            guidance=options.guidance,
            batch=options.batch,
            seed=options.seed,
        )
        scores = self.score(folder, prompts)
        if not distributed.is_primary():
            return scores
        if options.comparison:
            scores |= feature_distance.distance(folder, options.comparison)
        shown = prompts[:SHEET_PROMPTS]
        images = [
            np.asarray(Image.open(folder / prompt.files[0]).convert("RGB")) for prompt in shown
        ]
        contact_sheet(images, [prompt.text for prompt in shown]).save(options.out / "sheet.png")
        logging.info("%s", self.how_to_score)
        return scores

    def save(self, out, prompt, images):
        """Writes the images of a prompt, uint8[samples, h, w, 3]; no file is ever incomplete."""
        write_whole(Path(out) / prompt.files[0], encode_png(square(images)))

    def is_done(self, out, prompt):
        """Whether all files of a prompt are there and complete."""
        return all(_is_complete_png(Path(out) / file) for file in prompt.files)

    def check_complete(self, out, prompts):
        """Checks that the folder has the images of all prompts and no others.

        Scorers read all images that they find.

        Raises:
          UserError: if images are missing, or belong to no prompt.
        """
        missing = [p.id for p in prompts if not self.is_done(out, p)]
        if missing:
            raise UserError(
                f"{self.name}: {len(missing):,} of {len(prompts):,} prompts lack images in "
                f"{str(out)!r}, first {missing[0]!r}; run the same command again to generate them."
            )
        files = {path.relative_to(out).as_posix() for path in Path(out).rglob("*.png")}
        others = sorted(files - {file for p in prompts for file in p.files})
        if others:
            raise UserError(
                f"{self.name}: {len(others):,} PNGs in {str(out)!r} belong to no prompt, first "
                f"{others[0]!r}; move them away, because the scorer would include them."
            )

    def score(self, out, prompts):
        """{metric: value} from the official scorer's results in the folder; empty without them.

        Raises:
          UserError: if it scored other images than those of the prompts.
        """
        return {}

    def _file(self, data, name, *, within="."):
        """`data` if it is a file; else the file `name` in the folder or its subfolder `within`."""
        paths = [data / name, data / within / name] if data.is_dir() else [data]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(f"{self.name}: no {name} in {str(data)!r}; expected {self.layout}.")


def image_settings(model, options: Options, *, samples):
    """What generated images depend on; `model` is config.model, `samples` the images per prompt."""
    return {
        "image_size": model["generation"]["image_size"],
        "seed": options.seed,
        "pictures_a_prompt": samples,
    } | options.guidance._asdict()


def square(images):
    """Arranges k * k images row by row: uint8[k*k, h, w, 3] -> uint8[k*h, k*w, 3]."""
    side = round(len(images) ** 0.5)
    return einops.rearrange(np.asarray(images), "(a b) h w c -> (a h) (b w) c", a=side)


def _is_complete_png(path):
    """Whether a PNG exists and the checksums of its chunks are right."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, struct.error):
        return False
    return True
