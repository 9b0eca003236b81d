"""What pages, messages and comments point to is there; commands in pages have their options."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_models.cli.main import command
from parity_models.errors import UndecodableError

ROOT = Path(__file__).parent.parent
OUTSIDE = sorted(ROOT.glob("*.md"))
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [
    path
    for place in ("src", "examples", ".github")
    for path in sorted((ROOT / place).rglob("*"))
    if path.suffix in (".py", ".yaml", ".yml", ".toml", ".md")
]
TRITONS = "docs/protocol/extension_"


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
    places = [ROOT, ROOT / "src" / "parity_models"]
    for path in re.findall(r"`([\w-]+/[\w/.*-]+\.(?:py|yaml|toml))`", page.read_text()):
        assert any(any(place.glob(path)) for place in places), path


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_pages_have_the_options_that_they_are_given(page: Path) -> None:
    for line, words in commands_in(page.read_text()):
        known = options(*subcommand(words))
        if re.search("--(policy|encoder|decoder|engine) mine:", line):
            continue  # it brings options of its own
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, line


@pytest.mark.slow
def test_the_policy_of_the_guide_shortens_the_tail(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "how-to" / "own-policy.md").read_text()
    exec("".join(re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)), {})
    tails = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert tails[1] < tails[0] / 2


def test_the_encoder_of_the_guide_adds_queries_up() -> None:
    encoder = of_the_code_guide("Amplified", 2, 1, (3,), gain=2)
    assert encoder.encode([np.ones(3)] * 2).tolist() == [[4, 4, 4]]


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
    guide = (ROOT / "docs" / "how-to" / "own-code.md").read_text()
    names: dict[str, Any] = {"__name__": "mine"}
    exec("".join(re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)), names)
    return names[name](*shape, names[name].Options(**options))


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each line of a block of shell commands that runs parm, with its words after that."""
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if (line := line.removeprefix("$ ")).startswith("parm "):
                yield line, shlex.split(line, comments=True)[1:]


def subcommand(words: list[str]) -> tuple[str, ...]:
    """The subcommand, and the one below it where there is one."""
    if len(words) > 1 and options(words[0], words[1]):
        return words[0], words[1]
    return (words[0],)


@cache
def options(first: str, *rest: str) -> frozenset[str]:
    """The options of a subcommand; none where there is no such subcommand."""
    context = command().commands[first].make_context(first, [], resilient_parsing=True)
    for below in rest:
        commands = getattr(context.command, "commands", {})
        if below not in commands:
            return frozenset()
        context = commands[below].make_context(below, [], resilient_parsing=True)
    parameters = context.command.get_params(context)
    return frozenset(
        name
        for parameter in parameters
        if parameter.param_type_name == "option"
        for name in [*parameter.opts, *parameter.secondary_opts]
    )
