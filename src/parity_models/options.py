"""Options: declared once, in a dataclass or a command's signature, and checked.

A field says its type, its default, and its help, unit and bounds. Flags, variables, keys of files
and reference pages are derived from that:

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        copies: int = option(2, "How often each query is sent.", ge=2)

Where several share an option, or have no default, an `Option` in their annotation says the same.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields
from enum import StrEnum
from inspect import Parameter
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import Meta, ValidationError, convert

from parity_models.errors import UserError

Value = bool | int | float | str
"""The value of an option in a file."""

T = TypeVar("T")


class Unit(NamedTuple):
    """A unit, or a type without one, in which users type values.

    `form` describes a value, `metavar` stands for it in help, and `suffixes` are the sizes of units
    that may follow a number, in the unit of programs. A bare number has the suffix "".
    """

    form: str
    metavar: str | None = None
    suffixes: Mapping[str, float] = {}

    def read(self, written: str) -> float:
        """Return a number in the unit of programs. Raises ValueError if it is not of the form."""
        match = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-zµ%]*)\s*", written.lower())
        if match is None or match[2] not in self.suffixes:
            raise ValueError(written)
        number, size = float(match[1]), self.suffixes[match[2]]
        return number * size if size >= 1 else number / round(1 / size)


def _time(name: str, bare: float, program: float = 1) -> Unit:
    """Return a unit of time; `bare` and `program` are the seconds of users' and programs' units."""
    sizes = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "": bare}
    return Unit(
        f"a number of {name}, or a time with a unit, as 50ms, 2s, 5m or 1h",
        name.upper(),
        {suffix: seconds / program for suffix, seconds in sizes.items()},
    )


UNITS: dict[str | type, Unit] = {
    "ms": _time("milliseconds", 1e-3),
    "s": _time("seconds", 1),
    "min": _time("minutes", 60, 60),
    "MiB": Unit("a number of MiB", "MIB", {"": 2**20, "mib": 2**20}),
    "share": Unit("a share, as 30% or 0.3", "SHARE", {"": 1, "%": 0.01}),
    bool: Unit("true or false"),
    int: Unit("a whole number", "N"),
    float: Unit("a number", "NUMBER"),
    str: Unit("a text", "TEXT"),
    Path: Unit("a path", "PATH"),
}
"""The units of options. Programs have bytes, and seconds or, with "min", minutes."""


@dataclass(frozen=True)
class Option:
    """The description of an option, beyond its type and default.

    `ge`, `gt`, `le` and `lt` bound a number, as in `msgspec.Meta`, in the unit of programs. `unit`
    is a key of UNITS. `metavar` stands for the value in help. An `argument` of a command is given
    by its place, not by a flag.
    """

    help: str
    _: KW_ONLY
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    metavar: str = ""
    argument: bool = False

    @property
    def scale(self) -> float:
        """The size of the unit that users type, in the unit of programs."""
        return UNITS[self.unit].suffixes[""] if self.unit else 1

    def bounds(self, *, typed: bool) -> str:
        """Return the bounds in words, as users type them or in the unit of programs."""
        scale, unit = (self.scale, self.unit) if typed and self.unit != "share" else (1, "")

        def say(value: float) -> str:
            return f"{value / scale:g} {unit if value else ''}".strip()

        if self.ge is not None and self.le is not None:
            return f"from {self.ge / scale:g} to {say(self.le)}"
        words = {"above": self.gt, "at least": self.ge, "below": self.lt, "at most": self.le}
        found = [f"{word} {say(value)}" for word, value in words.items() if value is not None]
        return " and ".join(found)


def option(default: T, help: str, **more: Any) -> T:
    """Return the default of a field, or of a parameter of a command, that is an option; `more` are
    fields of Option."""
    made: T = field(default=default, metadata={Option: Option(help, **more)})
    return made


@dataclass(frozen=True)
class OptionField:
    """A declared option.

    `kind` is its type: bool, int, float, str, Path or a StrEnum, or, with `several`, that of each
    value. With `optional`, it may be None. Programs may give one of the `words` in its place.
    """

    name: str
    kind: type
    optional: bool
    several: bool
    default: Any
    option: Option
    words: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        """The values that users type."""
        if issubclass(self.kind, StrEnum):
            return Unit(f"one of {', '.join(self.kind)}", f"[{'|'.join(self.kind)}]")
        return UNITS[self.option.unit or self.kind]

    @property
    def metavar(self) -> str | None:
        """The placeholder of the value in help; None for a flag without one."""
        return self.option.metavar or self.unit.metavar

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is MISSING or self.default is Parameter.empty

    @property
    def default_in_words(self) -> str:
        """The default as users write it; empty if there is none."""
        absent = self.default is None or self.default is False or self.default in self.words
        return "" if absent or self.required or self.several else self.write(self.default)

    def write(self, value: Any) -> str:
        """Return a value as a user types it."""
        if type(value) in (int, float):
            return f"{value / self.option.scale:.12g}"
        return str(value).lower() if isinstance(value, bool) else str(value)

    def parse(self, written: Any) -> Any:
        """Return the value that a user wrote, in the unit of programs.

        A value from a file may have its type already. Raises UserError, with a message that begins
        with "must", for an invalid value.
        """
        try:
            numeric = bool(self.unit.suffixes)
            value = self.kind(self.unit.read(str(written))) if numeric else written
            return self._convert(value, strict=False)
        except (ValueError, OverflowError, ValidationError):
            raise _refusal(self.unit, self.option.bounds(typed=True), written) from None

    def check(self, value: Any) -> Any:
        """Return the value of a program in the option's type, numbers of NumPy as Python's.

        Raises UserError, with a message that begins with "must", if it is of another type or out
        of bounds.
        """
        if (value is None and self.optional) or (isinstance(value, str) and value in self.words):
            return value
        try:
            return self._convert(value.item() if hasattr(value, "item") else value, strict=True)
        except ValidationError:
            unit = UNITS.get(self.kind, self.unit)
            raise _refusal(unit, self.option.bounds(typed=False), value) from None

    def _convert(self, value: Any, *, strict: bool) -> Any:
        """Return the value in the option's type and bounds, from text unless `strict`.

        Numbers are finite, and whole ones below 2^63. Raises ValidationError.
        """
        if self.kind in (str, Path) and isinstance(value, str | Path):
            return self.kind(value)
        kind: Any = self.kind
        if kind in (int, float):
            bounds = {name: getattr(self.option, name) for name in ("ge", "gt", "le", "lt")}
            if bounds["le"] is None and bounds["lt"] is None:
                bounds["le"] = sys.float_info.max if kind is float else 2**63 - 1
            kind = Annotated[kind, Meta(**bounds)]
        return convert(value, kind, strict=strict)


def _refusal(unit: Unit, bounds: str, value: Any) -> UserError:
    return UserError(f"must be {unit.form}{bounds and f', {bounds}'}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of options. Raises UserError for values of other types or out of bounds."""

    def __post_init__(self) -> None:
        for each in declared_in(type(self)):
            try:
                value = each.check(getattr(self, each.name))
            except UserError as error:
                raise UserError(f"{each.name} {error}") from None
            object.__setattr__(self, each.name, value)


def declared_in(kind: type) -> list[OptionField]:
    """Return the fields of a dataclass that are declared as options, in order.

    Other fields are for programs only. Raises TypeError for an unsupported type.
    """
    hints = get_type_hints(kind, include_extras=True)
    declared = (declared_by(each.name, hints[each.name], each) for each in fields(kind))
    return [each for each in declared if each is not None]


def declared_by(name: str, hint: Any, default: Any) -> OptionField | None:
    """Return the option that a default of `option`, or else an annotation, declares; None if there
    is none."""
    plain, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if isinstance(default, Field):
        marks, default = [*default.metadata.values(), *marks], default.default
    option = next((mark for mark in marks if isinstance(mark, Option)), None)
    if option is None:
        return None
    types = set(get_args(plain)) if get_origin(plain) in (Union, UnionType) else {plain}
    optional = NoneType in types
    literals = {each for each in types if get_origin(each) is Literal}
    words = tuple(word for each in literals for word in get_args(each))
    (plain,) = types - literals - {NoneType}
    several = get_origin(plain) is list
    plain = get_args(plain)[0] if several else plain
    if plain not in UNITS and not issubclass(plain, StrEnum):
        raise TypeError(f"{name} cannot be a {plain}")
    return OptionField(name, plain, optional, several, default, option, words)


def gather(kind: type[T], options: T | None, given: Mapping[str, Any]) -> T:
    """Return `options`, or those `given` by name. Raises TypeError for both at once."""
    if options is not None and given:
        raise TypeError(f"give options as one {kind.__name__} or by name, not both")
    return kind(**given) if options is None else options
