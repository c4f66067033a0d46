"""The structure of the package: who imports whom, sizes, and that no generation path is a
special case elsewhere.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "janus_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [  # a module imports from layers below its own, and from its own folder
    {"batch", "errors"},
    {"sharding", "fingerprint", "hlo", "flops"},
    {"hardware", "distributed", "checkpoint"},
    {"layers"},
    {"tokenizers", "data"},
    {"generation", "models"},
    {"inference"},
    {"shapes"},
    {"objectives"},
    {"recipe"},
    {"train_step", "cli"},
    # Commands never import one another
    {"train", "sample", "evaluate", "convert", "prepare", "plan", "benchmark"},
]
BETWEEN = {("models", "generation")}  # allowed within a layer
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 400, 80, 8


def imports(path):
    """Full names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "janus_jax"
            yield from (
                [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
            )


def part_of(path):
    """The top-level folder or module of a file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(part):
    levels = [level for level, parts in enumerate(LAYERS) if part in parts]
    assert levels, f"{part} is in no layer"
    return levels[0]


def test_imports_point_down():
    for path in FILES:
        part = part_of(path)
        if part == "__init__":
            assert not list(imports(path))
            continue
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("janus_jax.") else part
            if other != part and (part, other) not in BETWEEN:
                assert layer_of(other) < layer_of(part), f"{path.relative_to(ROOT)} imports {name}"


def test_data_and_the_package_itself_import_no_jax():
    for path in (PACKAGE / "__init__.py", PACKAGE / "batch.py", *(PACKAGE / "data").rglob("*.py")):
        assert not {name.split(".")[0] for name in imports(path)} & {
            "jax",
            "flax",
            "optax",
            "orbax",
        }, path


def test_importing_the_library_registers_no_flag_and_starts_no_device():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.name != "__main__.py" and path.stem not in ("sample", "lmms_eval_adapter")
    ]
    code = "\n".join(
        [
            *(f"import {module}" for module in modules),
            "import jax",
            "from absl import flags",
            "owners = [flags.FLAGS.find_module_defining_flag(name) for name in flags.FLAGS]",
            "assert not [owner for owner in owners if owner.startswith('janus_jax')], owners",
            "assert not jax._src.xla_bridge._backends, 'a device was started'",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_functions_and_argument_lists_stay_small():
    for path in (*FILES, *(ROOT / "configs").glob("*.py")):
        text = path.read_text()
        where = path.relative_to(ROOT)
        assert text.count("\n") <= MAX_LINES, where
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{where}: {node.name}"
                count = len(node.args.args) + len(node.args.kwonlyargs)
                assert count - _is_method(node) <= MAX_ARGUMENTS, (
                    f"{where}: {node.name} has {count} arguments"
                )
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{where}: {node.name} has no docstring"


def _is_method(node):
    return bool(node.args.args) and node.args.args[0].arg in ("self", "cls")


def test_partition_specs_are_in_one_file():
    assert {path.name for path in FILES if "PartitionSpec" in path.read_text()} == {"sharding.py"}


def test_configs_import_only_config_modules():
    allowed = {"configs", "ml_collections", "difflib", "json", "pkgutil"}
    for path in (ROOT / "configs").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


KINDS = {"vq", "flow"}
PROPERTIES = {
    "read_shift",
    "prefix_tokens",
    "attend_to_dropped_prompt",
    "training_only",
    "tap_layer",
}


def test_no_generation_path_steers_a_branch_elsewhere():
    """Outside generation and convert nobody asks which path it is, or what it is like."""
    for path in FILES:
        if part_of(path) in ("generation", "convert"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in KINDS, f"{path.name}:{node.lineno} names {node.value!r}"
            for condition in conditions(node):
                names = {n.attr for n in ast.walk(condition) if isinstance(n, ast.Attribute)}
                names |= {n.id for n in ast.walk(condition) if isinstance(n, ast.Name)}
                names |= {
                    n.value
                    for n in ast.walk(condition)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
                assert not names & (KINDS | PROPERTIES), (
                    f"{path.name}:{condition.lineno} asks for {names}"
                )


def conditions(node):
    """What a piece of code decides by."""
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.comprehension):
        return node.ifs
    return [node.test] if isinstance(node, (ast.If, ast.IfExp, ast.While)) else []
