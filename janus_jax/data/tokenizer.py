"""Text to ids and back; special tokens by their strings, as their ids differ between models."""

import os
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from janus_jax.errors import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come singly: its threads cost time
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
      size: the largest id plus 1: rows that an embedding table needs.
      text: the file's content, which checkpoints include.
    """

    def __init__(self, text):
        """Parses the content of a tokenizer.json.

        Raises:
          UserError: if a special token is missing, or two tokens have the same id.
        """
        self.text = text
        self._tokenizer = Tokenizer.from_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        missing = [s for s in SPECIAL.values() if self._tokenizer.token_to_id(s) is None]
        if missing:
            raise UserError(
                f"The tokenizer has no token {missing[0]!r}; Janus needs all of "
                f"{list(SPECIAL.values())}."
            )
        for name, string in SPECIAL.items():
            setattr(self, name, self._tokenizer.token_to_id(string))
        ids = self._tokenizer.get_vocab().values()
        if len(set(ids)) < len(ids):
            raise UserError(
                "Two tokens of the tokenizer have one id: new tokens got ids of a gap in its "
                "vocabulary."
            )
        self.size = max(ids) + 1

    def with_bos(self):
        """The file's content, changed if necessary so that a plain `encode` begins with BOS."""
        tokenizer = Tokenizer.from_str(self.text)
        if tokenizer.encode("").ids[:1] == [self.bos]:
            return self.text
        add_bos = processors.TemplateProcessing(
            single=[SPECIAL["bos"], "$A"],
            pair=[SPECIAL["bos"], "$A", SPECIAL["bos"], "$B"],
            special_tokens=[(SPECIAL["bos"], self.bos)],
        )
        existing = [tokenizer.post_processor] if tokenizer.post_processor else []
        tokenizer.post_processor = processors.Sequence([*existing, add_bos])
        return tokenizer.to_str()

    def encode(self, text):
        """Ids of a text without BOS, and the character span (start, end) of each."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def ids(self, text):
        """The ids alone, which is faster."""
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids):
        """Text of ids, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def load(path):
    """Reads a tokenizer.json.

    Raises:
      UserError: for a missing file, or one that is no tokenizer.json.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no text tokenizer at {str(path)!r}. `janus_jax.prepare` makes one with its "
            "data; or set the tokenizer.json of a released model with --config.data.tokenizer=FILE."
        )
    return _parse(path, TextTokenizer)


def _parse(path, build):
    try:
        return build(path.read_text())
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises it for a broken file
        raise UserError(f"{str(path)!r} is no tokenizer.json: {error}.") from None


def complete(path):
    """Adds the special tokens of Janus and the roles of Janus-Pro to a language model's tokenizer.

    Returns:
      TextTokenizer, and the list of strings that were missing.

    Raises:
      UserError: for a file that is no tokenizer.json.
    """
    tokenizer = _parse(path, Tokenizer.from_str)
    added = [s for s in (*SPECIAL.values(), *PRO_ROLES) if tokenizer.token_to_id(s) is None]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(s, special=True, normalized=False) for s in added]
    )
    return TextTokenizer(tokenizer.to_str()), added


def train(texts, *, vocab_size, extra=()):
    """Trains a byte-complete BPE, which can encode any text in any script.

    Args:
      texts: iterable of strings.
      vocab_size: number of ids, including the 256 bytes and the special tokens.
      extra: further strings that become one token each, such as role names.

    Returns:
      the content of a tokenizer.json.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        tokenizers.AddedToken(s, special=True, normalized=False)
        for s in (*SPECIAL.values(), *extra)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
