"""Files that pages, messages and comments name exist; commands in pages can be typed."""

import ast
import json
import re
import shlex
import sys
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import click
import numpy as np
import pytest

import parity_models
from parity_models.cli.main import command
from parity_models.errors import UndecodableError, UserError
from parity_models_lab.cli.main import command as lab_command

ROOT = Path(__file__).parent.parent
OUTSIDE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "lab").glob("*/*.md"))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = sorted((ROOT / "lab" / "results").rglob("*.json"))
RESULTS = [each for each in WRITTEN if "earlier" not in each.parts]
TEXTS = [
    path
    for place in ("src", "lab/src", "examples", ".github")
    for path in sorted((ROOT / place).rglob("*"))
    if path.suffix in (".py", ".yaml", ".yml", ".toml", ".md")
]
TRITONS = "docs/protocol/extension_"
COMMAND = re.compile(
    r"(?:\$ )?(?:\w+=\S+ )*(?:sudo |\.venv/bin/)?(parm(?:-lab)? [a-z-].*)", re.DOTALL
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", OUTSIDE, ids=name)
def test_links_of_pages_outside_the_site_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match("[a-z]+:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_pages_that_code_and_examples_name_are_there() -> None:
    for path in TEXTS:
        for page in re.findall(r"\bdocs/[\w/.-]+?\.md\b", path.read_text()):
            assert (ROOT / page).exists() or page.startswith(TRITONS), f"{name(path)}: {page}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    places = [ROOT, ROOT / "src" / "parity_models", ROOT / "lab" / "src" / "parity_models_lab"]
    for path in re.findall(r"`([\w-]+/[\w/.*-]+\.(?:py|yaml|toml))`", page.read_text()):
        assert any(any(place.glob(path)) for place in places), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_can_be_typed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    found = blocks(page.read_text())
    classes = [block for block in found if re.search("^class ", block, re.MULTILINE)]
    Path("mine.py").write_text("\n".join(classes))
    Path("parm.toml").write_text("".join(each for each in found if each.startswith("# parm.toml")))
    for block in found:
        for line in block.replace("\\\n", " ").splitlines():
            if command_in := COMMAND.match(line.strip()):
                assert problem_of(command_in[1]) == "", line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imports_in_pages_exist(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("parity_models"):
                module = import_module(str(node.module))
                for each in node.names:
                    assert hasattr(module, each.name), f"{node.module}.{each.name}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "parity_models":
                assert hasattr(parity_models, node.attr), node.attr


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=name)
def test_commands_in_sentences_have_the_options_that_they_are_given(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        if command_in := COMMAND.match(span):
            assert not problem_of(command_in[1]).startswith("No such"), span


@pytest.mark.parametrize("file", RESULTS, ids=name)
def test_results_say_which_command_made_them(file: Path) -> None:
    assert problem_of(json.loads(file.read_text())["command"]) == ""


@pytest.mark.slow
def test_the_policy_of_the_guide_shortens_the_tail(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "how-to" / "extend-serving.md").read_text()
    guide = guide.partition("\n## An engine\n")[0]
    exec("".join(re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)), {})
    tails = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert tails[1] < tails[0] / 2


def test_the_coders_of_the_guide_reconstruct_a_linear_model() -> None:
    rng = np.random.default_rng(0)
    weights, queries = rng.normal(size=(5, 2)), list(rng.normal(size=(3, 4, 5)))
    encoder = of_the_code_guide("Amplified", 3, 1, (5,), gain=1 / 3)
    decoder = of_the_code_guide("Mean", 3, 1, (2,))
    predictions: list[Any] = [query @ weights for query in queries]
    output = encoder.encode(queries)[0] @ weights
    np.testing.assert_allclose(output, decoder.targets(predictions, 0))
    for lost in range(3):
        here = [prediction if slot != lost else None for slot, prediction in enumerate(predictions)]
        assert decoder.decodable(tuple(p is not None for p in here), (True,))[lost]
        decoded = decoder.decode(here, [output])
        assert set(decoded) == {lost}
        np.testing.assert_allclose(decoded[lost], predictions[lost])


def test_the_decoder_of_the_guide_refuses_what_it_cannot_decode() -> None:
    decoder = of_the_code_guide("Mean", 3, 1, (2,))
    assert not any(decoder.decodable((False, False, True), (True,)))
    for predictions, outputs in (([None, None, np.ones(2)], [np.ones(2)]), ([None, 1, 1], [None])):
        with pytest.raises(UndecodableError):
            decoder.decode(predictions, outputs)


def of_the_code_guide(name: str, *shape: Any, **options: Any) -> Any:
    guide = (
        (ROOT / "docs" / "how-to" / "extend-learning.md").read_text().partition("## Networks")[0]
    )
    names: dict[str, Any] = {"__name__": "mine"}
    exec("".join(re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)), names)
    return names[name](*shape, names[name].Options(**options))


def blocks(text: str, language: str = r"\w+") -> list[str]:
    """Return the code between fences, without its indentation."""
    fenced = re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [dedent(each[2]) for each in fenced]


@cache
def programs() -> dict[str, Any]:
    return {"parm": command(), "parm-lab": lab_command()}


def problem_of(line: str) -> str:
    """Return the error of a command, empty if it could run, up to a pipe."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(takewhile(lambda word: not set(word) <= set("|&;<>"), lexer))
    commands = programs()
    try:
        while words and commands:
            if words[0] not in commands:
                return f"No such command: {words[0]}"
            context = commands[words[0]].make_context(words[0], words[1:])
            commands, words = getattr(context.command, "commands", {}), words[1:]
    except click.exceptions.Exit:  # it has shown its help
        pass
    except (click.ClickException, UserError) as error:
        return str(error)
    return ""
