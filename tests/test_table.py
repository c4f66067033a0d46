"""The page of every recipe on every pod."""

import json
import shutil

import pytest

from janus_jax.plan import table
from tests.conftest import ROOT


def test_days_of_the_table_are_those_of_its_mfu(tmp_path, monkeypatch):
    for name in ("scale.md", "scale.jsonl"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    lines = (tmp_path / "scale.jsonl").read_text().splitlines()
    compilers = {cell["topology"]: cell["compiler"] for cell in map(json.loads, lines)}
    monkeypatch.setattr(table.topology, "compiler", lambda target: compilers[target.name])

    def days():
        row = (tmp_path / "scale.md").read_text().split("| 2 | v5p:4x4x4 |")[1]
        return float(row.split(" | ")[5])

    before = days()
    table.write_page(tmp_path / "scale.md", plan=None, mfu=0.225)  # no cell is missing
    assert days() == pytest.approx(2 * before, abs=0.1)
