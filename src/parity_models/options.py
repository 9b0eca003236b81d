"""Options: declared once, in a dataclass or a command's signature, and checked.

A field says its type, its default and, by an `Option` in its annotation, its help, unit and range.
Flags, variables, keys of files and reference pages are derived from that:

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        copies: Annotated[int, Option("How often each query is sent.", at_least=2)] = 2
"""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import StrEnum
from math import inf, isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from parity_models.errors import UserError

SECONDS = "s"
"""The unit of times; users type them in milliseconds, unless an option says otherwise."""

MINUTES = "min"

BYTES = "bytes"

SHARE = "share"
"""The unit of shares, from 0 to 1; users may write them in percent."""

SCALES = {"ms": 1e-3, "s": 1.0, "min": 1.0, "MiB": 2.0**20, "": 1.0}
"""The units that users type bare numbers in; each in the option's own unit."""

TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""Suffixes of times, in seconds."""

_TIME = re.compile(rf"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*({'|'.join(TIMES)})?", re.IGNORECASE)
_NAMES = {"ms": "milliseconds", "s": "seconds", "min": "minutes"}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}

Value = bool | int | float | str
"""The value of an option in a file."""


def read_time(written: str, unit: str) -> float:
    """Return a written time, such as 50ms, in `unit`, which is also that of a bare number.

    Raises UserError for anything else.
    """
    match = _TIME.fullmatch(written.strip())
    value = inf if match is None else float(match[1])
    if match is None or value == inf:
        raise UserError(
            f"must be a number of {_NAMES[unit]}, or a time with a unit, as 50ms, 2s, 5m or 1h; "
            f"got {written!r}"
        )
    return value if match[2] is None else value * TIMES[match[2].lower()] / TIMES[unit]


@dataclass(frozen=True)
class Option:
    """The description of an option, beyond its type and default.

    A number lies from `at_least`, or `above`, to `at_most`, or `below`, in its `unit`, and is
    finite. Users type bare numbers in the unit `typed`, a key of SCALES. `metavar` stands for the
    value in help. `excludes` is an option that must not be given together with this one.
    """

    help: str
    _: KW_ONLY
    unit: str = ""
    typed: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    metavar: str = ""
    excludes: str | None = None

    @property
    def typed_in(self) -> str:
        """The unit of a bare number that a user types: a key of SCALES."""
        return self.typed or {SECONDS: "ms", MINUTES: "min", BYTES: "MiB"}.get(self.unit, "")

    @property
    def scale(self) -> float:
        """The size of the unit that users type, in the option's unit."""
        return SCALES[self.typed_in]

    def allows(self, value: float) -> bool:
        """Return whether the number, in the option's unit, lies in the range."""
        return (
            isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def range_in(self, unit: str, scale: float) -> str:
        """Return the range in words, in a unit that is `scale` of the option's own."""

        def say(value: float) -> str:
            return f"{value / scale:g} {unit}" if unit and value else f"{value / scale:g}"

        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least / scale:g} to {say(self.at_most)}"
        if self.above is not None and self.below is not None:
            return f"between {self.above / scale:g} and {say(self.below)}"
        words = {
            "above {}": self.above,
            "{} or more": self.at_least,
            "below {}": self.below,
            "{} or less": self.at_most,
        }
        found = [text.format(say(value)) for text, value in words.items() if value is not None]
        return " and ".join(found) or "a finite number"


@dataclass(frozen=True)
class OptionField:
    """A declared option.

    `kind` is its type: bool, int, float, str, Path or a StrEnum, or, with `several`, that of each
    value. With `optional`, its default is None: not given.
    """

    name: str
    kind: type
    optional: bool
    several: bool
    default: Any
    option: Option

    @property
    def default_in_words(self) -> str:
        """The default as users write it; empty if there is none."""
        if self.default is None or self.default is False or self.several:
            return ""
        return self.write(self.default)

    @property
    def metavar(self) -> str | None:
        """The placeholder of the value in help; None for a flag without one."""
        if issubclass(self.kind, StrEnum):
            return f"[{'|'.join(self.kind)}]"
        by_unit = {"ms": "MILLISECONDS", "s": "SECONDS", "min": "MINUTES", "MiB": "MIB"}
        share = "SHARE" if self.option.unit == SHARE else None
        unit = by_unit.get(self.option.typed_in) or share
        return self.option.metavar or unit or _METAVARS.get(self.kind)

    def parse(self, written: Any) -> Any:
        """Return the value that a user wrote, in the option's unit.

        A value from a file may have its type already. Raises UserError, with a message that begins
        with "must", for an invalid value.
        """
        typed, scale = self.option.typed_in, self.option.scale
        value = self._read(written) if isinstance(written, str) else written
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"must be below 2^63, got {value}")
        if not typed or isinstance(value, bool) or not isinstance(value, int | float):
            return self.check(value)
        if not self.option.allows(value * scale):
            raise UserError(f"must be {self.option.range_in(typed, scale)}, got {written}")
        return self.kind(value * scale)

    def write(self, value: Any) -> str:
        """Return a value as a user types it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return str(value).lower() if isinstance(value, bool) else str(value)
        return f"{value / self.option.scale:.12g}"

    def _read(self, written: str) -> Any:
        try:
            if self.option.typed_in in _NAMES:
                return read_time(written, self.option.typed_in)
            if self.kind is bool:
                return {"true": True, "false": False}[written.lower()]
            if self.option.unit == SHARE and written.endswith("%"):
                return float(written.removesuffix("%")) / 100
            number = float if self.option.typed_in else self.kind
            return number(written) if self.kind in (int, float) else written
        except (ValueError, KeyError):
            pass
        if self.option.unit == SHARE:
            raise UserError(f"must be a share, as 30% or 0.3, got {written!r}")
        raise UserError(f"must be {_KINDS[self.kind]}, got {written!r}")

    def check(self, value: Any) -> Any:
        """Return the value in the option's type.

        Raises UserError, with a message that begins with "must", if it is of another type or out
        of range.
        """
        if value is None and self.optional:
            return None
        if issubclass(self.kind, StrEnum):
            try:
                return self.kind(value)
            except ValueError:
                choices = ", ".join(self.kind)
                raise UserError(f"must be one of {choices}, got {value!r}") from None
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.kind is Path and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, self.kind) or isinstance(value, bool) != (self.kind is bool):
            raise UserError(f"must be {_KINDS[self.kind]}, got {value!r}")
        if isinstance(value, int | float) and not self.option.allows(value):
            is_share = self.option.unit == SHARE
            within = self.option.range_in("" if is_share else self.option.unit, 1)
            hint = "; 0.99, or 99%, stands for 99 of 100" if is_share else ""
            raise UserError(f"must be {within}, got {value:g}{hint}")
        return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of options. Raises UserError for values out of range or that exclude each other."""

    def __post_init__(self) -> None:
        for field in declared_in(type(self)):
            try:
                value = field.check(getattr(self, field.name))
            except UserError as error:
                raise UserError(f"{field.name} {error}") from None
            object.__setattr__(self, field.name, value)
            if (excluded := field.option.excludes) is not None:
                both = (field.name, excluded)
                if all(getattr(self, each) != getattr(type(self), each) for each in both):
                    raise UserError(f"give {' or '.join(map(flag_of, both))}, not both")


def declared_in(kind: type) -> list[OptionField]:
    """Return the fields of a dataclass that are declared as options, in order.

    A field without an `Option` is for programs only. Raises TypeError for an unsupported type.
    """
    hints = get_type_hints(kind, include_extras=True)
    declared = (declared_by(each.name, hints[each.name], each.default) for each in fields(kind))
    return [each for each in declared if each is not None]


def declared_by(name: str, hint: Any, default: Any) -> OptionField | None:
    """Return the option that an annotation declares; None if it has no `Option`."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    option = next((mark for mark in marks if isinstance(mark, Option)), None)
    if option is None:
        return None
    plain = get_args(hint)[0]
    types = set(get_args(plain)) if isinstance(plain, UnionType) else {plain}
    optional = NoneType in types
    (plain,) = types - {NoneType}
    several = get_origin(plain) is list
    plain = get_args(plain)[0] if several else plain
    if plain not in _KINDS and not issubclass(plain, StrEnum):
        raise TypeError(f"{name} cannot be a {plain}")
    return OptionField(name, plain, optional, several, default, option)


T = TypeVar("T")


def gather(kind: type[T], options: T | None, given: Mapping[str, Any]) -> T:
    """Return `options`, or those `given` by name, with paths as text.

    Raises TypeError for both at once and for unknown names, and UserError as the options do.
    """
    if options is not None:
        if given:
            raise TypeError(f"give options as one {kind.__name__} or by name, not both")
        return options
    declared: Any = kind
    names = {field.name for field in fields(declared)}
    if unknown := sorted(given.keys() - names):
        raise TypeError(f"no option is called {unknown[0]!r}; there are {', '.join(sorted(names))}")
    texts = {name: str(each) if isinstance(each, Path) else each for name, each in given.items()}
    return kind(**texts)


def flag_of(option: str) -> str:
    """Return the flag of an option."""
    return f"--{option.replace('_', '-')}"
