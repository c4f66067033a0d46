"""A pytest plugin of `make acceptance`, which writes docs/acceptance.md.

Tests that have passed on the same sources are not run again.

A test reports its figures with `record_property("figures", "...")`. Outcomes are stored one by one
in runs/acceptance.jsonl, so an interrupted run resumes. The page is written in one piece, when
every slow test has an outcome on the current sources.
"""

import hashlib
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "acceptance.md"
STORE = ROOT / "runs" / "acceptance.jsonl"
HEAD = """# Acceptance

Slow tests of whole runs, as `make acceptance` ran them at commit {commit}. The hash of all
Python files was {sources}.

| test | outcome | figures | minutes |
|---|---|---|---|
"""

_names = []  # of all slow tests, in order


def sources():
    """Twelve digits that change with any Python file."""
    folders = ("janus_jax", "configs", "tests")
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def read_outcomes():
    """{test: its last outcome on the current sources}, each a dict."""
    if not STORE.is_file():
        return {}
    rows = map(json.loads, STORE.read_text().splitlines())
    current = sources()
    return {row["test"]: row for row in rows if row["sources"] == current}


def write_page(outcomes):
    """Writes the page of all slow tests."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    lines = [
        "| `{test}` | {outcome} | {figures} | {minutes:.1f} |\n".format(**outcomes[name])
        for name in _names
    ]
    head = HEAD.format(commit=commit or "(unknown)", sources=sources())
    PAGE.write_text(head + "".join(lines))


def pytest_collection_modifyitems(config, items):
    """Deselects tests that have passed on the current sources."""
    _names[:] = [item.name for item in items]
    outcomes = read_outcomes()
    passed = [item for item in items if outcomes.get(item.name, {}).get("outcome") == "passed"]
    config.hook.pytest_deselected(items=passed)
    items[:] = [item for item in items if item not in passed]


def pytest_runtest_logreport(report):
    """Stores the outcome of a test, also of one that a fixture or a missing data set ends."""
    if report.when != "call" and report.passed:
        return
    row = {
        "test": report.nodeid.split("::")[-1],
        "outcome": report.outcome,
        "figures": dict(report.user_properties).get("figures", ""),
        "minutes": report.duration / 60,
        "sources": sources(),
    }
    STORE.parent.mkdir(exist_ok=True)
    with STORE.open("a") as file:
        file.write(json.dumps(row) + "\n")


def pytest_sessionfinish(session):
    """Writes the page when every slow test has an outcome."""
    outcomes = read_outcomes()
    if (
        _names
        and not session.config.option.collectonly
        and all(name in outcomes for name in _names)
    ):
        write_page(outcomes)
