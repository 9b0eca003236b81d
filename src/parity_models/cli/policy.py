"""The flags of policies and dispatch rules, derived from the options that these declare.

A command that takes them is a `PolicyCommand` and has the option `--policy`; `given_options` says
what was given. A user's own policy or rule, named on the command line, brings its own flags.
"""

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from parity_models.cli.duration import Duration
from parity_models.errors import UserError
from parity_models.options import SECONDS, OptionField
from parity_models.registry import Registry
from parity_models.scheduling.choice import (
    PolicyChoice,
    choose,
    declared_options,
    has_option,
    options_of_rule,
)
from parity_models.scheduling.dispatch import RULES
from parity_models.scheduling.policies import POLICIES

_GIVEN = "parity_models.options"


def check_policy(name: str | list[str] | None) -> str | list[str] | None:
    """The callback of an option that names one policy or several."""
    return _checked(POLICIES, name)


def _check_rule(name: str | None) -> str | list[str] | None:
    return _checked(RULES, name)


def _checked(registry: Registry[Any], name: str | list[str] | None) -> str | list[str] | None:
    try:
        for each in [name] if isinstance(name, str) else name or ():
            registry.find(each)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
    return name


PolicyName = Annotated[
    str | None,
    typer.Option(
        help="What is sent besides the originals; by default adaptive-parity if the bundle has "
        f"parity models, else none. One of {', '.join(POLICIES.names)}, or your own as "
        "package.module:Class.",
        metavar="POLICY",
        show_default=False,
        callback=check_policy,
    ),
]
DispatchName = Annotated[
    str | None,
    typer.Option(
        help="Which instance runs what; by default latency-aware with adaptive-parity, "
        f"single-queue with the others. One of {', '.join(RULES.names)}, or your own as "
        "package.module:Class.",
        metavar="RULE",
        show_default=False,
        callback=_check_rule,
    ),
]


class PolicyCommand(TyperCommand):
    """A command with a flag for each option of a policy or dispatch rule."""

    def make_context(self, info_name: Any, args: list[str], *more: Any, **settings: Any) -> Any:
        """Parse the arguments. Raises UserError for an own policy or rule that is not there."""
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params = [*self.params, *_flags(args, taken)]
        return super().make_context(info_name, args, *more, **settings)


def given_options(context: typer.Context) -> dict[str, Any]:
    """The options of policies and rules that were given; times in seconds."""
    return dict(context.meta.get(_GIVEN, {}))


def choose_policy(name: str, given: Mapping[str, Any], dispatch: str | None) -> PolicyChoice:
    """The policy `name` with the options given on the command line.

    Raises UserError as `choose` does.
    """
    return choose(name, {**given, "dispatch": dispatch}, _flag)


def choose_policies(
    names: Sequence[str], given: Mapping[str, Any], dispatch: str | None
) -> list[PolicyChoice]:
    """The policies `names`, each with those of the options that it has.

    Raises UserError as `choose` does, and for an option that none of the policies has.
    """
    shared = {option for option in given for name in names if has_option(name, option)}
    return [
        choose_policy(
            name,
            {k: v for k, v in given.items() if k not in shared or has_option(name, k)},
            dispatch,
        )
        for name in names
    ]


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _flags(args: Sequence[str], taken: set[str]) -> list[Any]:
    """The flags of all built-in policies and rules, and of the user's own named in `args`."""
    fields: dict[str, OptionField] = {}
    having: dict[str, list[str]] = {}
    own_policies = [name for name in _values(args, "--policy") if ":" in name]
    own_rules = [name for name in _values(args, "--dispatch") if ":" in name]
    declared = {name: declared_options(name) for name in [*POLICIES.names, *own_policies]}
    declared |= {name: options_of_rule(name) for name in [*RULES.names, *own_rules]}
    for name, options in declared.items():
        for field in options:
            if _flag(field.name) in taken:
                raise UserError(
                    f"{name} has an option {field.name}, and this command has the flag "
                    f"{_flag(field.name)} for something else; rename the option"
                )
            fields[field.name] = field
            having.setdefault(field.name, []).append(name)
    return _typer_options([_option(field, having[name]) for name, field in fields.items()])


def _values(args: Sequence[str], flag: str) -> list[str]:
    """The values that a flag is given, before the arguments are parsed."""
    after = [value for before, value in pairwise(args) if before == flag]
    return after + [arg.removeprefix(f"{flag}=") for arg in args if arg.startswith(f"{flag}=")]


def _option(field: OptionField, having: Sequence[str]) -> Parameter:
    """The parameter, as of a function that Typer makes a command of."""
    flag = _flag(field.name)
    in_ms = field.option.unit == SECONDS

    def store(context: typer.Context, value: Any) -> None:
        if value is not None:
            given = context.meta.setdefault(_GIVEN, {})
            given[field.name] = value / 1e3 if in_ms else value

    kind: Any = field.kind if field.kind in (bool, int, float) else str
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"With {' or '.join(having)}: {field.option.help[0].lower()}{field.option.help[1:]}",
        metavar=field.metavar,
        show_default=field.default_in_words or False,
        callback=store,
        parser=Duration("ms") if in_ms else None,
    )
    return Parameter(
        field.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


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
