"""The command `sample`: images and answers of a trained run, and its mistakes."""

import re

import pytest
from PIL import Image

from tests.helpers.commands import run


@pytest.fixture
def checkpoint(trained):
    return f"--checkpoint={trained}"


def test_draw_and_ask(checkpoint, tmp_path):
    sheet, image = tmp_path / "sheet.png", tmp_path / "star.png"
    prompts = ["--prompt=a red star", "--prompt=a cross"]
    result = run("sample", "draw", checkpoint, *prompts, "--num_images=2", f"--out={sheet}")
    assert result.code == 0, result.err
    assert Image.open(sheet).width >= 4 * 32
    flags = [prompts[0], "--top_k=5", "--dtype=bfloat16", f"--out={image}"]
    result = run("sample", "draw", checkpoint, *flags)
    assert result.code == 0, result.err
    assert Image.open(image).size == (32, 32)
    question = "--question=What color is the star?"
    result = run("sample", "ask", checkpoint, f"--image={image}", question, "--max_tokens=4")
    assert result.code == 0 and result.out.endswith("\n"), result.err


def test_mistakes_name_the_flag_or_the_file(checkpoint, tmp_path):
    draw = ("draw", checkpoint, "--prompt=x", f"--out={tmp_path}/x.png")
    ask = ("ask", checkpoint, "--image=/no.png")
    last_seed = 2**32 - 1
    cases = (
        (("draw", "--checkpoint=/nowhere", "--prompt=x"), "'/nowhere'"),
        (("draw", "--prompt=x"), "--checkpoint"),
        (("draw", checkpoint), "--prompt"),
        ((*draw, "--out=x.pgn"), r"--out=x\.pgn"),
        ((*draw, "--out=x.psd"), r"--out=x\.psd"),  # it can be read and not written
        ((*draw, f"--seed={last_seed}", "--num_images=2"), f"--seed={last_seed}"),
        ((*draw, "--steps=0"), "steps=0"),
        ((*draw, "--steps=5"), "steps"),  # of the other generation path
        ((*draw, "--guidance=nan"), "--guidance=nan"),
        ((*ask, "--question=x", "--top_k=5"), "--top_k"),
        ((*ask, "--question=x"), "/no.png"),
        ((*ask, "--question=<image_placeholder>"), "--question.*<image_placeholder>"),
    )
    for arguments, pattern in cases:
        result = run("sample", *arguments)
        assert result.code == 2 and "Traceback" not in result.err, (arguments, result.err)
        assert re.search(pattern, result.err), (arguments, result.err)
