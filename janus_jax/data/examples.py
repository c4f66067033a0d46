"""One record to one Example: layout, targets, prompt drop, first-sentence rule. Nothing is decoded here.

Records, whatever their source:
    understanding   {"images": [bytes], "conversation": [{"role", "content"}]}, {"image", "caption"},
                    {"image", "question", "answer"}, or a document: {"images": [bytes], "text"} with a placeholder for
                    each picture, or {"images": [bytes or None], "texts": [str or None]} that take turns
    text            {"text"} or {"conversation"}
    generation      {"image", "prompt"} (and "prompt_short"), with "latents" beside the image or "codes" in its place

Where a list of captions, prompts, questions or answers stands, every epoch draws one of them.
"""

import re

import numpy as np

from janus_jax.batch import TASKS, Example
from janus_jax.data import chat
from janus_jax.data.images import BadRecord, Picture, TooLong, check_drawable, opened
from janus_jax.errors import UserError

PIXELS = ("pixels",)
MAX_CAPTION = 20_000  # characters; what is longer is no caption, prompt, question or answer
FIRST_SENTENCE = re.compile(r"^.*?[.!?。！？](?=\s|$|[\u4e00-\u9fff])", re.DOTALL)


class ExampleMaker:
    """Makes examples of a stage's layout."""

    def __init__(
        self,
        tokenizer,
        *,
        template,
        und_tokens,
        gen_tokens,
        max_length,
        prefix_tokens=("boi",),
        attend_to_dropped_prompt=True,
        roles=("User", "Assistant"),
        system_prompt="",
        caption_prompt=chat.CAPTION,
        prompt_drop=0.1,
        first_sentence=0.0,
        crop="center",
        overlong="cut",
    ):
        """Sets the layout.

        Args:
          tokenizer: TextTokenizer.
          template: 'plain' (stages 1 and 2) or 'chat' (stage 3).
          und_tokens: features of a picture to understand.
          gen_tokens: tokens of a picture to draw.
          max_length: L, the longest example that fits a row.
          prefix_tokens: names of the special tokens between a drawing prompt and its picture.
          attend_to_dropped_prompt: whether the padding in place of a dropped prompt is attended.
          roles: strings of user and assistant in the chat template.
          system_prompt: stands before understanding conversations in the chat template.
          caption_prompt: the instruction before captions.
          prompt_drop: share of drawing prompts that become padding, for guidance.
          first_sentence: share of drawing prompts cut to their first sentence.
          crop: 'center' or 'random', where pictures to draw are made square.
          overlong: 'cut' the end of texts that are too long, or 'skip' such examples.

        Raises:
          UserError: for an unknown choice, and for rows shorter than a picture.
        """
        for field, value, known in (
            ("A stage's template", template, ("plain", "chat")),
            ("config.data.overlong", overlong, ("cut", "skip")),
            ("config.data.crop", crop, ("center", "random")),
        ):
            if value not in known:
                raise UserError(f"{field} is {value!r}; known: {known[0]!r} and {known[1]!r}.")
        if max_length < max(und_tokens, gen_tokens) + 8:
            raise UserError(
                f"Rows of {max_length} tokens have no room for a picture of {max(und_tokens, gen_tokens)} and its text; "
                "raise config.stages.*.length."
            )
        self.tokenizer, self.template = tokenizer, template
        self.und_tokens, self.gen_tokens, self.max_length = und_tokens, gen_tokens, max_length
        self.roles, self.system_prompt, self.caption_prompt = tuple(roles), system_prompt, caption_prompt
        self.prompt_drop, self.first_sentence, self.crop, self.overlong = prompt_drop, first_sentence, crop, overlong
        self.prefix_tokens, self.attend_to_dropped_prompt = [getattr(tokenizer, name) for name in prefix_tokens], attend_to_dropped_prompt

    def __call__(self, record, *, task, rng, record_id=""):
        """Makes one example.

        Args:
          record: a dict, see the top of this file.
          task: one of TASKS.
          rng: numpy Generator of this record and epoch.
          record_id: its name in reports.

        Returns:
          Example.

        Raises:
          BadRecord: for a missing field, an empty text, a broken picture, or a length that does not fit.
        """
        make = {"understanding": self._understanding, "text": self._text, "generation": self._generation}[task]
        return make(record, rng)._replace(task=TASKS.index(task), record_id=record_id)

    def _understanding(self, record, rng):
        images = record["images"] if record.get("images") is not None else [_field(record, "image")]
        if record.get("text") is not None or record.get("texts") is not None:
            texts = [t if t is None else _decoded(t, "texts") for t in record.get("texts") or ()]
            text = chat.join(texts, images) if record.get("text") is None else _text(record, "text")
            return self._lay_out(chat.document(text), [image for image in images if image is not None])
        if record.get("conversation") is not None:
            turns = _turns(record)
        elif record.get("caption") is not None:
            caption = _text(record, "caption", rng)
            if self.template == "plain":
                return self._lay_out(chat.plain_caption(caption, prompt=self.caption_prompt), images)
            turns = [_turn("user", f"{chat.IMAGE}\n{self.caption_prompt}"), _turn("assistant", caption)]
        else:
            question, answer = _text(record, "question", rng), _text(record, "answer", rng)
            turns = [_turn("user", f"{chat.IMAGE}\n{question}"), _turn("assistant", answer)]
        if self.template == "chat":
            pieces = chat.conversation(turns, roles=self.roles, system=self.system_prompt)
        else:
            pieces = chat.plain_conversation(turns)
        return self._lay_out(pieces, images)

    def _text(self, record, rng):
        if record.get("conversation") is None:
            return self._lay_out(chat.plain_text(_text(record, "text")), ())
        if self.template == "chat":
            return self._lay_out(chat.conversation(_turns(record), roles=self.roles), ())
        return self._lay_out(chat.plain_conversation(_turns(record)), ())

    def _generation(self, record, rng):
        drop, short = rng.random() < self.prompt_drop, rng.random() < self.first_sentence
        prompt = _text(record, "prompt", rng)
        if short:
            sentence = FIRST_SENTENCE.match(prompt)
            given = record.get("prompt_short") is not None
            prompt = _text(record, "prompt_short", rng) if given else sentence[0] if sentence else prompt
        pieces = chat.drawing_prompt(prompt, roles=self.roles if self.template == "chat" else None)
        ids = self.tokenizer.ids("".join(p.text for p in pieces))
        room = self.max_length - self.gen_tokens - 1 - len(self.prefix_tokens)
        if len(ids) > room:
            if self.overlong == "skip":
                raise TooLong("prompt too long")
            if self.template == "chat":
                raise BadRecord("prompt too long")
            ids = ids[:room]
        if drop:
            ids = [self.tokenizer.pad] * len(ids)
        tokens = [self.tokenizer.bos, *ids, *self.prefix_tokens] + [self.tokenizer.image] * self.gen_tokens
        return Example(
            tokens=np.array(tokens, np.int32),
            text_weights=np.zeros(len(tokens), np.float32),
            task=-1,
            gen_images=(self._drawn(record, rng),),
            gen_starts=(len(tokens) - self.gen_tokens,),
            unseen=(1, 1 + len(ids) * (drop and not self.attend_to_dropped_prompt)),
        )

    def _drawn(self, record, rng):
        """The picture to draw: its cached codes, or the encoded picture with its crop and its cached latents."""
        if record.get("codes") is not None:
            return _array(record["codes"], np.int32)
        picture = opened(_field(record, "image"))
        check_drawable(picture.opened)
        if record.get("latents") is not None:  # which belong to a crop that was made before
            return picture._replace(latents=_array(record["latents"], np.float32))
        return picture._replace(crop=rng.random()) if self.crop == "random" else picture

    def _lay_out(self, pieces, images):
        """BOS, then the pieces' tokens, each placeholder expanded to BOI, features, EOI; targets by overlap."""
        t, text = self.tokenizer, "".join(p.text for p in pieces)
        if all(p.target for p in pieces):
            ids = np.array(t.ids(text), np.int32)
            overlap = np.ones(len(ids), bool)
        else:
            ids, spans = t.encode(text)
            ids = np.array(ids, np.int32)
            ends = np.cumsum([len(p.text) for p in pieces])
            before = np.cumsum([0, *(p.target for p in pieces)])  # target pieces before each one
            begins, stops = np.array(spans, int).reshape(-1, 2).T
            overlap = before[np.searchsorted(ends, stops, "left") + 1] > before[np.searchsorted(ends, begins, "right")]
        pictures, width = ids == t.image, self.und_tokens + 2
        repeats = np.where(pictures, width, 1)
        begins = 1 + (np.cumsum(repeats) - repeats)[pictures]
        tokens = np.concatenate([[t.bos], np.repeat(ids, repeats)]).astype(np.int32)
        target = np.concatenate([[False], np.repeat(overlap & ~pictures, repeats)])
        tokens[begins], tokens[begins + width - 1] = t.boi, t.eoi
        starts = (begins + 1).tolist()
        if len(starts) != len(images):
            raise BadRecord("pictures and placeholders differ in number")
        if len(tokens) > self.max_length:
            if self.overlong == "skip":
                raise TooLong("example too long")
            if starts and starts[-1] + self.und_tokens > self.max_length:
                raise BadRecord("pictures longer than a row")
            tokens, target = tokens[: self.max_length], target[: self.max_length]
        if not target.any():
            raise BadRecord("no target text")
        return Example(
            tokens=tokens,
            text_weights=np.append(target[1:], False).astype(np.float32),
            task=-1,
            und_images=tuple(opened(i) for i in images),
            und_starts=tuple(starts),
        )


def kept(picture):
    """What an Example's picture to draw brings along: ('codes', T), ('latents', c, h, w) or ('pixels',)."""
    if isinstance(picture, np.ndarray):
        return ("codes", *picture.shape)
    if isinstance(picture, Picture) and picture.latents is not None:
        return ("latents", *picture.latents.shape)
    return PIXELS


def _turn(role, content):
    return {"role": role, "content": content}


def _turns(record):
    if not record["conversation"]:
        raise BadRecord("empty conversation")
    return [_turn(*(_decoded(turn[k], k) for k in ("role", "content"))) for turn in record["conversation"]]


def _field(record, name):
    if record.get(name) is None:
        raise BadRecord(f"no field {name!r} beside {sorted(k for k, v in record.items() if v is not None)}")
    return record[name]


def _text(record, name, rng=None):
    value = _field(record, name)
    if isinstance(value, list) and value and rng is not None:
        value = value[int(rng.integers(len(value)))]
    value = _decoded(value, name)
    if not value.strip():
        raise BadRecord(f"empty {name!r}")
    if name == "text":
        return value
    if len(value) > MAX_CAPTION:
        raise BadRecord(f"absurdly long {name!r}")
    return value.strip()  # a file's last newline is no part of what is drawn or said


def _decoded(value, name):
    """A text as it may come, str or bytes (TFDS, files) -> str."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8-sig")
        if not isinstance(value, str):
            raise BadRecord(f"{name!r} is no text")
        value.encode()  # half of a pair of surrogates, as a cut JSON escape leaves behind, is no text either
    except UnicodeError:
        raise BadRecord("text is not UTF-8") from None
    return value


def _array(value, dtype):
    """An array of a list, or of the bytes, dtype and shape that a cache holds."""
    if isinstance(value, dict):
        value = np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return np.asarray(value, dtype)
