"""DPG-Bench: dense prompts of several sentences."""

import json
import re
from pathlib import Path

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluate.drawing.base import ImageBenchmark, Prompt


class DPG(ImageBenchmark):
    """One PNG per prompt with four images in a square, which the scorer cuts apart."""

    name = "dpg"
    samples = 4
    layout = (
        "prompts/*.txt of TencentQQGYLab/ELLA's dpg_bench (1,065 files of one line), or "
        "dpg_prompts.jsonl (id, prompt)"
    )
    how_to_score = (
        "In a checkout of TencentQQGYLab/ELLA: `bash dpg_bench/dist_eval.sh OUT SIDE`, where SIDE "
        "is the side of one of the four images in pixels, not of the PNG."
    )

    def _prompts(self, data):
        if data.is_dir() and not (data / "dpg_prompts.jsonl").is_file():
            rows = self._text_files(data)
        else:
            lines = self._file(data, "dpg_prompts.jsonl").read_text("utf-8").split("\n")
            rows = [(row["id"], row["prompt"]) for row in map(json.loads, filter(str.strip, lines))]
        return [Prompt(str(name), text, (f"{name}.png",), {}) for name, text in rows]

    def _text_files(self, data):
        """[(name, prompt)] of the text files in a folder."""
        folders = [
            data / name for name in ("dpg_bench/prompts", "prompts") if (data / name).is_dir()
        ]
        folder = folders[0] if folders else data
        rows = [
            (path.stem, path.read_text("utf-8").strip()) for path in sorted(folder.glob("*.txt"))
        ]
        # Files of several lines are a readme, or the word lists of another benchmark.
        others = [name for name, text in rows if len(text.splitlines()) != 1]
        if others or not rows:
            problem = (
                f"{others[0]}.txt is not one line"
                if others
                else "no prompts/*.txt and no dpg_prompts.jsonl"
            )
            raise UserError(f"dpg: {problem} in {str(data)!r}; expected {self.layout}.")
        return rows

    def score(self, out, prompts):
        """Mean score over prompts in percent, and the scorer's own values of the categories.

        The scorer computes the categories from each prompt's last image only and without the
        discount for failed parent questions, so their mean is not the overall score.
        """
        results = sorted(Path(out).glob("dpg-bench_*_results.txt"))
        if not results:
            return {}
        text = results[-1].read_text("utf-8")
        rows = re.findall(r"^(.+\.png), .*?([\d.]+)$", text, re.MULTILINE)
        means = {Path(file).name: float(mean) for file, mean in rows}
        count = sum(prompt.files[0] in means for prompt in prompts)
        if not count == len(means) == len(prompts):
            raise UserError(
                f"dpg: {str(results[-1])!r} scores {count:,} of the {len(prompts):,} prompts and "
                f"{len(means) - count:,} others; the scorer skips files that it cannot read and "
                "names them in its output."
            )
        section = text.partition("L1 category scores:")[2].partition("L2 category scores:")[0]
        categories = {
            name: float(value)
            for name, value in re.findall(r"^\t(.+): ([\d.]+)$", section, re.MULTILINE)
        }
        return {**categories, "overall": 100 * float(np.mean(list(means.values())))}
