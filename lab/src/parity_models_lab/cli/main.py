"""The command `parm-lab`: experiments that prove what is claimed of parity models."""

import signal

from typer.core import TyperGroup

from parity_models.cli.main import command_line, run

COMMANDS = {
    "Begin": {
        "demo": "Train, serve under injected slowdowns, and compare the tails.",
        "data": "Show the data of tasks, and make synthetic data.",
        "train": "Train a model to serve, if you do not have one.",
    },
    "Measure it": {
        "reproduce": "Reproduce the paper's figures, and ours beyond them.",
        "approaches": "Compare what could answer in the model's place.",
        "bench": "Measure what coded serving costs.",
        "costs": "Measure what a request costs with the default policy.",
    },
    "Break it": {
        "chaos": "Serve under load and faults; account for every query.",
        "overload": "Send 1.2 to 5 times the load that a server can carry.",
        "timeouts": "Time out queries, policy by policy.",
        "rollout": "Replace a version under load.",
        "soak": "Serve for hours, and watch memory and descriptors.",
        "liars": "Have instances give wrong answers.",
        "attack": "Attack a server as a client could.",
        "fuzz": "Run the fuzzers for long.",
        "report": "Write what these commands found as one page.",
    },
}
"""Subcommands with their help, as in `parity_models.cli.main`."""

_MODULES = {**dict.fromkeys(COMMANDS["Break it"], "lab"), "costs": "lab_costs"}
"""Of commands that are in a module of another name."""


def main() -> None:
    """Run `parm-lab` with this process's arguments, and exit."""
    # Servers that it started are stopped when it is terminated, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(command)


def command() -> TyperGroup:
    """The command line as an object."""
    return command_line("parm-lab", _parm_lab, COMMANDS, _module_of)


def _parm_lab() -> None:
    """Experiments with parity models."""


def _module_of(name: str) -> str:
    return f"parity_models_lab.cli.{_MODULES.get(name, name)}"
