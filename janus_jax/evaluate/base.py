"""The base class of benchmarks: tasks read from their own files, and a run that scores a model."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from janus_jax import distributed
from janus_jax.evaluate import report
from janus_jax.evaluate.drawing.feature_distance import Comparison


class Options(NamedTuple):
    """How a benchmark is run.

    Attributes:
      data: folder of the benchmark's own files.
      out: folder of the results.
      batch: images or questions at once.
      seed: another one gives other images.
      samples: images per prompt, where the benchmark does not fix their number.
      guidance: sampling settings of `Sampler.guidance`; None for a benchmark that generates no
        images.
      comparison: real images to compare the generated ones with, or None.
    """

    data: Path
    out: Path
    batch: int
    seed: int
    samples: int
    guidance: Any = None
    comparison: Comparison | None = None


class Benchmark:
    """Base class; a subclass sets the attributes and has `read`, `settings` and `evaluate`.

    Attributes:
      name: on the command line.
      layout: the files that `read` expects, for messages.
      unit: factor from the official formula to the reported score; 100 gives percent.
      generates_images: whether images are generated, so that the flags of image sampling apply.
      compares_photos: whether the score compares the images with photos, so that --features
        applies.
      needs_out: whether --out is required; otherwise results go into the run's workdir.
    """

    name = ""
    layout = ""
    unit = 1
    generates_images = False
    compares_photos = False
    needs_out = True

    def read(self, data: Path) -> list:
        """Reads the tasks in the folder `data`, always in the same order.

        Raises:
          UserError: for files that are missing or have other contents.
        """
        raise NotImplementedError

    def settings(self, model: dict, options: Options) -> dict:
        """What results depend on besides checkpoint and tasks, as JSON; `model` is config.model."""
        raise NotImplementedError

    def evaluate(self, sampler, tasks: list, options: Options) -> dict:
        """Does the tasks that have no result in `options.out`; returns {metric: official score}.

        All processes call it; the scores of the first one are reported.
        """
        raise NotImplementedError

    def run(self, sampler, tasks: list, options: Options, settings: dict):
        """Evaluates a model and writes settings.json, evaluation.json and evaluation.md.

        Args:
          sampler: Sampler.
          tasks: what `read` returned.
          options: Options.
          settings: what the results depend on apart from the tasks, as JSON.

        Raises:
          UserError: if the folder has results that were made with other settings.
        """
        settings = settings | {"tasks": fingerprint(tasks)}
        report.check_settings(options.out, settings)
        scores = self.evaluate(sampler, tasks, options)
        if distributed.is_primary():
            scores = {metric: self.unit * value for metric, value in scores.items()}
            if options.comparison:
                settings |= options.comparison.settings
            report.write(options.out, self.name, scores, settings, len(tasks))


def fingerprint(tasks):
    """12 hexadecimal digits that change when an id, a text or an image name of a task changes."""
    identities = json.dumps([task.identity for task in tasks])
    return hashlib.blake2b(identities.encode(), digest_size=6).hexdigest()
