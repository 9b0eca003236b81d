"""What flags say, a TOML file and the environment can say, too; and what is in force is printed."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from commands import Here, assert_refused, invoke
from parity_models.cli.print_config import as_typed
from parity_models.options import declared_in
from parity_models.serving.limits import Limits
from parity_models.serving.options import ServeOptions
from served import write_linear_bundle

FIELDS = [each for kind in (ServeOptions, Limits) for each in declared_in(kind)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_linear_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "parm.toml"


def printed(*arguments: str) -> str:
    """What --print-config says with these arguments."""
    result = invoke("serve", *arguments, "--print-config")
    assert result.exit_code == 0, result.output
    return result.stdout


def in_force(*arguments: str) -> dict[str, Any]:
    """The options that are given, and where; not the defaults."""
    return tomllib.loads(printed(*arguments))


def test_a_file_says_all_that_flags_say(bundle: str, file: Path) -> None:
    file.write_text(
        f"""
        bundle = "{bundle}"
        policy = "parity"
        pool = "dedicated"
        max-group-wait = "5ms"
        deadline = 2.5
        max-body = 8
        instances = 3
        default-prediction = [0.5]
        """
    )
    assert in_force("--config", str(file)) == {
        "bundle": bundle,
        "policy": "parity",
        "pool": "dedicated",
        "max-group-wait": 5,
        "deadline": 2.5,
        "max-body": 8,
        "instances": 3,
        "default-prediction": "0.5",
    }


def test_flags_go_before_variables_and_those_before_the_file(
    bundle: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('bundle = "nowhere"\nport = 1\ngrpc-port = 1\nmax-batch = 1\n')
    monkeypatch.setenv("PARM_CONFIG", str(file))
    monkeypatch.setenv("PARM_PORT", "2")
    monkeypatch.setenv("PARM_GRPC_PORT", "2")
    text = printed(bundle, "--port", "3")
    assert f"max-batch = 1  # max-batch in {file}" in text
    assert "grpc-port = 2  # PARM_GRPC_PORT" in text
    assert "port = 3\n" in text


def test_what_is_printed_says_the_same_when_it_is_read_back(bundle: str, file: Path) -> None:
    given = ("--policy", "hedging", "--hedge-delay", "7.5ms", "--deadline", "0.3", "--max-body")
    first = printed(bundle, *given, "0.1", "--idle-timeout", "1m", "--name", 'a "b" \\ ü')
    file.write_text(first)
    second = printed("--config", str(file))
    assert tomllib.loads(second) == tomllib.loads(first)
    assert tomllib.loads(first)["hedge-delay"] == 7.5
    assert '# host = "127.0.0.1"' in first  # defaults are told, and not given


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_default_can_be_typed(field: Any) -> None:
    if field.default is not None:
        typed = as_typed(field, field.default)
        assert field.convert(field.from_typed(typed, str), str) == field.default


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("max-bach = 2", "has an unknown key 'max-bach'; did you mean max-batch?"),
        ("max_batch = 2", "did you mean max-batch?"),
        ("[limits]\nmax-body = 2", "unknown key 'limits'; tables like [limits] have no place"),
        ("[policy]\nname = 'none'", "is a table; it takes one value: policy = ..."),
        ("tokens = { file = 'a' }", "is a table; it takes one value: tokens = ..."),
        ("config = 'other.toml'", "has an unknown key 'config'"),
        ("port = 8000.5", "port in "),
        ("port = true", "it takes no truth value"),
        ("port = 70000", "must be from 0 to 65535, got 70000"),
        ("port = 70000", "port in "),
        ("deadline = 'soon'", "deadline in "),
        ("deadline = 2020-01-01", "is a date, which no option takes"),
        ("hedge-delay = 3", "parm.toml is no option of the policy adaptive but of hedging"),
        ("address = 'auto'", "parm.toml is no option of the engine local but of ray"),
        ("port = ", "is not TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(
    bundle: str, file: Path, parm_here: Here, text: str, wrong: str
) -> None:
    file.write_text(text)
    assert_refused(parm_here("serve", bundle, "--config", str(file)), wrong)


def test_mistakes_in_variables_are_named(
    bundle: str, file: Path, parm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(parm_here("serve", bundle, "--config", str(file)), "cannot be read")
    monkeypatch.setenv("PARM_MAX_BATCH", "0")
    assert_refused(parm_here("serve", bundle), "PARM_MAX_BATCH must be 1 or more")
    monkeypatch.setenv("PARM_MAX_BATCH", "many")
    assert_refused(parm_here("serve", bundle), "PARM_MAX_BATCH")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-in-flight", "1"), "--max-in-flight (1 MiB) must not be below --max-body (64 MiB)"),
        (("--default-prediction", "nan"), "--default-prediction must be finite numbers"),
        (("--tenant-header", "a b"), "--tenant-header is the name of a header"),
        (("--policy", "hedging", "--agreement", "0.9"), "leave --agreement out"),
    ],
)
def test_options_that_do_not_fit_are_spelled_as_they_are_typed(
    bundle: str, parm_here: Here, options: tuple[str, ...], said: str
) -> None:
    assert_refused(parm_here("serve", bundle, *options), said)


def test_options_that_do_not_fit_are_spelled_as_in_the_file_and_the_variable(
    bundle: str, file: Path, parm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('default-prediction = "nan"')
    refused = parm_here("serve", bundle, "--config", str(file))
    assert_refused(refused, f"default-prediction in {file} must be finite")
    monkeypatch.setenv("PARM_DEFAULT_PREDICTION", "nan")
    assert_refused(parm_here("serve", bundle), "PARM_DEFAULT_PREDICTION must be finite")


def test_what_is_printed_has_been_checked(bundle: str, parm_here: Here) -> None:
    refused = parm_here("serve", bundle, "--print-config", "--default-prediction", "nan")
    assert_refused(refused, "must be finite numbers")


def test_a_file_may_name_an_own_extension_and_its_options(bundle: str, file: Path) -> None:
    file.write_text('policy = "own_policy:Again"\nagain-after = "20ms"\n')
    assert in_force(bundle, "--config", str(file))["again-after"] == 20


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "completed"),
    [("parm ser", "serve"), ("parm serve --max-b", "--max-batch"), ("parm eval", "evaluate")],
)
def test_shells_complete_commands_and_options(
    parm_here: Here, monkeypatch: pytest.MonkeyPatch, shell: str, typed: str, completed: str
) -> None:
    assert "_PARM_COMPLETE=complete_" in parm_here("completion", shell).stdout
    monkeypatch.setenv("_PARM_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert completed in parm_here().stdout
