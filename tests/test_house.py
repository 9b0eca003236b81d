"""One concept, one file, and names that tell things apart: CONTRIBUTING.md asks it of all code."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "parity_models"
FILES = [*sorted(SOURCE.rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
ROOMS = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_no_file_is_about_two_things() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in FILES}
    assert not {path: count for path, count in lines.items() if count > 350}


def test_a_function_is_seen_at_once() -> None:
    assert not [
        f"{path.name}: {node.name}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= 60
    ]


def test_at_most_three_files_have_one_name() -> None:
    names = Counter(path.name for path in FILES if path.is_relative_to(SOURCE))
    del names["__init__.py"]
    assert not {name: count for name, count in names.items() if count > 3}


def types_in(path: Path) -> Iterator[tuple[str, str]]:
    """The public classes and aliases in a file, by name, each with what it is.

    Each class is another one; aliases that say the same are one. Options of commands are no types.
    """
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield node.name, str(path)
        elif isinstance(node, ast.Assign):
            name, what = ast.unparse(node.targets[0]), ast.unparse(node.value)
            if name[0].isupper() and not name.isupper() and "typer." not in what:
                yield name, what


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_room_has_two_types_of_one_name(room: Path) -> None:
    types = {each for path in room.rglob("*.py") for each in types_in(path)}
    names = Counter(name for name, _ in types)
    assert not {name for name, count in names.items() if count > 1}
