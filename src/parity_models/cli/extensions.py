"""The flags of commands that are derived from declared options.

A command has an option that names an extension, `--policy NAME`, and is a `command_for` that kind:
then it has a flag for each option of each extension of the kind, and `given_options` says what was
given. A user's own, named on the command line, brings its own flags. Options of a class that is no
extension, such as ServeOptions, become flags likewise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from parity_models.cli.duration import Duration
from parity_models.errors import OptionError, UserError
from parity_models.options import BYTES, OptionField, Spell, declared_in, options_of
from parity_models.registry import Registry, is_own

Names = str | list[str] | None
"""What an option is given that names one extension or several."""

_GIVEN = "parity_models.options"

PREFIX = "PARM"
"""What begins the names of variables that hold options."""

CONFIG = "config"
"""The option that names a file with options."""

OWN = "or your own as package.module:Class"


def naming(registry: Registry[Any]) -> Callable[[Names], Names]:
    """The callback of an option that names extensions of this kind: it refuses other names."""

    def check(names: Names) -> Names:
        try:
            for each in [names] if isinstance(names, str) else names or ():
                registry.find(each)
        except UserError as error:
            raise typer.BadParameter(str(error)) from error
        return names

    return check


@dataclass(frozen=True)
class Declared:
    """The options that a dataclass declares: all of them, or `only` those of these names.

    `when` begins their help: "With --bundle: ".
    """

    kind: type
    only: tuple[str, ...] = ()
    when: str = ""

    @property
    def fields(self) -> list[OptionField]:
        """The options, in order."""
        return [each for each in declared_in(self.kind) if not self.only or each.name in self.only]


FlagSource = Registry[Any] | Declared
"""Where flags come from."""


def command_for(**kinds: FlagSource) -> type[TyperCommand]:
    """The class of a command that has flags of these kinds: of extensions as in `policy=POLICIES`,
    which its option --policy names, or of a dataclass."""
    return type("Command", (ExtensionCommand,), {"kinds": kinds})


def given_options(context: typer.Context, *kinds: str) -> dict[str, Any]:
    """The options of these kinds that were given, in their own units."""
    given = context.meta.get(_GIVEN, {})
    return {name: value for kind in kinds for name, value in given.get(kind, {}).items()}


def flag_of(option: str) -> str:
    """The flag of an option, as users write it."""
    return f"--{option.replace('_', '-')}"


def spelling_in(context: Any) -> Spell:
    """How the user wrote options in this context: as flags, as variables, or as keys of a file."""

    def spell(option: str) -> str:
        source = context.get_parameter_source(option)
        match "" if source is None else source.name:
            case "ENVIRONMENT":
                return f"{PREFIX}_{option.upper()}"
            case "DEFAULT_MAP":
                return f"{flag_of(option)[2:]} in {context.default_map[CONFIG]}"
        return flag_of(option)

    return spell


class ExtensionCommand(TyperCommand):
    """A command with a flag for each option of its `kinds`."""

    kinds: ClassVar[Mapping[str, FlagSource]]

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **settings: Any
    ) -> Any:
        """The context. Raises UserError for an own extension that is not there."""
        self.add_flags(args)
        return super().make_context(info_name, args, *more, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it says of options is spelled as these were given."""
        try:
            return super().invoke(ctx)
        except OptionError as error:
            raise UserError(error.spelled(spelling_in(ctx))) from error

    def add_flags(self, args: Sequence[str]) -> None:
        """Have the flags of all kinds, and of the user's own extensions that `args` name."""
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params = [*self.params, *_flags(self.kinds, args, taken)]


def _flags(kinds: Mapping[str, FlagSource], args: Sequence[str], taken: set[str]) -> Sequence[Any]:
    """The flags of all kinds, and of the user's own extensions named in `args`."""
    parameters: list[Parameter] = []
    for kind, source in kinds.items():
        if isinstance(source, Declared):
            flags = {each.name: (each, source.when) for each in source.fields}
        else:
            flags = _flags_of_extensions(kind, source, args, taken)
        parameters += [_parameter(kind, field, when) for field, when in flags.values()]
        taken = taken | {flag_of(name) for name in flags}
    return _typer_options(parameters)


def _flags_of_extensions(
    kind: str, registry: Registry[Any], args: Sequence[str], taken: set[str]
) -> dict[str, tuple[OptionField, str]]:
    """The options of a kind's extensions by name, each with what begins its help."""
    having: dict[str, list[str]] = {}
    fields: dict[str, OptionField] = {}
    own = [name for name in values_of(args, flag_of(kind)) if is_own(name)]
    for name in [*registry.names, *own]:
        for field in options_of(registry.find(name).Options):
            if flag_of(field.name) in taken:
                raise UserError(
                    f"{name} has an option {field.name}, and this command has the flag "
                    f"{flag_of(field.name)} for something else; rename the option"
                )
            fields[field.name] = field
            having.setdefault(field.name, []).append(name)
    return {name: (field, f"With {' or '.join(having[name])}: ") for name, field in fields.items()}


def values_of(args: Sequence[str], flag: str) -> list[str]:
    """The values that a flag is given, before the arguments are parsed."""
    after = [value for before, value in pairwise(args) if before == flag]
    return after + [arg.removeprefix(f"{flag}=") for arg in args if arg.startswith(f"{flag}=")]


def _parameter(kind: str, field: OptionField, when: str) -> Parameter:
    """The parameter, as of a function that Typer makes a command of; `when` begins its help."""
    flag = flag_of(field.name)

    def store(context: typer.Context, value: Any) -> None:
        if value is not None:
            given = context.meta.setdefault(_GIVEN, {}).setdefault(kind, {})
            spell = spelling_in(context)
            given[field.name] = field.convert(field.from_typed(value, spell), spell)

    help = field.option.help
    if when:
        help = when + (help if help[1:2].isupper() else f"{help[0].lower()}{help[1:]}")
    help += f" [default: {field.default_in_words}]" if field.default_in_words else ""
    type_: Any = field.kind if field.kind in (bool, int, float) else str
    if field.option.unit == BYTES:
        type_ = float
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if type_ is bool else flag,
        help=help,
        metavar=field.metavar,
        show_default=False,
        callback=store,
        parser=Duration(field.option.typed_in) if field.is_time else None,
    )
    annotation = Annotated[type_ | None, option]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typer_options(parameters: Sequence[Parameter]) -> list[Any]:
    """What Typer makes of the parameters; their values are not passed on but stored."""

    def command(**values: Any) -> None: ...

    # As inspect documents it, which Typer reads; functions do not declare it in typeshed.
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    options = [each for each in typer.main.get_command(app).params if each.name != "help"]
    for option in options:
        option.expose_value = False
    return options
