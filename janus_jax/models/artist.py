"""Draws pictures and answers questions in batches, from texts: what sample, evaluate and the contact sheets call."""

import jax
import numpy as np

from janus_jax import sharding
from janus_jax.data import chat, image_ops
from janus_jax.errors import UserError
from janus_jax.models import decode


class Artist:
    """A trained model with its tokenizer and the layout it was trained in."""

    def __init__(self, network, params, tokenizer, config, *, template):
        """`template` is that of the stage the model comes from, 'plain' or 'chat'."""
        self.network, self.params, self.tokenizer = network, params, tokenizer
        self._path = network.merge(network.abstract).path
        encoder = config["model"]["understanding"]["encoder"]
        self._size, self._features = encoder["image_size"], (encoder["image_size"] // encoder["patch_size"]) ** 2
        self._roles, self._system, self._chat = (
            tuple(config["data"]["roles"]),
            config["data"]["system_prompt"],
            template == "chat",
        )

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
        """Draws one picture a prompt.

        Args:
          prompts: strings.
          seeds: int, one a picture; a picture depends on its prompt and seed, not on the batch.
          guidance: of `self.guidance`.

        Returns:
          uint8[B, h, w, 3].
        """
        self._check_nets()
        roles = self._roles if self._chat else None
        texts = ["".join(p.text for p in chat.drawing_prompt(prompt, roles=roles)) for prompt in prompts]
        t = self.tokenizer
        opening = [getattr(t, name) for name in self._path.opening]
        ids, real = decode.right_align([[t.bos, *t.encode(text)[0], *opening] for text in texts], pad_id=t.pad)
        keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        ids, real, keys = sharding.spread((ids, real, keys))
        pictures, _ = decode.draw_batch(self.params, ids, real, keys, network=self.network, pad_id=t.pad, guidance=guidance)
        return sharding.whole(pictures)

    def ask(self, images, questions, *, max_tokens=64, temperature=0.0, seeds=None):
        """Answers one question about each picture.

        Args:
          images: PIL pictures, RGB.
          questions: strings.
          max_tokens: longest answer.
          temperature: 0 is greedy.
          seeds: int, one an answer.

        Returns:
          list of strings.
        """
        t, rows, starts = self.tokenizer, [], []
        for question in questions:
            turns = [{"role": "user", "content": f"{chat.IMAGE}\n{question}"}, {"role": "assistant", "content": ""}]
            pieces = chat.conversation(turns, roles=self._roles, system=self._system)
            text = "".join(p.text for p in pieces) if self._chat else chat.IMAGE + question
            row = [t.bos]
            for token in t.encode(text)[0]:
                if token == t.image:
                    starts.append(len(row) + 1)
                    row += [t.boi] + [t.image] * self._features + [t.eoi]
                else:
                    row.append(token)
            rows.append(row)
        ids, real = decode.right_align(rows, pad_id=t.pad)
        shifted = np.array([[s + ids.shape[1] - len(r)] for s, r in zip(starts, rows, strict=True)], np.int32)
        pictures = np.stack([image_ops.for_understanding(i, size=self._size) for i in images])[:, None]
        keys = jax.vmap(jax.random.key)(np.asarray(seeds if seeds is not None else [0] * len(rows), np.uint32))
        ids, real, pictures, shifted, keys = sharding.spread((ids, real, pictures, shifted, keys))
        out = decode.answer_batch(
            self.params, ids, real, pictures, shifted, keys,
            network=self.network, eos_id=t.eos, temperature=float(temperature), max_tokens=max_tokens,
        )  # fmt: skip
        ends = lambda row: row[: list(row).index(t.eos)] if t.eos in row else row
        return [t.decode(ends(row)).strip() for row in sharding.whole(out)]

    def reconstruct(self, pictures):
        """Pictures through the generation tokenizer and back: uint8[B, h, w, 3] -> uint8[B, h, w, 3]."""
        self._check_nets()
        return sharding.whole(decode.reconstruct_batch(self.params, pictures, network=self.network))

    def _check_nets(self):
        """Answers need no nets that draw, and a checkpoint may lack some: imported JanusFlow its autoencoder."""
        lacking = {path.split("/")[1] for path in self.network.abstract.keys() - self.params.keys()}
        lacking = sorted(lacking - set(self._path.training_only))
        if lacking:
            raise UserError(
                f"The checkpoint cannot draw: it has no generation/{lacking[0]}. Import it with its autoencoder, "
                "`convert import ... --vae=DIR`."
            )
