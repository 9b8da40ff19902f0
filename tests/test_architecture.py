"""The layout law: arrows between packages, file sizes, complete `__all__`, no standard-library names."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("calibrate", "costmodel", "planner")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
HARD_LIMIT_LINES = 500

ALLOWED = {
    "costmodel": ("costmodel",),
    "calibrate": (
        "calibrate",
        "costmodel.hardware",
        "costmodel.errors",
        "costmodel.registry",
        "costmodel.estimate",
    ),
    "planner": ("planner", "calibrate", "costmodel"),
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module in _imports(ast.parse(path.read_text())):
        if module.split(".")[0] in PACKAGES:
            assert any(
                module == allowed or module.startswith(allowed + ".") for allowed in ALLOWED[package]
            ), f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_size_and_name(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= HARD_LIMIT_LINES, f"{_name(path)} has {lines} lines"
    if path.name not in ("__init__.py", "__main__.py"):
        assert path.stem not in sys.stdlib_module_names, f"{_name(path)} bears a standard-library name"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_all_is_complete(path: Path) -> None:
    tree = ast.parse(path.read_text())
    exported: set[str] | None = None
    public: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "__all__":
                exported = set(ast.literal_eval(node.value))
            elif not name.startswith("_"):
                public.add(name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            public |= {node.target.id} - {n for n in [node.target.id] if n.startswith("_")}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            public |= {node.name} - {n for n in [node.name] if n.startswith("_")}
    if path.name == "__init__.py" and not public:
        return
    assert exported is not None, f"{_name(path)} has no __all__"
    missing = {n for n in public if n not in exported and not n.isupper() and len(n) > 1}
    assert not missing, f"{_name(path)}: public but not in __all__: {sorted(missing)}"


def test_median_file_is_small() -> None:
    sizes = sorted(p.read_text().count("\n") for p in FILES)
    assert sizes[len(sizes) // 2] <= 220
