"""The tree is what ARCHITECTURE.md's map says, and its rooms stay small enough to be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "bert_lora")
FILES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
MAX_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_NESTING = 3
Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)
COMPILED = {"_string", "_scan"}  # by numba, which inlines no function of a stranger's bytes as fast


def mapped() -> set[str]:
    """The files that the map names: its tree is indented by two spaces a floor."""
    tree = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    paths, folders = set(), []
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        entry = line.split()[0]
        if entry.endswith("/"):
            folders[depth:] = [entry]
        elif entry.endswith(".py"):
            paths.add("".join(folders[:depth]) + entry)
    return paths


def functions(path: Path) -> Iterator[Function]:
    """Every function of the file."""
    tree = ast.parse(path.read_text())
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def nesting(node: ast.AST) -> int:
    """How many blocks stand in each other; an elif is no deeper than its if."""
    deepest = 0
    for name, value in ast.iter_fields(node):
        inner = [
            v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)
        ]
        elif_ = name == "orelse" and len(inner) == 1 and isinstance(inner[0], ast.If)
        for child in inner:
            if isinstance(child, (*Function.__args__, ast.Lambda, ast.ClassDef)):
                continue
            own = isinstance(child, BLOCKS) and not elif_
            deepest = max(deepest, own + nesting(child))
    return deepest


def test_the_map_names_every_file_and_no_other() -> None:
    assert mapped() == {str(path.relative_to(ROOT)) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_can_be_read(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    long = [f.name for f in functions(path) if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES]
    assert not long
    deep = [f.name for f in functions(path) if f.name not in COMPILED and nesting(f) > MAX_NESTING]
    assert not deep


def test_the_map_shows_the_floors_in_the_order_in_which_they_import() -> None:
    contract = re.search(r"layers = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    assert contract is not None
    floors = re.findall(r"app\.(\w+)", contract[1])
    floors = [floor for floor in floors if (ROOT / "app" / floor).is_dir()]
    tree = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    places = [tree.index(f"\n  {floor}/") for floor in floors if floor != "tools"]
    assert all(above < below for above, below in pairwise(places))
