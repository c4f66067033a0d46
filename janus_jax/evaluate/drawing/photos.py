"""MJHQ and COCO: sets of images that are compared with sets of real ones."""

import json
from collections import Counter

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluate.drawing.base import ImageBenchmark, Prompt


class MJHQ(ImageBenchmark):
    """30,000 prompts in ten categories, one folder for each."""

    name = "mjhq"
    compares_photos = True
    layout = "meta_data.json of MJHQ-30K, or a folder with it: {id: {category, prompt}}"
    how_to_score = (
        "FID of OUT against the benchmark's own images, with the same tool for both; `cleanfid` "
        "(as in Liquid) and GigaGAN's computation (as in JanusFlow) differ, so report which one "
        "was used."
    )

    def _prompts(self, data):
        rows = json.loads(self._file(data, "meta_data.json").read_text("utf-8"))
        return [
            Prompt(
                name,
                row["prompt"],
                (f"{row['category']}/{name}.png",),
                {"category": row["category"]},
            )
            for name, row in rows.items()
        ]


class Coco(ImageBenchmark):
    """Captions of photos; 30,000 of them, as the papers state no more than this number.

    All captions are shuffled with a fixed seed. The first caption of every photo in that order
    comes before the second caption of any. val2014 has 40,504 photos, so there the 30,000 captions
    are of different photos.
    """

    name = "coco"
    compares_photos = True
    count = 30_000
    layout = (
        "captions_val2014.json of COCO (annotations with image_id and caption), a TSV (image_id, "
        "caption), or a folder with one of them"
    )
    how_to_score = (
        "FID of OUT against photos of COCO, 30,000 of each; the papers name neither the photos nor "
        "the tool, so report both."
    )

    def _prompts(self, data):
        captions = self._captions(data)
        shuffled, uses = [], Counter()
        for i in np.random.RandomState(0).permutation(
            len(captions)
        ):  # numpy guarantees this generator's numbers
            image, text = captions[i]
            shuffled.append((uses[image], image, text))
            uses[image] += 1
        shuffled.sort(
            key=lambda row: row[0]
        )  # stable: rows of equal use keep the order of the shuffle
        prompts = []
        for use, image, text in shuffled[: self.count]:
            name = image if use == 0 else f"{image}-{use + 1}"
            prompts.append(Prompt(name, text, (f"{name}.png",), {"image_id": image}))
        return prompts

    def _captions(self, data):
        """[(image id, caption)] in the order of the file."""
        name = "captions_val2014.json"
        if data.is_dir() and not any(
            (folder / name).is_file() for folder in (data, data / "annotations")
        ):
            files = sorted([*data.glob("captions_*.json"), *data.glob("captions_*.tsv")])
            if len(files) > 1:
                names = [file.name for file in files]
                raise UserError(f"coco: {str(data)!r} has {names}; give --data the file to use.")
            data = files[0] if files else data
        path = self._file(data, name, within="annotations")
        if path.suffix == ".json":
            rows = json.loads(path.read_text("utf-8"))["annotations"]
            return [(str(row["image_id"]), row["caption"].strip()) for row in rows]
        rows = [line.split("\t", 1) for line in path.read_text("utf-8").split("\n") if line]
        if rows[:1] == [["image_id", "caption"]]:
            rows = rows[1:]
        return [(str(int(image)), caption.strip()) for image, caption in rows]
