"""What the build compiles can be translated to C; .ci/compiled compiles it and compares results."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compiled() -> list[str]:
    """The modules that the build compiles. The build's own file needs what only builds have."""
    for statement in ast.parse((ROOT / "hatch_build.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "COMPILED":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("hatch_build.py names no modules to compile")


def test_nothing_that_stays_python_derives_from_what_is_compiled() -> None:
    """Python refuses that only when it runs: interpreted classes cannot inherit from compiled."""
    sources = ROOT / "src"
    built = {sources / "parity_models" / name for name in compiled()}
    places = {}
    for file in built:
        module = ".".join(file.relative_to(sources).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name] = module
    derived = []
    for file in set(sources.rglob("*.py")) - built:
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):  # of the module, or of a package above it
                imported |= {
                    each.asname or each.name
                    for each in node.names
                    if f"{places.get(each.name)}.".startswith(f"{node.module}.")
                }
            elif isinstance(node, ast.ClassDef) and imported & set(map(ast.unparse, node.bases)):
                derived.append(f"{file.relative_to(sources)}: {node.name}")
    assert derived == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_compiled_can_be_translated(tmp_path: Path) -> None:
    """mypyc refuses what Python and mypy take: a name that holds a float here and an int there."""
    shutil.copytree(
        ROOT / "src" / "parity_models",
        tmp_path / "parity_models",
        ignore=shutil.ignore_patterns("__init__.pyi", "__pycache__"),
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nexplicit_package_bases = true\nignore_missing_imports = true\n"
    )
    files = [f"parity_models/{name}" for name in compiled()]
    code = "import sys; from mypyc.build import mypycify; mypycify(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, "--config-file", "mypy.ini", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
