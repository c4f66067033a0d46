"""Text to ids and back, with special tokens found by their strings: the numbers differ between released models."""

import os
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from janus_jax.errors import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come one by one; waking its threads costs more
SPECIAL = {  # our name -> the string in DeepSeek's tokenizers (full-width bars)
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "image": "<image_placeholder>",
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
}
PRO_ROLES = ("<|User|>", "<|Assistant|>")


class TextTokenizer:
    """Byte-level BPE read from a tokenizer.json.

    Attributes:
      bos, eos, pad, image, boi, eoi: special ids.
      size: the largest id and one: rows that an embedding table must have.
      text: the file's content, which checkpoints carry along.
    """

    def __init__(self, text):
        """`text` is the content of a tokenizer.json.

        Raises:
          UserError: when a special string is missing, or two tokens share an id.
        """
        self.text = text
        self._tokenizer = Tokenizer.from_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        missing = [s for s in SPECIAL.values() if self._tokenizer.token_to_id(s) is None]
        if missing:
            raise UserError(f"The tokenizer has no token {missing[0]!r}; Janus needs all of {list(SPECIAL.values())}.")
        for name, string in SPECIAL.items():
            setattr(self, name, self._tokenizer.token_to_id(string))
        ids = self._tokenizer.get_vocab().values()
        if len(set(ids)) < len(ids):
            raise UserError("Two tokens of the tokenizer have one id; its vocabulary has a hole that new tokens fell into.")
        self.size = max(ids) + 1

    def with_bos(self):
        """The file's content, changed where needed so that a plain `encode` puts BOS first."""
        tokenizer = Tokenizer.from_str(self.text)
        if tokenizer.encode("").ids[:1] == [self.bos]:
            return self.text
        first = processors.TemplateProcessing(
            single=[SPECIAL["bos"], "$A"], pair=[SPECIAL["bos"], "$A", SPECIAL["bos"], "$B"],
            special_tokens=[(SPECIAL["bos"], self.bos)],
        )  # fmt: skip
        before = [tokenizer.post_processor] if tokenizer.post_processor else []
        tokenizer.post_processor = processors.Sequence([*before, first])
        return tokenizer.to_str()

    def encode(self, text):
        """Ids of a text without BOS, and the character span (start, end) each stands for."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def ids(self, text):
        """The ids alone, quicker."""
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids):
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def load(path):
    """Reads a tokenizer.json; a missing file is an error that says where one comes from."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"No text tokenizer at {str(path)!r}; `janus_jax.prepare` makes one beside its data, or name the "
            "tokenizer.json of a released model with --config.data.tokenizer=FILE."
        )
    return _parse(path, TextTokenizer)


def _parse(path, build):
    try:
        return build(path.read_text())
    except UserError:
        raise
    except Exception as error:  # what `tokenizers` raises for a broken file
        raise UserError(f"{str(path)!r} is no tokenizer.json: {error}.") from None


def complete(path):
    """Adds what Janus needs to the tokenizer.json of a language model: its special tokens and Janus-Pro's roles.

    Returns:
      TextTokenizer, and the strings that had to be added.

    Raises:
      UserError: for a file that is no tokenizer.json.
    """
    tokenizer = _parse(path, Tokenizer.from_str)
    added = [s for s in (*SPECIAL.values(), *PRO_ROLES) if tokenizer.token_to_id(s) is None]
    tokenizer.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in added])
    return TextTokenizer(tokenizer.to_str()), added


def train(texts, *, vocab_size, extra=()):
    """Trains a byte-complete BPE on texts: any text, whatever its script, can be encoded.

    Args:
      texts: iterable of strings.
      vocab_size: number of ids, the 256 bytes and the special ones included.
      extra: further strings that become one token each (role names, say).

    Returns:
      the content of a tokenizer.json.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [tokenizers.AddedToken(s, special=True, normalized=False) for s in (*SPECIAL.values(), *extra)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
