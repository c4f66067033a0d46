"""The papers' objective: next-token prediction on text and the generation path's loss, in one pass.

Janus and Janus-Pro: one cross-entropy over text and code targets (Janus, section 3.2). JanusFlow:
text + velocity + alignment (JanusFlow, section 3.3). How the two are combined is the generation
path's choice.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.batch import task_weights, used_slots
from janus_jax.generation.base import Images
from janus_jax.models.functional import ModelSpec
from janus_jax.models.interleave import extract
from janus_jax.models.janus import Janus
from janus_jax.objectives.base import MODEL, Objective, mean_over_images


class Joint(Objective):
    """Text and images together, over the whole model."""

    @staticmethod
    def build_network(model, *, dtype):
        """The whole model."""
        return ModelSpec(functools.partial(Janus, **model, dtype=dtype))

    def loss(self, params, batch, counts, keys):
        """As `Objective.loss`; metrics: `loss_{und,text,gen}`, accuracies and the path's own."""
        model = self.network.merge(params)
        generator = model.generator
        chex.assert_equal_shape(
            [batch.tokens, batch.positions, batch.segment_ids, batch.text_weights, batch.task_ids]
        )
        chex.assert_equal_shape([batch.gen_start, keys])
        join = lambda x: None if x is None else rearrange(x, "s g ... -> (s g) ...")
        images = Images(join(batch.gen_images), join(batch.gen_codes), join(batch.gen_latents))
        with jax.named_scope("tokenizer"):
            prepared = generator.prepare(images, keys.reshape(-1), encode=model.encode_reference)
        with jax.named_scope("generation"):
            embedded, skip = generator.embed(prepared)
        hidden, tapped = model(batch, embedded.reshape(*batch.gen_start.shape, *embedded.shape[1:]))

        flat = lambda x: rearrange(x, "s r l -> s (r l)")
        next_tokens = flat(jnp.roll(batch.tokens, -1, axis=-1))
        with jax.named_scope("text_head"):
            text, hits = model.llm.score_text(
                hidden, targets=next_tokens, weights=flat(batch.text_weights)
            )
        extract_images = functools.partial(
            extract, start=batch.gen_start, length=generator.num_tokens, shift=generator.read_shift
        )
        states, tapped_states = (
            None if x is None else join(extract_images(x)) for x in (hidden, tapped)
        )
        with jax.named_scope("image_head"):
            image_losses, extra = generator.loss(states, tapped_states, prepared, skip)

        used = used_slots(batch).reshape(-1)
        image_sum = jnp.where(used, image_losses, 0).sum()
        loss = generator.combine(
            text_sum=text.sum(),
            text_count=counts.text,
            image_sum=image_sum,
            image_count=counts.images,
        )
        metrics = {"loss_gen": generator.per_image(image_sum, counts.images)}
        metrics |= {
            name: mean_over_images(x, used=used, count=counts.images) for name, x in extra.items()
        }
        for task, short, count in (
            ("understanding", "und", counts.und_text),
            ("text", "text", counts.pure_text),
        ):
            weights = flat(task_weights(batch, task))
            metrics[f"loss_{short}"] = (text * weights).sum() / jnp.maximum(count, 1)
            metrics[f"{short}_accuracy"] = (hits * weights).sum() / jnp.maximum(count, 1)
        return {MODEL: loss}, metrics
