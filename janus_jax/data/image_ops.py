"""Encoded pictures to uint8 pixels, as the released processor does it: PIL, bicubic, sizes truncated by int()."""

import io
import warnings

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000  # larger pictures are refused before they are decoded
MAX_ASPECT = 50  # and so are ribbons, which grow by this factor when their short side is brought to size
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PAD = 127  # int(255 * 0.5), the processor's background
MIN_SIDE = 14


class BadRecord(Exception):
    """A record that cannot be used; the message says why, in a few words that reports count by."""


class TooLong(BadRecord):
    """An example that the user asked to leave out: no fault of the data."""


def open_image(encoded):
    """Reads a picture's header, not yet its pixels.

    Raises:
      BadRecord: when it is no picture, or absurdly large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRecord("undecodable picture") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadRecord("picture too large")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadRecord("picture too long and thin")
    return image


def decode(encoded):
    """Encoded bytes -> RGB picture; alpha is dropped and grey replicated, as `convert('RGB')` does."""
    try:
        return open_image(encoded).convert("RGB")
    except BadRecord:
        raise
    except Exception:  # every decoder has errors of its own
        raise BadRecord("undecodable picture") from None


def for_understanding(image, *, size):
    """Long side to `size`, centred on a grey square: RGB picture -> uint8[size, size, 3]."""
    longest = max(image.size)
    width, height = (max(int(side / longest * size), MIN_SIDE) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), (PAD, PAD, PAD))
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def for_generation(image, *, size):
    """Short side to `size`, the middle of the long one: RGB picture -> uint8[size, size, 3]."""
    shortest = min(image.size)
    width, height = (max(round(side / shortest * size), size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))
