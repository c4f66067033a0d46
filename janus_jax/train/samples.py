"""Contact sheets of a run in training: generated images, or reconstructions of the tokenizer."""

import numpy as np

from janus_jax import distributed
from janus_jax.inference import decode
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.inference.sampler import Sampler, Template
from janus_jax.recipe.load import sampling_defaults
from janus_jax.shapes import score

RECONSTRUCTIONS = 16  # images on a sheet of the tokenizer
SCORED_PROMPTS = 8  # of each category of shapes


class SampleLogger:
    """Writes contact sheets of a stage: images of the prompts, or reconstructed images."""

    def __init__(self, stage, tokenizer, *, folder, log):
        """Takes a Stage and its TextTokenizer; sheets go to `folder` and `log`, a metrics.Log."""
        self._stage, self._tokenizer, self._folder, self._log = stage, tokenizer, folder, log
        self._settings = stage.config["samples"]

    def __call__(self, step, params, batch):
        """Writes the sheet of a step and scores `config.samples.shapes`; `batch` is the step's."""
        if self._settings["prompts"]:
            sheet = (
                self._reconstructions(params, batch)
                if self._stage.trains_tokenizer
                else self._drawings(params)
            )
            if distributed.is_primary():
                self._folder.mkdir(exist_ok=True)
                sheet.save(self._folder / f"{step:07d}_{self._stage.name}.png")
                self._log.image(step, "samples", np.asarray(sheet))
        if self._settings["shapes"] and not self._stage.trains_tokenizer:
            self._score(step, params)

    def _score(self, step, params):
        """Logs the share of correct images among the first prompts of every category."""
        sampler = self._sampler(params)
        prompts = {
            name: p[:SCORED_PROMPTS]
            for name, p in score.load_prompts(self._settings["shapes"]).items()
        }
        images = score.draw_all(sampler, prompts, seeds=[0], guidance=sampler.guidance())
        shares, _ = score.score(images, prompts, score.load_level(self._settings["shapes"]))
        self._log.write(step, {f"shapes/{name}": share for name, share in shares.items()})

    def _drawings(self, params):
        """One image per prompt."""
        prompts = self._settings["prompts"]
        sampler = self._sampler(params)
        images = sampler.draw(prompts, seeds=range(len(prompts)), guidance=sampler.guidance())
        return contact_sheet(images, prompts)

    def _sampler(self, params):
        """The current model."""
        config = self._stage.config
        data = config["data"]
        template = Template(self._stage.template, tuple(data["roles"]), data["system_prompt"])
        return Sampler(
            self._stage.network,
            params,
            self._tokenizer,
            template=template,
            defaults=sampling_defaults(config),
        )

    def _reconstructions(self, params, batch):
        """Images, each followed by its reconstruction."""
        images = batch.gen_images.reshape(-1, *batch.gen_images.shape[2:])[:RECONSTRUCTIONS]
        images = distributed.to_host(images)
        output = distributed.to_host(
            decode.reconstruct_batch(params, images, network=self._stage.network)
        )
        pairs = np.stack([images, output], axis=1).reshape(-1, *images.shape[1:])
        return contact_sheet(pairs, ["image", "reconstruction"] * len(images))
