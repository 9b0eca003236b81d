"""Commands whose options are declared: as flags and, with --config, as variables and file keys.

Typer reads the command line, the environment and the defaults in a file; an option is declared
once, by an `Option` in the annotation of a command's parameter or, if that is a dataclass, of its
field:

    def plan(goal: Goal, *, json: Annotated[Path | None, Option("The file to write.")] = None)

The parameter gets the dataclass, made of the given options.
"""

import inspect
import tomllib
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from parity_models.errors import UserError
from parity_models.options import OptionField, declared_by, declared_in, flag_of

PREFIX = "PARM"
"""The prefix of variables that give options."""

_PLAIN: dict[str, Any] = {"show_default": False, "show_envvar": False}


class Without:
    """Marks a parameter that is a dataclass, with the `names` of its options without flags."""

    def __init__(self, *names: str) -> None:
        self.names = names


def command_of(entry: Any) -> Any:
    """Return the Typer command that calls `entry` with the options that its signature declares.

    With a parameter `config`, the options may also come from that file and from variables.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    configured = "config" in inspect.signature(entry).parameters
    settings = {"auto_envvar_prefix": PREFIX} if configured else {}
    app.command(context_settings=settings)(_with_flags(entry))
    return typer.main.get_command(app)


def _with_flags(entry: Any) -> Any:
    """Return the function that Typer calls with the values of flags, and that calls `entry`."""
    hints = get_type_hints(entry, include_extras=True)
    parameters: list[inspect.Parameter] = []
    declared: dict[str, tuple[Any, list[OptionField]]] = {}
    for each in inspect.signature(entry).parameters.values():
        hint = hints[each.name]
        one = declared_by(each.name, hint, each.default)
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if one is None and not is_dataclass(kind):
            parameters.append(each.replace(annotation=hint, kind=each.KEYWORD_ONLY))
            continue
        hidden = next((mark.names for mark in marks if isinstance(mark, Without)), ())
        fields = [one] if one else [f for f in declared_in(kind) if f.name not in hidden]
        declared[each.name] = (None if one else kind, fields)
        parameters += [_parameter(field, negatable="config" in hints) for field in fields]

    def run(**values: Any) -> None:
        for name, (kind, fields) in declared.items():
            given = {each.name: values.pop(each.name) for each in fields}
            given = {each: value for each, value in given.items() if value is not None}
            values[name] = given.get(name, fields[0].default) if kind is None else kind(**given)
        entry(**values)

    run.__doc__, run.__name__ = entry.__doc__, entry.__name__
    # Typer finds the signature here, as inspect.signature does.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # not in typeshed
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameter(field: OptionField, *, negatable: bool) -> inspect.Parameter:
    """Return the parameter of a declared option for Typer; its value is None if not given."""
    flag = flag_of(field.name)
    is_flag = field.kind is bool
    required = field.default is inspect.Parameter.empty
    default = "" if required else field.default_in_words

    def parse(written: Any) -> Any:
        try:
            return field.parse(written)
        except UserError as error:
            raise typer.BadParameter(str(error)) from None

    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_flag and negatable else flag,
        help=field.option.help + (f" [default: {default}]" if default else ""),
        metavar=None if is_flag else field.metavar,
        parser=None if is_flag else parse,
        **_PLAIN,
    )
    kind: Any = GenericAlias(list, field.kind) if field.several else field.kind
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, option],
    )


def argument(help: str, metavar: str, **more: Any) -> Any:
    """Return the mark of a parameter that is an argument."""
    return typer.Argument(help=help, metavar=metavar, **_PLAIN, **more)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of the file as defaults. Raises UserError for unknown keys."""
    if path is None or context.resilient_parsing:
        return path
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    names = {
        flag.removeprefix("--"): parameter
        for parameter in context.command.params
        for flag in parameter.opts
        if flag not in ("--config", "--help")
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = get_close_matches(key, names, 1)
            meant = f"did you mean {near[0]}?" if near else "parm serve --help lists the flags"
            table = f"; tables like [{key}] have no place in it" * isinstance(value, dict)
            raise UserError(f"{path} has an unknown key {key!r}{table}; {meant}")
        several = getattr(names[key], "multiple", False)
        if isinstance(value, list):
            texts = [str(each) for each in value]
            value = texts if several else ",".join(texts)
        found[str(names[key].name)] = [value] if several and isinstance(value, str) else value
    context.default_map = found
    return path


ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file of options; flags, and variables such as PARM_MAX_BATCH, override it.",
        metavar="FILE",
        is_eager=True,
        callback=_read_config,
        **_PLAIN,
    ),
]


def source_of(context: Any, parameter: Any) -> str:
    """Return how the user wrote a parameter: as a flag, a variable, or a key of a file."""
    source = context.get_parameter_source(parameter.name)
    flag = max(parameter.opts, key=len)
    match "" if source is None else source.name:
        case "ENVIRONMENT":
            return f"{PREFIX}_{parameter.name.upper()}"
        case "DEFAULT_MAP":
            return f"{flag.removeprefix('--')} in {context.params['config']}"
    return str(flag)
