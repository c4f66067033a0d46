"""Draws pictures and answers questions in batches, from texts: what sample, evaluate and the contact sheets call."""

import jax
import numpy as np

from janus_jax import distributed
from janus_jax.data import chat
from janus_jax.data import images as image_ops
from janus_jax.errors import UserError
from janus_jax.inference import decode


class Sampler:
    """A trained model with its tokenizer and the layout it was trained in."""

    def __init__(self, network, params, tokenizer, config, *, template):
        """`template` is that of the stage the model comes from, 'plain' or 'chat'."""
        self.network, self.params, self.tokenizer = network, params, tokenizer
        self.config, self.template = config, template
        self._path = network.merge(network.abstract).path
        encoder = config["model"]["understanding"]["encoder"]
        self._size, self._features = encoder["image_size"], (encoder["image_size"] // encoder["patch_size"]) ** 2
        self._roles, self._system, self._chat = (
            tuple(config["data"]["roles"]),
            config["data"]["system_prompt"],
            template == "chat",
        )

    @property
    def mesh(self):
        """The mesh that the parameters lie on; `jax.set_mesh` before drawing."""
        return next(iter(self.params.values())).sharding.mesh

    def guidance(self, **settings):
        """How to draw: the path's defaults, but for these settings; None leaves a default.

        Raises:
          UserError: for a setting that the model's way of drawing does not have.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        known = self._path.Guidance._fields
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"This model draws without {unknown[0]}; its settings are {list(known)}.")
        return self._path.Guidance(**given)

    def draw(self, prompts, *, seeds, guidance):
        """Draws pictures of prompts.

        Args:
          prompts: M strings.
          seeds: int[M], one picture a prompt, or int[M, n], n of each, which share what the prompt holds in the cache.
            A picture depends on its prompt and seed, not on the batch.
          guidance: of `self.guidance`.

        Returns:
          uint8[*seeds.shape, h, w, 3].
        """
        self._check_nets()
        roles = self._roles if self._chat else None
        texts = ["".join(p.text for p in chat.drawing_prompt(prompt, roles=roles)) for prompt in prompts]
        t, seeds = self.tokenizer, np.asarray(seeds, np.uint32)
        prefix_tokens = [getattr(t, name) for name in self._path.prefix_tokens]
        ids, real = decode.right_align([[t.bos, *t.encode(text)[0], *prefix_tokens] for text in texts], pad_id=t.pad)
        keys = jax.vmap(jax.vmap(jax.random.key))(seeds.reshape(len(prompts), -1))
        ids, real, keys = distributed.shard_leading_axis((ids, real, keys))
        pictures, _ = decode.draw_batch(self.params, ids, real, keys, network=self.network, pad_id=t.pad, guidance=guidance)
        return distributed.to_host(pictures).reshape(*seeds.shape, *pictures.shape[1:])

    def ask(self, images, questions, **settings):
        """Answers one question about each picture: PIL pictures, strings, and `answer`'s settings -> list of strings."""
        turns = lambda question: [{"role": "user", "content": f"{chat.IMAGE}\n{question}"}]
        return self.answer([(turns(q), [image]) for image, q in zip(images, questions, strict=True)], **settings)

    def answer(self, conversations, **settings):
        """The next turn of conversations: `stream`'s arguments -> list of strings."""
        *_, answers = self.stream(conversations, **settings)
        return answers

    def stream(self, conversations, *, max_tokens=64, temperature=0.0, seeds=None, system=None, every=None):
        """The next turn of conversations while it grows.

        Args:
          conversations: [(turns, images)]; turns are those of `chat.conversation`, a user's last, with `chat.IMAGE` where
            each of the PIL pictures stands.
          max_tokens: longest answer.
          temperature: 0 is greedy.
          seeds: int, one an answer; 0 without them.
          system: system prompt of the chat template; the config's without it.
          every: ids between two yields; one yield at the end without it.

        Yields:
          list of strings.
        """
        t, b = self.tokenizer, len(conversations)
        rows, starts = zip(*(self._row(turns, system) for turns, _ in conversations), strict=True)
        ids, real = decode.right_align(rows, pad_id=t.pad)
        width, slots = ids.shape[1], max(map(len, starts))
        places = np.full((b, slots), width, np.int32)
        pictures = np.zeros((b, slots, self._size, self._size, 3), np.uint8)
        for i, (_, images) in enumerate(conversations):
            if len(images) != len(starts[i]):
                raise UserError(f"A question has {len(starts[i])} places for pictures and {len(images)} pictures.")
            for j, image in enumerate(images):
                places[i, j] = starts[i][j] + width - len(rows[i])
                pictures[i, j] = image_ops.for_understanding(image, size=self._size)
        seeds = np.asarray([0] * b if seeds is None else seeds, np.uint32)
        ids, real, pictures, places, seeds = distributed.pad_to_mesh((ids, real, pictures, places, seeds))
        keys = jax.vmap(jax.random.key)(seeds)
        ids, real, pictures, places, keys = distributed.shard_leading_axis((ids, real, pictures, places, keys))
        known = dict(network=self.network, eos_id=t.eos)
        answers = decode.begin_answers(self.params, ids, real, pictures, places, max_tokens=max_tokens, **known)
        for until in range(every or max_tokens, max_tokens + (every or 1), every or max_tokens):
            until = min(until, max_tokens)
            answers = decode.continue_answers(
                self.params, answers, keys, temperature=float(temperature), until=until, **known
            )
            done = [list(row[:until]) for row in distributed.to_host(answers.ids)[:b]]
            yield [t.decode(row[: row.index(t.eos)] if t.eos in row else row).strip() for row in done]
            if all(t.eos in row for row in done):
                return

    def _row(self, turns, system):
        """Ids of a conversation with the slots of its pictures, and where each one's first feature stands."""
        t, turns = self.tokenizer, [*turns, {"role": "assistant", "content": ""}]
        if self._chat:
            pieces = chat.conversation(turns, roles=self._roles, system=self._system if system is None else system)
        else:
            pieces = chat.plain_conversation(turns)[:-1]  # without the end
        row, starts = [t.bos], []
        for token in t.encode("".join(p.text for p in pieces))[0]:
            if token == t.image:
                starts.append(len(row) + 1)
                row += [t.boi] + [t.image] * self._features + [t.eoi]
            else:
                row.append(token)
        return row, starts

    def reconstruct(self, pictures):
        """Pictures through the generation tokenizer and back: uint8[B, h, w, 3] -> uint8[B, h, w, 3]."""
        self._check_nets()
        return distributed.to_host(decode.reconstruct_batch(self.params, pictures, network=self.network))

    def _check_nets(self):
        """Answers need no nets that draw, and a checkpoint may lack some: imported JanusFlow its autoencoder."""
        lacking = {path.split("/")[1] for path in self.network.abstract.keys() - self.params.keys()}
        lacking = sorted(lacking - set(self._path.training_only))
        if lacking:
            raise UserError(
                f"The checkpoint cannot draw: it has no generation/{lacking[0]}. Import it with its autoencoder, "
                "`convert import ... --vae=DIR`."
            )
