"""The extensions of one kind, by name: built-in ones, and users' own."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from parity_models.errors import UserError
from parity_models.own_code import load_own

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one `kind` ("policy"), by their attribute `name`.

    A name with a colon is a user's own class, as `package.module:Class`; it derives from `base`.
    """

    def __init__(self, kind: str, base: Any, *built_in: type[T]) -> None:
        self._kind = kind
        self._base = base
        self._built_in = {str(vars(each)["name"]): each for each in built_in}

    @property
    def names(self) -> list[str]:
        """The names of the built-in ones."""
        return list(self._built_in)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self._built_in.values())

    def find(self, name: str) -> type[T]:
        """The class of this name. Raises UserError if there is none, or it is of another kind."""
        if ":" in name:
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
