"""Help in plain words: it says what to type, and not what Python makes of it."""

from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

_WORDS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""What stands for a value of a type, if its option says nothing better."""


def plain(command: Any) -> Any:
    """The command, with plain help for it and for its subcommands.

    Without it, Typer's help says <int range>, and 0<=x<=65535. What a number may be, the error says
    that refuses another one.
    """
    for below in getattr(command, "commands", {}).values():
        plain(below)
    for parameter in command.params:
        parameter.min = parameter.max = None
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = _nothing
            parameter.get_usage_pieces = partial(_bare, parameter.get_usage_pieces)
        elif parameter.metavar is None and not parameter.is_flag:
            known = getattr(parameter, "type_descriptor", None)  # older Typers have none
            parameter.metavar = None if known is None else _word_for(known.annotation)
    return command


def _nothing(*, ctx: Any) -> str:
    """An argument is called by its name alone."""
    return ""


def _bare(pieces: Callable[[Any], list[str]], ctx: Any) -> list[str]:
    """What must be given stands in the usage as it is, without Typer's braces."""
    return [each.replace("{", "").replace("}", "") for each in pieces(ctx)]


def _word_for(kind: Any) -> str:
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"[{'|'.join(str(each.value) for each in kind)}]"
    return _WORDS[kind]
