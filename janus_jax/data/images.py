"""Encoded images to uint8 pixels, exactly as the released processor: PIL, bicubic, int() sizes."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

MAX_PIXELS = 64_000_000  # larger images are refused before they are decoded
MAX_ASPECT_RATIO = 50  # of images to generate: resizing by the short side enlarges the long one
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PAD = 127  # int(255 * 0.5), the processor's background
MIN_SIDE = 14


class BadRecord(Exception):
    """A record that cannot be used; the message is a short reason, by which reports count."""


class TooLong(BadRecord):
    """An example that is left out because the user asked for it, not because its data are bad."""


class EncodedImage(NamedTuple):
    """An image file's content, and how to decode and crop it.

    Attributes:
      encoded: bytes of the file.
      exif: 'ignore', or 'apply' to rotate the image as its EXIF orientation says.
      alpha: 'drop', or the background colour of transparent pixels ('white', '#808080').
      crop: position of the square to generate along the long side, from 0 to 1; None is the centre.
      latents: float32[c, h, w] of that square, from a cache, or None.
      pil_image: the image with its header read and its pixels not yet decoded, or None. It can be
        decoded once.
    """

    encoded: bytes
    exif: str = "ignore"
    alpha: str = "drop"
    crop: float | None = None
    latents: np.ndarray | None = None
    pil_image: Image.Image | None = None


def as_encoded_image(image):
    """Bytes or EncodedImage -> EncodedImage."""
    return image if isinstance(image, EncodedImage) else EncodedImage(image)


def check_options(*, exif, alpha):
    """Raises ValueError for values of `exif` and `alpha` that EncodedImage does not know."""
    if exif not in ("ignore", "apply"):
        raise ValueError(f"exif is {exif!r}; known: 'ignore' and 'apply'.")
    if not isinstance(alpha, str):
        raise ValueError(f"alpha is {alpha!r}; known: 'drop', or the name of a colour.")
    if alpha != "drop":
        ImageColor.getrgb(alpha)


def open_image(image):
    """Reads the header, not the pixels, of an image given as bytes or EncodedImage.

    Raises:
      BadRecord: for a file that is no image, or an image that is too large.
    """
    encoded = as_encoded_image(image).encoded
    if not encoded:
        raise BadRecord("empty image")
    if isinstance(encoded, bytes) and encoded.lstrip()[:1] == b"<":
        raise BadRecord("HTML instead of an image")
    try:
        pil_image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception:  # every decoder has its own exceptions
        raise BadRecord("undecodable image") from None
    if pil_image.width * pil_image.height > MAX_PIXELS:
        raise BadRecord("image too large")
    return pil_image


def read_header(image):
    """Bytes or EncodedImage -> EncodedImage with `pil_image`; most broken files fail here.

    Raises:
      BadRecord: as `open_image`.
    """
    image = as_encoded_image(image)
    return image._replace(pil_image=open_image(image))


def check_aspect_ratio(pil_image):
    """Raises BadRecord for an image so narrow that its central square is no useful target."""
    if max(pil_image.size) > MAX_ASPECT_RATIO * min(pil_image.size):
        raise BadRecord("image too long and thin")


def decode(image):
    """Bytes or EncodedImage -> RGB PIL image; by default as `convert('RGB')` does, without alpha.

    Raises:
      BadRecord: for broken pixels, and as `open_image`.
    """
    options = as_encoded_image(image)
    try:
        pil_image = options.pil_image or open_image(options)
        if options.exif == "apply":
            pil_image = ImageOps.exif_transpose(pil_image)
        if options.alpha != "drop" and pil_image.has_transparency_data:
            foreground = pil_image.convert("RGBA")
            background = Image.new("RGBA", foreground.size, options.alpha)
            pil_image = Image.alpha_composite(background, foreground)
        pil_image.load()
        return pil_image if pil_image.mode == "RGB" else pil_image.convert("RGB")  # avoids a copy
    except BadRecord:
        raise
    except Exception:  # every decoder has its own exceptions
        raise BadRecord("undecodable image") from None


def for_understanding(image, *, size):
    """Resizes the long side to `size` and pads with grey: RGB PIL image -> uint8[size, size, 3]."""
    longest = max(image.size)
    resized = _resize(image, *(max(int(side / longest * size), MIN_SIDE) for side in image.size))
    if resized.size == (size, size):
        return np.asarray(resized)
    square = Image.new("RGB", (size, size), (PAD, PAD, PAD))
    square.paste(resized, tuple((size - side) // 2 for side in resized.size))
    return np.asarray(square)


def for_generation(image, *, size, crop=None):
    """Resizes the short side to `size` and crops: RGB PIL image -> uint8[size, size, 3].

    `crop` is the position of the square along the long side, from 0 to 1; None is the centre.
    """
    shortest = min(image.size)
    resized = _resize(image, *(max(round(side / shortest * size), size) for side in image.size))
    if resized.size == (size, size):
        return np.asarray(resized)
    left, top = (_offset(side - size, crop) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _offset(spare, crop):
    """First pixel of the square, where the side has `spare` pixels more than the square."""
    return spare // 2 if crop is None else min(int(crop * (spare + 1)), spare)


def _resize(image, width, height):
    """PIL's bicubic filter; an image that already has the size is not copied."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_png(pixels):
    """uint8[h, w, 3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
