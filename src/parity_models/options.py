"""The options of extensions: declared once, as a frozen dataclass, and checked.

An extension (a policy, a dispatch rule) has a subclass of `Options`. Each field says its type, its
default and, by an `Option` in its annotation, its help, unit and range; flags, fields of files,
arguments and reference pages are derived from that:

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        copies: Annotated[int, Option("How often each query is sent.", at_least=2)] = 2
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import StrEnum
from math import inf, isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from parity_models.errors import UserError

Spell = Callable[[str], str]
"""How the user writes the name of an option."""


Amounts = dict[str, float]
"""The type of an option that says how much of each of some things; typed as NAME=AMOUNT,..."""

Value = bool | int | float | str | Amounts
"""What an option is set to, in files."""

SECONDS = "s"
"""The unit of times; users type them in milliseconds, where an option does not say otherwise."""

BYTES = "bytes"

TYPED = {"ms": 1e-3, "s": 1.0, "MiB": 2.0**20, "": 1.0}
"""What users type values in, on the command line and in arguments of applications: so many of the
option's own unit."""

TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""What may follow the number of a time, in seconds."""

_TIME = re.compile(rf"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*({'|'.join(TIMES)})?", re.IGNORECASE)
_TIME_NAMES = {"ms": "milliseconds", "s": "seconds", "min": "minutes"}


def read_time(written: str, unit: str) -> float:
    """The time that is written like this, in `unit`; so is a bare number. Raises UserError."""
    match = _TIME.fullmatch(written.strip())
    value = inf if match is None else float(match[1])
    if match is None or value == inf:
        raise UserError(
            f"{written!r} is no time; write a number of {_TIME_NAMES[unit]}, or one with a unit, "
            "as 50ms, 2s, 5m or 1h"
        )
    return value if match[2] is None else value * TIMES[match[2].lower()] / TIMES[unit]


@dataclass(frozen=True)
class Option:
    """What an option is for, beyond its type and default.

    A number lies from `at_least`, or `above`, to `at_most`, or `below`, in its `unit`, and is
    finite; of one that does not, `hint` is said as well. Users type it in `typed`, a key of TYPED.
    `metavar` stands for a text in help: FILE. `needs` is another option and the value it must be
    given beside this one; `excludes`, one that must not be given beside it.
    """

    help: str
    _: KW_ONLY
    unit: str = ""
    typed: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    hint: str = ""
    metavar: str = ""
    needs: tuple[str, str] | None = None
    excludes: str | None = None

    @property
    def typed_in(self) -> str:
        """What users type it in: a key of TYPED."""
        return self.typed or ("ms" if self.unit == SECONDS else "")

    @property
    def range(self) -> str:
        """The range in words; empty if there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self._say(self.at_most)}"
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self._say(self.below)}"
        words = {
            "above {}": self.above,
            "{} or more": self.at_least,
            "below {}": self.below,
            "{} or less": self.at_most,
        }
        return " and ".join(
            text.format(self._say(value)) for text, value in words.items() if value is not None
        )

    def _say(self, value: float) -> str:
        return f"{value:g} {self.unit}" if self.unit and value else f"{value:g}"

    def allows(self, value: float) -> bool:
        """Does the number lie in the range?"""
        return (
            isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class OptionField:
    """A declared option: `kind` is its type (bool, int, float, str, dict or a StrEnum).

    With `optional`, its default is None: not given.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    option: Option

    @property
    def is_time(self) -> bool:
        """Is it a time, which may be written with a unit of its own?"""
        return self.option.unit == SECONDS

    @property
    def default_in_words(self) -> str:
        """The default as users write it; empty if there is none."""
        if self.default is None or self.default is False:
            return ""
        if isinstance(self.default, int | float) and not isinstance(self.default, bool):
            return f"{self.default / TYPED[self.option.typed_in]:g}"
        return str(self.default)

    @property
    def metavar(self) -> str | None:
        """What stands for the value in help; None for a flag without one."""
        if issubclass(self.kind, StrEnum):
            return f"[{'|'.join(self.kind)}]"
        if self.kind is dict:
            return "NAME=AMOUNT,..."
        times = {"ms": "MILLISECONDS", "s": "SECONDS", "MiB": "MIB"}
        kinds = {int: "N", float: "NUMBER", str: "TEXT"}
        return self.option.metavar or times.get(self.option.typed_in) or kinds.get(self.kind)

    @property
    def _a_kind(self) -> str:
        return f"{'an' if self.kind is int else 'a'} {self.kind.__name__}"

    def _amounts(self, text: str, spell: Spell) -> Amounts:
        amounts: Amounts = {}
        try:
            for name, amount in (pair.split("=") for pair in text.split(",")):
                name = name.strip()
                if name in amounts:
                    raise UserError(f"{spell(self.name)} has two amounts of {name}")
                amounts[name] = float(amount)
        except ValueError:
            raise UserError(
                f"{spell(self.name)} takes amounts by name, as gpu=1,disk=0.5, not {text!r}"
            ) from None
        return amounts

    @staticmethod
    def _is_amount(value: Any) -> bool:
        return isinstance(value, int | float) and 0 <= value < inf

    def from_typed(self, value: Any, spell: Spell) -> Any:
        """What a user typed, in the option's unit. Raises UserError if it cannot be."""
        typed = self.option.typed_in
        if self.kind is dict and isinstance(value, str):
            return self._amounts(value, spell)
        if self.is_time and isinstance(value, str):
            try:
                value = read_time(value, typed)
            except UserError as error:
                raise UserError(f"{spell(self.name)}: {error}") from None
        if not typed or isinstance(value, bool) or not isinstance(value, int | float):
            return value
        in_unit = value * TYPED[typed]
        if self.kind is float:
            return in_unit
        if not isfinite(in_unit):
            raise UserError(f"{spell(self.name)} is a number of {typed}, not {value}")
        return int(in_unit)

    def read(self, text: str) -> Any:
        """The value that is written like this. Raises UserError if it is none of the type."""
        try:
            if self.kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return self.kind(text) if self.kind in (int, float) else text
        except (ValueError, KeyError):
            raise UserError(f"{self.name} must be {self._a_kind}, got {text!r}") from None

    def convert(self, value: Any, spell: Spell) -> Any:
        """The value in the option's type; raises UserError if it is none, or out of range."""
        name, kind = spell(self.name), self.kind
        if value is None and self.optional:
            return None
        if issubclass(kind, StrEnum):
            try:
                return kind(value)
            except ValueError:
                raise UserError(f"{name} must be one of {', '.join(kind)}, got {value}") from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"{name} must be {self._a_kind}, got {value!r}")
        if isinstance(value, dict) and not all(map(self._is_amount, value.values())):
            raise UserError(f"{name} must be amounts of 0 or more by name, got {value}")
        if isinstance(value, int | float) and not self.option.allows(value):
            within = self.option.range or "a finite number"
            hint = self.option.hint and f"; {self.option.hint}"
            raise UserError(f"{name} must be {within}, got {value:g}{hint}")
        return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an extension. Raises UserError for values out of range."""

    def __post_init__(self) -> None:
        options_of(type(self))
        check_declared(self)


def check_declared(instance: Any) -> None:
    """Convert the declared options of a frozen dataclass that is being made.

    Raises UserError for values out of range.
    """
    for field in declared_in(type(instance)):
        value = field.convert(getattr(instance, field.name), str)
        object.__setattr__(instance, field.name, value)


T = TypeVar("T", bound=Options)


def options_of(kind: type[Options]) -> list[OptionField]:
    """The options that are declared, in order. Raises TypeError for one that cannot be."""
    declared = declared_in(kind)
    undeclared = {field.name for field in fields(kind)} - {field.name for field in declared}
    for name in sorted(undeclared):
        raise TypeError(f"{kind.__qualname__}.{name} is not Annotated with an Option")
    return declared


def declared_in(kind: type) -> list[OptionField]:
    """The fields of any dataclass that are declared as options, in order.

    Raises TypeError for one whose type cannot be.
    """
    hints = get_type_hints(kind, include_extras=True)
    declared = []
    for field in fields(kind):
        hint = hints[field.name]
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        option = next((mark for mark in marks if isinstance(mark, Option)), None)
        if option is None:
            continue
        type_ = get_args(hint)[0]
        types = set(get_args(type_)) if isinstance(type_, UnionType) else {type_}
        optional = NoneType in types
        (plain,) = types - {NoneType}
        plain = dict if plain == Amounts else plain
        if plain not in (bool, int, float, str, dict) and not issubclass(plain, StrEnum):
            raise TypeError(f"{kind.__qualname__}.{field.name} cannot be a {plain}")
        declared.append(OptionField(field.name, plain, optional, field.default, option))
    return declared


def make_options(kind: type[T], given: Mapping[str, Any], spell: Spell = str) -> T:
    """The options with these values, which all are declared; `spell` says how they were written.

    Raises UserError for values that are out of range or say nothing beside another.
    """
    values = {}
    for field in options_of(kind):
        if field.name not in given:
            continue
        values[field.name] = field.convert(given[field.name], spell)
        needs, excludes = field.option.needs, field.option.excludes
        if needs is not None and given.get(needs[0]) != needs[1]:
            raise UserError(f"{spell(field.name)} needs {spell(needs[0])} {needs[1]} beside it")
        if excludes is not None and excludes in given:
            raise UserError(f"give {spell(field.name)} or {spell(excludes)}, not both")
    return kind(**values)


def gather(kind: type[T], options: T | None, given: Mapping[str, Any]) -> T:
    """Return `options`, or those `given` by name, with paths as text.

    Raises TypeError for both at once and for names that there are not, and UserError for values
    out of range.
    """
    if options is not None:
        if given:
            raise TypeError(f"give options as one {kind.__name__} or by name, not both")
        return options
    names = {field.name for field in fields(kind)}
    if unknown := sorted(given.keys() - names):
        raise TypeError(f"no option is called {unknown[0]!r}; there are {', '.join(sorted(names))}")
    texts = {name: str(each) if isinstance(each, Path) else each for name, each in given.items()}
    return make_options(kind, texts)
