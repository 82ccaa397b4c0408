"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"mesh": set(), "data": {"mesh"}, "gcn": {"mesh"}, "tools": {"mesh", "data", "gcn"}}
SOURCES = sorted(path.relative_to(ROOT) for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


def test_there_are_sources_to_check() -> None:
    assert {path.parts[0] for path in SOURCES} == set(ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_point_down(path: Path) -> None:
    package = path.parts[0]
    upward = (imported_roots(path) & ALLOWED.keys()) - ALLOWED[package] - {package}
    assert not upward, f"{path} must not import {upward}"


def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(f"import {m}" for m in modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_licensed_smplx_package_is_never_imported_on_the_way() -> None:
    assert not [path for path in SOURCES if {"smplx", "chumpy"} & imported_roots(path)]


def test_pickle_is_only_named_where_it_is_restricted() -> None:
    users = {str(path) for path in SOURCES if "pickle" in imported_roots(path)}
    assert users <= {"mesh/unpickling.py", "mesh/pickles.py", "gcn/checkpoint.py"}
