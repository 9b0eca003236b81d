"""Commands whose options are declared: as flags and, with --config, as variables and file keys.

Click reads the command line, the environment and the defaults in a file; an option is declared
once, by an `Option` in the annotation of a command's parameter or, if that is a dataclass, of its
field:

    def plan(goal: Goal, *, json: Annotated[Path | None, Option("The file to write.")] = None)

The parameter gets the dataclass, made of the given options.
"""

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import click

from parity_models.errors import UserError, as_flag, suggest
from parity_models.options import Option, OptionField, declared_by, declared_in

PREFIX = "PARM"
"""The prefix of variables that give options."""

ConfigPath = Annotated[
    Path | None,
    Option(
        "A TOML file of options; flags, and variables such as PARM_MAX_BATCH, override it.",
        metavar="FILE",
    ),
]


class Without:
    """Marks a parameter that is a dataclass, with the `names` of its options without flags."""

    def __init__(self, *names: str) -> None:
        self.names = names


def command_of(name: str, entry: Callable[..., None]) -> click.Command:
    """Return the command that calls `entry` with the options that its signature declares.

    With a parameter `config`, the options may also come from that file and from variables.
    """
    declared: dict[str, tuple[Any, list[OptionField]]] = {}
    hints = get_type_hints(entry, include_extras=True)
    for each in inspect.signature(entry).parameters.values():
        hint = hints[each.name]
        if one := declared_by(each.name, hint, each.default):
            declared[each.name] = None, [one]
            continue
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        hidden = [name for mark in marks for name in mark.names]
        declared[each.name] = kind, [x for x in declared_in(kind) if x.name not in hidden]

    def run(**values: Any) -> None:
        arguments = {}
        for name, (kind, fields) in declared.items():
            given = {x.name: values[x.name] for x in fields if values[x.name] not in (None, ())}
            arguments[name] = given.get(name, fields[0].default) if kind is None else kind(**given)
        entry(**arguments)

    configured = "config" in declared
    return click.Command(
        name,
        callback=run,
        params=[_parameter(x, configured) for _, fields in declared.values() for x in fields],
        help=entry.__doc__,
        context_settings={"auto_envvar_prefix": PREFIX} if configured else {},
    )


def _parameter(field: OptionField, configured: bool) -> click.Parameter:
    """Return the parameter of a declared option; its value is None, or (), if not given."""
    default = field.default_in_words
    more: dict[str, Any] = {
        "help": field.option.help + (f" [default: {default}]" if default else ""),
        "required": field.required,
    }
    if field.option.argument:
        variable = f"{PREFIX}_{field.name.upper()}" if configured else None
        nargs = -1 if field.several else 1
        return click.Argument([field.name], type=_Type(field), envvar=variable, nargs=nargs, **more)
    flag = as_flag(field.name)
    if field.kind is bool:
        flag = f"{flag}/--no-{flag[2:]}" if configured else flag
        return _Option([field.name, flag], is_flag=True, **more)
    if field.name == "config":
        more |= {"is_eager": True, "callback": _read_config}
    return _Option(
        [field.name, flag],
        type=_Type(field),
        metavar=field.metavar,
        multiple=field.several,
        **more,
    )


class _Type(click.ParamType[Any]):
    """The type of a declared option."""

    def __init__(self, field: OptionField) -> None:
        self.name, self._field = field.name, field

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self._field.parse(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class _Option(click.Option):
    """An option whose errors say how it was given: as a flag, a variable, or a key of a file."""

    def get_error_hint(self, ctx: Any) -> str:
        assert self.name is not None
        source = ctx.get_parameter_source(self.name)
        match "" if source is None else source.name:
            case "ENVIRONMENT":
                return f"'{PREFIX}_{self.name.upper()}'"
            case "DEFAULT_MAP":
                return f"'{self.name.replace('_', '-')} in {ctx.params['config']}'"
        return f"'{as_flag(self.name)}'"


def _read_config(context: click.Context, _: Any, path: Path | None) -> Path | None:
    """Take the values of the file as defaults. Raises UserError for unknown keys."""
    if path is None or context.resilient_parsing:
        return path
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    known: dict[str, Any] = {
        str(x.name).replace("_", "-"): x for x in context.command.params if x.name != "config"
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            table = f"; tables like [{key}] have no place in it" * isinstance(value, dict)
            meant = suggest(key, known) or "; parm serve --help lists the flags"
            raise UserError(f"{path} has an unknown key {key!r}{table}{meant}")
        if known[key].multiple:
            value = value if isinstance(value, list) else [value]
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        found[key.replace("-", "_")] = value
    context.default_map = found
    return path
