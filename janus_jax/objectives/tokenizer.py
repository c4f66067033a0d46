"""Trains the generation tokenizer alone, for recipes that start without a pretrained one."""

import functools

import jax
from einops import rearrange
from flax import nnx

from janus_jax.batch import used_slots
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.models.functional import ModelSpec
from janus_jax.objectives.base import MODEL, Objective, mean_over_images
from janus_jax.tokenizers.base import training_pixels


class TokenizerModel(nnx.Module):
    """The tokenizer under the path it has in the whole model, `generation/tokenizer`."""

    def __init__(self, rngs, *, generation):
        """`generation` is `config.model.generation`; its `tokenizer_training` holds the loss
        weights, the crop, and what the tokenizer's own `training_loss` reads.
        """
        tokenizer = generation_path(generation["kind"]).Tokenizer(rngs, **generation["tokenizer"])
        settings = tokenizer.training_defaults | (generation.get("tokenizer_training") or {})
        image_size = generation["image_size"]
        crop = settings["crop"] or image_size
        if crop % tokenizer.downsample or crop > image_size:
            raise UserError(
                f"config.model.generation.tokenizer_training.crop is {crop}: it must be a multiple "
                f"of {tokenizer.downsample} and at most the image size, {image_size}."
            )
        if any(step < 1 for step in settings.get("codebook_from_data", ())):
            raise UserError(
                "config.model.generation.tokenizer_training.codebook_from_data is "
                f"{tuple(settings['codebook_from_data'])}: it lists steps, from 1."
            )
        self.settings = settings
        self.generation = nnx.Dict({"tokenizer": tokenizer})

    @property
    def tokenizer(self):
        """The net that trains."""
        return self.generation["tokenizer"]


class Tokenizer(Objective):
    """Reconstruction with the regularisers of the tokenizer's own family; only images to generate
    count.
    """

    trains_tokenizer = True

    @staticmethod
    def build_network(model, *, dtype):
        """The tokenizer alone; it computes in fp32 whatever `dtype` is."""
        return ModelSpec(functools.partial(TokenizerModel, generation=model["generation"]))

    def batch_statistics(self, params, batch, keys, *, step):
        """Target counts, and what the tokenizer must know of all images of the step."""
        model = self.network.merge(params)
        counts = super().batch_statistics(params, batch, keys, step=step)
        pixels, _ = self._inputs(model, batch, keys)
        used = used_slots(batch).reshape(-1)
        return counts, model.tokenizer.batch_statistics(
            pixels, used, step=step, settings=model.settings
        )

    def loss(self, params, batch, counts, keys):
        """As `Objective.loss`; metric `loss_gen` is the loss, the others are the tokenizer's
        own.
        """
        targets, statistics = counts
        model = self.network.merge(params)
        pixels, loss_keys = self._inputs(model, batch, keys)
        losses, extra = model.tokenizer.training_loss(
            pixels, loss_keys, statistics, settings=model.settings
        )
        mean = functools.partial(
            mean_over_images, used=used_slots(batch).reshape(-1), count=targets.images
        )
        loss = mean(losses)
        return {MODEL: loss}, {"loss_gen": loss} | {
            name: mean(values) for name, values in extra.items()
        }

    def calibrates(self, step, *, saving):
        """When its tokenizer does."""
        model = self.network.module
        return model.tokenizer.calibrates(step, saving=saving, settings=model.settings)

    def calibrate(self, params, batch, *, step):
        """What the tokenizer measures of itself, such as the scale of its latents."""
        images = rearrange(batch.gen_images, "s g h w c -> (s g) h w c")
        model = self.network.merge(params)
        measured = model.tokenizer.calibrate(
            images, used_slots(batch).reshape(-1), step=step, settings=model.settings
        )
        return {f"generation/tokenizer/{path}": value for path, value in measured.items()}

    def _inputs(self, model, batch, keys):
        """Pixels float32[M, h, w, 3] that training sees, and key[M] for what is random in the
        loss.
        """
        keys = keys.reshape(-1)
        images = rearrange(batch.gen_images, "s g h w c -> (s g) h w c")
        return training_pixels(images, keys, crop=model.settings["crop"]), jax.vmap(
            lambda key: jax.random.fold_in(key, 1)
        )(keys)
