"""Encoded pictures to uint8 pixels, as the released processor does it: PIL, bicubic, sizes truncated by int()."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

MAX_PIXELS = 64_000_000  # larger pictures are refused before they are decoded
MAX_ASPECT = 50  # and so are ribbons to draw, which grow by this factor when their short side is brought to size
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PAD = 127  # int(255 * 0.5), the processor's background
MIN_SIDE = 14


class BadRecord(Exception):
    """A record that cannot be used; the message says why, in a few words that reports count by."""


class TooLong(BadRecord):
    """An example that the user asked to leave out: no fault of the data."""


class Picture(NamedTuple):
    """An encoded picture of a source that wants more than the release's processor does.

    Attributes:
      encoded: bytes of the file.
      exif: 'ignore', or 'apply' to turn it as its camera says.
      alpha: 'drop', or the colour that shines through where it is transparent ('white', '#808080').
      crop: where along its long side a square to draw is cut, from 0 to 1; None is the middle.
      latents: float32[c, h, w] of that square from a cache, or None.
    """

    encoded: bytes
    exif: str = "ignore"
    alpha: str = "drop"
    crop: float | None = None
    latents: np.ndarray | None = None


def as_picture(encoded):
    """Bytes or Picture -> Picture."""
    return encoded if isinstance(encoded, Picture) else Picture(encoded)


def check_options(*, exif, alpha):
    """Raises ValueError for values that `Picture` does not know."""
    if exif not in ("ignore", "apply"):
        raise ValueError(f"exif is {exif!r}; known: 'ignore' and 'apply'.")
    if not isinstance(alpha, str):
        raise ValueError(f"alpha is {alpha!r}; known: 'drop', or the name of a colour.")
    if alpha != "drop":
        ImageColor.getrgb(alpha)


def open_image(encoded):
    """Reads the header of a picture, bytes or Picture, not yet its pixels.

    Raises:
      BadRecord: when it is no picture, or absurdly large.
    """
    encoded = as_picture(encoded).encoded
    if not encoded:
        raise BadRecord("empty picture")
    if isinstance(encoded, bytes) and encoded.lstrip()[:1] == b"<":
        raise BadRecord("HTML instead of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRecord("undecodable picture") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadRecord("picture too large")
    return image


def check_drawable(encoded):
    """Raises BadRecord for a picture that nothing could learn to draw: the middle of a ribbon."""
    image = open_image(encoded)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadRecord("picture too long and thin")


def decode(encoded):
    """Bytes or Picture -> RGB picture; alpha is dropped and grey replicated, as `convert('RGB')` does."""
    options = as_picture(encoded)
    try:
        image = open_image(options)
        if options.exif == "apply":
            image = ImageOps.exif_transpose(image)
        if options.alpha != "drop" and image.has_transparency_data:
            over = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", over.size, options.alpha), over)
        return image.convert("RGB")
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


def for_generation(image, *, size, crop=None):
    """Short side to `size`, a square of the long one: RGB picture -> uint8[size, size, 3].

    `crop` says where along the long side, from 0 to 1; None is the middle.
    """
    shortest = min(image.size)
    width, height = (max(round(side / shortest * size), size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    place = lambda spare: spare // 2 if crop is None else min(int(crop * (spare + 1)), spare)
    left, top = place(width - size), place(height - size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
