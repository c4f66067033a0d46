"""What a run looks like while it trains: contact sheets of drawings, or of pictures through the tokenizer and back."""

import numpy as np

from janus_jax import distributed
from janus_jax.inference import decode
from janus_jax.inference.contact_sheet import contact_sheet
from janus_jax.inference.sampler import Sampler
from janus_jax.recipe import freezing
from janus_jax.shapes import score

SHOWN = 16  # pictures on a sheet of the tokenizer
SCORED = 8  # prompts of a category of shapes


class SampleLogger:
    """Draws a stage's contact sheets: what the model makes of the prompts, or the tokenizer of its pictures."""

    def __init__(self, network, tokenizer, config, stage, *, folder, log):
        """`config` is the resolved one; sheets go to `folder` and to `log`, a metrics.Log."""
        self._network, self._tokenizer, self._config, self._stage = network, tokenizer, config, stage
        self._folder, self._log = folder, log

    def __call__(self, step, params, batch):
        """Draws the sheet of a step, which the first process writes; `batch` is the step's. Without prompts, nothing."""
        if not self._config["samples"]["prompts"]:
            return
        sheet = self._pairs(params, batch) if self._stage == freezing.TOKENIZER else self._drawings(params)
        if distributed.is_primary():
            self._folder.mkdir(exist_ok=True)
            sheet.save(self._folder / f"{step:07d}_{self._stage}.png")
            self._log.picture(step, "samples", np.asarray(sheet))

    def score(self, step, params):
        """Logs what share of `config.samples.shapes`, the first prompts of every category, is drawn right."""
        folder = self._config["samples"]["shapes"]
        if not folder or self._stage == freezing.TOKENIZER:
            return
        sampler, guidance = self._sampler(params)
        prompts = {name: found[:SCORED] for name, found in score.load_prompts(folder).items()}
        shares, _ = score.score(score.draw_all(sampler, prompts, seeds=[0], guidance=guidance), prompts)
        self._log.write(step, {f"shapes/{name}": share for name, share in shares.items()})

    def _drawings(self, params):
        """Every prompt once."""
        prompts, (sampler, guidance) = self._config["samples"]["prompts"], self._sampler(params)
        drawings = sampler.draw(prompts, seeds=range(len(prompts)), guidance=guidance)
        return contact_sheet(drawings, prompts)

    def _sampler(self, params):
        """The stage's model as it is now, and how it draws."""
        template = self._config["stages"][self._stage]["template"]
        sampler = Sampler(self._network, params, self._tokenizer, self._config, template=template)
        return sampler, sampler.guidance(scale=self._config["samples"]["guidance"])

    def _pairs(self, params, batch):
        """Pictures, each beside what the tokenizer makes of it."""
        pictures = distributed.to_host(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:])[:SHOWN])
        back = distributed.to_host(decode.reconstruct_batch(params, pictures, network=self._network))
        pairs = np.stack([pictures, back], axis=1).reshape(-1, *pictures.shape[1:])
        return contact_sheet(pairs, ["picture", "through the tokenizer"] * len(pictures))
