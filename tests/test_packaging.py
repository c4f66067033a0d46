"""The package: its dependencies, its files, and commands that run outside the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from janus_jax import cli
from tests.conftest import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
FILES_OF_EXTRAS = {
    "requirements-plan.txt": "plan",
    "requirements-openmoji.txt": "openmoji",
    "requirements-dev.txt": "test",
}


def requirements(name):
    """The requirements of a file, and of the files that it includes."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = set()
    for line in filter(None, lines):
        included = line.removeprefix("-r ")
        found |= requirements(included) if included != line else {line}
    return found


def extra(name):
    """The requirements of an extra, and of the extras that it includes."""
    found = set()
    for line in EXTRAS[name]:
        included = re.fullmatch(r"janus_jax\[(.+)\]", line)
        found |= extra(included[1]) if included else {line}
    return found


def test_pyproject_and_requirements_agree():
    base = set(PROJECT["project"]["dependencies"])
    assert requirements("requirements.txt") == base
    for file, name in FILES_OF_EXTRAS.items():
        assert requirements(file) == base | extra(name), file
    assert {"test", "plan", "demo", "serve", "gpu"} <= set(EXTRAS)


def test_every_file_of_the_packages_is_installed():
    setuptools = PROJECT["tool"]["setuptools"]
    included = setuptools["packages"]["find"]["include"]
    data = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert data
    for top in ("janus_jax", "configs"):
        assert f"{top}*" in included
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            if path.suffix == ".py":
                assert (path.parent / "__init__.py").exists(), path
            else:
                assert path in data, path


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder without configs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_configs_are_found_by_name_and_by_file(outside):
    parse = cli._ConfigParser("config").parse
    by_file, by_name = parse("configs/tiny.py:2"), cli.load_config("tiny", "2")
    assert by_file.to_dict() == by_name.to_dict()
    assert list(by_file.stages) == ["stage_2"]
    with pytest.raises(OSError, match="configs/tinny.py"):
        parse("configs/tinny.py").to_dict()
    with pytest.raises(OSError, match="tiny.py"):
        parse("elsewhere/tiny.py").to_dict()


def test_a_config_of_the_current_folder_comes_first(outside):
    page = "from configs import pro_1b\n\n\ndef get_config():\n    return pro_1b.get_config('3')\n"
    (outside / "configs").mkdir()
    (outside / "configs/tiny.py").write_text(page)
    parse = cli._ConfigParser("config").parse
    assert parse("configs/tiny.py").to_dict() == cli.load_config("pro_1b", "3").to_dict()


def test_commands_run_in_any_folder(outside):
    """The installed package, the README's config, and another one that imports it."""
    for top in ("janus_jax", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / top, outside / "site" / top, ignore=ignore)
    (outside / "work/configs").mkdir(parents=True)
    page = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (outside / "work/configs/base.py").write_text(page)
    (outside / "work/configs/mine.py").write_text("from configs.base import get_config\n")

    def run(*command):
        folders = [str(outside / "site"), str(ROOT / "tests/no_torch")]
        env = environment(PYTHONPATH=os.pathsep.join(folders))
        command = [sys.executable, "-m", *command]
        done = subprocess.run(
            command, cwd=outside / "work", env=env, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("janus_jax.sample", "--help")
    assert code in (0, 1), err  # absl's --help ends with 1
    assert "--checkpoint" in out
    flags = ("--config=configs/mine.py:3", "--topology=h100:1", "--json")
    code, out, err = run("janus_jax.plan", *flags)
    assert code == 0, err
    plan = json.loads(out.strip().splitlines()[-1])
    assert round(plan["bytes_per_device"] / 2**30) == 28  # as the README says


def test_links_of_the_documentation_lead_to_files():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_map_of_files_is_complete():
    text = (ROOT / "docs/files.md").read_text()
    for top, prefix in (("janus_jax", ""), ("configs", "configs/")):
        for path in (ROOT / top).rglob("*.py"):
            name = prefix + path.relative_to(ROOT / top).as_posix()
            listed = f"`{name}`" in text or name.startswith("data/sources/")
            assert listed or path.name == "__init__.py", f"docs/files.md does not list {name}"
    for name in re.findall(r"`([\w/]+\.py)`", text):
        folder = ROOT if name.startswith("configs/") else ROOT / "janus_jax"
        assert (folder / name).exists(), f"docs/files.md lists {name}"
