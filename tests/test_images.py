"""Image preprocessing equals that of the released processors."""

import io

import numpy as np
import pytest
from PIL import Image

from janus_jax.data import images
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError

MODES = ("RGB", "L", "LA", "P", "RGBA", "I;16")
SIZES = ((333, 500), (1000, 3), (3, 1000), (384, 384), (1, 1), (255, 256))


def released_processor(image, size=384):
    """deepseek-ai's processor: long side to `size`, at least 14 pixels, padded with grey 127."""
    image = image.convert("RGB")
    longest = max(image.size)
    width, height = (max(int(side / longest * size), 14) for side in image.size)
    out = Image.new("RGB", (size, size), (127, 127, 127))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    out.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(out)


def random_image(mode, width, height):
    """A random image of a PIL mode."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), np.uint16))
    if mode == "P":
        return random_image("RGB", width, height).quantize(32)
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (height, width, *bands), np.uint8), mode)


def png(image, **options):
    """An image as PNG bytes."""
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "size"), [(mode, (47, 60)) for mode in MODES] + [("RGB", size) for size in SIZES]
)
def test_understanding_images_equal_those_of_the_released_processor(mode, size):
    encoded = png(random_image(mode, *size))
    actual = images.for_understanding(images.decode(encoded), size=384)
    expected = released_processor(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("size", [(384, 384), (256, 512), (96, 48), (900, 300)])
def test_understanding_images_equal_those_of_transformers(torch, size):
    """At sizes that both round in the same way."""
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    image = random_image("RGB", *size)
    processor = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    expected = np.round((pixels * 0.5 + 0.5) * 255).astype(np.uint8)
    actual = images.for_understanding(images.decode(png(image)), size=384)
    np.testing.assert_array_equal(np.moveaxis(actual, -1, 0), expected)


def test_sources_can_apply_exif_rotation_and_composite_alpha(tmp_path):
    image = random_image("RGBA", 20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    record = {"image": png(image, exif=exif), "prompt": "x"}
    write_array_record(tmp_path / "x.array_record", [record])
    options = dict(kind="array_record", path=str(tmp_path / "x.array_record"))
    default = images.decode(Source("x", **options)[0]["image"])
    assert default.size == (20, 10)
    np.testing.assert_array_equal(default, np.asarray(image)[..., :3])
    changed = images.decode(Source("x", exif="apply", alpha="white", **options)[0]["image"])
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(changed, on_white.rotate(-90, expand=True))
    for wrong in (dict(exif="aply"), dict(alpha="chartreux")):
        with pytest.raises(UserError, match=f"'x'.*{next(iter(wrong.values()))}"):
            Source("x", **wrong, **options)
