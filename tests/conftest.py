"""Settings and fixtures of all tests."""

import inspect
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from commands import Here, Outcome
from fuzzing import LONG, leave_constants_out
from parity_models.cli.main import main
from parity_models_lab.cli.main import main as lab_main
from served import write_linear_bundle

# A shell starts what it runs in the background with interrupts ignored, and processes inherit
# that; the tests of Ctrl-C are to hold there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is. The same inputs each time, so that a
# change fails for what it changes; `--hypothesis-profile explore` draws new ones, nightly in CI.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("parm", unhurried, derandomize=True)
settings.register_profile("explore", unhurried, derandomize=False, print_blob=True)
settings.load_profile("explore" if LONG else "parm")
leave_constants_out()

# Five seconds are httpx's own patience; a server on a busy machine may need more, and a test that
# hangs is ended by pytest.
patience = inspect.signature(httpx.get).parameters["timeout"].default
patience.connect = patience.read = patience.write = patience.pool = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files with many slow tests come first, so that no worker has one left at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


Command = Callable[[], None]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a parity model, which no test changes."""
    return write_linear_bundle(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the deployed model alone."""
    return write_linear_bundle(tmp_path_factory.mktemp("plain"), coded=False)


@pytest.fixture(scope="session")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a parity model and a backup, which predicts twice as much."""
    return write_linear_bundle(tmp_path_factory.mktemp("backed"), backed=True)


@pytest.fixture
def parm_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs `parm` in this process: starting one, with its imports, takes a second or several."""
    return _here("parm", main, monkeypatch, capsys)


@pytest.fixture
def lab_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs `parm-lab` in this process."""
    return _here("parm-lab", lab_main, monkeypatch, capsys)


def _here(
    name: str, main: Command, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    def run(*arguments: object, columns: int = 100) -> Outcome:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        assert isinstance(code, int), code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, said.out, said.err)

    return run
