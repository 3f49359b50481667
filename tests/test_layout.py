"""The house's plan, read off the imports: two floors, arrows only down."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(ROOT.glob("*.py"))
# package -> the packages of ours that it may import (DESIGN, section 1)
MAY_IMPORT = {
    "common": set(),
    "models": {"common"},
    "datasets": {"common"},
    "metrics": {"common"},
    "sources": {"common", "models", "datasets", "metrics"},
    "figures": {"common", "models", "datasets", "metrics"},
    "preparation": {"common", "models", "datasets", "metrics", "sources", "figures"},
    "paper": {"common", "models", "datasets", "metrics", "sources", "figures"},
    "quiz": {"common", "models", "datasets", "metrics"},
}
LATE = {"openslide", "matplotlib", "wandb", "umap", "dask", "fastapi", "lmdb", "lz4"}  # imported where used
RESTRICTED = ROOT / "common" / "restricted_pickle.py"  # the one reader of pickles, which executes nothing of them
UNPICKLES = {"pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text(), str(path))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: star import"
            yield node.module.split(".")[0]


def modules():
    return [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_only_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    ours = set(imports(path)) & (set(MAY_IMPORT) | {c.stem for c in COMMANDS})
    assert ours - {package} <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.name)
def test_commands_import_no_command(path):
    assert not set(imports(path)) & {c.stem for c in COMMANDS}


@pytest.mark.parametrize("path", modules() + COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    assert not set(imports(path, top_level_only=True)) & LATE


def test_datasets_is_ours():
    import datasets

    assert Path(datasets.__file__).resolve().parent == ROOT / "datasets"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.name)
def test_a_command_has_a_manual_a_parser_and_a_main(path):
    tree = ast.parse(path.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"build_parser", "main"} <= names
    assert f"python {path.name}" in ast.get_docstring(tree), "the docstring shows an example"


def test_nothing_is_unpickled():
    for path in modules() + COMMANDS:
        text = path.read_text()
        assert "weights_only=False" not in text and "allow_pickle=True" not in text and "read_pickle" not in text, path
        assert set(imports(path)) & UNPICKLES == ({"pickletools"} if path == RESTRICTED else set()), path
    readers = RESTRICTED.read_text() + (ROOT / "common" / "torch_pickle.py").read_text()
    words = set(re.findall(r"\w+", readers))
    assert not words & {"Unpickler", "loads", "eval", "exec", "getattr", "import_module", "__import__"}


def test_public_functions_have_docstrings_and_type_hints():
    missing = []
    for path in modules() + COMMANDS:
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            for item in members:
                if not isinstance(item, ast.FunctionDef) or item.name.startswith("_") or item.name == "forward":
                    continue
                arguments = [a for a in item.args.args + item.args.kwonlyargs if a.arg not in ("self", "cls")]
                if not ast.get_docstring(item) or item.returns is None or any(a.annotation is None for a in arguments):
                    missing.append(f"{path.relative_to(ROOT)}:{item.lineno} {item.name}")
    assert not missing, missing


def test_python_version():
    assert sys.version_info >= (3, 11)


def test_preparing_data_starts_without_torch():
    """It takes seconds to import, and a worker that cuts slides needs it as little as --help does."""
    words = [sys.executable, "-c", "import sys, prepare_data; print('torch' in sys.modules)"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_no_file_holds_an_unfinished_merge():
    files = [
        *modules(),
        *(ROOT / "tests").glob("*.py"),
        *(ROOT / "benchmarks").glob("*"),
        *ROOT.glob("*"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / ".ci" / "run",
    ]
    marks = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
    texts = {path: path.read_text(errors="replace") for path in files if path.is_file()}
    assert {"Makefile", "requirements-dev.txt", "README.md"} <= {path.name for path in texts}
    assert not [str(path) for path, text in texts.items() if marks.search(text)]
