"""Benchmarks of drawing: their prompts, the folders that their official scorers read, and the figures in the results.

The scorers need networks that are no part of the project, so a set here ends where a scorer begins: pictures lie in its
layout, whole and complete, and once it has left its results among them, they are read by the benchmark's own formula.
"""

import io
import json
import os
import re
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import einops
import numpy as np
from PIL import Image

from janus_jax.errors import UserError


class Prompt(NamedTuple):
    """A prompt, and the PNGs that are drawn for it.

    `files` are relative to the output folder; `extra` is what the set itself needs to know of the prompt later.
    """

    id: str
    text: str
    files: tuple[str, ...]
    extra: dict

    @property
    def asked(self):
        """What its pictures depend on."""
        return self.id, self.text, self.files


class PictureSet:
    """What all sets share; as it stands, pictures of a prompt lie in one file, in rows of a square.

    Attributes:
      name: the benchmark's.
      samples: pictures a prompt, as its protocol wants them.
      layout: which files `read` expects, for errors and help.
      how_to_score: how the official scorer is run on an output folder.
    """

    name = layout = how_to_score = ""
    samples = 1

    def read(self, data):
        """Prompts of the benchmark's own files.

        Args:
          data: folder of the benchmark, or the file with its prompts.

        Returns:
          [Prompt], always in the same order.

        Raises:
          UserError: where the files are not there, or hold something else.
        """
        try:
            prompts = self._prompts(Path(data).expanduser())
        except UserError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.name}: {str(data)!r} cannot be read ({error!r}); expected {self.layout}.") from error
        if not prompts:
            raise UserError(f"{self.name}: no prompt in {str(data)!r}; expected {self.layout}.")
        for prompt in prompts:
            if not isinstance(prompt.text, str):
                raise UserError(f"{self.name}: prompt {prompt.id!r} in {str(data)!r} is {prompt.text!r}, which is no text.")
            if any(".." in Path(file).parts or Path(file).is_absolute() for file in prompt.files):
                raise UserError(f"{self.name}: {prompt.id!r} in {str(data)!r} would be drawn outside the output folder.")
        (file, count), *_ = Counter(p.files[0] for p in prompts).most_common(1)
        if count > 1:
            raise UserError(f"{self.name}: {count} prompts in {str(data)!r} ask for the same file, {file!r}.")
        return prompts

    def save(self, out, prompt, pictures):
        """Writes `pictures`, uint8[samples, h, w, 3], each file whole or not at all."""
        _write(Path(out) / prompt.files[0], _png(_square(pictures)))

    def done(self, out, prompt):
        """Whether all files of a prompt are there and whole, so that nothing is drawn twice."""
        return all(_is_whole_png(Path(out) / file) for file in prompt.files)

    def finish(self, out, prompts):
        """Refuses an output folder that a scorer would misread.

        Scorers go through whatever PNGs they find: one too few or too many changes the figure, and none says so.

        Raises:
          UserError: where pictures of a prompt are missing, or pictures of no prompt are there.
        """
        undone = [p.id for p in prompts if not self.done(out, p)]
        if undone:
            raise UserError(
                f"{self.name}: {len(undone):,} of {len(prompts):,} prompts lack pictures in {str(out)!r}, first of them "
                f"{undone[0]!r}; the same command draws what is missing."
            )
        found = {path.relative_to(out).as_posix() for path in Path(out).rglob("*.png")}
        strays = sorted(found - {file for p in prompts for file in p.files})
        if strays:
            raise UserError(
                f"{self.name}: {len(strays):,} PNGs in {str(out)!r} belong to no prompt, first of them {strays[0]!r}; a "
                "scorer would take them in. Move them away."
            )

    def score(self, out, prompts):
        """{figure: value} from what the official scorer wrote into the folder; empty where it has written nothing.

        Raises:
          UserError: where it judged other pictures than those of the prompts.
        """
        return {}

    def _file(self, data, name, *, within="."):
        """The file named, or the one of that name in a folder, or in the part of it where the official one has it."""
        paths = [data / name, data / within / name] if data.is_dir() else [data]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(f"{self.name}: no {name} in {str(data)!r}; expected {self.layout}.")


class GenEval(PictureSet):
    """Objects, counts, colours, positions: a folder for each prompt, a file for each of its four pictures."""

    name, samples = "geneval", 4
    layout = "evaluation_metadata.jsonl of djghosh13/geneval, or a folder with it: a line a prompt, with its tag and prompt"
    how_to_score = (
        "In a checkout of djghosh13/geneval, with its Mask2Former in MODELS: "
        "`python evaluation/evaluate_images.py OUT --outfile OUT/results.jsonl --model-path MODELS`."
    )

    def _prompts(self, data):
        lines = self._file(data, "evaluation_metadata.jsonl", within="prompts").read_text("utf-8").split("\n")
        prompts = []
        for line in filter(str.strip, lines):
            row, number = json.loads(line), f"{len(prompts):05}"
            files = (*(f"{number}/samples/{i:04}.png" for i in range(self.samples)), f"{number}/grid.png")
            prompts.append(Prompt(number, row["prompt"], files, {"tag": row["tag"], "line": line}))
        return prompts

    def save(self, out, prompt, pictures):
        """Also writes the prompt's line, by which the scorer judges, and a grid for people."""
        folder = Path(out) / prompt.id
        _write(folder / "metadata.jsonl", prompt.extra["line"].encode())
        for file, picture in zip(prompt.files, (*pictures, _square(pictures)), strict=True):
            _write(Path(out) / file, _png(picture))

    def done(self, out, prompt):
        """Pictures that were drawn for another line of this number do not count."""
        metadata = Path(out) / prompt.id / "metadata.jsonl"
        return metadata.is_file() and metadata.read_bytes() == prompt.extra["line"].encode() and super().done(out, prompt)

    def score(self, out, prompts):
        """Share of right pictures of each tag, and the plain mean of these, which is the benchmark's own overall."""
        path = Path(out) / "results.jsonl"
        if not path.is_file():
            return {}
        try:
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            right = {"/".join(Path(row["filename"]).parts[-3:]): bool(row["correct"]) for row in rows}
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"geneval: {str(path)!r} is no result of evaluate_images.py ({error!r}).") from error
        wanted = {}
        for prompt in prompts:
            wanted.setdefault(prompt.extra["tag"], []).extend(prompt.files[: self.samples])
        drawn = {file for files in wanted.values() for file in files}
        if right.keys() != drawn:
            raise UserError(
                f"geneval: {str(path)!r} judges {len(right.keys() & drawn):,} of the {len(drawn):,} pictures and "
                f"{len(right.keys() - drawn):,} others; run the scorer over the whole folder."
            )
        shares = {tag: float(np.mean([right[file] for file in files])) for tag, files in wanted.items()}
        return {**shares, "overall": float(np.mean(list(shares.values())))}


class DPG(PictureSet):
    """Dense prompts: one PNG a prompt, its four pictures in a square that the scorer cuts up again."""

    name, samples = "dpg", 4
    layout = "prompts/*.txt of TencentQQGYLab/ELLA's dpg_bench (1,065 files of one line), or dpg_prompts.jsonl (id, prompt)"
    how_to_score = (
        "In a checkout of TencentQQGYLab/ELLA: `bash dpg_bench/dist_eval.sh OUT SIDE`, where SIDE is the side of one of the "
        "four pictures in pixels, not of the PNG."
    )

    def _prompts(self, data):
        if data.is_dir() and not (data / "dpg_prompts.jsonl").is_file():
            folder = next((data / f for f in ("dpg_bench/prompts", "prompts") if (data / f).is_dir()), data)
            pairs = [(path.stem, path.read_text("utf-8").strip()) for path in sorted(folder.glob("*.txt"))]
            long = [name for name, text in pairs if len(text.splitlines()) != 1]
            if long or not pairs:  # a readme, or the word lists of another benchmark
                which = f"{long[0]}.txt is not one line" if long else "no prompts/*.txt and no dpg_prompts.jsonl"
                raise UserError(f"dpg: {which} in {str(data)!r}; expected {self.layout}.")
        else:
            lines = self._file(data, "dpg_prompts.jsonl").read_text("utf-8").split("\n")
            pairs = [(row["id"], row["prompt"]) for row in map(json.loads, filter(str.strip, lines))]
        return [Prompt(str(name), text, (f"{name}.png",), {}) for name, text in pairs]

    def score(self, out, prompts):
        """Mean over prompts of the pictures' scores, in percent, and the scorer's own figures of the categories.

        The newest results count. Categories come from each prompt's last picture only and without the discount for failed
        parent questions: this is how the scorer prints them, and why they do not average to the overall.
        """
        results = sorted(Path(out).glob("dpg-bench_*_results.txt"))
        if not results:
            return {}
        text = results[-1].read_text("utf-8")
        means = {Path(file).name: float(mean) for file, mean in re.findall(r"^(.+\.png), .*?([\d.]+)$", text, re.MULTILINE)}
        judged = sum(prompt.files[0] in means for prompt in prompts)
        if not judged == len(means) == len(prompts):
            raise UserError(
                f"dpg: {str(results[-1])!r} judges {judged:,} of the {len(prompts):,} prompts and {len(means) - judged:,} "
                "others; the scorer passes over files that it cannot read, its messages name them."
            )
        broad = text.partition("L1 category scores:")[2].partition("L2 category scores:")[0]
        categories = {name: float(value) for name, value in re.findall(r"^\t(.+): ([\d.]+)$", broad, re.MULTILINE)}
        return {**categories, "overall": 100 * float(np.mean(list(means.values())))}


class MJHQ(PictureSet):
    """30,000 prompts in ten categories, compared with pictures as a set."""

    name = "mjhq"
    layout = "meta_data.json of MJHQ-30K, or a folder with it: {id: {category, prompt}}"
    how_to_score = (
        "FID of OUT against the benchmark's own pictures, with the same tool on both sides: `cleanfid` (Liquid's way) and "
        "GigaGAN's computation (JanusFlow's way) differ, so name the one used."
    )

    def _prompts(self, data):
        rows = json.loads(self._file(data, "meta_data.json").read_text("utf-8"))
        return [
            Prompt(name, row["prompt"], (f"{row['category']}/{name}.png",), {"category": row["category"]})
            for name, row in rows.items()
        ]


class Coco(PictureSet):
    """Captions of photos, compared with photos as a set; 30,000 of them, as the papers' figure says no more than that.

    All captions are shuffled, always in the same way, and every photo gives its first one in that order before any photo
    gives a second. val2014 has 40,504 photos, so there each of the 30,000 captions is of another photo.
    """

    name, count = "coco", 30_000
    layout = (
        "captions_val2014.json of COCO (annotations with image_id and caption), a TSV (image_id, caption), or their folder"
    )
    how_to_score = (
        "FID of OUT against photos of COCO, 30,000 of each; the papers name neither the photos nor the tool, so name both."
    )

    def _prompts(self, data):
        captions = self._captions(data)
        turns, seen = [], Counter()
        for i in np.random.RandomState(0).permutation(len(captions)):  # the one generator numpy promises never to change
            image, text = captions[i]
            turns.append((seen[image], image, text))
            seen[image] += 1
        turns.sort(key=lambda turn: turn[0])  # stable, so within a turn the shuffle's order holds
        names = [(image if turn == 0 else f"{image}-{turn + 1}", image, text) for turn, image, text in turns]
        return [Prompt(name, text, (f"{name}.png",), {"image_id": image}) for name, image, text in names[: self.count]]

    def _captions(self, data):
        """[(image id, caption)] in the order of the file."""
        name = "captions_val2014.json"
        if data.is_dir() and not any((folder / name).is_file() for folder in (data, data / "annotations")):
            files = sorted([*data.glob("captions_*.json"), *data.glob("captions_*.tsv")])
            if len(files) > 1:
                raise UserError(f"coco: {[f.name for f in files]} all lie in {str(data)!r}; name the file instead.")
            data = files[0] if files else data
        path = self._file(data, name, within="annotations")
        if path.suffix == ".json":
            rows = json.loads(path.read_text("utf-8"))["annotations"]
            return [(str(row["image_id"]), row["caption"].strip()) for row in rows]
        rows = [line.split("\t", 1) for line in path.read_text("utf-8").split("\n") if line]
        rows = rows[rows[:1] == [["image_id", "caption"]] :]  # a head line
        return [(str(int(image)), caption.strip()) for image, caption in rows]


PICTURE_SETS = {s.name: s for s in (GenEval(), DPG(), MJHQ(), Coco())}


def _square(pictures):
    """Lays k * k pictures out in rows: uint8[k*k, h, w, 3] becomes uint8[k*h, k*w, 3]."""
    return einops.rearrange(np.asarray(pictures), "(a b) h w c -> (a h) (b w) c", a=round(len(pictures) ** 0.5))


def _png(picture):
    """Bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def _write(path, content):
    """Writes beside the place and moves: a killed run leaves no half of a file under a name that counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _is_whole_png(path):
    """Whether a PNG is there and whole, by the checksums of its parts."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, struct.error):
        return False
    return True
