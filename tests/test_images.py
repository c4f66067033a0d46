"""Image preprocessing is that of the released processor to the bit; options go beyond it."""

import io

import numpy as np
import pytest
from PIL import Image

from janus_jax.data import images
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError


def as_released(image, size=384):
    """The released processor in plain PIL: resizes the long side and truncates the sides."""
    image = image.convert("RGB")
    longest = max(image.size)
    width, height = (max(int(side / longest * size), 14) for side in image.size)
    out = Image.new("RGB", (size, size), (127, 127, 127))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    out.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(out)


def random_image(mode, width, height, seed=0):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), np.uint16))
    if mode == "P":
        return random_image("RGB", width, height).quantize(32)
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (height, width, *bands), np.uint8), mode)


def png(image, **options):
    """The bytes of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


SIZES = [(333, 500), (1000, 3), (3, 1000), (47, 60), (384, 384), (1, 1), (255, 256)]
MODES = ["L", "LA", "P", "RGBA", "I;16"]


@pytest.mark.parametrize(
    ("mode", "size"), [*(("RGB", size) for size in SIZES), *((mode, (333, 500)) for mode in MODES)]
)
def test_preprocessing_is_the_released_one(mode, size):
    encoded = png(random_image(mode, *size))
    ours = images.for_understanding(images.decode(encoded), size=384)
    np.testing.assert_array_equal(ours, as_released(Image.open(io.BytesIO(encoded))))


def test_preprocessing_is_that_of_transformers_where_it_rounds_alike(torch):
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    processor = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for size in ((384, 384), (256, 512), (96, 48), (900, 300)):
        image = random_image("RGB", *size)
        pixels = processor(image, return_tensors="np")["pixel_values"][0]
        expected = np.round((pixels * 0.5 + 0.5) * 255).astype(np.uint8)
        ours = images.for_understanding(images.decode(png(image)), size=384)
        np.testing.assert_array_equal(np.moveaxis(ours, -1, 0), expected)


def test_sources_rotate_images_and_fill_transparent_pixels_when_asked(tmp_path):
    image = random_image("RGBA", 20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    path = tmp_path / "x.array_record"
    write_array_record(path, [{"image": png(image, exif=exif), "prompt": "x"}])
    options = dict(kind="array_record", path=str(path))
    unchanged = images.decode(Source("x", **options)[0]["image"])
    assert unchanged.size == (20, 10)
    np.testing.assert_array_equal(unchanged, np.asarray(image)[..., :3])
    changed = images.decode(Source("x", exif="apply", alpha="white", **options)[0]["image"])
    background = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(background, image).convert("RGB").rotate(-90, expand=True)
    np.testing.assert_array_equal(changed, expected)
    for wrong in (dict(exif="aply"), dict(alpha="chartreux")):
        with pytest.raises(UserError, match=f"'x'.*{next(iter(wrong.values()))}"):
            Source("x", **wrong, **options)
