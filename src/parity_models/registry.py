"""The extensions of one kind, by name: built-in ones, and users' own."""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from parity_models.errors import UserError, suggest
from parity_models.options import OptionField, declared_in

T = TypeVar("T")


def is_own(name: str) -> bool:
    """Return whether this names a user's own class, which is imported when it is looked up."""
    return ":" in name


def load_own(reference: str) -> Any:
    """Return the object that `package.module:name` names; the current folder is searched, too.

    Only for names that the user typed, or wrote into an experiment that they run: never for names
    from bundles or sockets. Raises UserError for a module or name that does not exist, and for a
    module that cannot be imported.
    """
    module, _, name = reference.partition(":")
    if not module or not name.isidentifier():
        raise UserError(f"{reference!r} is not of the form package.module:name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UserError(
            f"importing {module} failed: {say(error)} ({reference!r} is searched for from {here})"
        ) from error
    if not hasattr(found, name):
        raise UserError(
            f"module {module} ({found.__file__}) has no {name!r}{suggest(name, vars(found))}"
        )
    return getattr(found, name)


def say(error: BaseException) -> str:
    """Describe, in one line, an error that a user's code raised."""
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"


class Registry(Generic[T]):
    """Classes of one `kind` ("policy"), by their attribute `name`.

    A name with a colon is a user's own class, as `package.module:Class`; it derives from `base`.
    """

    def __init__(self, kind: str, base: Any, *built_in: type[T]) -> None:
        self._kind = kind
        self._base = base
        self._built_in = {str(vars(each)["name"]): each for each in built_in}

    def register(self, *kinds: type[T]) -> None:
        """Add classes as if they were built in, for packages that extend this one."""
        self._built_in |= {str(vars(each)["name"]): each for each in kinds}

    @property
    def names(self) -> list[str]:
        """The names of the built-in classes."""
        return list(self._built_in)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self._built_in.values())

    def find(self, name: str) -> type[T]:
        """Return the class of this name. Raises UserError if there is none of this kind."""
        if is_own(name):
            own = load_own(name)
            if not (isinstance(own, type) and issubclass(own, self._base)):
                base = f"{self._base.__module__}.{self._base.__qualname__}"
                raise UserError(
                    f"{name} cannot be the {self._kind}: it must be a subclass of {base}"
                )
            return own
        if name not in self._built_in:
            raise UserError(
                f"there is no {self._kind} {name!r}; there are {', '.join(self._built_in)}, and "
                f"your own as package.module:Class{suggest(name, self._built_in)}"
            )
        return self._built_in[name]

    def parse(self, text: str) -> tuple[type[T], Any]:
        """Return the class and the `Options` that a text stands for; see `read`.

        Raises UserError as `options` does.
        """
        name, given = self.read(text)
        return self.find(name), self.options(name, given)

    def read(self, text: str) -> tuple[str, dict[str, Any]]:
        """Return the name and the options in a text: NAME, or NAME@OPTION=VALUE,OPTION=VALUE.

        Values are written as users type them. The value of the first option may stand alone,
        NAME@VALUE. Raises UserError as `find` does, for unknown options, and for invalid values.
        """
        name, at, rest = text.partition("@")
        declared = list(_fields(self.find(name)))
        given: dict[str, Any] = {}
        for part in rest.split(",") if at else ():
            option, equals, value = part.partition("=")
            if not equals and not given and declared:
                option, value = declared[0], part
            option = option.strip().replace("-", "_")
            field = self._field(name, option)
            try:
                given[option] = field.parse(value)
            except UserError as error:
                raise UserError(f"{option} of {name} {error}") from None
        return name, given

    def options(self, name: str, given: Mapping[str, Any]) -> Any:
        """Return the `Options` of the extension of this name, with the given values.

        Raises UserError as `find` does, for unknown options, and for invalid values.
        """
        kind: Any = self.find(name)
        for option in given:
            self._field(name, option)
        return kind.Options(**given)

    def _field(self, name: str, option: str) -> OptionField:
        """Return an option of the extension of this name. Raises UserError if there is none."""
        fields = _fields(self.find(name))
        if option in fields:
            return fields[option]
        said = f"{option} is not an option of the {self._kind} {name}"
        having = [each for each, kind in self._built_in.items() if option in _fields(kind)]
        hint = (
            f" but of {', '.join(having)}" if having else f"; it has {', '.join(fields) or 'none'}"
        )
        raise UserError(f"{said}{suggest(option, fields) or hint}")


def _fields(kind: Any) -> dict[str, OptionField]:
    """Return an extension's options by name."""
    return {field.name: field for field in declared_in(kind.Options)}
