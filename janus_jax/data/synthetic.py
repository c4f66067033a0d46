"""Made-up data for benchmarks: noise images, meaningless words, examples of given lengths."""

import io

import numpy as np
from PIL import Image

from janus_jax.batch import TASKS, Example
from janus_jax.data import tokenizer
from janus_jax.data.images import read_header
from janus_jax.data.packing_stats import Lengths

SYLLABLES = "ka lo mi ter on da sel vu ri pan este mor".split()


def photo(rng, *, size):
    """A JPEG with about as many bytes as a photo of this size: smooth shapes and a little noise."""
    small = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), np.uint8))
    smooth = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def words(rng, count):
    """`count` words of two or three syllables; as in natural language, a few are very common."""
    choices = np.minimum(rng.zipf(1.3, (count, 3)) - 1, 10**6) % len(SYLLABLES)
    return " ".join(
        "".join(SYLLABLES[k] for k in choice[: 2 + (choice[0] + choice[1]) % 2])
        for choice in choices
    )


def text_tokenizer(rng):
    """The content of a tokenizer.json that splits them like a real tokenizer splits real words."""
    texts = (words(rng, 50) for _ in range(100))
    return tokenizer.train(texts, vocab_size=4_000, extra=tokenizer.PRO_ROLES)


def records(rng, *, size, codes=0, count=256):
    """Made-up records of all tasks.

    Args:
      rng: numpy Generator.
      size: height and width of images.
      codes: number of codes of an image to generate, given instead of pixels; 0 gives pixels.
      count: number of records of each task.

    Returns:
      {task: records}: captions, texts of lognormal length, prompts.
    """
    photos = [photo(rng, size=size) for _ in range(min(count, 64))]

    def text(median, sigma):
        return words(rng, max(int(rng.lognormal(np.log(median), sigma)), 3))

    def image_to_generate(i):
        if codes:
            return {"codes": rng.integers(0, 4096, codes).tolist()}
        return {"image": photos[i % len(photos)]}

    return {
        "understanding": [
            {"image": photos[i % len(photos)], "caption": text(30, 0.6)} for i in range(count)
        ],
        "text": [{"text": text(350, 1.0)} for _ in range(count)],
        "generation": [{"prompt": text(20, 0.5), **image_to_generate(i)} for i in range(count)],
    }


def table(dims):
    """The lengths of a dimensions file as whole examples: {task: Lengths}."""
    image_tokens = dims["image"]["tokens"]
    und, text, gen = (np.array(dims["lengths"][name]) for name in ("und", "text", "gen"))
    return {
        "understanding": Lengths(und + image_tokens + 2, np.ones_like(und)),
        "text": Lengths(text, np.zeros_like(text)),
        "generation": Lengths(gen + 1 + image_tokens, np.ones_like(gen)),
    }


def realistic(*, und_tokens=576, gen_tokens=576, length=4096, points=120):
    """Typical lengths of real data sets as quantiles of lognormals: {task: Lengths}.

    The medians are 60 tokens of captions and answers, 400 of texts, which are cut at a row, and 40
    of prompts.

    Args:
      und_tokens: features of an image to understand.
      gen_tokens: tokens of an image to generate.
      length: L.
      points: number of quantiles per task.
    """

    def quantiles(median, sigma, shortest, longest):
        normal = np.sort(np.random.default_rng(0).standard_normal(points * 101))[50::101]
        return np.clip(median * np.exp(sigma * normal), shortest, longest).astype(int)

    answers = quantiles(60, 0.7, 8, length - und_tokens - 2)
    texts = quantiles(400, 1.0, 16, length)
    prompts = quantiles(40, 0.6, 8, min(500, length - gen_tokens - 1))
    one_image = np.ones(points, int)
    return {
        "understanding": Lengths(answers + und_tokens + 2, one_image),
        "text": Lengths(texts, np.zeros(points, int)),
        "generation": Lengths(prompts + gen_tokens + 1, one_image),
    }


class TableSource:
    """A source whose records are the lengths of one task's examples."""

    cache = {}  # see Source: it is no cache

    def __init__(self, task, lengths):
        self.name = task
        self.path = task
        self._lengths = lengths

    def __len__(self):
        return len(self._lengths.tokens)

    def __getitem__(self, index):
        return {"tokens": int(self._lengths.tokens[index])}

    def locate(self, index):
        """The record's number."""
        return f"record {index}"


class TableMaker:
    """Makes examples of a TableSource: random ids, one image to understand, codes to generate."""

    def __init__(self, *, tokens, vocab_size, codebook_size, encoded, first_text=16, image=3):
        """Sets the contents.

        Args:
          tokens: of an image to understand, and of one to generate.
          vocab_size: text ids are below it.
          codebook_size: codes are below it.
          encoded: bytes of the image that all examples share.
          first_text: lowest text id.
          image: the placeholder's id.
        """
        self._und_tokens, self._gen_tokens = tokens
        self._vocab_size = vocab_size
        self._codebook_size = codebook_size
        self._encoded = encoded
        self._first_text = first_text
        self._image = image

    def __call__(self, record, *, task, rng, record_id=""):
        """As `examples.ExampleMaker`."""
        n = record["tokens"]
        tokens = rng.integers(self._first_text, self._vocab_size, n).astype(np.int32)
        weights = np.ones(n, np.float32)
        weights[-1] = 0
        example = Example(tokens, weights, TASKS.index(task), record_id=record_id)
        if task == "text":
            return example
        if task == "understanding":
            features_end = 2 + self._und_tokens
            tokens[2:features_end] = self._image
            weights[:features_end] = 0
            return example._replace(und_images=(read_header(self._encoded),), und_starts=(2,))
        start = n - self._gen_tokens
        codes = rng.integers(0, self._codebook_size, self._gen_tokens).astype(np.int32)
        tokens[start:] = self._image
        return example._replace(text_weights=0 * weights, gen_images=(codes,), gen_starts=(start,))
