"""Encoded pictures to uint8 pixels, as the released processor does it: PIL, bicubic, sizes truncated by int()."""

import io
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
      opened: the picture, its header read and its pixels not yet, or None; it can be decoded once.
    """

    encoded: bytes
    exif: str = "ignore"
    alpha: str = "drop"
    crop: float | None = None
    latents: np.ndarray | None = None
    opened: Image.Image | None = None


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
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception:  # every decoder has errors of its own
        raise BadRecord("undecodable picture") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadRecord("picture too large")
    return image


def opened(encoded):
    """Bytes or Picture -> Picture whose header was read, so that most broken ones are found before they are decoded.

    Raises:
      BadRecord: as `open_image`.
    """
    picture = as_picture(encoded)
    return picture._replace(opened=open_image(picture))


def check_drawable(image):
    """Raises BadRecord for a picture that nothing could learn to draw: the middle of a ribbon."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadRecord("picture too long and thin")


def decode(encoded):
    """Bytes or Picture -> RGB picture; alpha is dropped and grey replicated, as `convert('RGB')` does."""
    options = as_picture(encoded)
    try:
        image = options.opened or open_image(options)
        if options.exif == "apply":
            image = ImageOps.exif_transpose(image)
        if options.alpha != "drop" and image.has_transparency_data:
            over = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", over.size, options.alpha), over)
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    except BadRecord:
        raise
    except Exception:  # as above
        raise BadRecord("undecodable picture") from None


def for_understanding(image, *, size):
    """Long side to `size`, centred on a grey square: RGB picture -> uint8[size, size, 3]."""
    longest = max(image.size)
    resized = _resize(image, *(max(int(side / longest * size), MIN_SIDE) for side in image.size))
    if resized.size == (size, size):
        return np.asarray(resized)
    square = Image.new("RGB", (size, size), (PAD, PAD, PAD))
    square.paste(resized, tuple((size - side) // 2 for side in resized.size))
    return np.asarray(square)


def for_generation(image, *, size, crop=None):
    """Short side to `size`, a square of the long one: RGB picture -> uint8[size, size, 3].

    `crop` says where along the long side, from 0 to 1; None is the middle.
    """
    shortest = min(image.size)
    resized = _resize(image, *(max(round(side / shortest * size), size) for side in image.size))
    if resized.size == (size, size):
        return np.asarray(resized)
    place = lambda spare: spare // 2 if crop is None else min(int(crop * (spare + 1)), spare)
    left, top = (place(side - size) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _resize(image, width, height):
    """By PIL's bicubic filter; a picture of that size is not copied."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
