"""The options in force, as a TOML file that says the same when it is read back."""

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import typer

from parity_models.cli.extensions import flag_of, given_options, spelling_in
from parity_models.options import TYPED, OptionField, declared_in, options_of
from parity_models.scheduling.dispatch import RULES
from parity_models.scheduling.policies import POLICIES
from parity_models.serving.access import Access
from parity_models.serving.engines import ENGINES
from parity_models.serving.limits import Limits
from parity_models.serving.logs import Logging
from parity_models.serving.options import ServeOptions

_HEAD = """\
# The options of parm serve: those that are given, and from where, and as comments the defaults.
"""


def config_in_force(context: typer.Context, options: ServeOptions, named: Mapping[str, Any]) -> str:
    """The TOML file that says how `options`, made in this context, came about.

    `named` are the values of options that no class declares, by their keys; None is not given.
    """
    policy = options.policy
    defaults = {
        "engine": options.engine.name,
        "policy": policy and policy.name,
        "dispatch": policy and policy.dispatch,
    }
    lines = [_HEAD]
    for key, value in named.items():
        if value:
            lines.append(_given(context, key, value))
        elif defaults.get(key) is not None:
            lines.append(_default(key, defaults[key]))
    sections: dict[str, tuple[str, list[OptionField]]] = {
        "serve": ("The server", declared_in(ServeOptions)),
        "access": ("Who may ask", options_of(Access)),
        "logging": ("The log", options_of(Logging)),
        "limits": ("What clients can make it hold", options_of(Limits)),
        "engine": ("The engine", options_of(ENGINES.find(options.engine.name).Options)),
    }
    if policy is not None:
        sections["policy"] = ("The policy", options_of(POLICIES.find(policy.name).Options))
    if policy is not None and policy.dispatch is not None:
        rule = options_of(RULES.find(policy.dispatch).Options)
        sections["dispatch"] = ("The dispatch rule", rule)
    for kind, (title, fields) in sections.items():
        if fields:
            lines += ["", f"# {title}", *_section(context, kind, fields)]
    return "\n".join(lines) + "\n"


def _section(context: typer.Context, kind: str, fields: list[OptionField]) -> Iterator[str]:
    given = given_options(context, kind)
    for field in fields:
        if field.name in given:
            yield _given(context, field.name, as_typed(field, given[field.name]))
        elif field.default is not None:
            yield _default(field.name, as_typed(field, field.default))
        else:
            yield f"# {_key(field.name)} is not set"


def as_typed(field: OptionField, value: Any) -> Any:
    """The value as a user types it, such that reading it gives the very same value back."""
    if isinstance(value, dict):
        return ",".join(f"{name}={amount!r}" for name, amount in value.items())
    scale = TYPED[field.option.typed_in]
    if scale == 1 or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for digits in range(1, 18):
        typed = float(f"{value / scale:.{digits}g}")
        if field.from_typed(typed, str) == value:
            break
    return int(typed) if typed.is_integer() else typed


def _given(context: typer.Context, name: str, value: Any) -> str:
    where = spelling_in(context)(name)
    comment = "" if where == flag_of(name) else f"  # {where}"
    return f"{_key(name)} = {_toml(value)}{comment}"


def _default(name: str, value: Any) -> str:
    return f"# {_key(name)} = {_toml(value)}"


def _key(name: str) -> str:
    return flag_of(name)[2:]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, StrEnum) or not isinstance(value, int | float | list | tuple):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
