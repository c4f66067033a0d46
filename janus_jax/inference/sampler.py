"""Generates images and answers questions in batches: what every command samples with."""

from typing import NamedTuple

import jax
import numpy as np

from janus_jax import distributed
from janus_jax.data import chat
from janus_jax.data.images import for_understanding
from janus_jax.errors import UserError
from janus_jax.inference import decode


class Template(NamedTuple):
    """How prompts and conversations become text.

    Attributes:
      kind: 'plain' or 'chat', as in the stage that the model comes from.
      roles: strings of user and assistant in the chat template.
      system: system prompt of the chat template.
    """

    kind: str
    roles: tuple[str, str]
    system: str


class Sampler:
    """A trained model with its tokenizer and the text template it was trained with."""

    def __init__(self, network, params, tokenizer, *, template: Template, defaults=None):
        """Sets the model up.

        Args:
          network: ModelSpec of Janus.
          params: {path: array} on a mesh.
          tokenizer: TextTokenizer.
          template: Template.
          defaults: {setting: value} of image sampling, which replace those of the generation path.
        """
        self._defaults = defaults or {}
        self.network, self.params, self.tokenizer, self.template = (
            network,
            params,
            tokenizer,
            template,
        )
        self._generator = network.module.generator
        self._encoder = network.module.understanding.encoder

    @property
    def mesh(self):
        """The mesh that the parameters are on; `jax.set_mesh` before sampling."""
        return next(iter(self.params.values())).sharding.mesh

    def guidance(self, **settings):
        """Sampling settings: this sampler's defaults, changed by `settings`; None leaves a default.

        Raises:
          UserError: for a setting that the model's generation path does not have.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        given = self._defaults | given
        known = self._generator.Guidance._fields
        if unknown := [name for name in given if name not in known]:
            raise UserError(
                f"This model samples images without {unknown[0]}; its settings are {list(known)}."
            )
        return self._generator.Guidance(**given)

    def draw(self, prompts, *, seeds, guidance):
        """Generates images of prompts.

        Args:
          prompts: M strings.
          seeds: int[M], one image per prompt, or int[M, n], n of each, which share the prompt's
            part of the cache. An image depends on its prompt and seed, not on the batch.
          guidance: of `self.guidance`.

        Returns:
          uint8[*seeds.shape, h, w, 3].
        """
        self._check_generation_nets()
        roles = self.template.roles if self.template.kind == "chat" else None
        texts = [
            "".join(p.text for p in chat.generation_prompt(prompt, roles=roles))
            for prompt in prompts
        ]
        t, seeds = self.tokenizer, np.asarray(seeds, np.uint32)
        prefix_tokens = [getattr(t, name) for name in self._generator.prefix_tokens]
        ids, real = decode.right_align(
            [[t.bos, *t.encode(text)[0], *prefix_tokens] for text in texts], pad_id=t.pad
        )
        keys = jax.vmap(jax.vmap(jax.random.key))(seeds.reshape(len(prompts), -1))
        ids, real, keys = distributed.shard_leading_axis((ids, real, keys))
        images, _ = decode.draw_batch(
            self.params, ids, real, keys, network=self.network, pad_id=t.pad, guidance=guidance
        )
        return distributed.to_host(images).reshape(*seeds.shape, *images.shape[1:])

    def ask(self, images, questions, **settings):
        """Answers one question per image: PIL images, strings, `answer`'s settings -> strings."""
        turns = lambda question: [{"role": "user", "content": f"{chat.IMAGE}\n{question}"}]
        return self.answer(
            [(turns(q), [image]) for image, q in zip(images, questions, strict=True)], **settings
        )

    def answer(self, conversations, **settings):
        """The next turn of conversations: `stream`'s arguments -> list of strings."""
        *_, answers = self.stream(conversations, **settings)
        return answers

    def stream(
        self, conversations, *, max_tokens=64, temperature=0.0, seeds=None, system=None, every=None
    ):
        """The next turn of conversations while it is generated.

        Args:
          conversations: [(turns, images)]; turns are those of `chat.conversation`, a user's last,
            with `chat.IMAGE` in the place of each of the PIL images.
          max_tokens: longest answer.
          temperature: 0 is greedy.
          seeds: int, one per answer; by default 0.
          system: system prompt of the chat template; by default the model's own.
          every: ids between two yields; by default one yield at the end.

        Yields:
          list of strings.
        """
        t, count = self.tokenizer, len(conversations)
        seeds = np.asarray([0] * count if seeds is None else seeds, np.uint32)
        questions, seeds = distributed.pad_to_mesh((self._questions(conversations, system), seeds))
        questions, keys = distributed.shard_leading_axis(
            (questions, jax.vmap(jax.random.key)(seeds))
        )
        settings = dict(network=self.network, eos_id=t.eos)
        answers = decode.begin_answers(self.params, questions, max_tokens=max_tokens, **settings)
        step = every or max_tokens
        for until in range(step, max_tokens + step, step):
            until = min(until, max_tokens)
            answers = decode.continue_answers(
                self.params, answers, keys, temperature=float(temperature), until=until, **settings
            )
            rows = [list(row[:until]) for row in distributed.to_host(answers.ids)[:count]]
            yield [
                t.decode(row[: row.index(t.eos)] if t.eos in row else row).strip() for row in rows
            ]
            if all(t.eos in row for row in rows):
                return

    def _questions(self, conversations, system):
        """Conversations as `decode.Questions` of host arrays."""
        rows, starts = zip(*(self._row(turns, system) for turns, _ in conversations), strict=True)
        ids, real = decode.right_align(rows, pad_id=self.tokenizer.pad)
        length, slots, size = ids.shape[1], max(map(len, starts)), self._encoder.image_size
        positions = np.full((len(rows), slots), length, np.int32)
        pixels = np.zeros((len(rows), slots, size, size, 3), np.uint8)
        for i, (_, images) in enumerate(conversations):
            if len(images) != len(starts[i]):
                raise UserError(
                    f"A question has places for {len(starts[i])} images and {len(images)} images."
                )
            for j, image in enumerate(images):
                positions[i, j] = starts[i][j] + length - len(rows[i])
                pixels[i, j] = for_understanding(image, size=size)
        return decode.Questions(ids, real, pixels, positions)

    def _row(self, turns, system):
        """Ids of a conversation with image slots, and where the features of each image start."""
        t, turns = self.tokenizer, [*turns, {"role": "assistant", "content": ""}]
        if self.template.kind == "chat":
            system = self.template.system if system is None else system
            pieces = chat.conversation(turns, roles=self.template.roles, system=system)
        else:
            pieces = chat.plain_conversation(turns)[:-1]  # without the end
        features = self._encoder.num_tokens(self._encoder.image_size, self._encoder.image_size)
        row, starts = [t.bos], []
        for token in t.encode("".join(p.text for p in pieces))[0]:
            if token == t.image:
                starts.append(len(row) + 1)
                row += [t.boi] + [t.image] * features + [t.eoi]
            else:
                row.append(token)
        return row, starts

    def reconstruct(self, images):
        """Images through the generation tokenizer and back: uint8[B, h, w, 3] in and out."""
        self._check_generation_nets()
        return distributed.to_host(
            decode.reconstruct_batch(self.params, images, network=self.network)
        )

    def _check_generation_nets(self):
        """Raises UserError if a generation net is missing; answering questions needs none."""
        missing = {path.split("/")[1] for path in self.network.abstract.keys() - self.params.keys()}
        missing = sorted(missing - set(self._generator.nets.training_only))
        if missing:
            raise UserError(
                f"The checkpoint cannot generate images: it has no generation/{missing[0]}. Import "
                "it with its autoencoder, `convert import ... --vae=DIR`."
            )
