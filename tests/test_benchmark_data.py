"""`benchmark data` and `benchmark fill` on a small dimensions file."""

import json

import pytest

from tests.helpers.commands import run

DIMS = {
    "image": {"size": 32, "patch": 8, "tokens": 16},
    "vision": {"width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2},
    "vq": {
        "base_channels": 32,
        "channel_mult": [1, 2, 2, 2],
        "res_blocks": 1,
        "z_channels": 32,
        "codebook_size": 64,
        "codebook_dim": 8,
    },
    "llm": {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "mlp": 64,
        "vocab": 256,
        "rms_eps": 1e-6,
        "rope_theta": 1e4,
    },
    "train": {"rows": 4, "length": 128},
    "lengths": {"und": [8, 9, 12], "text": [10, 20, 31, 60], "gen": [5, 7, 9]},
}
FIELDS = {
    "name",
    "seconds_median",
    "min",
    "max",
    "n",
    "tokens_real",
    "tokens_padded",
    "tokens_per_second",
    "images_per_second",
    "token_fill",
    "slot_fill",
    "mfu",
    "device",
    "token_bound",
    "useful_share_of_flops",
}


def test_the_data_of_a_shape_file_is_timed(tmp_path):
    (tmp_path / "dims.json").write_text(json.dumps(DIMS))
    options = (f"--dims={tmp_path}/dims.json", "--json", "--mixture=1:1:2")
    done = run("benchmark", "data", *options, "--repeats=3")
    assert done.code == 0, done.err
    figures = json.loads(done.out.splitlines()[-1])
    assert figures.keys() >= FIELDS
    assert 0.9 < figures["token_fill"] <= figures["token_bound"] + 0.01
    assert figures["useful_share_of_flops"] < 1
    done = run("benchmark", "fill", *options)
    assert done.code == 0, done.err
    table = json.loads(done.out.splitlines()[-1])["table"]
    assert [line["rows"] for line in table] == [8, 4, 2, 1]
    for name in ("token_fill", "token_bound", "slot_fill", "useful_share_of_flops"):
        assert table[0][name] == figures[name]


def test_a_mixture_of_two_shares_is_a_mistake(tmp_path):
    (tmp_path / "dims.json").write_text(json.dumps(DIMS))
    done = run("benchmark", "data", f"--dims={tmp_path}/dims.json", "--mixture=1:2")
    assert done.code == 2 and "2:3:5" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["draw", "--mixture=1:1:1"], "--mixture"),
        (["fill", "--config=configs/tiny.py"], "--config"),
        (["probe", "--rows=2"], "--rows"),
        (["data", "--config=configs/tiny.py", "--codes"], "--codes"),
        (["train", "--config=configs/tiny_flow.py", "--codes"], "--codes"),
    ],
)
def test_a_flag_that_would_be_ignored_is_a_mistake(arguments, named):
    done = run("benchmark", *arguments)
    assert done.code == 2 and named in done.err and "Traceback" not in done.err
