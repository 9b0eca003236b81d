"""`parm` for tests: in a process of its own, as users have it, or here (fixture `parm_here`)."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from parity_models.cli.main import command
from parity_models_lab.cli.main import command as lab_command

Outcome = subprocess.CompletedProcess[str]
Here = Callable[..., Outcome]


def parm(*arguments: str) -> list[str]:
    """The command that runs `parm` with these arguments, wherever it is installed."""
    program = "from parity_models.cli.main import main; main()"
    return [sys.executable, "-c", program, *arguments]


def parm_lab(*arguments: str) -> list[str]:
    """The command that runs `parm-lab` with these arguments."""
    program = "from parity_models_lab.cli.main import main; main()"
    return [sys.executable, "-c", program, *arguments]


def invoke(*arguments: str) -> Result:
    """`parm` with these arguments in this process; errors are raised, not told."""
    program: Any = command()  # of classes that are Typer's own copy of Click's
    return CliRunner().invoke(program, arguments, catch_exceptions=False)


def invoke_lab(*arguments: str) -> Result:
    """`parm-lab` with these arguments in this process; errors are raised."""
    program: Any = lab_command()
    return CliRunner().invoke(program, arguments, catch_exceptions=False)


def assert_refused(outcome: Outcome, reason: str) -> None:
    """Exit code 2 and one line that gives the reason, without a traceback."""
    assert outcome.returncode == 2, outcome.stderr
    (error,) = re.findall(r"(?im)^error: .*", outcome.stderr)
    assert reason in error
    assert "Traceback" not in outcome.stderr
