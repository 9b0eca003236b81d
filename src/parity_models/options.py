"""The options of extensions: declared once, as a frozen dataclass, and checked.

An extension (a policy, a dispatch rule) has a subclass of `Options`. Each field says its type, its
default and, by an `Option` in its annotation, its help, unit and range; flags, fields of files,
arguments and reference pages are derived from that:

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        copies: Annotated[int, Option("How often each query is sent.", at_least=2)] = 2
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import StrEnum
from math import isfinite
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from parity_models.errors import UserError

Spell = Callable[[str], str]
"""How the user writes the name of an option."""


SECONDS = "s"
"""The unit of times; commands and arguments of applications take them in milliseconds."""


@dataclass(frozen=True)
class Option:
    """What an option is for, beyond its type and default.

    A number lies from `at_least`, or `above`, to `at_most`, or `below`, in its `unit`, and is
    finite. `needs` is another option and the value it must be given beside this one; `excludes`,
    one that must not be given beside it.
    """

    help: str
    _: KW_ONLY
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    needs: tuple[str, str] | None = None
    excludes: str | None = None

    @property
    def range(self) -> str:
        """The range in words; empty if there is none."""
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
    """A declared option: `kind` is its type (bool, int, float, str or a StrEnum).

    With `optional`, its default is None: not given.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    option: Option

    @property
    def default_in_words(self) -> str:
        """The default as users write it; empty if there is none."""
        if self.default is None:
            return ""
        if isinstance(self.default, float):
            return f"{self.default * (1e3 if self.option.unit == SECONDS else 1):g}"
        return str(self.default)

    @property
    def metavar(self) -> str | None:
        """What stands for the value in help; None: the name of its type."""
        if issubclass(self.kind, StrEnum):
            return f"[{'|'.join(self.kind)}]"
        return "MILLISECONDS" if self.option.unit == SECONDS else None

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
            raise UserError(f"{name} must be a {kind.__name__}, got {value!r}")
        if isinstance(value, int | float) and not self.option.allows(value):
            within = self.option.range or "a finite number"
            raise UserError(f"{name} must be {within}, got {value:g}")
        return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an extension. Raises UserError for values out of range."""

    def __post_init__(self) -> None:
        for field in options_of(type(self)):
            value = field.convert(getattr(self, field.name), str)
            object.__setattr__(self, field.name, value)


T = TypeVar("T", bound=Options)


def options_of(kind: type[Options]) -> list[OptionField]:
    """The options that are declared, in order. Raises TypeError for one that cannot be."""
    hints = get_type_hints(kind, include_extras=True)
    declared = []
    for field in fields(kind):
        hint = hints[field.name]
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        option = next((mark for mark in marks if isinstance(mark, Option)), None)
        if option is None:
            raise TypeError(f"{kind.__qualname__}.{field.name} is not Annotated with an Option")
        types = set(get_args(get_args(hint)[0]) or [get_args(hint)[0]])
        optional = NoneType in types
        (plain,) = types - {NoneType}
        if plain not in (bool, int, float, str) and not issubclass(plain, StrEnum):
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
