"""`parm` for tests: in a process of its own, as users have it, or here (fixture `parm_here`)."""

import re
import subprocess
import sys
from collections.abc import Callable

Outcome = subprocess.CompletedProcess[str]
Here = Callable[..., Outcome]


def parm(*arguments: str) -> list[str]:
    """The command that runs `parm` with these arguments, wherever it is installed."""
    program = "from parity_models.cli.main import main; main()"
    return [sys.executable, "-c", program, *arguments]


def assert_refused(outcome: Outcome, reason: str) -> None:
    """Exit code 2 and one line that gives the reason, without a traceback."""
    assert outcome.returncode == 2, outcome.stderr
    (error,) = re.findall(r"(?im)^error: .*", outcome.stderr)
    assert reason in error
    assert "Traceback" not in outcome.stderr


def succeeded(outcome: Outcome) -> Outcome:
    """Check that the exit code is 0; returns the outcome."""
    assert outcome.returncode == 0, outcome.stderr
    return outcome
