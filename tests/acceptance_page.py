"""A pytest plugin that writes docs/acceptance.md, a line a slow proof, and skips what has passed on the same sources.

A test names its figures with `record_property("figures", "...")`; a proof that failed or was cut off runs again.
"""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "acceptance.md"
HEAD = """# Acceptance

What `make acceptance` measured; the sources are named by a hash of every Python file. A proof that has passed on the same
sources is not run again.

| proof | outcome | figures | minutes | sources |
|---|---|---|---|---|
"""
LINE = re.compile(r"^\| `(?P<proof>[^`]+)` \| (?P<outcome>\w+) \|.* \| (?P<sources>\w+) \|$")


def sources():
    """Twelve digits that change with any Python file."""
    files = sorted(p for part in ("janus_jax", "configs", "tests") for p in (ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:12]


def read_page():
    """{proof: (line, outcome, sources)} of the page as it stands."""
    lines = PAGE.read_text().splitlines() if PAGE.is_file() else []
    return {m["proof"]: (line, m["outcome"], m["sources"]) for line in lines if (m := LINE.match(line))}


def pytest_collection_modifyitems(config, items):
    """Leaves out what has passed."""
    page, now = read_page(), sources()
    done = [i for i in items if page.get(i.name, ("", "", ""))[1:] == ("passed", now)]
    config.hook.pytest_deselected(items=done)
    items[:] = [i for i in items if i not in done]


def pytest_runtest_logreport(report):
    """Writes a proof's line as soon as it is known."""
    if report.when != "call":
        return
    name, figures = report.nodeid.split("::")[-1], dict(report.user_properties).get("figures", "")
    lines = {proof: line for proof, (line, *_) in read_page().items()}
    lines[name] = f"| `{name}` | {report.outcome} | {figures} | {report.duration / 60:.1f} | {sources()} |"
    PAGE.write_text(HEAD + "".join(f"{line}\n" for line in lines.values()))
