"""`parm` as a process of its own, wherever it is installed."""

import sys


def parm(*arguments: str) -> tuple[str, ...]:
    """The command that runs it with these arguments."""
    return (sys.executable, "-c", "from parity_models.cli.main import main; main()", *arguments)
