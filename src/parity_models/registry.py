"""The extensions of one kind, by name: built-in ones, and users' own."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from parity_models.errors import UserError
from parity_models.options import Spell, make_options, options_of
from parity_models.own_code import load_own

T = TypeVar("T")


def is_own(name: str) -> bool:
    """Is it the name of a user's own class, which is imported when it is looked up?"""
    return ":" in name


class Registry(Generic[T]):
    """Classes of one `kind` ("policy"), by their attribute `name`.

    A name with a colon is a user's own class, as `package.module:Class`; it derives from `base`.
    """

    def __init__(self, kind: str, base: Any, *built_in: type[T]) -> None:
        self._kind = kind
        self._base = base
        self._built_in = {str(vars(each)["name"]): each for each in built_in}

    def register(self, *kinds: type[T]) -> None:
        """Add classes as if they were built in, as a package that extends this one does."""
        self._built_in |= {str(vars(each)["name"]): each for each in kinds}

    @property
    def names(self) -> list[str]:
        """The names of the built-in ones."""
        return list(self._built_in)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self._built_in.values())

    def find(self, name: str) -> type[T]:
        """The class of this name. Raises UserError if there is none, or it is of another kind."""
        if is_own(name):
            own = load_own(name)
            if not (isinstance(own, type) and issubclass(own, self._base)):
                base = f"{self._base.__module__}.{self._base.__qualname__}"
                raise UserError(f"{name} is no {self._kind}: it must be a subclass of {base}")
            return own
        if name not in self._built_in:
            near = get_close_matches(name, self._built_in, 1)
            meant = f"did you mean {near[0]}? There are" if near else "there are"
            raise UserError(
                f"there is no {self._kind} {name!r}; {meant} {', '.join(self._built_in)}, and your "
                "own as package.module:Class"
            )
        return self._built_in[name]

    def parse(self, text: str) -> tuple[type[T], Any]:
        """The class and the `Options` that a text stands for, as `read` reads it.

        Raises UserError as `options` does.
        """
        name, given = self.read(text)
        return self.find(name), self.options(name, given)

    def read(self, text: str) -> tuple[str, dict[str, Any]]:
        """The name and the options that a text gives: NAME, or NAME@OPTION=VALUE,OPTION=VALUE.

        The value of the first option may stand alone, NAME@VALUE. Raises UserError as `find` does,
        and for values that are none of their option's type.
        """
        name, at, rest = text.partition("@")
        kind: Any = self.find(name)
        declared = {field.name: field for field in options_of(kind.Options)}
        given: dict[str, Any] = {}
        for part in rest.split(",") if at else ():
            option, equals, value = part.partition("=")
            if not equals and not given and declared:
                option, value = next(iter(declared)), part
            given[option] = declared[option].read(value) if option in declared else value
        return name, given

    def options(self, name: str, given: Mapping[str, Any], spell: Spell = str) -> Any:
        """The `Options` of the extension of this name, with the values that are given.

        Raises UserError as `find` does, for options that it has not, and for values that cannot be.
        """
        kind: Any = self.find(name)
        options = _names(kind)
        for option in given:
            if option not in options:
                raise UserError(
                    f"{spell(option)} is no option of the {self._kind} {name}"
                    + (self._instead(option, options, spell))
                )
        return make_options(kind.Options, given, spell)

    def _instead(self, option: str, options: list[str], spell: Spell) -> str:
        """What to do about an option that an extension with these options has not."""
        if near := get_close_matches(option, options, 1):
            return f"; did you mean {spell(near[0])}?"
        if having := [name for name, each in self._built_in.items() if option in _names(each)]:
            kind = self._kind.replace(" ", "_")
            return f" but of {', '.join(having)}; leave it out or choose another {spell(kind)}"
        has = f"it has {', '.join(map(spell, options))}" if options else "it has none"
        return f"; {has}"


def _names(kind: Any) -> list[str]:
    """The names of an extension's options."""
    return [field.name for field in options_of(kind.Options)]
