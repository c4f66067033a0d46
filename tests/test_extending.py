"""The examples of docs/extending.md: written into a copy of the project, their tests pass."""

import re
import shutil
import subprocess
import sys

from tests.conftest import ROOT, environment

PATH_TESTS = (  # some of them, for time
    "test_no_gradient_between_packed_examples",
    "test_images_depend_on_prompt_and_seed_only",
)


def test_the_examples_of_the_guide_run(tmp_path):
    for name in ("janus_jax", "configs", "tests", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        else:
            shutil.copy(source, target)
    blocks = re.findall(
        r"```python\n# (.*?)\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL
    )
    tests, touched = [], []
    for where, code in blocks:
        path = tmp_path / where.removeprefix("append to ")
        if where.startswith("append to "):
            path.write_text(path.read_text() + "\n\n" + code)
        else:
            assert not path.exists(), where
            path.write_text(code)
            touched.append(where)
        if path.name.startswith("test_"):
            tests.append(str(path.relative_to(tmp_path)))
    assert len(tests) == 3 and "tests/paths/maskgit.py" in touched
    paths = [f"tests/test_paths.py::{test}[maskgit]" for test in PATH_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, *paths]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
