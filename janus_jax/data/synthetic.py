"""Made-up data for benchmarks: photos that are none, words that mean nothing, examples of given lengths."""

import io

import numpy as np
from PIL import Image

from janus_jax.batch import TASKS, Example
from janus_jax.data import tokenizer
from janus_jax.data.images import opened
from janus_jax.data.packing_stats import Lengths

SYLLABLES = "ka lo mi ter on da sel vu ri pan este mor".split()


def photo(rng, *, size):
    """A JPEG as heavy as a photo of its size: smooth shapes under a little grain."""
    small = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), np.uint8))
    smooth = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def words(rng, count):
    """So many words of two or three syllables, a few of them common, as in a language."""
    picks = np.minimum(rng.zipf(1.3, (count, 3)) - 1, 10**6) % len(SYLLABLES)
    return " ".join("".join(SYLLABLES[k] for k in pick[: 2 + (pick[0] + pick[1]) % 2]) for pick in picks)


def text_tokenizer(rng):
    """The content of a tokenizer.json that knows such words about as well as a real one knows real words."""
    return tokenizer.train((words(rng, 50) for _ in range(100)), vocab_size=4_000, extra=tokenizer.PRO_ROLES)


def records(rng, *, size, codes=0, count=256):
    """{task: records}: captions, texts of lognormal length, prompts; `codes` a picture instead of pixels to draw."""
    photos = [photo(rng, size=size) for _ in range(min(count, 64))]
    lines = lambda median, spread: words(rng, max(int(rng.lognormal(np.log(median), spread)), 3))
    drawn = lambda i: {"codes": rng.integers(0, 4096, codes).tolist()} if codes else {"image": photos[i % len(photos)]}
    return {
        "understanding": [{"image": photos[i % len(photos)], "caption": lines(30, 0.6)} for i in range(count)],
        "text": [{"text": lines(350, 1.0)} for _ in range(count)],
        "generation": [{"prompt": lines(20, 0.5), **drawn(i)} for i in range(count)],
    }


def table(dims):
    """The lengths of a shape file as whole examples: {task: Lengths}."""
    picture, lengths = dims["image"]["tokens"], dims["lengths"]
    count = lambda name: np.array(lengths[name])
    return {
        "understanding": Lengths(count("und") + picture + 2, np.ones_like(count("und"))),
        "text": Lengths(count("text"), np.zeros_like(count("text"))),
        "generation": Lengths(count("gen") + 1 + picture, np.ones_like(count("gen"))),
    }


def realistic(*, und_tokens=576, gen_tokens=576, length=4096, points=120):
    """Lengths of the same form at 384 px and rows of 4096: quantiles of lognormals.

    Captions and answers of median 60, texts of median 400 cut at a row, prompts of median 40 tokens.
    """

    def quantiles(median, sigma, lowest, highest):
        normal = np.sort(np.random.default_rng(0).standard_normal(points * 101))[50::101]
        return np.clip(median * np.exp(sigma * normal), lowest, highest).astype(int)

    ones, none = np.ones(points, int), np.zeros(points, int)
    return {
        "understanding": Lengths(quantiles(60, 0.7, 8, length - und_tokens - 2) + und_tokens + 2, ones),
        "text": Lengths(quantiles(400, 1.0, 16, length), none),
        "generation": Lengths(quantiles(40, 0.6, 8, min(500, length - gen_tokens - 1)) + gen_tokens + 1, ones),
    }


class TableSource:
    """Examples of given lengths as a source: a record is its number."""

    cache = {}

    def __init__(self, task, lengths):
        self.name, self.path, self._task, self._lengths = task, task, task, lengths

    def __len__(self):
        return len(self._lengths.tokens)

    def __getitem__(self, index):
        return {"tokens": int(self._lengths.tokens[index])}

    def locate(self, index):
        """Its number."""
        return f"record {index}"


class TableMaker:
    """Makes examples of a table's lengths: random ids, one encoded picture for all, codes in place of pictures to draw."""

    def __init__(self, *, tokens, vocab_size, codebook_size, encoded, first_text=16, image=3):
        """`tokens` of a picture to understand, and of one to draw; `encoded` is the picture of all examples."""
        (self._seen, self._drawn), self._vocab, self._codes = tokens, vocab_size, codebook_size
        self._encoded, self._first, self._image = encoded, first_text, image

    def __call__(self, record, *, task, rng, record_id=""):
        """As `tasks.ExampleMaker`."""
        n = record["tokens"]
        tokens = rng.integers(self._first, self._vocab, n).astype(np.int32)
        weights = np.ones(n, np.float32)
        weights[-1] = 0
        if task == "text":
            return Example(tokens, weights, TASKS.index(task), record_id=record_id)
        if task == "understanding":
            tokens[2 : 2 + self._seen], weights[: 2 + self._seen] = self._image, 0
            return Example(tokens, weights, 0, (opened(self._encoded),), (2,), record_id=record_id)
        start, codes = n - self._drawn, rng.integers(0, self._codes, self._drawn).astype(np.int32)
        tokens[start:] = self._image
        return Example(tokens, 0 * weights, 2, gen_images=(codes,), gen_starts=(start,), record_id=record_id)
