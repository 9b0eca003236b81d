"""TOML files that describe what an experiment does: those of the package, by name, or any."""

from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

import msgspec

from parity_models.documents import as_struct, content_of
from parity_models.errors import UserError

T = TypeVar("T")


def names_in(folder: Traversable) -> list[str]:
    """Return the names of the TOML files in a folder of the package."""
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_toml(name: str, folder: Traversable, kind: type[T], notes: str) -> T:
    """Read the struct that a file describes, one of the package's `folder` by name or any; `notes`
    is the page about such files. Raises UserError for a missing file, and for a wrong one."""
    known, what = names_in(folder), kind.__name__.lower()
    file = folder / f"{name}.toml" if name in known else Path(name)
    try:
        return as_struct(msgspec.toml.decode(content_of(file)), kind)
    except OSError as error:
        near = get_close_matches(name, known, 1)
        meant = f"did you mean {near[0]}? Give" if near else "give"
        raise UserError(
            f"cannot read the {what} {name}: {error.strerror}; {meant} a file, or one of "
            f"{', '.join(known)}"
        ) from error
    except msgspec.DecodeError as error:
        raise UserError(f"{name} is not TOML: {error}; see {notes}") from error
    except (ValueError, UserError) as error:
        raise UserError(f"{name} does not describe a {what}: {error}; see {notes}") from error
