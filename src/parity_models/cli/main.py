"""The command `parm`: its subcommands, and how their errors become exit codes.

0 done; 2 the user's mistake, told in one line; 1 ours; 130 interrupted. A subcommand's module
is imported when the subcommand is used, so that `parm serve` needs nothing of what training
needs and `parm --help` is there at once.
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
from parity_models.cli.began import begin
from parity_models.cli.extensions import flag_of
from parity_models.cli.plain_help import plain
from parity_models.errors import ParityModelsError, UserError, install

COMMANDS = {
    "Protect a model": {
        "protect": "Find the best stand-in for a model in a given time, and bundle the two.",
        "parity": "Train a parity model for a deployed model, and bundle the two.",
        "backup": "Train a cheaper network as a backup for a deployed model.",
        "calibrate": "Find out where a bundle's stand-ins may answer, from held-out queries.",
        "evaluate": "Measure a bundle's accuracy when predictions are unavailable.",
    },
    "Serve it": {
        "bundle": "Make a bundle of an ONNX model as it is, whatever it takes.",
        "serve": "Serve a bundle over the Open Inference Protocol.",
        "plan": "Say which policy and how many instances a load takes.",
        "record": "Record a running server's times and load, for plans.",
        "export": "Write a bundle's models as a repository for Triton or MLServer.",
    },
    "Measure it": {
        "rehearse": "Harm an instance of your own bundle, and see who answers.",
        "load": "Send queries on a schedule, and measure latency from the schedule.",
        "simulate": "Compare policies at any scale, by the scheduler that serves.",
    },
    "Your shell": {
        "completion": "Print the script that completes parm's commands and options.",
    },
}
"""Subcommands by who wants them, in the order of work. `x` is the function or Typer `x` of module
`cli.x`."""

Sections = Mapping[str, Mapping[str, str]]
"""Subcommands with their help, under the titles of sections."""

EXTRAS = {
    "aiohttp": "remote",
    "cryptography": "tls",
    "grpc": "grpc",
    "hdrh": "bench",
    "matplotlib": "bench",
    "onnx": "train",
    "opentelemetry": "otel",
    "onnxscript": "train",
    "PIL": "train",
    "pyarrow": "bench",
    "pydantic": "ray",
    "ray": "ray",
    "safetensors": "train",
    "sklearn": "train",
    "torch": "train",
    "torchvision": "train",
}
"""The extra of this distribution that installs a module."""

COMPLETION = "_PARM_COMPLETE"
"""The variable by which a shell asks what could come next: see `parm completion`."""

_WANTED = {
    "int_parsing": "{input!r} is not a whole number",
    "float_parsing": "{input!r} is not a number",
    "greater_than_equal": "must be {ge:g} or more, got {input}",
    "less_than_equal": "must be {le:g} or less, got {input}",
}
"""What is wrong with a number, by pydantic's name for the error."""

_OURS = (
    "This is a fault of parm, not yours: please report it, with what PARM_DEBUG=1 shows beside it"
)


def main() -> None:
    """Run `parm` with this process's arguments, and exit."""
    run(command)


def run(command: Callable[[], TyperGroup]) -> None:
    """Run a command line with this process's arguments, and exit."""
    _fill_standard_streams()
    # Else gRPC writes lines of its own form into the log; it asks when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if COMPLETION in os.environ:
        completion_init()
    try:
        group = command()
        group(prog_name=group.name)
    except UserError as error:
        _exit(2, error.spelled(flag_of), error)
    except ParityModelsError as error:
        _exit(1, str(error), error)
    except Exception as error:
        extra = _extra_for(error)
        if extra is not None:
            _exit(2, f"{error}; {install(extra)}", error)
        _exit(1, f"{type(error).__name__}: {error}. {_OURS}", error)


def _fill_standard_streams() -> None:
    """Let no file or socket take the number of a standard stream that is closed: what is written to
    the stream would go there, and libuv ends a process in which it is to close one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)


def command() -> TyperGroup:
    """The command line as an object."""
    return command_line("parm", _parm, COMMANDS, lambda name: f"parity_models.cli.{name}")


def command_line(
    name: str, callback: Callable[..., None], sections: Sections, module_of: Callable[[str], str]
) -> TyperGroup:
    """A command line of subcommands, each in a module that is imported when it is used."""
    app = typer.Typer(
        name=name,
        cls=_Grouped,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(callback)
    group = typer.main.get_group(app)
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
    debug: Annotated[
        bool, typer.Option("--debug", envvar="PARM_DEBUG", help="Show the tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Erasure-coded resilience for prediction serving."""
    os.environ["PARM_DEBUG"] = "1" if debug else "0"


class _Grouped(TyperGroup):
    """Lists the subcommands by who wants them."""

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
            error.message = _in_words(error)
            raise


class _Subcommand(TyperCommand):
    """Stands for a subcommand in `parm --help`, and turns into it when it is used."""

    module: str

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("parent") is not None:
            begin(kwargs["parent"])
        module = import_module(self.module)
        entry = getattr(module, str(self.name))
        if isinstance(entry, typer.Typer):
            app = entry
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(cls=getattr(module, "COMMAND", None))(entry)
        return plain(typer.main.get_command(app)).make_context(*args, **kwargs)


def _in_words(error: typer.BadParameter) -> str:
    """What the error says, with the value that was typed where it is not the number it must be."""
    listed: list[Any] = getattr(error.__cause__, "errors", list)()  # of pydantic, by Typer
    wanted = _WANTED.get(listed[0]["type"]) if listed else None
    if wanted:
        return wanted.format(input=listed[0]["input"], **listed[0].get("ctx", {}))
    return str(error.message).removeprefix("Value error, ")


def _extra_for(error: Exception) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    return EXTRAS.get(error.name.split(".")[0])


def _exit(code: int, message: str, error: Exception) -> NoReturn:
    if os.environ.get("PARM_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
