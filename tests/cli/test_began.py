"""The time that a command may take counts from before what it needs is imported."""

import time
from typing import Any

from parity_models.cli.began import began
from parity_models.cli.main import command


def test_a_subcommand_knows_when_it_was_begun() -> None:
    group: Any = command()
    before = time.monotonic()
    root = group.make_context("parm", ["completion", "bash"])
    subcommand = group.get_command(root, "completion")
    with root:
        context = subcommand.make_context("completion", ["bash"], parent=root)
    assert before <= began(context) <= time.monotonic()
    time.sleep(0.01)
    assert began(context) == began(context) < time.monotonic() - 0.009
