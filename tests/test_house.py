"""The house itself: who imports whom, how large rooms are, where specs live."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "janus_jax").rglob("*.py"))
FLOORS = [  # a file may import its own floor and those below it
    {"errors", "batch", "chips", "sharding"},
    {"layers", "losses", "flops", "digest", "hlo", "topology"},
    {"data", "generation", "weights", "stages"},
    {"models", "optimizer"},
    {"cli", "processes", "train_step", "checkpoint", "metrics", "eval"},
    {"assembly", "states", "estimate", "scale", "caches", "doctor", "peer", "speed"},
    {"train", "sample", "evaluate", "convert", "prepare", "plan", "benchmark", "lmms_eval_adapter"},
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([f"{node.module}.{a.name}" for a in node.names] if node.module == "janus_jax" else [node.module])


def room(path):
    part = path.relative_to(ROOT / "janus_jax").parts[0].removesuffix(".py")
    return next((i for i, floor in enumerate(FLOORS) if part in floor), None), part


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != ROOT / "janus_jax" or f.name != "__init__.py"], ids=str)
def test_imports_go_down(path):
    floor, part = room(path)
    assert floor is not None, f"{part} stands on no floor"
    for name in imports(path):
        if name.startswith("janus_jax."):
            other = name.split(".")[1]
            level = next(i for i, f in enumerate(FLOORS) if other in f)
            assert level < floor or other == part or (level == floor and floor < len(FLOORS) - 1), f"{part} imports {other}"
            assert not (part == "generation" and other == "models")


@pytest.mark.parametrize(
    "path", [ROOT / "janus_jax/__init__.py", ROOT / "janus_jax/batch.py", *(ROOT / "janus_jax/data").rglob("*.py")], ids=str
)
def test_data_never_touches_jax(path):
    assert not {n.split(".")[0] for n in imports(path)} & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("path", [*FILES, *(ROOT / "configs").glob("*.py")], ids=str)
def test_rooms_stay_rooms(path):
    text = path.read_text()
    assert text.count("\n") <= 420
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 90, node.name
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_partition_specs_live_in_one_file():
    holders = {f.name for f in FILES if "PartitionSpec" in f.read_text()}
    assert holders == {"sharding.py"}


def test_configs_import_only_config_things():
    for path in (ROOT / "configs").glob("*.py"):
        allowed = {"configs", "ml_collections", "difflib", "json"}
        assert {n.split(".")[0] for n in imports(path)} <= allowed


WAYS = {"vq", "flow", "toy"}
PROPERTIES = {"read_shift", "prefix_tokens", "attend_to_dropped_prompt", "training_only", "tap_layer"}


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name not in ("generation", "weights")], ids=str)
def test_no_way_of_drawing_steers_a_branch(path):
    """Outside generation, weights and configs nobody asks which path it is, or what it is like."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant):
            assert node.value not in WAYS, f"{path.name}:{node.lineno} names {node.value!r}"
        for asked in questions(node):
            names = {n.attr for n in ast.walk(asked) if isinstance(n, ast.Attribute)}
            names |= {n.id for n in ast.walk(asked) if isinstance(n, ast.Name)}
            names |= {n.value for n in ast.walk(asked) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not names & (WAYS | PROPERTIES), f"{path.name}:{asked.lineno} asks for {names}"


def questions(node):
    """What a piece of code decides by."""
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.comprehension):
        return node.ifs
    return [node.test] if isinstance(node, (ast.If, ast.IfExp, ast.While)) else []
