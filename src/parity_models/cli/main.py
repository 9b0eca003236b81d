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
from typing import Annotated, Any, NoReturn

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]  # not in __all__
from typer.core import TyperCommand, TyperGroup

from parity_models import __version__
from parity_models.cli.flags import command_of, source_of
from parity_models.errors import ParityModelsError, UserError, missing

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


def run(command: Callable[[], TyperGroup]) -> None:
    """Run a command line with this process's arguments, and exit."""
    _fill_standard_streams()
    # Otherwise gRPC writes lines of its own form into the log; it reads this when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    completion_init()
    try:
        group = command()
        group(prog_name=group.name)
    except UserError as error:
        _exit(2, str(error), error)
    except ParityModelsError as error:
        _exit(1, str(error), error)
    except Exception as error:
        if said := missing(error):
            _exit(2, said, error)
        _exit(1, f"{type(error).__name__}: {error}. {_OURS}", error)


def _fill_standard_streams() -> None:
    """Keep files and sockets from taking the number of a closed standard stream: the stream's
    output would go there, and libuv would abort on closing it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)


def command() -> TyperGroup:
    """Return the command line as an object."""
    return command_line("parm", _parm, COMMANDS, lambda name: f"parity_models.cli.{name}")


def command_line(
    name: str, callback: Callable[..., None], sections: Sections, module_of: Callable[[str], str]
) -> TyperGroup:
    """Return a command line of subcommands, each in a module that is imported when it is used."""
    app = typer.Typer(
        name=name,
        cls=_Grouped,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(callback)
    group = typer.main.get_command(app)
    assert isinstance(group, _Grouped)
    group.sections = sections
    for commands in sections.values():
        for name, help in commands.items():
            subcommand = _Subcommand(name, help=help, rich_markup_mode=None)
            subcommand.module = module_of(name)
            group.add_command(subcommand)
    return group


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parm {__version__}")
        raise typer.Exit


def _parm(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Erasure-coded resilience for prediction serving."""


class _Grouped(TyperGroup):
    """Lists the subcommands in sections."""

    sections: Sections

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(len(name) for commands in self.sections.values() for name in commands)
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), help) for name, help in commands.items()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if error.ctx is not None and error.param is not None:
                error.param_hint = f"'{source_of(error.ctx, error.param)}'"
            raise


class _Subcommand(TyperCommand):
    """A stand-in for a subcommand in `parm --help`; it becomes the real one when it is used."""

    module: str

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        entry = getattr(import_module(self.module), str(self.name))
        return command_of(entry).make_context(*args, **kwargs)


def _exit(code: int, message: str, error: Exception) -> NoReturn:
    if os.environ.get("PARM_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
