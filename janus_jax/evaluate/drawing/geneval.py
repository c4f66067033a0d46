"""GenEval: objects, counts, colors, positions."""

import json
from pathlib import Path

import numpy as np

from janus_jax.data.files import write_whole
from janus_jax.data.images import encode_png
from janus_jax.errors import UserError
from janus_jax.evaluate.drawing.base import ImageBenchmark, Prompt, square


class GenEval(ImageBenchmark):
    """A folder for each prompt, a file for each of its four images."""

    name = "geneval"
    samples = 4
    layout = (
        "evaluation_metadata.jsonl of djghosh13/geneval, or a folder with it: one line per prompt, "
        "with tag and prompt"
    )
    how_to_score = (
        "In a checkout of djghosh13/geneval, with its Mask2Former in MODELS: "
        "`python evaluation/evaluate_images.py OUT --outfile OUT/results.jsonl "
        "--model-path MODELS`."
    )

    def _prompts(self, data):
        path = self._file(data, "evaluation_metadata.jsonl", within="prompts")
        prompts = []
        for line in filter(str.strip, path.read_text("utf-8").split("\n")):
            row = json.loads(line)
            number = f"{len(prompts):05}"
            samples = [f"{number}/samples/{i:04}.png" for i in range(self.samples)]
            files = (*samples, f"{number}/grid.png")
            prompts.append(Prompt(number, row["prompt"], files, {"tag": row["tag"], "line": line}))
        return prompts

    def save(self, out, prompt, images):
        """Also writes the prompt's line, which the scorer reads, and all images in one grid."""
        out = Path(out)
        write_whole(out / prompt.id / "metadata.jsonl", prompt.extra["line"].encode())
        for file, image in zip(prompt.files, (*images, square(images)), strict=True):
            write_whole(out / file, encode_png(image))

    def is_done(self, out, prompt):
        """Images of another prompt with this number do not count."""
        metadata = Path(out) / prompt.id / "metadata.jsonl"
        if not metadata.is_file() or metadata.read_bytes() != prompt.extra["line"].encode():
            return False
        return super().is_done(out, prompt)

    def score(self, out, prompts):
        """Share of correct images of each tag, and their mean, which is the overall score."""
        path = Path(out) / "results.jsonl"
        if not path.is_file():
            return {}
        try:
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            correct = {
                "/".join(Path(row["filename"]).parts[-3:]): bool(row["correct"]) for row in rows
            }
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"geneval: {str(path)!r} is no result of evaluate_images.py ({error!r})."
            ) from error
        files_by_tag = {}
        for prompt in prompts:
            files_by_tag.setdefault(prompt.extra["tag"], []).extend(prompt.files[: self.samples])
        expected = {file for files in files_by_tag.values() for file in files}
        if correct.keys() != expected:
            raise UserError(
                f"geneval: {str(path)!r} scores {len(correct.keys() & expected):,} of the "
                f"{len(expected):,} images and {len(correct.keys() - expected):,} others; run the "
                "scorer on the whole folder."
            )
        shares = {
            tag: float(np.mean([correct[file] for file in files]))
            for tag, files in files_by_tag.items()
        }
        return {**shares, "overall": float(np.mean(list(shares.values())))}
