"""The command `parm-lab`: experiments that prove what is claimed of parity models."""

import signal

from typer.core import TyperGroup

from parity_models.cli.main import command_line, run

COMMANDS = {
    "Begin": {
        "demo": "Train, serve under injected faults, and compare the tails.",
        "train": "Train a model to serve, if you do not have one.",
    },
    "Reproduce": {
        "latency": "Run the latency figures, for real and simulated.",
        "rivals": "Compare late binding with cascades, slack rules and accuracy scaling.",
        "validation": "Compare the simulator with real runs, policy by policy.",
        "accuracy": "Train and compare codes and baselines over tasks and networks.",
    },
    "Measure": {
        "overhead": "Measure the cost of a request.",
        "path": "Count the files and calls that a request takes.",
        "late": "Compare Late with libraries that hedge.",
        "promises": "Count how often budgets of differing answers are kept.",
        "drift": "Count wrong answers before a gate closes.",
    },
    "Break": {
        "chaos": "Serve under load and faults; account for every query.",
        "overload": "Send 1.2 to 5 times the load that a server can carry.",
        "attack": "Attack other clients' reconstructions by absurd inputs.",
    },
}
"""Subcommands with their help, as in `parity_models.cli.main`."""


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


_MODULES = {
    "train": "deployed",
    "promises": "gates",
    "drift": "gates",
    **dict.fromkeys(COMMANDS["Break"], "chaos.{}"),
    "latency": "latency.reproduce",
    "rivals": "latency.reproduce_rivals",
    "validation": "latency.validation",
    "late": "late_calls",
}
"""Modules of commands, where they are not called like them."""


def _module_of(name: str) -> str:
    return f"parity_models_lab.{_MODULES.get(name, name).format(name)}"
