"""How commands start and end: flags, config fields, exit codes, and --help."""

import re

import pytest
from absl import flags

from janus_jax.train import __main__ as train_command
from tests.helpers.commands import finish, run, start
from tests.helpers.training import write_recipe


@pytest.fixture
def train(data, tmp_path):
    """Arguments of a `train` command."""
    recipe = write_recipe(tmp_path, data)
    return ("train", f"--config={recipe}", f"--workdir={tmp_path}/run")


def test_a_mistake_is_one_message_and_exit_code_2(train, trained, tmp_path):
    evaluate = ("evaluate", f"--checkpoint={trained}", "--data=/nowhere", f"--out={tmp_path}/out")
    cases = (
        ((*train, "--wrkdir=x"), "'wrkdir'"),  # a flag
        ((*train, "--config.stpes=3"), "'stpes'"),  # a field of the config
        (("train", "--config=/nowhere.py"), r"/nowhere\.py"),
        ((*train, "--workdir=gs://bucket/run"), "--workdir=gs://bucket/run"),  # a UserError
        ((*train, "word"), "'word'"),
        (("train",), "--config"),
        (("sample", "paint"), "'paint'"),
        (evaluate, "/nowhere"),
        ((*evaluate, "--benchmark=x"), r"x'?.*'shapes'"),
    )
    for arguments, pattern in cases:
        result = run(*arguments)
        assert result.code == 2 and "Traceback" not in result.err, (arguments, result.err)
        assert result.err.count("Error: ") == 1, (arguments, result.err)
        assert re.search(pattern, result.err), (arguments, result.err)
    assert not (tmp_path / "run").exists()


def test_a_process_exits_with_code_2(train):
    result = finish(start(*train, "--config.stpes=3"))
    assert result.code == 2 and "Traceback" not in result.err and "'stpes'" in result.err


def test_help_lists_the_flags_of_the_command():
    own = flags.FLAGS.get_key_flags_for_module(train_command)
    assert {"config", "workdir"} <= {flag.name for flag in own}
    text = run("sample", "--help").out
    for name in ("checkpoint", "guidance", "temperature", "top_p", "seed"):
        assert f"\n  --{name}: " in text
    assert "--workdir" not in text
