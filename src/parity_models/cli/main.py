"""The command `parm`: its subcommands, and how their errors become exit codes.

0 done; 2 the user's mistake, in one line; 1 a bug of ours; 130 interrupted. A subcommand's module
is imported when the subcommand is used, so that `parm serve` needs nothing that training needs and
`parm --help` is quick.
"""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click

from parity_models import __version__
from parity_models.errors import ParityModelsError, UserError, missing, options_as_flags

COMMANDS = {
    "Protect a model": {
        "protect": "Find the best stand-in for a model in a given time, and bundle the two.",
        "parity": "Train a parity model for a deployed model, and bundle the two.",
        "backup": "Train a cheaper network as a backup for a deployed model.",
        "calibrate": "Calibrate the gates of a bundle's stand-ins on held-out queries.",
        "evaluate": "Measure a bundle's accuracy when predictions are unavailable.",
    },
    "Serve it": {
        "bundle": "Make a bundle of an ONNX model as it is.",
        "serve": "Serve a bundle over the Open Inference Protocol.",
        "plan": "Size a deployment: the policy and the number of instances for a load.",
        "export": "Write a bundle's models as a repository for Triton.",
    },
    "Measure it": {
        "rehearse": "Stop an instance of your own bundle now and then, and see what answers.",
        "load": "Send queries on a fixed schedule, and measure latency from the schedule.",
        "simulate": "Compare policies at any scale, with the server's own scheduler.",
    },
}
"""Subcommands in the order of work. `x` is the function `x` of module `cli.x`."""

Sections = Mapping[str, Mapping[str, str]]
"""Subcommands with their help, under the titles of sections."""

_OURS = (
    "This is a bug in parm, not your fault: please report it, with the traceback that PARM_DEBUG=1 "
    "shows"
)


def main() -> None:
    """Run `parm` with this process's arguments, and exit."""
    run(command)


def run(command: Callable[[], click.Group]) -> None:
    """Run a command line with this process's arguments, and exit."""
    _fill_standard_streams()
    # Otherwise gRPC writes lines of its own form into the log; it reads this when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    group = command()
    try:
        with options_as_flags():
            code = group.main(prog_name=group.name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    except Exception as error:
        if os.environ.get("PARM_DEBUG") == "1":
            traceback.print_exception(error)
        said = str(error) if isinstance(error, ParityModelsError) else missing(error)
        ours = f"{type(error).__name__}: {error}. {_OURS}"
        print(f"error: {ours if said is None else said}", file=sys.stderr)
        code = 1 if said is None or not isinstance(error, UserError | ModuleNotFoundError) else 2
    sys.exit(code)


def _fill_standard_streams() -> None:
    """Keep files and sockets from taking the number of a closed standard stream: the stream's
    output would go there, and libuv would abort on closing it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)


def command() -> click.Group:
    """Return the command line as an object."""
    help = "Erasure-coded resilience for prediction serving."
    group = Group("parm", help, COMMANDS, "parity_models.cli.{}".format)
    return click.version_option(__version__, message="%(prog)s %(version)s")(group)


class Group(click.Group):
    """A command line of subcommands in sections.

    The module of each, `module_of` its name, is imported when it is used.
    """

    def __init__(
        self, name: str, help: str, sections: Sections, module_of: Callable[[str], str]
    ) -> None:
        super().__init__(name, help=help, no_args_is_help=True)
        self._sections = sections
        for commands in sections.values():
            for each, text in commands.items():
                self.add_command(_Subcommand(each, module_of(each), text))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(map(len, self.commands))
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), help) for name, help in commands.items()])


class _Subcommand(click.Command):
    """A stand-in for a subcommand in `parm --help`; it becomes the real one when it is used."""

    def __init__(self, name: str, module: str, help: str) -> None:
        super().__init__(name, help=help)
        self._module = module

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        from parity_models.cli.flags import command_of  # here: `parm --help` needs no options

        name = str(self.name)
        entry = getattr(import_module(self._module), name)
        return command_of(name, entry).make_context(*args, **kwargs)
