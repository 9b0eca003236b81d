"""Flags, variables and a TOML file give the same options; help and shells name them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Here, assert_refused
from parity_models import __version__
from parity_models.cli import serve as serve_command
from parity_models.cli.flags import command_of
from parity_models.cli.main import command
from parity_models.serving.options import ServeOptions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "parm.toml"


Served = Callable[..., ServeOptions]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Run `parm serve` with arguments, and return the options that it makes a server of."""
    made: list[ServeOptions] = []
    monkeypatch.setattr(serve_command, "Server", lambda _, options, *__: options)
    monkeypatch.setattr(serve_command, "_run", made.append)

    def serve(*arguments: object) -> ServeOptions:
        run = command_of("serve", serve_command.serve)
        run([*map(str, arguments)], standalone_mode=False)
        return made[-1]

    return serve


def test_a_file_says_all_that_flags_say(bundle: Path, file: Path, served: Served) -> None:
    file.write_text(
        f"""
        bundle = "{bundle}"
        policy = "parity@pool=dedicated,max-group-wait=5ms"
        deadline = "2.5s"
        max-body = 8
        instances = 3
        ui = true
        log-format = "json"
        """
    )
    options = served("--config", file)
    flags = ("--policy", "parity@pool=dedicated,max-group-wait=5", "--deadline", "2500ms")
    more = ("--max-body", "8", "--instances", "3", "--ui")
    assert options == served(bundle, *flags, *more)
    assert options.policy is not None
    assert options.policy.options == {"pool": "dedicated", "max_group_wait": 0.005}
    assert (options.deadline, options.limits.max_body, options.ui) == (2.5, 8 * 2**20, True)
    assert not served("--config", file, "--no-ui").ui


def test_flags_go_before_variables_and_those_before_the_file(
    bundle: Path, file: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('bundle = "nowhere"\nport = 1\ngrpc-port = 1\nmax-batch = 1\n')
    monkeypatch.setenv("PARM_CONFIG", str(file))
    monkeypatch.setenv("PARM_PORT", "2")
    monkeypatch.setenv("PARM_GRPC_PORT", "2")
    options = served(bundle, "--port", "3")
    assert (options.max_batch, options.grpc_port, options.port) == (1, 2, 3)
    monkeypatch.setenv("PARM_BUNDLE", str(bundle))
    assert served().port == 2


def test_an_engine_has_options_after_its_name_and_of_flags(bundle: Path, served: Served) -> None:
    url = "http://127.0.0.1:1"
    options = served(bundle, "--engine", "remote@upstream-token=token", "--deployed", url)
    assert options.engine.options == {"upstream_token": "token", "deployed": url}
    assert served(bundle, "--deployed", url).engine.name == "remote"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("max-bach = 2", "has an unknown key 'max-bach'; did you mean max-batch?"),
        ("[limits]\nmax-body = 2", "unknown key 'limits'; tables like [limits] have no place"),
        ("tokens = { file = 'a' }", "'tokens in "),
        ("port = 8000.5", "must be a whole number, from 0 to 65535; got 8000.5"),
        ("port = 70000", "must be a whole number, from 0 to 65535; got 70000"),
        ("port = ", "is not TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(
    bundle: Path, file: Path, parm_here: Here, text: str, wrong: str
) -> None:
    file.write_text(text)
    assert_refused(parm_here("serve", bundle, "--config", file), wrong)


def test_mistakes_in_variables_are_named(
    bundle: Path, file: Path, parm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(parm_here("serve", bundle, "--config", file), "cannot be read")
    monkeypatch.setenv("PARM_MAX_BATCH", "0")
    assert_refused(
        parm_here("serve", bundle), "'PARM_MAX_BATCH': must be a whole number, at least 1"
    )


def test_help_lists_every_command_and_version_tells_it(parm_here: Here) -> None:
    listed = parm_here("--help").stdout
    for name in command().commands:
        assert f"\n  {name} " in listed
    assert parm_here("--version").stdout == f"parm {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(parm_here: Here, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_PARM_COMPLETE", f"{shell}_source")
    assert "_PARM_COMPLETE" in parm_here().stdout
