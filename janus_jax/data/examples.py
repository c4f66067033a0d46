"""One record to one Example: layout, targets, prompt drop, first-sentence rule. Decodes no image.

Records, from any source:
    understanding   {"images": [bytes], "conversation": [{"role", "content"}]},
                    {"image", "caption"}, {"image", "question", "answer"}, or a document:
                    {"images": [bytes], "text"} with a placeholder for each image, or interleaved
                    lists {"images": [bytes or None], "texts": [str or None]}
    text            {"text"} or {"conversation"}
    generation      {"image", "prompt"}, optionally "prompt_short"; with "latents" in addition to
                    the image, or "codes" instead of it

If a caption, prompt, question or answer is a list, one of its items is chosen at random each epoch.
"""

import re
from typing import NamedTuple

import numpy as np

from janus_jax.batch import TASKS, Example
from janus_jax.data import chat, images
from janus_jax.data.images import BadRecord, EncodedImage, TooLong
from janus_jax.errors import UserError

MAX_CAPTION = 20_000  # characters; a longer text is no caption, prompt, question or answer
FIRST_SENTENCE = re.compile(r"^.*?[.!?。！？](?=\s|$|[\u4e00-\u9fff])", re.DOTALL)


class Template(NamedTuple):
    """How the text of an example is laid out.

    Attributes:
      kind: 'plain' (stages 1 and 2) or 'chat' (stage 3).
      roles: names of user and assistant in the chat template.
      system_prompt: before understanding conversations in the chat template.
      caption_prompt: the instruction before captions.
    """

    kind: str
    roles: tuple[str, str] = ("User", "Assistant")
    system_prompt: str = ""
    caption_prompt: str = chat.CAPTION


class ImageTokens(NamedTuple):
    """How images appear among the tokens.

    Attributes:
      und_tokens: features of an image to understand.
      gen_tokens: tokens of an image to generate.
      prefix_tokens: names of the special tokens between a prompt and the image to generate.
      attend_to_dropped_prompt: whether the padding that replaces a dropped prompt is attended to.
    """

    und_tokens: int
    gen_tokens: int
    prefix_tokens: tuple[str, ...] = ("boi",)
    attend_to_dropped_prompt: bool = True


class Augmentation(NamedTuple):
    """Random changes to generation examples.

    Attributes:
      prompt_drop: share of prompts that are replaced by padding, for classifier-free guidance.
      first_sentence: share of prompts that are cut to their first sentence.
      crop: 'center' or 'random', the square that is cut out of an image.
    """

    prompt_drop: float = 0.1
    first_sentence: float = 0.0
    crop: str = "center"


class ImageForm(NamedTuple):
    """The form in which a source provides images to generate; one stage needs a single form.

    Attributes:
      kind: 'pixels', 'codes' (instead of pixels) or 'latents' (in addition to pixels).
      shape: of the codes, (T,), or of the latents, (c, h, w); () for pixels.
    """

    kind: str
    shape: tuple[int, ...] = ()

    def __str__(self):
        return f"{self.kind} {self.shape}" if self.shape else self.kind


PIXELS = ImageForm("pixels")


def form_of(image):
    """The ImageForm of an Example's image to generate."""
    if isinstance(image, np.ndarray):
        return ImageForm("codes", image.shape)
    if isinstance(image, EncodedImage) and image.latents is not None:
        return ImageForm("latents", image.latents.shape)
    return PIXELS


class ExampleMaker:
    """Makes examples in a stage's layout."""

    def __init__(
        self,
        tokenizer,
        *,
        template,
        image_tokens,
        augmentation,
        max_length,
        overlong="cut",
    ):
        """Sets the layout.

        Args:
          tokenizer: TextTokenizer.
          template: Template.
          image_tokens: ImageTokens.
          augmentation: Augmentation.
          max_length: L, the longest example that fits a row.
          overlong: 'cut' the end of texts that are too long, or 'skip' such examples.

        Raises:
          UserError: for an unknown choice, and for rows shorter than an image.
        """
        for field, value, known in (
            ("A stage's template", template.kind, ("plain", "chat")),
            ("config.data.overlong", overlong, ("cut", "skip")),
            ("config.data.crop", augmentation.crop, ("center", "random")),
        ):
            if value not in known:
                raise UserError(f"{field} is {value!r}; known: {known[0]!r} and {known[1]!r}.")
        largest_image = max(image_tokens.und_tokens, image_tokens.gen_tokens)
        if max_length < largest_image + 8:
            raise UserError(
                f"Rows of {max_length} tokens are too short for an image of {largest_image} tokens "
                "and its text; raise config.stages.*.length."
            )
        self.tokenizer = tokenizer
        self._template = template
        self._image_tokens = image_tokens
        self._prefix_ids = [getattr(tokenizer, name) for name in image_tokens.prefix_tokens]
        self._augmentation = augmentation
        self._max_length = max_length
        self._skip_overlong = overlong == "skip"

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
          BadRecord: for a missing field, an empty text, a broken image, or a wrong length.
        """
        make = {
            "understanding": self._understanding,
            "text": self._text,
            "generation": self._generation,
        }[task]
        return make(record, rng)._replace(task=TASKS.index(task), record_id=record_id)

    def _understanding(self, record, rng):
        if record.get("images") is not None:
            encoded = record["images"]
        else:
            encoded = [_field(record, "image")]
        if record.get("text") is not None or record.get("texts") is not None:
            return self._document(record, encoded)
        template = self._template
        if record.get("conversation") is not None:
            turns = _turns(record)
        elif record.get("caption") is not None:
            caption = _text(record, "caption", rng)
            if template.kind == "plain":
                pieces = chat.plain_caption(caption, prompt=template.caption_prompt)
                return self._tokenize(pieces, encoded)
            turns = [
                _turn("user", f"{chat.IMAGE}\n{template.caption_prompt}"),
                _turn("assistant", caption),
            ]
        else:
            question = _text(record, "question", rng)
            answer = _text(record, "answer", rng)
            turns = [_turn("user", f"{chat.IMAGE}\n{question}"), _turn("assistant", answer)]
        return self._tokenize(self._conversation(turns, system=template.system_prompt), encoded)

    def _document(self, record, encoded):
        """A text with images; `encoded` may have None where a text is."""
        if record.get("text") is not None:
            text = _text(record, "text")
        else:
            texts = [t if t is None else _as_string(t, "texts") for t in record["texts"]]
            text = chat.join(texts, encoded)
        return self._tokenize(
            chat.document(text), [image for image in encoded if image is not None]
        )

    def _text(self, record, rng):
        if record.get("conversation") is None:
            return self._tokenize(chat.plain_text(_text(record, "text")), ())
        return self._tokenize(self._conversation(_turns(record)), ())

    def _conversation(self, turns, *, system=""):
        if self._template.kind == "chat":
            return chat.conversation(turns, roles=self._template.roles, system=system)
        return chat.plain_conversation(turns)

    def _generation(self, record, rng):
        # These two come first: a run is reproducible only with the same order of random numbers.
        drop = rng.random() < self._augmentation.prompt_drop
        shorten = rng.random() < self._augmentation.first_sentence
        prompt = _text(record, "prompt", rng)
        if shorten and record.get("prompt_short") is not None:
            prompt = _text(record, "prompt_short", rng)
        elif shorten and (sentence := FIRST_SENTENCE.match(prompt)):
            prompt = sentence[0]
        ids = self._prompt_ids(prompt)
        if drop:
            ids = [self.tokenizer.pad] * len(ids)
        gen_tokens = self._image_tokens.gen_tokens
        tokens = [self.tokenizer.bos, *ids, *self._prefix_ids]
        tokens += [self.tokenizer.image] * gen_tokens
        hides_prompt = drop and not self._image_tokens.attend_to_dropped_prompt
        return Example(
            tokens=np.array(tokens, np.int32),
            text_weights=np.zeros(len(tokens), np.float32),
            task=-1,
            gen_images=(self._image_to_generate(record, rng),),
            gen_starts=(len(tokens) - gen_tokens,),
            hidden_span=(1, 1 + len(ids) * hides_prompt),
        )

    def _prompt_ids(self, prompt):
        """Token ids of a generation prompt, cut or refused if the image would not fit after it."""
        is_chat = self._template.kind == "chat"
        pieces = chat.generation_prompt(prompt, roles=self._template.roles if is_chat else None)
        ids = self.tokenizer.ids("".join(piece.text for piece in pieces))
        limit = self._max_length - self._image_tokens.gen_tokens - 1 - len(self._prefix_ids)
        if len(ids) <= limit:
            return ids
        if self._skip_overlong:
            raise TooLong("prompt too long")
        if is_chat:  # a cut would remove the assistant's role
            raise BadRecord("prompt too long")
        return ids[:limit]

    def _image_to_generate(self, record, rng):
        """Cached codes, or the encoded image with its crop position and cached latents."""
        if record.get("codes") is not None:
            return _array(record["codes"], np.int32)
        image = images.read_header(_field(record, "image"))
        images.check_aspect_ratio(image.pil_image)
        if record.get("latents") is not None:  # of an image that is cropped already
            return image._replace(latents=_array(record["latents"], np.float32))
        if self._augmentation.crop == "random":
            return image._replace(crop=rng.random())
        return image

    def _tokenize(self, pieces, encoded):
        """BOS, then the tokens of the pieces, each placeholder expanded to BOI, features, EOI."""
        tokenizer, und_tokens = self.tokenizer, self._image_tokens.und_tokens
        ids, overlap = self._ids_and_targets(pieces)
        is_image = ids == tokenizer.image
        width = und_tokens + 2  # BOI, features, EOI
        repeats = np.where(is_image, width, 1)
        begins = 1 + (np.cumsum(repeats) - repeats)[is_image]
        tokens = np.concatenate([[tokenizer.bos], np.repeat(ids, repeats)]).astype(np.int32)
        target = np.concatenate([[False], np.repeat(overlap & ~is_image, repeats)])
        tokens[begins] = tokenizer.boi
        tokens[begins + width - 1] = tokenizer.eoi
        starts = (begins + 1).tolist()
        if len(starts) != len(encoded):
            raise BadRecord("images and placeholders differ in number")
        if len(tokens) > self._max_length:
            if self._skip_overlong:
                raise TooLong("example too long")
            if starts and starts[-1] + und_tokens > self._max_length:
                raise BadRecord("images longer than a row")
            tokens, target = tokens[: self._max_length], target[: self._max_length]
        if not target.any():
            raise BadRecord("no target text")
        return Example(
            tokens=tokens,
            text_weights=np.append(target[1:], False).astype(np.float32),
            task=-1,
            und_images=tuple(images.read_header(image) for image in encoded),
            und_starts=tuple(starts),
        )

    def _ids_and_targets(self, pieces):
        """int32[n] ids of the joined pieces, and bool[n], which of them overlap a target piece."""
        text = "".join(piece.text for piece in pieces)
        if all(piece.target for piece in pieces):
            ids = np.array(self.tokenizer.ids(text), np.int32)
            return ids, np.ones(len(ids), bool)
        ids, spans = self.tokenizer.encode(text)
        begins, ends = np.array(spans, int).reshape(-1, 2).T
        piece_ends = np.cumsum([len(piece.text) for piece in pieces])
        targets_before = np.cumsum([0, *(piece.target for piece in pieces)])  # of each piece
        last = np.searchsorted(piece_ends, ends, "left")
        first = np.searchsorted(piece_ends, begins, "right")
        overlap = targets_before[last + 1] > targets_before[first]
        return np.array(ids, np.int32), overlap


def _turn(role, content):
    return {"role": role, "content": content}


def _turns(record):
    if not record["conversation"]:
        raise BadRecord("empty conversation")
    return [
        _turn(_as_string(turn["role"], "role"), _as_string(turn["content"], "content"))
        for turn in record["conversation"]
    ]


def _field(record, name):
    if record.get(name) is None:
        existing = sorted(key for key, value in record.items() if value is not None)
        raise BadRecord(f"no field {name!r} among {existing}")
    return record[name]


def _text(record, name, rng=None):
    value = _field(record, name)
    if isinstance(value, list) and value and rng is not None:
        value = value[int(rng.integers(len(value)))]
    value = _as_string(value, name)
    if not value.strip():
        raise BadRecord(f"empty {name!r}")
    if name == "text":
        return value
    if len(value) > MAX_CAPTION:
        raise BadRecord(f"absurdly long {name!r}")
    return value.strip()  # text files end in a newline


def _as_string(value, name):
    """str, or bytes as TFDS and files give them -> str."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8-sig")
        if not isinstance(value, str):
            raise BadRecord(f"{name!r} is no text")
        value.encode()  # fails for half of a surrogate pair, which a truncated JSON escape leaves
    except UnicodeError:
        raise BadRecord("text is not UTF-8") from None
    return value


def _array(value, dtype):
    """An array from a list, or from the bytes, dtype and shape that a cache stores."""
    if isinstance(value, dict):
        value = np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return np.asarray(value, dtype)
