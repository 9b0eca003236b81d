"""The command `parm-lab`: experiments that prove what is claimed of parity models."""

import signal

import click

from parity_models.cli.main import Group, run

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
        "real": "Compare rivals where model, texts, servers and slowness are real.",
        "overhead": "Measure the cost of a request.",
        "path": "Count the files and calls that a request takes.",
        "late": "Compare Late with libraries that hedge.",
        "promises": "Count how often budgets of differing answers are kept.",
    },
    "Break": {"chaos": "Serve under load and faults; account for every query."},
}
"""Subcommands with their help, as in `parity_models.cli.main`."""


def main() -> None:
    """Run `parm-lab` with this process's arguments, and exit."""
    # Servers that it started are stopped when it is terminated, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(command)


def command() -> click.Group:
    """The command line as an object."""
    return Group("parm-lab", "Experiments with parity models.", COMMANDS, _module_of)


_MODULES = {
    "train": "deployed",
    "latency": "latency.reproduce",
    "validation": "latency.reproduce",
    "rivals": "latency.reproduce_rivals",
    "late": "real",
}
"""Modules of commands, where they are not called like them."""


def _module_of(name: str) -> str:
    return f"parity_models_lab.{_MODULES.get(name, name)}"
