"""What users name as `package.module:name` on the command line: code of their own."""

import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from parity_models.errors import UserError


def load_own(reference: str) -> Any:
    """What `reference`, a `package.module:name`, names; modules in the current folder count.

    Only for what the user typed, or wrote into an experiment that they run: never for names out of
    bundles or sockets. Raises UserError for a module or name that is not there, and for a module
    that cannot be imported.
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
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ":"):
            raise UserError(
                f"there is no module {error.name!r} here or installed; {reference!r} is looked "
                f"for from {here} on"
            ) from error
        raise UserError(f"importing {module} failed: {say(error)}") from error
    try:
        return getattr(found, name)
    except AttributeError:
        where = getattr(found, "__file__", "built in")
        near = get_close_matches(name, vars(found), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"module {module} ({where}) has no {name!r}{meant}") from None


def say(error: BaseException) -> str:
    """What the user's code raised, in a line."""
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
