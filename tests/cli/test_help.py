"""What the command line offers, and what its help says."""

from collections.abc import Iterator
from typing import Any

import pytest

from commands import Here
from parity_models import __version__
from parity_models.cli.main import command as command_line

FLAGS = {
    "parity": "--from --model --inputs --k --r --encoder --decoder --parity-network --metric "
    "--flips --out --epochs --seconds --seed",
    "backup": "--from --network --out --epochs --seconds --seed --data-dir --device --resume",
    "evaluate": "BUNDLE --json --task --data-dir --inputs --labels --metric --seed",
    "serve": "BUNDLE --policy --dispatch --instances --parity-instances --host --port --pool "
    "--max-group-wait --parity-delay --answer --answer-after --copies --hedge-delay "
    "--hedge-quantile --hedge-budget --default-prediction",
    "load": "URL --bundle --model --binary --task --inputs --labels --batch --rate --trace --speed "
    "--queries --duration --warm-up --processes --connections --timeout --out --latencies "
    "--histogram --policy",
    "plan": "BUNDLE --p50 --p99 --p999 --spare --instances --rate --recorded --contention "
    "--agreement --queries --seed --json",
    "record": "URL --out --seconds",
    "rehearse": "BUNDLE --break --inputs --instances --seconds --rate --json",
}


@pytest.mark.parametrize("command", FLAGS)
def test_help_names_what_users_type(parm_here: Here, command: str) -> None:
    outcome = parm_here(*command.split(), "--help")
    assert outcome.returncode == 0, outcome.stderr
    assert f"parm {command}" in outcome.stdout
    for flag in FLAGS[command].split():
        assert flag in outcome.stdout


def commands_below(entry: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """A command's context and those of its subcommands, each with what is typed for it."""
    context = entry.make_context(path[-1], [], resilient_parsing=True)
    yield context, path
    for name, below in getattr(context.command, "commands", {}).items():
        yield from commands_below(below, (*path, name))


def test_help_says_what_to_type_and_not_what_python_makes_of_it() -> None:
    for name, entry in command_line().commands.items():
        for context, path in commands_below(entry, (name,)):
            said = context.get_help()
            for noise in ("<int", "<float", "<str", "<path", "<list", "range>", "x>=", "<=x"):
                assert noise not in said, (path, noise)
            usage, _, _ = said.partition("\n\n")
            assert not {"{", "}"} & set(usage), path
            for option in context.command.params:
                assert option.metavar not in ("TEXT", "PATH"), (path, option.name)


def test_what_stands_for_an_option_s_value_is_the_same_everywhere() -> None:
    words: dict[str, set[str]] = {"agreement": set(), "seconds": set()}
    for name, entry in command_line().commands.items():
        for context, _ in commands_below(entry, (name,)):
            for option in context.command.params:
                if option.name in words:
                    words[option.name].add(option.metavar)
    assert words["agreement"] == {"SHARE"}
    assert words["seconds"] == {"SECONDS"}


def test_help_says_in_a_whole_sentence_what_each_subcommand_does() -> None:
    for name, entry in command_line().commands.items():
        for context, path in commands_below(entry, (name,)):
            _, _, listed = context.get_help().partition("\nCommands:\n")
            cut = [
                line
                for line in listed.splitlines()
                if line.endswith(("...", "\N{HORIZONTAL ELLIPSIS}"))
            ]
            assert not cut, path


def test_help_of_an_option_keeps_a_word_in_capitals() -> None:
    context, _ = next(commands_below(command_line().commands["serve"], ("serve",)))
    assert "With ray: CPUs that Ray reserves" in context.get_help()


def test_help_lists_every_command_and_version_tells_it(parm_here: Here) -> None:
    listed = parm_here("--help").stdout
    for command in command_line().commands:
        assert f"\n  {command} " in listed
    assert parm_here("--version").stdout == f"parm {__version__}\n"
